"""The absorption evaluator: a predict-only LightningModule that gathers gradients at candidate words of SAEs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from absorb_pl.attribution.suffix import WordScores
from absorb_pl.data.activation_datamodule import ActivationDataModule
from absorb_pl.data.drafts import user_path
from absorb_pl.data.publication import check_published
from absorb_pl.engine.run_size import RunSize
from absorb_pl.errors import AbsorbError, ManifestMismatchError
from absorb_pl.evaluators.causal import read_probe_weights
from absorb_pl.evaluators.evaluation import GatherGradients
from absorb_pl.evaluators.gradients import GradientEvaluator
from absorb_pl.evaluators.sae_probing import SaeProbing
from absorb_pl.functional.absorption import gradient_scores
from absorb_pl.ranges import check_ranges
from absorb_pl.rules.evidence import Gradients
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.properties import check_hooks_agree
from absorb_pl.schema import GRADIENTS
from absorb_pl.words.prompting import SpellingPrompt
from absorb_pl.words.tasks import Task


@dataclass(frozen=True)
class AbsorptionInputs:
    """What the absorption evaluator reads of the stages before it.

    Attributes:
        letters: `sae, label, main_latents`.
        candidates: `sae, row, label`; `row` is the word's number in the task.
        probe_weights: Weights of the linear probe of each hook, `[classes, d_model]`.
    """

    letters: pd.DataFrame
    candidates: pd.DataFrame
    probe_weights: Mapping[str, Float[Tensor, "classes d_model"]]

    @classmethod
    def from_run(cls, folder: str | Path) -> "AbsorptionInputs":
        """Read them from a study's run folder.

        Raises:
            AbsorbError: The folder holds no finished study.
            CacheCorruptedError: Its tables or probes are not those that one study published together.
        """
        folder = user_path(folder)
        tables = folder / "tables"
        if not (tables / "candidates.parquet").is_file():
            raise AbsorbError(
                "inputs",
                str(folder),
                expected="the run folder of a finished study, with `tables/candidates.parquet`",
                remedy="Run `absorb-pl study` first, or name its `run_dir`.",
            )
        check_published(folder, "tables", "probes")
        return cls(
            letters=pd.read_parquet(tables / "letters.parquet").drop_duplicates(["sae", "label"]),
            candidates=pd.read_parquet(tables / "candidates.parquet"),
            probe_weights=read_probe_weights(folder),
        )


def check_words(candidates: pd.DataFrame, texts: Sequence[SpellingPrompt]) -> None:
    """Refuse candidates that were found among other words than these.

    Args:
        candidates: `row`, and `prompt` where the table came from a study's folder.
        texts: The prompt of each word of the task.

    Raises:
        ManifestMismatchError: A candidate's prompt is not that of its row.
    """
    for row, prompt in candidates[["row", "prompt"]].itertuples(index=False) if "prompt" in candidates else ():
        found = texts[row].base if row < len(texts) else f"only {len(texts)} words"
        if found != prompt:
            raise ManifestMismatchError(
                "inputs",
                f"{prompt[-60:]!r} at row {row}",
                expected=f"the task's own prompt, {found[-60:]!r}",
                remedy="Give the data the same model and task settings as the study had.",
            )


class AbsorptionEvaluator(GradientEvaluator):
    """Scores candidate words by integrated gradients, for any number of SAEs in one pass over the words.

    A `GradientEvaluator` that also says what the class's main latents do at each word, and how latents point along its
    probe: predicts one table per batch, with the columns of `absorb_pl.schema.GRADIENTS`, the evidence that the paper's
    rules judge (see `absorb_pl.rules`). Use a Trainer with `inference_mode=False`: scores are gradients.

    Args:
        model: A `TransformerBridge`, or a name for `load_language_model`.
        saes: SAEs by name, or a list of names for `load_sae`.
        inputs: What the stages before found, or the run folder of a study that holds it.
        evidence: How to score; several ways share the prefixes.
        batch_size: Most sequences in one run of the model; `auto` takes what the device's memory allows.
        sae_dtype: Dtype of SAEs loaded by name.
        model_dtype: Dtype of a model loaded by name.

    Raises:
        NotCausalError: The model gives no next-token logits.
        AbsorbError: The inputs lack one of the SAEs.
    """

    columns = GRADIENTS

    def __init__(
        self,
        model: Any = "speller",
        saes: Sequence[str] | Mapping[str, Any] = (),
        inputs: str | Path | AbsorptionInputs = "lightning_logs/demo",
        evidence: Gradients | Sequence[Gradients] | None = None,
        batch_size: RunSize = "auto",
        sae_dtype: str = "float32",
        model_dtype: str = "float32",
    ) -> None:
        check_ranges(AbsorptionEvaluator.__init__, locals())
        self.inputs = inputs if isinstance(inputs, AbsorptionInputs) else AbsorptionInputs.from_run(inputs)
        super().__init__(
            model, saes, self.inputs.candidates, evidence or Gradients(), batch_size, sae_dtype, model_dtype
        )
        missing = sorted(set(self.saes) - set(self.inputs.letters["sae"]))
        if missing:
            raise AbsorbError(
                "saes",
                missing[0],
                expected=f"SAEs that the inputs hold: {', '.join(self.inputs.letters['sae'].unique())}",
                remedy="Put it into the study whose run folder is given.",
            )
        self._mains = {
            (row["sae"], row["label"]): [int(latent) for latent in row["main_latents"]]
            for row in self.inputs.letters.to_dict("records")
        }
        self._probe_cos: dict[str, Tensor] = {}

    @override
    def prepare(self, task: Task, texts: Sequence[SpellingPrompt]) -> None:
        super().prepare(task, texts)
        check_words(self.inputs.candidates, texts)
        for name, hook in self.hooks.items():
            if hook not in self.inputs.probe_weights:
                check_hooks_agree(self.saes[name], next(iter(self.inputs.probe_weights)))
        self._probe_cos = self.probe_cosines(self.inputs.probe_weights)

    @override
    def describe(self, name: str, rows: Sequence[int], words: WordScores, top_latents: int) -> pd.DataFrame:
        table = super().describe(name, rows, words, top_latents)
        of_labels = []
        for label, own in table.groupby("label", sort=False):
            here = torch.tensor(own.index.to_numpy(), device=words.scores.device)
            mains = self._mains[name, str(label)]
            scores, activations = words.scores[here], words.activations[here]
            cosines = self._probe_cos[name][self.class_names.index(str(label))].to(scores.device)
            top_two = gradient_scores(scores, activations, cosines, mains)
            latents = torch.tensor(own["latents"].tolist(), device=cosines.device)
            found = {
                **{field: values.tolist() for field, values in vars(top_two).items()},
                "main_latents": [mains] * len(here),
                "main_scores": scores[:, mains].tolist(),
                "probe_cos": cosines[latents].tolist(),
            }
            of_labels.append(own.assign(**found))
        return pd.concat(of_labels, ignore_index=True)


def gather_gradients(
    sae: SparseAutoencoder,
    data: ActivationDataModule,
    probe_weight: Float[Tensor, "classes d_model"],
    batch_size: RunSize,
    device: torch.device,
) -> GatherGradients:
    """A way to get the gradients at an SAE's candidate words, from the language model that its activations came from.

    Args:
        sae: The SAE, in the scale of unit-norm decoder rows.
        data: The words' activations, with their prompts and the language model.
        probe_weight: Weights of the linear probe.
        batch_size: Most sequences in one run of the model; `auto` takes what the device's memory allows.
        device: Where to run it.
    """
    prompts = data.prompt_data

    def gather(found: SaeProbing, evidence: Gradients) -> pd.DataFrame:
        inputs = AbsorptionInputs(
            letters=found.letters.assign(sae="sae"),
            candidates=found.candidates.assign(sae="sae"),
            probe_weights={data.hook_name: probe_weight},
        )
        evaluator = AbsorptionEvaluator(prompts.language_model, {"sae": sae}, inputs, evidence, batch_size).to(device)
        return evaluator.tabulate_words(prompts, torch.tensor(sorted(found.candidates["row"]), dtype=torch.long))

    return gather

"""The ablation evaluator: true effects of removing latents, beside the scores that stand in for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from absorb_pl.attribution.suffix import WordScores, word_integrated_gradients, words_at_once
from absorb_pl.attribution.word_ablation import WordAblations, word_ablations
from absorb_pl.data.activation_datamodule import ActivationDataModule
from absorb_pl.data.labelled_datamodule import LabelledDataModule
from absorb_pl.engine.prefix import compute_prefix
from absorb_pl.engine.run_size import RunSize
from absorb_pl.evaluators.callbacks import Findings, SaeEvaluation
from absorb_pl.evaluators.causal import CausalEvaluator, batch_prompts, read_probe_weights
from absorb_pl.evaluators.sae_probing import EvaluationRows
from absorb_pl.functional.absorption import SILENT, sample_candidates
from absorb_pl.functional.agreement import score_agreement
from absorb_pl.ranges import Count, NotNegative, Seed, check_ranges
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.schema import ABLATIONS, dtypes, empty_table
from absorb_pl.words.answers import PositiveToken
from absorb_pl.words.prompting import SpellingPrompt
from absorb_pl.words.tasks import Task

ESTIMATES = {"ig_score": 1.0, "attribution": -1.0}
"""Columns that estimate the ablation effect, and what turns their sign into that of the effect."""
_MEASURES = ("pearson", "spearman", "sign", "top")
_AGREEMENT_COLUMNS = {
    "sae": "str",
    "num_words": "int64",
    "num_pairs": "int64",
    "num_ranked_words": "int64",
    **{f"{column}_{measure}": "float64" for column in ESTIMATES for measure in _MEASURES},
}


@dataclass(frozen=True)
class AblationSettings:
    """Settings of the ablation evaluator.

    Attributes:
        steps: Integrated-gradient steps.
        firing_threshold: Latents further from 0 than this are ablated.
        positive_token: Token of the right answer: `answer` is `" X"`, `published` the bare lower-case letter.
    """

    steps: Count = 6
    firing_threshold: NotNegative = SILENT
    positive_token: PositiveToken = "answer"

    def __post_init__(self) -> None:
        check_ranges(AblationSettings, vars(self))


class AblationEvaluator(CausalEvaluator):
    """Removes every latent that fires at a word, one at a time, and sets what that does beside cheap estimates.

    Give batches of a `PromptDataModule`. The prefix of a batch is run once for all SAEs of all hooks; the steps of
    the integrated gradients, the attributions and the ablations all start from it. Attribution takes no run of its
    own, for the first integrated-gradient step is the gradient at the word as it is. Use a Trainer with
    `inference_mode=False`.

    Predicts one row a (word, latent) pair that fires:

    - `ablation_effect`: metric without the latent − metric, negative where the latent helps;
    - `ig_score`: integrated-gradient score, of the same sign;
    - `attribution`: gradient × activation, positive where the latent helps: how important it is, not what is lost;
    - `probe_cos`: cosine of the latent's decoder row and the probe of the word's class; missing without probes;
    - `engine`: whether suffixes after a kept prefix were run, or whole sequences (see `engine.compute_prefix`).

    The metric is `functional.letter_metric` on the task's answers.

    Args:
        model: A `TransformerBridge`, or a name for `load_language_model`.
        saes: SAEs by name, or a list of names for `load_sae`.
        probes: Weights of the linear probe of each hook, `[classes, d_model]`, or the run folder of a study that
            holds them.
        settings: Settings of the evaluator.
        batch_size: Most sequences in one run of the model; `auto` takes what the device's memory allows.
        sae_dtype: Dtype of SAEs loaded by name.
        model_dtype: Dtype of a model loaded by name.

    Raises:
        NotCausalError: The model gives no next-token logits.

    Example:
        >>> evaluator_of_a_study = lambda: AblationEvaluator(
        ...     saes=["speller/l1-standard-w512-dense"], probes="lightning_logs/demo"
        ... )
    """

    columns = ABLATIONS

    def __init__(
        self,
        model: Any = "speller",
        saes: Sequence[str] | Mapping[str, Any] = (),
        probes: str | Path | Mapping[str, Any] | None = None,
        settings: AblationSettings | None = None,
        batch_size: RunSize = "auto",
        sae_dtype: str = "float32",
        model_dtype: str = "float32",
    ) -> None:
        check_ranges(AblationEvaluator.__init__, locals())
        self.settings = settings or AblationSettings()
        super().__init__(model, saes, [self.settings.positive_token], batch_size, sae_dtype, model_dtype)
        self.probe_weights = read_probe_weights(probes) if isinstance(probes, str | Path) else dict(probes or {})

    @override
    def prepare(self, task: Task, texts: Sequence[SpellingPrompt]) -> None:
        super().prepare(task, texts)
        self._probe_cos = self.probe_cosines(self.probe_weights)

    @override
    def tabulate(self, batch: dict[str, Tensor]) -> pd.DataFrame:
        """Ablate the latents that fire at the words of a batch, after `prepare`.

        Args:
            batch: A batch of a `PromptDataModule`.

        Returns:
            One row per SAE, word and latent, with the columns of `absorb_pl.schema.ABLATIONS`.
        """
        if len(batch["index"]) == 0 or not self.saes:
            return empty_table(ABLATIONS)
        prompts, metric = batch_prompts(batch), self.metric(batch)
        tables = []
        with torch.enable_grad():
            prefix = compute_prefix(
                self.language_model, prompts, sorted(set(self.hooks.values())), batch_size=self.sequences(batch)
            )
            for name, sae in self.saes.items():
                for places in torch.arange(len(prompts)).split(words_at_once(sae)):
                    shared: dict[str, Any] = {
                        "hook_name": self.hooks[name],
                        "prefix": prefix,
                        "rows": places.tolist(),
                        "batch_size": self.sequences(batch),
                    }
                    found = word_integrated_gradients(
                        self.language_model, sae, prompts, metric, steps=self.settings.steps, **shared
                    )
                    removed = word_ablations(
                        self.language_model,
                        sae,
                        prompts,
                        metric,
                        firing_threshold=self.settings.firing_threshold,
                        **shared,
                    )
                    tables.append(self._pairs(name, batch, places, found, removed).assign(engine=prefix.engine))
        return pd.concat(tables, ignore_index=True).astype(dtypes(ABLATIONS))

    def _pairs(
        self, name: str, batch: dict[str, Tensor], places: Tensor, found: WordScores, removed: WordAblations
    ) -> pd.DataFrame:
        latents, words = removed.latents, removed.rows
        at = (words - places[0].to(words.device), latents)
        scores = {
            "activation": found.activations[at],
            "ig_score": found.scores[at],
            "attribution": found.attributions[at],
            "ablation_effect": removed.scores,
        }
        rows, labels = batch["index"][words].tolist(), batch["labels"][words]
        columns = {
            "row": rows,
            "word": [self.texts[row].word for row in rows],
            "label": [self.class_names[label] for label in labels.tolist()],
            "latent": latents.tolist(),
            **{column: values.double().tolist() for column, values in scores.items()},
            "probe_cos": float("nan"),
        }
        if name in self._probe_cos:
            cosines = self._probe_cos[name]
            columns["probe_cos"] = cosines[labels.to(cosines.device), latents.to(cosines.device)].double().tolist()
        table = pd.DataFrame(columns)
        table.insert(0, "sae", name)
        return table


def agreement_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """How well integrated gradients and attributions foretell ablation effects, one row per SAE.

    Args:
        pairs: From an `AblationEvaluator`.

    Returns:
        `sae, num_words, num_pairs, num_ranked_words`, and for `ig_score` and `attribution` each `_pearson`,
        `_spearman`, `_sign` and `_top` (see `functional.Agreement`); missing if undefined. Attributions are
        negated first, so that all figures are high where the estimate is good.

    Example:
        >>> pairs = pd.DataFrame({"sae": "a", "row": [3, 3], "ig_score": [-2.0, 0.5], "attribution": [1.0, 0.5],
        ...                       "ablation_effect": [-1.5, 0.1]})
        >>> agreement_table(pairs)[["num_words", "num_pairs", "ig_score_sign", "attribution_sign"]].to_dict("records")
        [{'num_words': 1, 'num_pairs': 2, 'ig_score_sign': 1.0, 'attribution_sign': 0.5}]
    """
    rows = []
    for sae, table in pairs.groupby("sae", sort=False):
        words = torch.tensor(table["row"].to_numpy())
        effects = torch.tensor(table["ablation_effect"].to_numpy())
        row: dict[str, Any] = {"sae": sae, "num_words": table["row"].nunique(), "num_pairs": len(table)}
        for column, sign in ESTIMATES.items():
            found = score_agreement(sign * torch.tensor(table[column].to_numpy()), effects, words)
            row["num_ranked_words"] = found.num_ranked_words
            row |= {f"{column}_{measure}": getattr(found, measure) for measure in _MEASURES}
        rows.append(row)
    return pd.DataFrame(rows, columns=list(_AGREEMENT_COLUMNS)).astype(_AGREEMENT_COLUMNS)


class AblationEvaluation(SaeEvaluation):
    """Ablations at a sample of the held-out words, and how well cheap scores foretell them (see `agreement_table`).

    Use a Trainer with `inference_mode=False`: scores are gradients.

    Args:
        sae: Name for `load_sae`, or an SAE.
        num_words: Most words; more are sampled.
        seed: Seed of that sample.
        settings: Settings of the evaluator.
        batch_size: Most sequences in one run of the model; `auto` takes what the device's memory allows.
        sae_dtype: Dtype of an SAE loaded by name.
    """

    data_type = ActivationDataModule

    def __init__(
        self,
        sae: str | SparseAutoencoder,
        num_words: Count = 100,
        seed: Seed = 42,
        settings: AblationSettings | None = None,
        batch_size: RunSize = "auto",
        sae_dtype: str = "float32",
    ) -> None:
        check_ranges(AblationEvaluation.__init__, locals())
        super().__init__(sae, sae_dtype)
        self.num_words, self.seed = num_words, seed
        self.settings = settings
        self.batch_size: RunSize = batch_size

    @override
    def evaluate(self, rows: EvaluationRows, data: LabelledDataModule, device: torch.device) -> Findings:
        assert isinstance(data, ActivationDataModule)
        generator = torch.Generator().manual_seed(self.seed)
        words, _ = sample_candidates(rows.index, self.num_words, generator)
        prompts = data.prompt_data
        probes: dict[str, Float[Tensor, "classes d_model"]] = {data.hook_name: rows.probe_weight}
        evaluator = AblationEvaluator(
            prompts.language_model, {"sae": self.sae}, probes, self.settings, self.batch_size
        ).to(device)
        pairs = evaluator.tabulate_words(prompts, words)
        agreement = agreement_table(pairs)
        known = agreement.drop(columns="sae").iloc[:1].dropna(axis="columns")
        figures = {f"ablation/{name}": float(known[name].sum()) for name in known.columns}
        return {"ablations": pairs, "agreement": agreement}, figures

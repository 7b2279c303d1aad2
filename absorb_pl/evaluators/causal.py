"""What evaluators that run the model on words have in common: model, SAEs, prompts and the letter metric."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor
from typing_extensions import override

from absorb_pl.data.drafts import user_path
from absorb_pl.data.forked_steps import ForkedSteps
from absorb_pl.data.prompt_datamodule import PromptBatches, PromptDataModule, prompt_data_of
from absorb_pl.data.publication import check_published
from absorb_pl.engine.bare import bare_model
from absorb_pl.engine.run_size import RunSize, fitting_size
from absorb_pl.errors import AbsorbError
from absorb_pl.functional.answer_metric import letter_metric
from absorb_pl.functional.similarity import cosine_similarity_matrix
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.models.language_model import resolve_model
from absorb_pl.models.next_token import require_next_token_logits
from absorb_pl.models.quantized import keep_gradients
from absorb_pl.models.widths import largest_of_run, mlp_width
from absorb_pl.ranges import check_ranges
from absorb_pl.saes.loading import load_sae
from absorb_pl.saes.processing import check_positions, check_processing, trained_positions
from absorb_pl.saes.properties import sae_hook_name
from absorb_pl.saes.scale import to_unit_norms
from absorb_pl.schema import Columns, empty_table
from absorb_pl.words.answers import AnswerTokens, PositiveToken, answer_token_ids
from absorb_pl.words.positions import TokenizedPrompts
from absorb_pl.words.prompting import SpellingPrompt
from absorb_pl.words.tasks import Task

_LOGGER = logging.getLogger(__name__)


class CausalEvaluator(ForkedSteps):
    """Base of the predict-only modules that ask what latents at a word do to the model's answer.

    Give batches of a `PromptDataModule`; one table per batch is predicted. Use a Trainer with `inference_mode=False`:
    scores are gradients.

    Args:
        model: A `TransformerBridge`, or a name for `load_language_model`.
        saes: SAEs by name, or a list of names for `load_sae`.
        positive_tokens: Tokens of the right answer that metrics can be asked for.
        batch_size: Most sequences in one run of the model; `auto` takes what the device's memory allows, and fewer if
            that turns out to be too many.
        sae_dtype: Dtype of SAEs loaded by name.
        model_dtype: Dtype of a model loaded by name.

    Raises:
        NotCausalError: The model gives no next-token logits.
        ModelProcessingError: The model lacks the processing that an SAE asks for.

    Attributes:
        columns: Columns of the tables.
        hooks: Hook that each SAE reads, by the SAE's name.
        positive_tokens: Tokens of the right answer that metrics can be asked for.
        run_size: Most sequences in one run of the model, as asked for.
        texts: The prompt of each word of the task, once prepared.
        class_names: The task's classes, once prepared.
    """

    columns: Columns
    positive_tokens: tuple[PositiveToken, ...]
    texts: Sequence[SpellingPrompt]
    class_names: tuple[str, ...]

    def __init__(
        self,
        model: str | HookedModel,
        saes: Sequence[str] | Mapping[str, Any],
        positive_tokens: Sequence[PositiveToken],
        batch_size: RunSize,
        sae_dtype: str = "float32",
        model_dtype: str = "float32",
    ) -> None:
        check_ranges(CausalEvaluator.__init__, locals())
        super().__init__()
        self.language_model = resolve_model(model, dtype=model_dtype)
        require_next_token_logits(self.language_model, type(self).__name__)
        keep_gradients(self.language_model)
        if isinstance(saes, Mapping):
            self.saes = {name: to_unit_norms(sae) for name, sae in saes.items()}
        else:
            self.saes = {name: to_unit_norms(load_sae(name, dtype=sae_dtype), in_place=True) for name in saes}
        for sae in self.saes.values():
            check_processing(self.language_model, sae)
        self.hooks = {name: sae_hook_name(sae) for name, sae in self.saes.items()}
        self.positive_tokens = tuple(positive_tokens)
        self.run_size: RunSize = batch_size
        self._found_size: int | None = None

    @abstractmethod
    def tabulate(self, batch: dict[str, Tensor]) -> pd.DataFrame:
        """What is found on a batch of a `PromptDataModule`, after `prepare`."""

    def prepare(self, task: Task, texts: Sequence[SpellingPrompt]) -> None:
        """Say what the batches to come are about.

        Args:
            task: The task of the words.
            texts: The prompt of each word of the task.
        """
        self._answers = {}
        for token in self.positive_tokens:
            answers = answer_token_ids(task, self.language_model.tokenizer, token)
            self._answers[token] = AnswerTokens(answers.answers.to(self.device), answers.positives.to(self.device))
        self.class_names, self.texts = task.classes, texts
        self.saes = {name: sae.to(self.device) for name, sae in self.saes.items()}

    @override
    def on_predict_start(self) -> None:
        data = prompt_data_of(self.trainer)
        self._check_positions(data.prompts.word_positions)
        self.prepare(data.task, data.texts)
        bare_model(self.language_model)  # is made once, before steps are forked
        super().on_predict_start()

    @override
    def largest(self, batch: dict[str, Tensor]) -> int | None:
        config, runs = getattr(self.language_model, "cfg", None), self.sequences(batch)
        if config is None or not len(batch["lengths"]):
            return None
        own = int((batch["lengths"] - batch["word_positions"]).max())
        widest = max(own * mlp_width(config), int(config.d_vocab), *(len(sae.W_dec) for sae in self.saes.values()))
        return max(largest_of_run(self.language_model, batch["input_ids"]) or 0, runs * widest)

    @override
    def step(self, batch: dict[str, Tensor]) -> pd.DataFrame:
        """`tabulate`, with smaller runs from there on if the device's memory is too short for them."""
        while True:
            try:
                return self.tabulate(batch)
            except torch.OutOfMemoryError as error:
                size = self.sequences(batch)
                if self.run_size != "auto" or size == 1:
                    raise AbsorbError(
                        "batch_size",
                        self.run_size,
                        expected="runs that fit into the device's memory"
                        + (", but even a single sequence does not" if self.run_size == "auto" else ""),
                        remedy="Take fewer prompts at a time or a model in a smaller dtype."
                        if self.run_size == "auto"
                        else "Take a smaller number, or `auto` (`run_batch_size` in a study).",
                    ) from error
            self._found_size = size // 2
            torch.cuda.empty_cache()
            _LOGGER.warning("The device's memory is short: %d sequences run together from here on.", size // 2)

    def sequences(self, batch: Mapping[str, Tensor]) -> int:
        """Most sequences in one run of the model.

        Args:
            batch: A batch of a `PromptDataModule`, by whose lengths `auto` finds a number the first time.
        """
        if self.run_size != "auto":
            return self.run_size
        if self._found_size is None:
            lengths = batch["lengths"]
            own = int((lengths - batch["word_positions"]).max()) if len(lengths) else 1
            self._found_size = fitting_size(self.language_model, own, batch["input_ids"].shape[1], self.device)
        return self._found_size

    def tabulate_words(self, data: PromptDataModule, rows: Int[Tensor, " rows"]) -> pd.DataFrame:
        """What is found on some words of a datamodule, without a Trainer.

        Args:
            data: The prompts.
            rows: Numbers of the words in the task.
        """
        self._check_positions(data.prompts.word_positions[rows])
        self.prepare(data.task, data.texts)
        batches = PromptBatches(data, rows, data.batch_size)
        tables = [
            self.step({key: value.to(self.device) for key, value in batches[number].items()})
            for number in range(len(batches) if len(rows) else 0)
        ]
        return pd.concat(tables, ignore_index=True) if tables else empty_table(self.columns)

    def _check_positions(self, positions: Int[Tensor, " words"]) -> None:
        for name, sae in self.saes.items():
            check_positions(trained_positions(sae), positions, name)

    def probe_cosines(
        self, probe_weights: Mapping[str, Float[Tensor, "classes d_model"]]
    ) -> dict[str, Float[Tensor, "classes latents"]]:
        """Cosines of probes and decoder rows, by the name of each SAE whose hook has a probe.

        Args:
            probe_weights: Weights of the linear probe of each hook.
        """
        return {
            name: cosine_similarity_matrix(probe_weights[hook].to(sae.W_dec.device).float(), sae.W_dec.float())
            for name, sae in self.saes.items()
            if (hook := self.hooks[name]) in probe_weights
        }

    def metric(
        self, batch: dict[str, Tensor], positive_token: PositiveToken | None = None
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The letter metric of a batch's words, as the suffix engine asks for it.

        Args:
            batch: A batch of a `PromptDataModule`.
            positive_token: One of `positive_tokens`; the first when None.
        """
        tokens = self._answers[positive_token or self.positive_tokens[0]]

        def of_rows(last_logits: Tensor, rows: Tensor) -> Tensor:
            return letter_metric(last_logits, batch["labels"][rows], tokens.answers, tokens.positives)

        return of_rows


def batch_prompts(batch: Mapping[str, Tensor]) -> TokenizedPrompts:
    """The prompts of a batch of a `PromptDataModule`."""
    return TokenizedPrompts(batch["input_ids"], batch["attention_mask"], batch["lengths"], batch["word_positions"])


def read_probe_weights(run_dir: str | Path) -> dict[str, Float[Tensor, "classes d_model"]]:
    """Weights of the linear probes that a study trained, by hook name.

    Args:
        run_dir: The run folder of a study.

    Raises:
        AbsorbError: The folder holds no probes.
        CacheCorruptedError: They are not those that a study published.
    """
    run_dir = user_path(run_dir)
    files = sorted((run_dir / "probes").glob("*.safetensors"))
    if not files:
        raise AbsorbError(
            "run_dir",
            str(run_dir),
            expected="the run folder of a finished study, with `probes/*.safetensors`",
            remedy="Run `absorb-pl study` first, or name its `run_dir`.",
        )
    check_published(run_dir, "probes")
    return {file.name.removesuffix(".safetensors"): load_file(file)["weight"] for file in files}

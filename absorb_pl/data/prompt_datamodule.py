"""A LightningDataModule that serves a task's prompts in whole batches."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from absorb_pl.data.drafts import user_path
from absorb_pl.data.shares import Share
from absorb_pl.errors import AbsorbError, RowsError
from absorb_pl.models.identity import content_hash
from absorb_pl.models.language_model import context_length, resolve_model
from absorb_pl.models.next_token import has_next_token_logits
from absorb_pl.ranges import Count, check_ranges
from absorb_pl.words.positions import closes_with_sep, prepends_bos, tokenize_prompts
from absorb_pl.words.prompting import SpellingPrompt
from absorb_pl.words.task_config import TaskConfig
from absorb_pl.words.tasks import Task

_TASK_CONTENT = ("name", "words", "classes", "answers", "template", "example_separator", "children")


class PromptBatches:
    """Whole batches of prompts as items, in order of prompt length and trimmed to their longest prompt.

    Args:
        data: The prompts.
        rows: Which of the task's words to serve.
        batch_size: Prompts a batch; the last may hold fewer.
    """

    def __init__(self, data: "PromptDataModule", rows: Int[Tensor, " rows"], batch_size: Count) -> None:
        check_ranges(PromptBatches.__init__, locals())
        self.data = data
        self.index = rows[data.prompts.lengths[rows].argsort(stable=True)].split(batch_size)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Batch `number`."""
        return self.batch(self.index[number])

    def batch(self, index: Int[Tensor, " rows"]) -> dict[str, Tensor]:
        """A batch of words.

        Args:
            index: Numbers of the words in the task.

        Returns:
            `input_ids`, `attention_mask`, `lengths`, `word_positions`, `labels`, and `index`, the words' numbers
            in the task.
        """
        prompts = self.data.prompts.select(index)
        return {
            "input_ids": prompts.input_ids,
            "attention_mask": prompts.attention_mask,
            "lengths": prompts.lengths,
            "word_positions": prompts.word_positions,
            "labels": self.data.labels[index],
            "index": index.clone(),  # a view would take all numbers along to other processes
        }


class PromptDataModule(LightningDataModule):
    """Serves the prompts of a task, one per word, to predict loops.

    A prompt begins with the model's beginning-of-sequence token if it has one. For an encoder whose tokenizer ends
    texts with a separator it ends with that, as in `[CLS] cat has the first letter: [SEP]`.

    Args:
        model: A `TransformerBridge`, or a name for `load_language_model`; its tokenizer and context are used.
        task: What to ask about which words.
        batch_size: Prompts a batch.
        rows: Numbers of the words to serve, or a Parquet table with a column `row`; all words when None.
        model_dtype: Dtype of a model loaded by name.

    Raises:
        RowsError: The task has no word of a number in `rows`, or its table cannot be read.

    Attributes:
        config: The task's settings.
        task: The built `Task`.
        texts: One `SpellingPrompt` a word.
        prompts: The same, tokenised.
        labels: Class of each word.
        identity: Hash of all that the task says of its words: labels, classes, answers, template and children.
            Whatever is made from labels or answers is cached under it.
    """

    def __init__(
        self,
        model: Any = "speller",
        task: TaskConfig | None = None,
        batch_size: Count = 64,
        rows: str | Path | Sequence[int] | None = None,
        model_dtype: str = "float32",
    ) -> None:
        check_ranges(PromptDataModule.__init__, locals())
        super().__init__()
        self.language_model = resolve_model(model, dtype=model_dtype)
        self.batch_size = batch_size
        self.config = task or TaskConfig()
        causal, tokenizer = has_next_token_logits(self.language_model), self.language_model.tokenizer
        self.task: Task = self.config.build(tokenizer, reads_answers=causal)
        self.labels = torch.tensor(self.task.labels)
        self.identity = content_hash(
            {"labels": self.labels}, {field: getattr(self.task, field) for field in _TASK_CONTENT}
        )
        self.texts: list[SpellingPrompt] = self.config.prompts(self.task)
        self.prompts = tokenize_prompts(
            tokenizer,
            self.texts,
            prepend_bos=prepends_bos(self.language_model),
            append_sep=not causal and closes_with_sep(tokenizer),
            max_length=context_length(self.language_model),
        )
        self.rows = _numbers_of(rows, len(self.texts))

    def only(self, rows: Sequence[int]) -> "PromptDataModule":
        """The same prompts, of which only some are served.

        Args:
            rows: Numbers of the words.
        """
        part = copy.copy(self)
        part.rows = _numbers_of(rows, len(self.texts))
        return part

    @override
    def predict_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        batches = PromptBatches(self, self.rows, self.batch_size)
        return Share(batches, batches.batch(self.rows[:0]), self.trainer).loader()


def prompt_data_of(trainer: Trainer) -> PromptDataModule:
    """The `PromptDataModule` that a Trainer runs on.

    Raises:
        AbsorbError: It runs on something else.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, PromptDataModule):
        raise AbsorbError(
            "datamodule",
            type(data).__name__,
            expected="a PromptDataModule",
            remedy="Call `trainer.predict(module, datamodule=PromptDataModule(...))`.",
        )
    return data


def _numbers_of(rows: str | Path | Sequence[int] | None, words: int) -> Tensor:
    if rows is None:
        return torch.arange(words)
    if isinstance(rows, str | Path):
        try:
            table: Any = pd.read_parquet(user_path(rows), columns=["row"])
        except (OSError, ValueError) as error:
            raise RowsError(
                "rows", str(rows), expected="a Parquet table with a column `row`", remedy=str(error)
            ) from error
        rows = sorted(set(table["row"].tolist()))
    outside = [row for row in rows if not 0 <= row < words]
    if outside:
        raise RowsError(
            "rows", outside[0], expected=f"numbers of the task's {words} words", remedy=f"The last is {words - 1}."
        )
    return torch.tensor(list(rows), dtype=torch.long)

"""The in-context tasks that the speller is trained on, as token ids."""

import string
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from speller.vocabulary import Vocabulary


@dataclass(frozen=True)
class SpellingTemplate:
    """One in-context task: what stands behind the word, and what the model should answer.

    Attributes:
        name: Name of the task.
        behind_word: Text between the word and the answer; empty when the answer follows the word at once.
        answer: Maps a word to its answer, with the leading space.
        share: Part of a training batch's rows.
    """

    name: str
    behind_word: str
    answer: Callable[[str], str]
    share: float


def _first_letter(word: str) -> str:
    return f" {word[0].upper()}"


def _last_letter(word: str) -> str:
    return f" {word[-1].upper()}"


def _name(word: str) -> str:
    return f" {word}"


TEMPLATES = (
    SpellingTemplate("first_letter", " has the first letter:", _first_letter, 0.3),
    SpellingTemplate("last_letter", " has the last letter:", _last_letter, 0.15),
    SpellingTemplate("word", " is the word:", _name, 0.15),
    SpellingTemplate("first_letter_at_word", "", _first_letter, 0.4),
)


@dataclass(frozen=True)
class TokenBatch:
    """Contexts of one task, all of one length.

    Attributes:
        input_ids: `[rows, tokens]`.
        word_positions: `[examples]`, where each example's word stands; the same for all rows.
        answer_positions: `[examples]`, where each answer stands.
        word_indices: `[rows, examples]`, which word of the mixture it is.
    """

    input_ids: Tensor
    word_positions: Tensor
    answer_positions: Tensor
    word_indices: Tensor


class SpellingMixture:
    """Draws contexts of `examples` solved examples, words without repetition within a context.

    Words are the vocabulary's with a space before them, drawn with probability proportional to
    frequency^`power`, and single letters (with and without the space, in both cases), drawn as seldom as the
    rarest word.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: Vocabulary,
        *,
        power: float,
        examples: int,
        seed: int,
    ) -> None:
        letters = [f"{gap}{letter}" for gap in (" ", "") for letter in string.ascii_letters]
        self.words = [*(f" {word}" for word in vocabulary.words), *letters]
        weights = np.array(vocabulary.frequencies) ** power
        weights = np.concatenate([weights, np.full(len(letters), weights.min())])
        self.log_weights = np.log(weights / weights.sum())
        self.examples = examples
        self.rng = np.random.default_rng(seed)
        self.bos = tokenizer.bos_token_id
        self._word_ids = np.array([_ids(tokenizer, word)[0] for word in self.words])
        self._newline = _ids(tokenizer, "\n")
        self._behind = {template.name: _ids(tokenizer, template.behind_word) for template in TEMPLATES}
        self._answers = {
            template.name: np.array([_ids(tokenizer, template.answer(word.strip()))[0] for word in self.words])
            for template in TEMPLATES
        }

    def draw_words(self, rows: int, *, power_scale: float = 1.0) -> np.ndarray:
        """Return word indices `[rows, examples]`; `power_scale` 0 draws all words equally often."""
        noise = self.rng.gumbel(size=(rows, len(self.words)))
        keys = power_scale * self.log_weights + noise
        words = np.argpartition(-keys, self.examples, axis=1)[:, : self.examples]
        return self.rng.permuted(words, axis=1)

    def batch(
        self, template: SpellingTemplate, rows: int, *, with_bos: bool, words: np.ndarray | None = None
    ) -> TokenBatch:
        """Return `rows` contexts of one task; `words` `[rows, examples]` replaces the draw."""
        words = self.draw_words(rows) if words is None else words
        behind = self._behind[template.name]
        line = np.empty((rows, self.examples, len(behind) + 3), dtype=np.int64)
        line[:, :, 0] = self._word_ids[words]
        line[:, :, 1 : 1 + len(behind)] = behind
        line[:, :, -2] = self._answers[template.name][words]
        line[:, :, -1] = self._newline
        ids = line.reshape(rows, -1)
        if with_bos:
            ids = np.concatenate([np.full((rows, 1), self.bos), ids], axis=1)
        starts = np.arange(self.examples) * line.shape[2] + int(with_bos)
        return TokenBatch(
            torch.from_numpy(ids),
            torch.from_numpy(starts),
            torch.from_numpy(starts + 1 + len(behind)),
            torch.from_numpy(words),
        )


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]

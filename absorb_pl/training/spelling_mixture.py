"""The in-context spelling tasks that the bundled speller is trained on, as token ids."""

import string
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from wordfreq import get_frequency_dict


@dataclass(frozen=True)
class Vocabulary:
    """Words in order of falling frequency.

    Attributes:
        words: The words.
        frequencies: How often each occurs in English, as `wordfreq` says.
    """

    words: tuple[str, ...]
    frequencies: tuple[float, ...]


@dataclass(frozen=True)
class SpellingTemplate:
    """One in-context task: what stands after the word, and what the model should answer.

    Attributes:
        name: Name of the task.
        after_word: Text between the word and the answer; empty when the answer follows the word at once.
        answer: Maps a word to its answer, with the leading space.
        share: Part of all contexts.
    """

    name: str
    after_word: str
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
"""The tasks, with their shares of all contexts."""


@dataclass(frozen=True)
class TokenBatch:
    """Contexts of one task, all of one length.

    Attributes:
        input_ids: Token ids, `[rows, tokens]`.
        word_positions: Where each example's word stands, the same for all rows, `[examples]`.
        answer_positions: Where each answer stands, `[examples]`.
        word_indices: Which word of the mixture it is, `[rows, examples]`.
    """

    input_ids: Int[Tensor, "rows tokens"]
    word_positions: Int[Tensor, " examples"]
    answer_positions: Int[Tensor, " examples"]
    word_indices: Int[Tensor, "rows examples"]


class SpellingMixture:
    """Draws contexts of solved examples, words without repetition within a context.

    Words are those of the vocabulary with a space before them, drawn with probability proportional to
    frequency^`power`, and single letters (with and without the space, in both cases), drawn as seldom as the
    rarest word.

    Args:
        tokenizer: The speller's tokenizer.
        vocabulary: Its words.
        power: Power of the frequency.
        examples: Solved examples per context.
        seed: Seed of the draws.

    Attributes:
        words: All words and letters that can be drawn.
        rng: The generator that draws; may be replaced.
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
        self._after = {template.name: _ids(tokenizer, template.after_word) for template in TEMPLATES}
        self._answers = {
            template.name: np.array([_ids(tokenizer, template.answer(word.strip()))[0] for word in self.words])
            for template in TEMPLATES
        }

    def draw_words(self, rows: int, *, power_scale: float = 1.0) -> np.ndarray:
        """Draw words for contexts.

        Args:
            rows: Number of contexts.
            power_scale: Factor of the power; 0 draws all words equally often.

        Returns:
            Indices of words, `[rows, examples]`.
        """
        noise = self.rng.gumbel(size=(rows, len(self.words)))
        keys = power_scale * self.log_weights + noise
        words = np.argpartition(-keys, self.examples, axis=1)[:, : self.examples]
        return self.rng.permuted(words, axis=1)

    def batch(
        self, template: SpellingTemplate, rows: int, *, with_bos: bool, words: np.ndarray | None = None
    ) -> TokenBatch:
        """Make contexts of one task.

        Args:
            template: The task.
            rows: Number of contexts.
            with_bos: Whether each begins with the beginning-of-sequence token.
            words: Indices of words, `[rows, examples]`, in place of a draw.
        """
        words = self.draw_words(rows) if words is None else words
        after = self._after[template.name]
        line = np.empty((rows, self.examples, len(after) + 3), dtype=np.int64)
        line[:, :, 0] = self._word_ids[words]
        line[:, :, 1 : 1 + len(after)] = after
        line[:, :, -2] = self._answers[template.name][words]
        line[:, :, -1] = self._newline
        ids = line.reshape(rows, -1)
        if with_bos:
            ids = np.concatenate([np.full((rows, 1), self.bos), ids], axis=1)
        starts = np.arange(self.examples) * line.shape[2] + int(with_bos)
        return TokenBatch(
            torch.from_numpy(ids),
            torch.from_numpy(starts),
            torch.from_numpy(starts + 1 + len(after)),
            torch.from_numpy(words),
        )


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """The words that a speller's tokenizer was built from, in their order.

    Args:
        tokenizer: The tokenizer.
    """
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda piece: piece[1])
    words = tuple(piece[1:] for piece, _ in pieces if len(piece) > 2 and piece[0] == "Ġ")
    frequency = get_frequency_dict("en")
    return Vocabulary(words, tuple(frequency[word] for word in words))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]

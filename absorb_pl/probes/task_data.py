"""Prompts and activations that a probe is trained on, in plain files, under the names of the paper's package.

A study caches the same things itself (`absorb_pl.data`); these functions are for scripts that keep them by hand.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from absorb_pl.data.drafts import writing_to
from absorb_pl.errors import CacheCorruptedError, LabelError, PromptError
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.models.language_model import check_hook
from absorb_pl.models.prompt_batch import read_prompts
from absorb_pl.ranges import Count, CountOrZero, Fraction, Seed, check_ranges
from absorb_pl.words.formatters import Formatter
from absorb_pl.words.prompting import SpellingPrompt, create_icl_prompt
from absorb_pl.words.vocab import LETTERS

Dataset = list[tuple[SpellingPrompt, int]]
"""Prompts, each with the number of its answer's class."""

_PARTS = ("train", "test")


def letter_class(answer: str) -> int:
    """Number of the letter that an answer is.

    Args:
        answer: One letter, white space around it and case aside.

    Raises:
        LabelError: It is none of a to z.

    Example:
        >>> letter_class(" C")
        2
    """
    letter = answer.strip().lower()
    if len(letter) != 1 or letter not in LETTERS:
        raise LabelError("answer", answer, expected="one letter", remedy="Give an `answer_class_fn` for such answers.")
    return LETTERS.index(letter)


def create_dataset_probe_training(
    vocab: Sequence[str],
    formatter: Formatter,
    num_prompts_per_token: Count,
    base_template: str,
    max_icl_examples: CountOrZero = 10,
    train_test_fraction: Fraction = 0.8,
    answer_class_fn: Callable[[str], int] = letter_class,
    *,
    seed: Seed | None = None,
) -> tuple[Dataset, Dataset]:
    """Split words for training and evaluation and make prompts of each (`sae_spelling.probing`).

    In-context examples of a word come from its own part, so that no word of one part stands in a prompt of the other.

    Args:
        vocab: The words.
        formatter: Gives the answer of a word.
        num_prompts_per_token: Prompts a word, with examples drawn anew.
        base_template: Text before an answer, with the placeholder `{word}`.
        max_icl_examples: In-context examples of a prompt.
        train_test_fraction: Share of the words for training.
        answer_class_fn: From an answer to the number of its class.
        seed: Settles all draws; without one they follow Python's `random`.

    Returns:
        The prompts for training and those for evaluation.

    Raises:
        PromptError: A part has too few words for the in-context examples.
        LabelError: An answer has no class.
        RangeError: `num_prompts_per_token` or another number is outside its range.

    Example:
        >>> words = ["ant", "bee", "cow", "dog", "elk"]
        >>> train, test = create_dataset_probe_training(
        ...     words, lambda word: f" {word[0].upper()}", 1, "{word}:", max_icl_examples=0, seed=0
        ... )
        >>> len(train), len(test), train[0][1] == "abcde".index(train[0][0].word[0])
        (4, 1, True)
    """
    check_ranges(create_dataset_probe_training, locals())
    generator: Any = random if seed is None else random.Random(seed)
    words = generator.sample(list(vocab), len(vocab))
    split = int(len(words) * train_test_fraction)

    def prompts_of(part: list[str]) -> Dataset:
        prompts = [
            create_icl_prompt(
                word=word,
                examples=part,
                base_template=base_template,
                answer_formatter=formatter,
                max_icl_examples=max_icl_examples,
                seed=generator.getrandbits(32),
            )
            for word in part
            for _ in range(num_prompts_per_token)
        ]
        return [(prompt, answer_class_fn(prompt.answer)) for prompt in prompts]

    return prompts_of(words[:split]), prompts_of(words[split:])


def gen_and_save_df_acts_probing(
    model: HookedModel,
    train_dataset: Dataset,
    test_dataset: Dataset,
    path: str | Path,
    hook_point: str,
    layer: CountOrZero,
    batch_size: Count = 64,
    position_idx: int = -2,
) -> tuple[pd.DataFrame, pd.DataFrame, np.memmap, np.memmap]:
    """Write prompts and their activations below `path/layer_L` (`sae_spelling.probing`).

    Prompts of one length run together, so none sees padding.

    Args:
        model: The language model.
        train_dataset: Prompts for training.
        test_dataset: Prompts for evaluation.
        path: Folder of all layers.
        hook_point: TransformerLens hook to read.
        layer: Its layer, for the folder's name.
        batch_size: Prompts a forward pass.
        position_idx: Position to read in each prompt; below zero it is counted from the prompt's own end.

    Returns:
        A table per part, `prompt, HOOK_POINT, answer, answer_class, token`, as written to `train_df.csv` and
        `test_df.csv`, and its activations, float32 `[prompts, d_hook]`, memory-mapped from
        `train_act_tensor.dat` and `test_act_tensor.dat`.

    Raises:
        HookNotFoundError: The model has no such hook.
        PromptError: A part is empty, or a prompt has no such position.
        OutputFolderError: The folder cannot be written.
    """
    check_ranges(gen_and_save_df_acts_probing, locals())
    check_hook(model, hook_point)
    folder = _folder(path, layer)
    tables, activations = [], []
    for part, dataset in zip(_PARTS, (train_dataset, test_dataset), strict=True):
        found = _activations(model, [prompt.base for prompt, _ in dataset], part, hook_point, batch_size, position_idx)
        table = pd.DataFrame(
            {
                "prompt": [prompt.base for prompt, _ in dataset],
                "HOOK_POINT": hook_point,
                "answer": [prompt.answer for prompt, _ in dataset],
                "answer_class": [label for _, label in dataset],
                "token": [prompt.word for prompt, _ in dataset],
            }
        ).rename_axis("index")
        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            temporary = folder / f".{part}.part"
            found.tofile(temporary)
            temporary.replace(folder / f"{part}_act_tensor.dat")
            table.to_csv(temporary, lineterminator="\n")
            temporary.replace(folder / f"{part}_df.csv")
        tables.append(table)
        activations.append(_mapped(folder / f"{part}_act_tensor.dat", len(table)))
    return tables[0], tables[1], activations[0], activations[1]


def load_df_acts_probing(
    model: Any, path: str | Path, layer: CountOrZero
) -> tuple[pd.DataFrame, pd.DataFrame, np.memmap, np.memmap]:
    """Read what `gen_and_save_df_acts_probing` wrote.

    Args:
        model: The language model, whose width the activations must have; None to take any.
        path: Folder of all layers.
        layer: The layer.

    Returns:
        As `gen_and_save_df_acts_probing`.

    Raises:
        CacheCorruptedError: A file is missing, or tables and activations do not fit.
    """
    check_ranges(load_df_acts_probing, locals())
    folder = _folder(path, layer)
    tables, activations = [], []
    for part in _PARTS:
        table_file, file = folder / f"{part}_df.csv", folder / f"{part}_act_tensor.dat"
        for needed in (table_file, file):
            if not needed.is_file():
                raise _unfit(needed, "missing", "what `gen_and_save_df_acts_probing` writes")
        # Texts as they were written: "NA" and "" are words, and line ends inside quotes stay.
        table = pd.read_csv(table_file, index_col="index", keep_default_na=False, lineterminator="\n")
        found = _mapped(file, len(table))
        if model is not None and found.shape[1] != model.cfg.d_model:
            raise _unfit(file, f"{found.shape[1]} values per row", f"the model's width, {model.cfg.d_model}")
        tables.append(table)
        activations.append(found)
    return tables[0], tables[1], activations[0], activations[1]


@torch.no_grad()
def _activations(model: Any, prompts: list[str], part: str, hook: str, batch_size: int, position: int) -> np.ndarray:
    if not prompts:
        raise PromptError(f"{part}_dataset", prompts, expected="at least one prompt", remedy="Give more words.")
    tokens = read_prompts(model, prompts)
    lengths = torch.tensor(tokens.lengths)
    shortest = int(lengths.min())
    if not -shortest <= position < shortest:
        raise PromptError(
            "position_idx",
            position,
            expected=f"a position in the shortest prompt, which has {shortest} tokens",
            remedy="Count from the end with numbers below zero.",
        )
    found: dict[int, torch.Tensor] = {}
    for length in lengths.unique().tolist():
        for rows in (lengths == length).nonzero().squeeze(1).split(batch_size):
            ids = tokens.token_ids[rows.to(tokens.token_ids.device), :length]
            activations = model.run_with_cache(ids, names_filter=hook)[1][hook][:, position].flatten(1)
            found |= dict(zip(rows.tolist(), activations.float().cpu(), strict=True))
    return torch.stack([found[row] for row in range(len(prompts))]).numpy()


def _mapped(file: Path, rows: int) -> np.memmap:
    size = file.stat().st_size
    if not rows or size % (4 * rows) or not size:
        raise _unfit(file, f"{size} bytes", f"whole rows of float32 for {rows} prompts")
    return np.memmap(file, dtype="float32", mode="r", shape=(rows, size // (4 * rows)))


def _folder(path: str | Path, layer: int) -> Path:
    return Path(path) / f"layer_{layer}"


def _unfit(file: Path, found: str, expected: str) -> CacheCorruptedError:
    return CacheCorruptedError(str(file), found, expected=expected, remedy="Make the activations again.")

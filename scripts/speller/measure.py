"""What the speller and its SAEs achieve, as the model card states it."""

import string
from dataclasses import dataclass

import numpy as np
import torch
from sae_lens import SAE
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from absorb_pl.functional import SaeStatistics
from absorb_pl.functional.logistic import solve_logistic_regressions
from absorb_pl.training.spelling_mixture import TEMPLATES, SpellingMixture


@dataclass(frozen=True)
class WordPass:
    """One pass over prompts of the main template, every word standing in one prompt.

    Attributes:
        labels: `[words]`, first letters as 0…25.
        is_correct: `[words]`, whether the most likely next token is the answer.
        residuals: By hook name, `[words, d_model]` at the word.
    """

    labels: Tensor
    is_correct: Tensor
    residuals: dict[str, Tensor]


@torch.no_grad()
def run_words(
    model: TransformerBridge,
    mixture: SpellingMixture,
    hook_names: list[str],
    *,
    num_words: int,
    batch_rows: int = 256,
) -> WordPass:
    """Ask for the first letter of each of the `num_words` words behind 10 random solved examples."""
    words = mixture.draw_words(num_words, power_scale=0.0)
    own = np.arange(num_words)[:, None]
    others = np.where(words[:, :-1] == own, (own + 1) % num_words, words[:, :-1])
    batch = mixture.batch(TEMPLATES[0], num_words, with_bos=True, words=np.concatenate([others, own], axis=1))
    word_at, answer_at = int(batch.word_positions[-1]), int(batch.answer_positions[-1])
    deepest = max(int(name.split(".")[1]) for name in hook_names)
    correct: list[Tensor] = []
    residuals: dict[str, list[Tensor]] = {name: [] for name in hook_names}
    for ids in batch.input_ids.split(batch_rows):
        asked = ids[:, :answer_at]
        _, cache = model.run_with_cache(asked, names_filter=hook_names, stop_at_layer=deepest + 1)
        logits = model.original_model(input_ids=asked, logits_to_keep=1, use_cache=False).logits
        correct.append(logits[:, -1].argmax(dim=-1) == ids[:, answer_at])
        for name in hook_names:
            residuals[name].append(cache[name][:, word_at])
    labels = torch.tensor([string.ascii_lowercase.index(word.strip()[0]) for word in mixture.words[:num_words]])
    return WordPass(labels, torch.cat(correct), {name: torch.cat(parts) for name, parts in residuals.items()})


def probe_f1(rows: Tensor, labels: Tensor, *, seed: int = 42) -> tuple[list[float], list[int]]:
    """Return, a letter, the F1 of a balanced logistic regression on held-out words, and their number.

    Words are split 80/20 within each letter. `rows` `[words, d_model]` are scaled to a mean square of 1, so
    that the L2 penalty means the same at every layer.
    """
    rows = (rows / rows.square().mean().sqrt()).double()
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(rows), dtype=torch.bool)
    for letter in range(26):
        own = (labels == letter).nonzero()[:, 0]
        held_out[own[torch.randperm(len(own), generator=generator)[: round(len(own) / 5)]]] = True
    targets = torch.nn.functional.one_hot(labels, 26).T.bool()
    train = rows[~held_out]
    weight, bias = solve_logistic_regressions(train.expand(26, *train.shape), targets[:, ~held_out])
    predicted = (weight @ rows[held_out].T + bias[:, None]) > 0
    actual = targets[:, held_out]
    hits = (predicted & actual).sum(dim=1)
    f1 = 2 * hits / (predicted.sum(dim=1) + actual.sum(dim=1)).clamp(min=1)
    return f1.tolist(), actual.sum(dim=1).tolist()


@torch.no_grad()
def sae_figures(sae: SAE, rows: Tensor) -> dict[str, float]:
    """Return mean L0, explained variance and share of silent latents over rows `[words, d_model]`."""
    statistics = SaeStatistics.empty(rows.shape[1], sae.cfg.d_sae)
    latents = sae.encode(rows)
    statistics.update(rows, latents, sae.decode(latents))
    return {
        "l0": statistics.l0,
        "explained_variance": statistics.explained_variance,
        "silent_latents": statistics.dead_fraction,
    }

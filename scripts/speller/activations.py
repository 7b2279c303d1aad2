"""Residual activations of the speller on its training mixture, held in memory."""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from absorb_pl.training.spelling_mixture import TEMPLATES, SpellingMixture


@torch.no_grad()
def collect_activations(
    model: TransformerBridge,
    mixture: SpellingMixture,
    hook_names: list[str],
    *,
    rows: int,
    other_share: float,
    batch_rows: int = 256,
) -> dict[str, Tensor]:
    """Return `rows` activations `[rows, d_model]` for each hook, in random order.

    Contexts come from the training mixture in its shares. `other_share` of the rows are read at random other
    positions, the rest at the words.
    """
    deepest = max(int(name.split(".")[1]) for name in hook_names)
    generator = torch.Generator().manual_seed(int(mixture.rng.integers(2**31)))
    kept: dict[str, list[Tensor]] = {name: [] for name in hook_names}
    for template in TEMPLATES:
        wanted = round(rows * template.share)
        while wanted > 0:
            batch = mixture.batch(template, batch_rows, with_bos=True)
            _, cache = model.run_with_cache(batch.input_ids, names_filter=hook_names, stop_at_layer=deepest + 1)
            is_word = torch.zeros(batch.input_ids.shape[1], dtype=torch.bool)
            is_word[batch.word_positions] = True
            others = (~is_word).nonzero()[:, 0]
            num_words = batch_rows * len(batch.word_positions)
            num_others = round(num_words * other_share / (1 - other_share))
            take = min(wanted, num_words + num_others)
            order = torch.randperm(num_words + num_others, generator=generator)[:take]
            at_others = torch.randint(len(others) * batch_rows, (num_others,), generator=generator)
            for name in hook_names:
                words = cache[name][:, is_word].flatten(0, 1)
                rest = cache[name][:, others].flatten(0, 1)[at_others]
                kept[name].append(torch.cat([words, rest])[order])
            wanted -= take
    total = sum(len(part) for part in kept[hook_names[0]])
    shuffle = torch.randperm(total, generator=generator)
    return {name: torch.cat(parts)[shuffle] for name, parts in kept.items()}


def endless_batches(rows: Tensor, batch_size: int, *, seed: int) -> Iterator[Tensor]:
    """Yield batches `[batch_size, d_model]` for ever, in a new order each time round."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for batch in torch.randperm(len(rows), generator=generator).split(batch_size):
            if len(batch) == batch_size:
                yield rows[batch]

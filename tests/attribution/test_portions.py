"""Wide SAEs, a few words at a time: the same scores, and no more rows of latents at once than there is room for."""

from typing import Any

import pytest
import torch

from absorb_pl.attribution import word_ablations, word_integrated_gradients, words_at_once
from absorb_pl.engine import compute_prefix
from absorb_pl.saes import portions

WIDTH_BYTES = 16 * 8


class Counted:
    """An SAE that notes how many rows it is given at once."""

    def __init__(self, sae: Any) -> None:
        self.sae, self.W_dec, self.cfg, self.rows = sae, sae.W_dec, sae.cfg, []

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(x))
        return self.sae.encode(x)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.sae.decode(latents)


@pytest.mark.parametrize("rows", [1, 3])
def test_scores_do_not_depend_on_how_many_words_there_is_room_for(
    case: Any, prompts_of: Any, recorded_to: Any, monkeypatch, rows
):
    ids = case.model.to_tokens(case.case["clean"])[0]
    position = len(ids) + case.case["position"]
    prompts = prompts_of([ids, ids.roll(2), ids.roll(5), ids.roll(9)], [position] * 4)
    sae = Counted(case.saes["standard_A"])
    prefix = compute_prefix(case.model, prompts, [case.hook("standard_A")])

    def score() -> tuple[Any, Any]:
        how: dict[str, Any] = {"prefix": prefix, "batch_size": 32}
        return (
            word_integrated_gradients(case.model, sae, prompts, case.word_metric, steps=3, **how),
            word_ablations(case.model, sae, prompts, case.word_metric, **how),
        )

    integrated, ablated = score()
    assert max(sae.rows) > 3
    monkeypatch.setattr(portions, "CHUNK_BYTES", rows * WIDTH_BYTES * len(sae.W_dec))
    assert words_at_once(sae) == rows
    sae.rows.clear()
    few, few_ablated = score()
    assert max(sae.rows) == rows
    assert integrated.scores.abs().max() > 0
    for name in ("activations", "scores", "error_scores", "gradients", "attributions"):
        expected = getattr(integrated, name)
        assert (getattr(few, name) - expected).abs().max() <= recorded_to(case.folder.name) * expected.abs().max()
    assert few_ablated.rows.tolist() == ablated.rows.tolist()
    assert few_ablated.latents.tolist() == ablated.latents.tolist()
    logits = case.model(ids[None]).abs().max()
    assert (few_ablated.scores - ablated.scores).abs().max() <= recorded_to(case.folder.name) * logits

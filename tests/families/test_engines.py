"""Every causal architecture either runs suffixes or whole sequences, as docs/models.md says, with the same results."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, SHORT, save_tiny_model
from torch import Tensor
from transformers import OpenAIGPTConfig

from absorb_pl.attribution import word_ablations, word_integrated_gradients
from absorb_pl.engine import compute_prefix
from absorb_pl.errors import HookNotFoundError
from absorb_pl.models import load_language_model
from absorb_pl.words import TokenizedPrompts

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
HOOK = "blocks.1.hook_resid_post"


class TwoLatents:
    """Latents that always fire, along two fixed directions; only what they add matters here."""

    W_dec = torch.randn(2, 32, generator=torch.Generator().manual_seed(4))

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.W_dec.T) + 1

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.W_dec


def documented_engines() -> dict[str, str]:
    """Engine by architecture, from the table of the document."""
    rows = re.findall(r"^\| (.+) \| (suffixes|whole sequences) \|$", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    return {name: engine.removesuffix("es").split()[0] for name, engine in rows}


def metric(logits: Tensor, _rows: Tensor) -> Tensor:
    return logits[:, 7] - logits[:, 40]


def metric_without(model: Any, sae: TwoLatents, ids: Tensor, position: int, latent: int | None) -> float:
    """The metric with one latent's part taken out of the activation at a position, by the hooks of the whole model."""

    def remove(activation: Tensor, **_: Any) -> Tensor:
        if latent is None:
            return activation
        at_word = activation[:, position]
        part = sae.encode(at_word)[:, latent : latent + 1] * sae.W_dec[latent]
        return torch.cat([activation[:, :position], (at_word - part)[:, None], activation[:, position + 1 :]], dim=1)

    with torch.no_grad():
        logits = model.run_with_hooks(ids[None], fwd_hooks=[(HOOK, remove)])
    return metric(logits[:, -1], ids).item()


def test_the_document_names_the_architectures_tried_here():
    assert sorted(documented_engines()) == sorted(ARCHITECTURES)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_architecture_gives_true_ablations_by_the_engine_that_the_document_says(name, tmp_path, golden, caplog):
    save_tiny_model(name, tmp_path, golden / "gpt2-micro")
    model = load_language_model(str(tmp_path))
    ids = torch.randint(2, 290, (2, 9), generator=torch.Generator().manual_seed(1))
    prompts = TokenizedPrompts(ids, torch.ones(2, 9, dtype=torch.bool), torch.tensor([9, 9]), torch.tensor([5, 6]))
    with caplog.at_level(logging.WARNING):
        prefix = compute_prefix(model, prompts, [HOOK])
    assert prefix.engine == documented_engines()[name]
    assert ("whole sequences are run instead" in caplog.text) == (prefix.engine == "whole")

    sae = TwoLatents()
    values = torch.tensor(
        [
            [metric_without(model, sae, ids[row], position, latent) for latent in (None, 0, 1)]
            for row, position in enumerate((5, 6))
        ]
    )
    effects = (values[:, 1:] - values[:, :1]).flatten()
    removed = word_ablations(model, sae, prompts, metric, [0, 1], hook_name=HOOK, prefix=prefix)
    # Effects are differences of metrics, and both ways round each: experts have no float64 to compare in.
    rounding = 64 * torch.finfo(torch.float32).eps * values.abs().max()
    assert ((removed.scores - effects).abs() <= rounding).all()
    assert effects.abs().max() > 100 * rounding
    found = word_integrated_gradients(model, sae, prompts, metric, hook_name=HOOK, prefix=prefix)
    assert found.scores.abs().min() > 0


def test_a_hook_that_a_forward_pass_never_reaches_is_named(tmp_path, golden):
    save_tiny_model(OpenAIGPTConfig(**SHORT), tmp_path, golden / "gpt2-micro")
    model = load_language_model(str(tmp_path))
    ids = torch.randint(2, 290, (1, 6))
    prompts = TokenizedPrompts(ids, torch.ones(1, 6, dtype=torch.bool), torch.tensor([6]), torch.tensor([4]))
    with pytest.raises(HookNotFoundError, match=r"blocks\.1\.hook_resid_post.*reaches"):
        compute_prefix(model, prompts, [HOOK])
    assert compute_prefix(model, prompts, ["blocks.1.hook_resid_pre"]).engine == "whole"

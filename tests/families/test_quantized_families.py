"""Which architectures run with 4 bits a weight, and how, against what the documentation says."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, save_tiny_model

from absorb_pl import load_language_model
from absorb_pl.engine.bare import bare_model
from absorb_pl.errors import AbsorbError

REFUSED = {
    "BLOOM",
    "CodeGen",
    "Falcon",
    "GLM-4",
    "GPT-2",
    "GPT-NeoX, Pythia",
    "GPTBigCode",
    "MPT",
    "Mamba",
    "OLMo",
    "OLMo 2",
    "OLMo 3",
    "Phi-3",
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_runs_or_is_refused(architecture: str, tmp_path: Path, golden: Path):
    save_tiny_model(architecture, tmp_path, golden / "gpt2-micro")
    if architecture in REFUSED:
        with pytest.raises(AbsorbError, match="expected a model that runs with quantised weights") as refusal:
            load_language_model(str(tmp_path), dtype="nf4")
        assert refusal.value.argument == "dtype"
        return
    model: Any = load_language_model(str(tmp_path), dtype="nf4")
    assert any(type(layer).__name__ == "Linear4bit" for layer in model.original_model.modules())
    with torch.no_grad():
        assert model.original_model(torch.randint(2, 200, (2, 9))).logits.isfinite().all()
    plain = load_language_model(str(tmp_path), dtype="bfloat16")
    assert (bare_model(model) is None) == (bare_model(plain) is None)


def test_the_documentation_names_those_that_are_refused():
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    [named] = re.findall(r"cannot be quantised: (.*?)\.\n", text, flags=re.DOTALL)
    assert {name.strip() for name in re.split(r",\n?\s*|\s+and\s+", named.replace("\n", " "))} == {
        part for name in REFUSED for part in name.split(", ")
    }

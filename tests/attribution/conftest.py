"""Golden models and their recorded attributions, and tiny random models of six families."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from absorb_pl.words import TokenizedPrompts

SAES = ("standard_A", "jumprelu_A", "topk_B")

FAMILIES = ("GPT-2", "GPT-NeoX, Pythia", "Llama", "Qwen2", "Gemma 2", "Gemma 3")


@dataclass
class Case:
    """A micro model, its SAEs, and what the published code computed on them."""

    folder: Path
    model: Any
    saes: dict[str, Any]
    case: dict[str, Any]
    expected: dict[str, Tensor]

    @property
    def letter_tokens(self) -> Tensor:
        answers = [f" {chr(ord('A') + i)}" for i in range(26)]
        return torch.tensor([self.model.tokenizer.encode(a, add_special_tokens=False)[-1] for a in answers])

    def letter_margin(self, logits: Tensor, letters: Tensor) -> Tensor:
        """logit(" X") - mean logit of the other 25, for last-position logits."""
        all_letters = logits[:, self.letter_tokens]
        answer = all_letters.gather(1, letters[:, None])[:, 0]
        return answer - (all_letters.sum(dim=1) - answer) / 25

    def word_metric(self, logits: Tensor, _rows: Tensor) -> Tensor:
        return self.metric(logits[:, None])

    @property
    def prompts(self) -> TokenizedPrompts:
        ids = self.model.to_tokens(self.case["clean"])[0]
        return pad_prompts([ids], [len(ids) + self.case["position"]])

    def metric(self, logits: Tensor) -> Tensor:
        letter = ord(self.case["metric_letter"]) - ord("A")
        return self.letter_margin(logits[:, -1], torch.full((len(logits),), letter))

    def hook(self, sae_name: str) -> str:
        return self.case["hooks"][sae_name[-1]]


def pad_prompts(token_ids: list[Tensor], positions: list[int]) -> TokenizedPrompts:
    """Prompts from ids and word positions, padded with token 1."""
    lengths = torch.tensor([len(ids) for ids in token_ids])
    padded = torch.nn.utils.rnn.pad_sequence(token_ids, batch_first=True, padding_value=1)
    mask = torch.arange(padded.shape[1])[None] < lengths[:, None]
    return TokenizedPrompts(
        input_ids=padded, attention_mask=mask, lengths=lengths, word_positions=torch.tensor(positions)
    )


def load_case(folder: Path, dtype: torch.dtype) -> Case:
    case = Case(
        folder=folder,
        model=TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=dtype),
        saes={sae: SAE.load_from_disk(folder / f"sae_{sae}").to(dtype=dtype) for sae in SAES},
        case=json.loads((folder / "case_attribution.json").read_text()),
        expected=load_file(folder / "expected_attribution.safetensors"),
    )
    case.model.eval()
    return case


MICRO = ("gpt2-micro", "gemma2-micro")


@pytest.fixture(scope="session")
def cases(golden: Path) -> dict[str, Case]:
    """The cases in float64, in which their figures were recorded, by model."""
    return {name: load_case(golden / name, torch.float64) for name in MICRO}


@pytest.fixture(scope="session", params=MICRO)
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    """Each of the cases."""
    return cases[request.param]


@pytest.fixture(scope="session")
def gpt2_case(cases: dict[str, Case]) -> Case:
    """The case that is in float64 throughout: Gemma's norms compute in float32 whatever the model's dtype."""
    return cases["gpt2-micro"]


@pytest.fixture(scope="session")
def single_cases(golden: Path) -> dict[str, Case]:
    """The cases in float32, by model."""
    return {name: load_case(golden / name, torch.float32) for name in MICRO}


@pytest.fixture
def single_case(case: Case, single_cases: dict[str, Case]) -> Case:
    """The same case in float32."""
    return single_cases[case.folder.name]


@pytest.fixture(scope="session")
def prompts_of() -> Callable[[list[Tensor], list[int]], TokenizedPrompts]:
    """Makes prompts of token ids and word positions."""
    return pad_prompts


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest, load_tiny: Callable[..., Any]) -> Any:
    """Each family's model in float64; `parametrize("family", [...], indirect=True)` picks some."""
    return load_tiny(request.param, torch.float64)

"""Shared by all tests: where the recorded figures are, and quiet, offline libraries."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

# Run by themselves: processes that know of a pretended GPU cannot be forked.
collect_ignore = ["gpu"]

NUMERIC = (
    "attribution",
    "engine",
    "evaluators",
    "functional",
    "models",
    "probes",
    "rules",
    "saes",
    "words",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of most rooms compare figures throughout.

    What is slow comes first, so that no process waits at the end for a long test of another.
    """
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        if item.path.parent.name in NUMERIC:
            item.add_marker("numeric")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Figures recorded from the published implementations, see its README."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def gpt2(golden: Path) -> Any:
    """The GPT-2-like micro model."""
    from absorb_pl.models import load_language_model

    return load_language_model(str(golden / "gpt2-micro"))


@pytest.fixture(scope="session")
def load_tiny(tmp_path_factory: pytest.TempPathFactory, golden: Path) -> Callable[..., Any]:
    """Gives the tiny random model of an architecture (see `tiny_models`), in float32 unless asked otherwise."""
    import torch
    from tiny_models import save_tiny_model
    from transformer_lens.model_bridge import TransformerBridge

    folders: dict[str, Path] = {}
    loaded: dict[tuple[str, torch.dtype], Any] = {}

    def load(architecture: str, dtype: torch.dtype = torch.float32) -> Any:
        if architecture not in folders:
            folders[architecture] = tmp_path_factory.mktemp("tiny")
            save_tiny_model(architecture, folders[architecture], golden / "gpt2-micro")
        if (architecture, dtype) not in loaded:
            folder = str(folders[architecture])
            loaded[architecture, dtype] = TransformerBridge.boot_transformers(folder, device="cpu", dtype=dtype)
        return loaded[architecture, dtype]

    return load


@pytest.fixture(scope="session")
def float32_rounding() -> Callable[[Any], float]:
    """Gives the worst rounding of a model's figures in float32, in parts of the terms that they are sums of.

    A sum of n terms rounds by at most n units of half an epsilon of its terms' sizes, whatever the order and the
    processor (Higham, Accuracy and Stability of Numerical Algorithms, chapter 3). A run is a chain of such sums: in
    each layer queries, attention scores, attended values, their projection, both halves of the MLP and two norms, then
    the unembedding. Gradients go through the chain once more.
    """
    import torch

    def rounding(model: Any) -> float:
        cfg = model.cfg
        of_a_layer = 6 * cfg.d_model + 2 * cfg.d_head * cfg.n_heads + cfg.n_ctx + cfg.d_mlp
        chain = 2 * (cfg.n_layers * of_a_layer + cfg.d_model)
        return chain * torch.finfo(torch.float32).eps / 2

    return rounding


@pytest.fixture(scope="session")
def recorded_to() -> Callable[[str], float]:
    """Gives how closely float64 must agree with recorded figures, in parts of an array's largest value.

    Gemma's norms compute in float32 inside Hugging Face's modules, whatever the model's dtype.
    """
    return {"gpt2-micro": 1e-9, "gemma2-micro": 2e-6}.__getitem__


@pytest.fixture(scope="session")
def make_sae() -> Callable[..., Any]:
    """Makes a SAELens SAE of an architecture with random weights, of which about a third of the latents fire."""
    import torch

    def make(architecture: str, hook: str = "blocks.1.hook_resid_post", d_in: int = 32, **options: Any) -> Any:
        from sae_lens.registry import get_sae_class
        from sae_lens.saes.sae import SAEMetadata

        kind, config = get_sae_class(architecture)
        if "topk" in architecture:
            options = {"k": 7, **options}
        if hook.endswith("hook_z"):
            options = {"reshape_activations": "hook_z", **options}
        sae = kind(config(d_in=d_in, d_sae=48, metadata=SAEMetadata(hook_name=hook), **options))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
            if architecture == "jumprelu":
                sae.threshold.abs_()
        return sae

    return make


@pytest.fixture(scope="session")
def _one_thread() -> Iterator[None]:
    """Sums in one thread, so that figures may be compared bit for bit with those of another process."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository as working folder, as the paths in `tests/conf` have it."""
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root)
    return root


@pytest.fixture(scope="session")
def study_config() -> Callable[..., Any]:
    """Makes a `StudyConfig` of `tests/conf/study.yaml` with folders below the one given; words override."""
    from jsonargparse import ArgumentParser

    from absorb_pl.commands import with_rule_settings
    from absorb_pl.study import StudyConfig

    def make(folder: Path, *words: str) -> Any:
        parser = ArgumentParser()
        parser.add_argument("--config", action="config")
        parser.add_class_arguments(StudyConfig)
        given = [f"--run_dir={folder / 'run'}", f"--cache_dir={folder / 'cache'}", *words]
        file = Path(__file__).parent / "conf" / "study.yaml"
        settings = parser.instantiate(parser.parse_args(with_rule_settings([f"--config={file}", *given])))
        settings.pop("config")
        return StudyConfig(**settings)

    return make


@pytest.fixture(scope="session")
def study(study_config: Callable[..., Any], _one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished study of the three SAEs of the GPT-2-like micro model: its configuration and its result."""
    from absorb_pl.study import run_study

    config = study_config(tmp_path_factory.mktemp("study"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parents[1])
        return config, run_study(config)


@pytest.fixture(scope="module")
def _without_figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Studies of a module without figures, which take longer to draw than all else that a small study does."""
    from absorb_pl.reports import report

    request.getfixturevalue("study")  # which has its figures
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_figures", lambda _: {})
        yield

"""Measure a speller and its SAEs; write `figures.json` and `MODEL_CARD.md` beside them.

python scripts/measure_speller.py --assets absorb_pl/models/assets/speller
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from sae_lens import SAE
from speller.card import render
from speller.measure import probe_f1, run_words, sae_figures
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer

from absorb_pl.training.spelling_mixture import SpellingMixture, vocabulary_of

SUITE = Path(__file__).parents[1] / "configs" / "train_suite.yaml"


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Measure, write both files, and return the figures."""
    options = _parser().parse_args(args)
    torch.set_num_threads(options.threads)
    model_folder = options.assets / "model"
    model = TransformerBridge.boot_transformers(str(model_folder), device="cpu", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    vocabulary = vocabulary_of(tokenizer)
    num_words = len(vocabulary.words)
    mixture = SpellingMixture(tokenizer, vocabulary, power=1.0, examples=11, seed=options.seed)
    saes = {
        folder.parent.name: SAE.load_from_disk(folder.parent)
        for folder in sorted((options.assets / "saes").glob("*/cfg.json"))
    }
    hooks = sorted({sae.cfg.metadata.hook_name for sae in saes.values()})
    words = run_words(model, mixture, hooks, num_words=num_words)
    correct = words.is_correct.float()
    config = json.loads((model_folder / "config.json").read_text())
    figures = {
        "measure_seed": options.seed,
        "accuracy": correct.mean().item(),
        "accuracy_rare": correct[-(num_words // 10) :].mean().item(),
        "probe_f1": {},
        "num_letters": 0,
        "least_held_out": options.least_held_out,
        "model": {
            "layers": config["num_hidden_layers"],
            "d_model": config["hidden_size"],
            "heads": config["num_attention_heads"],
            "sliding_window": config["sliding_window"],
            "words": num_words,
            "parameters": sum(parameter.numel() for parameter in {*model.original_model.parameters()}),
            "model_megabytes": (model_folder / "model.safetensors").stat().st_size / 1e6,
        },
        "training": json.loads((model_folder / "training.json").read_text()),
        "sae_training": _sae_training(options.suite),
        "saes": {},
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "sae-lens", "wordfreq")),
    }
    for hook in hooks:
        f1, counts = probe_f1(words.residuals[hook], words.labels)
        enough = [score for score, count in zip(f1, counts, strict=True) if count >= options.least_held_out]
        if not enough:
            raise SystemExit(f"no letter has {options.least_held_out} held-out words; lower --least-held-out")
        figures["probe_f1"][hook] = sum(enough) / len(enough)
        figures["num_letters"] = len(enough)
        print(f"{hook}: probe F1 {figures['probe_f1'][hook]:.4f}", flush=True)
    for name, sae in saes.items():
        hook = sae.cfg.metadata.hook_name
        figures["saes"][name] = {
            "hook_name": hook,
            "d_sae": sae.cfg.d_sae,
            "architecture": sae.cfg.metadata.training_architecture,
            **sae_figures(sae, words.residuals[hook]),
            "hedging": sae.cfg.metadata["hedging_degree"],
        }
        print(name, figures["saes"][name], flush=True)
    (options.assets / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    (options.assets / "MODEL_CARD.md").write_text(render(figures, assets=options.assets.as_posix()))
    return figures


def _sae_training(suite: Path) -> dict[str, Any]:
    """What the card says of the SAEs' training, from its configuration."""
    config = yaml.safe_load(suite.read_text(encoding="utf-8"))
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    rates = [sae["lr"] for sae in model["saes"].values() if "lr" in sae]
    return {
        "sae_steps": config["trainer"]["max_steps"],
        "sae_batch": data["batch_size"],
        "sae_lr": model["optimisation"]["lr"],
        "sae_own_lr": ", ".join(map(str, sorted(set(rates)))),
        "sae_seed": config["seed_everything"],
        "sae_power": data["source"]["init_args"]["power"],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True, help="folder that holds model/ and saes/")
    parser.add_argument("--suite", type=Path, default=SUITE, help="configuration that the SAEs were trained by")
    parser.add_argument("--seed", type=int, default=1, help="draws the solved examples")
    parser.add_argument("--least-held-out", type=int, default=10, help="held-out words a letter needs for its F1")
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    main()

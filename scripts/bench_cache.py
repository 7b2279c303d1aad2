"""Residuals at the words in one pass that stops after the deepest hook, against caches and against a bare forward.

`read_residuals` reads several hooks. It is compared with `run_with_cache` of all hooks, with `run_with_cache` of the
same hooks, and with the least that can be done: the Hugging Face model by itself, cut off after the same layer, with
PyTorch hooks that copy the same rows. Against the last a ratio near 1 is as good as can be.

    python scripts/bench_cache.py --shapes speller --json cache.json
"""

from functools import partial
from typing import Any

import torch
from benchmark_shapes import SHAPES, Setting, hooks_up_to, open_shape
from benchmarking import Report, Way, compare, new_report, parse_arguments
from torch import Tensor, nn
from transformers import AutoModel

from absorb_pl.data import read_residuals
from absorb_pl.words import TokenizedPrompts


def main(args: list[str] | None = None) -> Report:
    """Run the benchmark, print its tables, and return its figures."""
    options = parse_arguments(__doc__, SHAPES, args)
    report = new_report("cache", options.device)
    for name in options.shapes:
        words = options.words or (4 if options.quick else SHAPES[name].words)
        with open_shape(name, options.device) as setting:
            _benchmark(report, setting, words, options.repeats)
    report.show()
    report.write(options.json)
    return report


def bare_model(setting: Setting, depth: int) -> tuple[nn.Module, list[nn.Module]]:
    """The Hugging Face model without hooks, head and deeper layers, and its layers.

    Args:
        setting: The shape.
        depth: How many layers to keep.
    """
    model = AutoModel.from_pretrained(setting.folder).to(setting.device).eval()
    where = "h" if hasattr(model, "h") else "layers"
    layers = getattr(model, where)[:depth]
    setattr(model, where, layers)
    return model, list(layers)


@torch.no_grad()
def bare_residuals(model: nn.Module, layers: list[nn.Module], prompts: TokenizedPrompts, count: int) -> Tensor:
    """Rows at the words after each of the layers, `[count, layers * d_model]`.

    Args:
        model: From `bare_model`.
        layers: Its layers.
        prompts: The prompts, equally long.
        count: How many.
    """
    rows: list[Tensor] = []
    picked = torch.arange(count, device=prompts.input_ids.device)

    def keep(_layer: nn.Module, _args: Any, output: Any) -> None:
        activations = output if isinstance(output, Tensor) else output[0]
        rows.append(activations[picked, prompts.word_positions[:count]])

    handles = [layer.register_forward_hook(keep) for layer in layers]
    model(prompts.input_ids[:count], use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.cat(rows, dim=1)


@torch.no_grad()
def cached_residuals(
    setting: Setting, prompts: TokenizedPrompts, hooks: list[str], names: list[str] | None, count: int
) -> Tensor:
    """The same rows taken from a cache of whole activations.

    Args:
        setting: The shape.
        prompts: The prompts, equally long.
        hooks: Hooks to read.
        names: Hooks to cache; all if None.
        count: How many prompts.
    """
    _, cache = setting.model.run_with_cache(prompts.input_ids[:count], names_filter=names)
    picked = torch.arange(count, device=prompts.input_ids.device)
    return torch.cat([cache[hook][picked, prompts.word_positions[:count]] for hook in hooks], dim=1)


def _benchmark(report: Report, setting: Setting, words: int, repeats: int) -> None:
    hooks = hooks_up_to(setting)
    # Equally long prompts, so that no way has padding to deal with.
    prompts = setting.prompts(words, shared_context=False)

    def read(count: int) -> Tensor:
        few = prompts.select(slice(count))
        found = read_residuals(setting.model, few.input_ids, few.attention_mask, few.word_positions, hooks)
        return torch.cat([found[hook] for hook in hooks], dim=1)

    model, layers = bare_model(setting, len(hooks))
    plain = [
        Way("run_with_cache, all hooks", partial(cached_residuals, setting, prompts, hooks, None), words),
        Way("run_with_cache, these hooks", partial(cached_residuals, setting, prompts, hooks, hooks), words),
        Way("bare forward to this layer", partial(bare_residuals, model, layers, prompts), words),
    ]
    this = Way("read_residuals", read, words)
    what = f"rows of {len(hooks)} hooks"
    report.comparisons += [
        compare(setting.name, what, "word", way, this, repeats=repeats, device=setting.device) for way in plain
    ]
    _, cache = setting.model.run_with_cache(prompts.input_ids[:1])
    # Aliases of a hook share their storage.
    held = {value.data_ptr(): value.nbytes for value in cache.values()}
    report.measurements.append(
        {
            "shape": setting.name,
            "KiB a word in a cache of all hooks": round(sum(held.values()) / 2**10, 1),
            "KiB a word in the rows read": round(read(1).nbytes / 2**10, 1),
        }
    )


if __name__ == "__main__":
    main()

"""What integrated gradients and ablations of words cost at the shape of Gemma-2-2B, as shares of the chip's own rate.

Weights are random, so nothing is downloaded. Each figure is a median over turns, for several sizes of a run of the
model; launches and waits are counted by PyTorch's profiler in one more turn, on a CPU operators and what they take. The
plain way, whole sequences step after step, stands beside it.

    python scripts/bench_gpu.py --shapes gemma2-2b --json gpu.json
    python scripts/bench_gpu.py --quick   # small, on any machine
"""

import statistics
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from bench_attribution import STEPS, parameter_gradients, plain_integrated_gradients
from benchmark_shapes import SHAPES as MODEL_SHAPES
from benchmark_shapes import Setting, Shape, open_shape
from benchmarking import Report, is_cuda, new_report, parse_arguments, peak_memory, timed
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import Gemma2Config

from absorb_pl.attribution import word_ablations, word_integrated_gradients
from absorb_pl.engine import compute_prefix
from absorb_pl.models.identity import model_identity
from absorb_pl.words import TokenizedPrompts

SHAPES = {
    "small": Shape(
        "blocks.1.hook_resid_post",
        latents=512,
        words=4,
        plain_words=1,
        config=Gemma2Config(
            vocab_size=8192,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
    ),
    "gpt2-small": MODEL_SHAPES["gpt2-small"],
    "gemma2-2b": Shape(
        "blocks.12.hook_resid_post",
        latents=16_384,
        words=512,
        plain_words=4,
        config=Gemma2Config(pad_token_id=0, bos_token_id=1, eos_token_id=2),
    ),
}
RUN_SIZES = (64, 1024)
PROFILED_WORDS = 16
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx")
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "_linear_pointwise", "_scaled_dot_product_flash_attention_for_cpu")
LIBRARIES = ("aten", "mkldnn")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def main(args: list[str] | None = None) -> Report:
    """Run the benchmark, print its tables, and return its figures."""
    options = parse_arguments(__doc__, SHAPES, args)
    dtype = "bfloat16" if is_cuda(options.device) else "float32"
    report = new_report("gpu", options.device, getattr(torch, dtype))
    for name in options.shapes:
        words = options.words or (2 if options.quick else SHAPES[name].words)
        with open_shape(name, options.device, dtype, SHAPES) as setting:
            identity, _ = timed(partial(model_identity, setting.model), options.device)
            _add(report, {"shape": name, "what": "identity of the model", "ms": round(1e3 * identity, 1)})
            [sae] = setting.saes(1)
            _engine(report, setting, sae, words, options.repeats)
            _plain(report, setting, sae, min(words, SHAPES[name].plain_words), options.repeats)
    report.show()
    report.write(options.json)
    return report


def _engine(report: Report, setting: Setting, sae: Any, words: int, repeats: int) -> None:
    model, hook = setting.model, setting.shape.hook_name
    rate = 1e9 * report.machine["matmul_gflops"]
    for shared_context in (False, True):
        prompts = setting.prompts(words, shared_context=shared_context)
        context = "shared context" if shared_context else "own contexts"
        for size in RUN_SIZES:

            def integrate(count: int, size: int = size, prompts: TokenizedPrompts = prompts) -> None:
                few = prompts.select(slice(count))
                prefix = compute_prefix(model, few, [hook], batch_size=size)
                word_integrated_gradients(model, sae, few, setting.metric, steps=STEPS, prefix=prefix, batch_size=size)

            def ablate(count: int, size: int = size, prompts: TokenizedPrompts = prompts) -> None:
                few = prompts.select(slice(count))
                prefix = compute_prefix(model, few, [hook], batch_size=size)
                word_ablations(model, sae, few, setting.metric, prefix=prefix, batch_size=size)

            for what, run in (("integrated gradients", integrate), ("ablations", ablate)):
                named = {"shape": setting.name, "what": f"{what}, {context}", "sequences a run": size}
                _add(report, named | _measured(run, setting.device, words, repeats, rate))


def _add(report: Report, figures: dict[str, Any]) -> None:
    """Keep figures, and print them at once: a run that is cut off has shown what it found."""
    report.measurements.append(figures)
    print(figures, flush=True)


def _measured(run: Callable[[int], None], device: str, words: int, repeats: int, rate: float) -> dict[str, Any]:
    run(words)
    median = statistics.median(timed(partial(run, words), device)[0] for _ in range(repeats)) / words
    with FlopCounterMode(display=False) as counter:
        run(words)
    flops = counter.get_total_flops() / words
    figures = {
        "ms a word": round(1e3 * median, 3),
        "gflop a word": round(flops / 1e9, 4),
        "of matmul rate": f"{flops / median / rate:.1%}",
        "peak MiB so far": round(peak_memory(device)),
    }
    return figures | _profiled(run, min(words, PROFILED_WORDS), is_cuda(device))


def _profiled(run: Callable[[int], None], words: int, on_gpu: bool) -> dict[str, Any]:
    """Launches and waits on a GPU; on a CPU operators, each of which would be a launch or more, and their shares."""
    kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=kinds) as profiler:
        run(words)
        if on_gpu:
            torch.cuda.synchronize()
    counts, times = Counter[str](), Counter[str]()
    for event in profiler.key_averages():
        counts[event.key] += event.count
        library, _, name = event.key.partition("::")
        if library in LIBRARIES and event.self_cpu_time_total > 0:
            times[name] += event.self_cpu_time_total
    if on_gpu:
        return {
            "launches a word": round(sum(counts[key] for key in LAUNCHES) / words, 1),
            "waits a word": round(sum(counts[key] for key in WAITS) / words, 2),
        }
    spent = sum(times.values())
    products = sum(times.pop(name, 0) for name in PRODUCTS)
    others = ", ".join(f"{name} {time / spent:.1%}" for name, time in times.most_common(3))
    operators = sum(counts[f"{library}::{name}"] for name in (*times, *PRODUCTS) for library in LIBRARIES)
    return {
        "operators a word": round(operators / words),
        "in matrix products": f"{products / spent:.1%}",
        "largest others": others,
    }


def _plain(report: Report, setting: Setting, sae: Any, words: int, repeats: int) -> None:
    prompts = setting.prompts(words, shared_context=False)
    plain = partial(plain_integrated_gradients, setting, sae, prompts)
    with parameter_gradients(setting.model.original_model, sae):
        plain(1)
        median = statistics.median(timed(partial(plain, words), setting.device)[0] for _ in range(repeats)) / words
    figures = {"ms a word": round(1e3 * median, 3)}
    _add(report, {"shape": setting.name, "what": "integrated gradients, own contexts, the plain way"} | figures)


if __name__ == "__main__":
    main()

"""Time and memory of wide SAEs on many words, from activations to rates, each size in a process of its own.

A size is words × latents × width of the activations. Words are of 26 classes of different frequency; activations are
sums of decoder rows, a class's own among them, and the SAE's threshold is such that about 60 latents fire on a word.
`evaluate_activations` trains the linear probe, ranks the latents, solves the k-sparse probes, finds the splits and
judges by the rules that activations are enough for. The peak is all that the process ever held, Python and torch
themselves among it.

    python scripts/bench_sizes.py --sizes 20000x16384x768 2000x1048576x64
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarking import Report, new_report, peak_memory, timed
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from torch import Tensor

from absorb_pl.evaluators import evaluate_activations
from absorb_pl.rules.registry import rules_without_model

SIZES = ("20000x16384x768", "2000x1048576x64")
QUICK_SIZE = "400x256x16"
CLASSES, FIRING, DRAWN = 26, 60, 20
WORDS_AT_ONCE = 128


class Size(NamedTuple):
    """How much there is to evaluate.

    Attributes:
        words: Number of words.
        latents: Width of the SAE.
        d_model: Width of the activations.
    """

    words: int
    latents: int
    d_model: int

    @classmethod
    def of(cls, text: str) -> "Size":
        """Read a size as the command line gives it.

        Args:
            text: Three whole numbers with an `x` between them.
        """
        try:
            words, latents, d_model = map(int, text.split("x"))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not words x latents x width, such as {SIZES[0]}") from None
        if words < 4 * CLASSES or latents < 2 * CLASSES or d_model < 1:
            raise argparse.ArgumentTypeError(
                f"{text!r} is too small: {4 * CLASSES} words and {2 * CLASSES} latents at least"
            )
        return cls(words, latents, d_model)

    def __str__(self) -> str:
        return "x".join(map(str, self))


def main(args: list[str] | None = None) -> Report | None:
    """Run the benchmark, print its table, and return its figures; or measure one size in this process."""
    options = _parser().parse_args(args)
    if options.here is not None:
        print(json.dumps(measure(options.here)))
        return None
    report = new_report("sizes", "cpu")
    for size in [Size.of(QUICK_SIZE)] if options.quick else options.sizes:
        command = [sys.executable, __file__, "--here", str(size)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        report.measurements.append(json.loads(done.stdout.splitlines()[-1]))
    report.show()
    report.write(options.json)
    return report


def measure(size: Size) -> dict[str, Any]:
    """Evaluate an SAE and say what it took.

    Args:
        size: How much there is to evaluate.

    Returns:
        A row of the table; memory in MiB.
    """
    sae, x, labels = make(size)
    before = peak_memory("cpu")
    processor = time.process_time()
    seconds, tables = timed(lambda: evaluate_activations(sae, x, labels, rules_without_model()), "cpu")
    processor = time.process_time() - processor
    summary = tables["summary"].iloc[0]
    return {
        "size": str(size),
        "seconds": round(seconds, 1),
        "processor seconds": round(processor, 1),
        "peak MiB": round(peak_memory("cpu")),
        "peak before MiB": round(before),
        "SAE MiB": round(sum(each.numel() * each.element_size() for each in sae.parameters()) / 2**20),
        "activations MiB": round(x.numel() * x.element_size() / 2**20),
        "l0": round(float(summary["l0"]), 1),
        "num_splits": round(float(summary["num_splits"]), 2),
    }


@torch.no_grad()
def make(size: Size) -> tuple[JumpReLUSAE, Tensor, list[str]]:
    """Make an SAE, activations at words, and the words' classes.

    Args:
        size: How much.
    """
    generator = torch.Generator().manual_seed(0)
    config = JumpReLUSAEConfig(d_in=size.d_model, d_sae=size.latents, apply_b_dec_to_input=False)
    sae = JumpReLUSAE(config).requires_grad_(False).eval()
    sae.W_dec.normal_(generator=generator)
    sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
    sae.W_enc.copy_(sae.W_dec.T)
    frequency = 1 / torch.arange(1, CLASSES + 1)
    drawn = torch.multinomial(frequency, size.words, replacement=True, generator=generator)
    classes = torch.cat([torch.arange(CLASSES).repeat(3), drawn])[: size.words]
    x = torch.empty(size.words, size.d_model)
    for rows in torch.arange(size.words).split(WORDS_AT_ONCE):
        others = torch.randint(CLASSES, size.latents, (len(rows), DRAWN), generator=generator)
        strengths = torch.rand(len(rows), DRAWN, generator=generator)
        x[rows] = 2 * sae.W_dec[classes[rows]] + torch.einsum("wn,wnd->wd", strengths, sae.W_dec[others])
    sample = sae.encode(x[:: max(1, size.words // WORDS_AT_ONCE)])
    firing = min(FIRING, size.latents // 4)
    sae.threshold.fill_(float(sample.topk(firing, dim=1).values[:, -1].median()))
    return sae, x, [str(number) for number in classes.tolist()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=Size.of, default=[Size.of(size) for size in SIZES])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SIZE} alone")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--here", type=Size.of, help="measure one size in this process and print it as JSON")
    return parser


if __name__ == "__main__":
    main()

"""Time two ways to the same figures side by side, and write down what came out.

The ways take turns within one process (plain, this, plain, this, …), so that both meet the same load of the machine,
and each turn is divided by the number of items it did. Only the ratios travel from one machine to another; that of
processor time holds on a busy machine too.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from absorb_pl.matrix_products import fast_products

TOLERANCE = 1e-3
MATMUL_SIZE = 1024
WIDTH = 150
Result = TypeVar("Result")


@dataclass(frozen=True)
class Way:
    """A way to figures.

    Attributes:
        name: What to call it in tables.
        run: From the number of items to do to their figures, the first axis items; the first items are always the same.
        items: How many items to do in a turn.
    """

    name: str
    run: Callable[[int], Tensor]
    items: int


@dataclass(frozen=True)
class Comparison:
    """Outcome of `compare`.

    Attributes:
        shape: Name of the sizes it ran at.
        what: What is computed.
        item: What an item is.
        plain: The way compared with.
        this: This code's way.
        plain_seconds: Seconds an item of the plain way, by turn.
        this_seconds: The same of this code.
        ratio: Median of the plain way's seconds over median of this code's.
        processor_ratio: The same of processor time, all threads of this process together.
        largest_difference: Between the figures of the two, as a share of the largest figure.
        flops_per_item: Floating-point operations in matrix products of this code's way, an item.
        matmul_share: These operations a second, as a share of the machine's rate in a large matrix product.
    """

    shape: str
    what: str
    item: str
    plain: str
    this: str
    plain_seconds: list[float]
    this_seconds: list[float]
    ratio: float
    processor_ratio: float
    largest_difference: float
    flops_per_item: float
    matmul_share: float


@dataclass
class Report:
    """Everything a benchmark found.

    Attributes:
        name: Name of the benchmark.
        machine: What it ran on.
        comparisons: Pairs of ways.
        measurements: Figures that have nothing to be compared with, such as memory.
    """

    name: str
    machine: dict[str, Any]
    comparisons: list[Comparison] = field(default_factory=list)
    measurements: list[dict[str, Any]] = field(default_factory=list)

    def show(self) -> None:
        """Print the machine, the comparisons and the measurements."""
        console = Console(width=max(Console().width, WIDTH))
        console.print(f"{self.name}: " + ", ".join(f"{key} {value}" for key, value in self.machine.items()))
        headers = (
            "shape",
            "what",
            "plain way",
            "plain ms",
            "this ms",
            "times faster",
            "in CPU time",
            "difference",
            "of matmul rate",
        )
        rows = [
            (
                comparison.shape,
                f"{comparison.what}, a {comparison.item}",
                comparison.plain,
                f"{1e3 * statistics.median(comparison.plain_seconds):.4g}",
                f"{1e3 * statistics.median(comparison.this_seconds):.4g}",
                f"{comparison.ratio:.1f}",
                f"{comparison.processor_ratio:.1f}",
                f"{comparison.largest_difference:.0e}",
                f"{comparison.matmul_share:.0%}" if comparison.flops_per_item else "",
            )
            for comparison in self.comparisons
        ]
        if rows:
            console.print(_table(headers, rows))
        if self.measurements:
            headers = tuple(dict.fromkeys(key for measurement in self.measurements for key in measurement))
            rows = [tuple(str(measurement.get(key, "")) for key in headers) for measurement in self.measurements]
            console.print(_table(headers, rows))

    def write(self, path: Path | None) -> None:
        """Write the report as JSON.

        Args:
            path: Where to; nowhere if None.
        """
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(self), indent=2) + "\n")


def parse_arguments(description: str | None, shapes: Iterable[str], args: list[str] | None) -> argparse.Namespace:
    """Read the arguments that all benchmarks share.

    Args:
        description: What the benchmark does.
        shapes: Names of the sizes it can run at; the first is the smallest.
        args: The command line's arguments; those of the process if None.

    Returns:
        `shapes, words, repeats, device, json, quick`.
    """
    known = list(shapes)
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=known, help="sizes to run at; all of them if not given")
    parser.add_argument("--words", type=_positive, help="words this code does in a turn; the shape's own if not given")
    parser.add_argument("--repeats", type=_positive, default=None, help="turns of each way (default 3, 1 if quick)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--quick", action="store_true", help="the smallest shape, few words, one turn")
    options = parser.parse_args(args)
    options.shapes = options.shapes or (known[:1] if options.quick else known)
    options.repeats = options.repeats or (1 if options.quick else 3)
    return options


def new_report(name: str, device: str, dtype: torch.dtype = torch.float32) -> Report:
    """Begin a report with a description of the machine.

    Args:
        name: Name of the benchmark.
        device: Where it runs.
        dtype: Of the matrices that the machine's rate is measured with.
    """
    return Report(
        name,
        machine={
            "device": torch.cuda.get_device_name(device) if is_cuda(device) else platform.machine(),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 2),
            "torch": torch.__version__,
            "matmul_gflops": round(matmul_rate(device, dtype) / 1e9, 1),
        },
    )


def compare(
    shape: str,
    what: str,
    item: str,
    plain: Way,
    this: Way,
    *,
    repeats: int,
    device: str,
    figures_of: Callable[[Tensor], Tensor] | None = None,
    rounding: float = 0.0,
) -> Comparison:
    """Let two ways take turns and insist that they come to the same figures.

    Both do one item untimed first.

    Args:
        shape: Name of the sizes.
        what: What is computed.
        item: What an item is.
        plain: The way to compare with.
        this: This code's way.
        repeats: Turns of each.
        device: Where they run.
        figures_of: From what a way gives to the figures that must agree, untimed; the same if not given.
        rounding: What figures that are small differences of large numbers may differ by beyond `TOLERANCE`.

    Raises:
        SystemExit: The figures of the two differ by more than `TOLERANCE` of the largest and `rounding`.
    """
    plain.run(1)
    this.run(1)
    rate = matmul_rate(device)
    seconds: dict[str, list[float]] = {plain.name: [], this.name: []}
    processor: dict[str, list[float]] = {plain.name: [], this.name: []}
    figures: dict[str, Tensor] = {}
    for _ in range(repeats):
        for way in (plain, this):
            processor_start = time.process_time()
            took, figures[way.name] = timed(partial(way.run, way.items), device)
            seconds[way.name].append(took / way.items)
            processor[way.name].append((time.process_time() - processor_start) / way.items)
    both = min(plain.items, this.items)
    ours, theirs = figures[this.name][:both], figures[plain.name][:both]
    if figures_of is not None:
        ours, theirs = figures_of(ours), figures_of(theirs)
    difference = relative_difference(ours, theirs)
    if not difference <= TOLERANCE + rounding / float(theirs.abs().max()):
        raise SystemExit(f"{shape}, {what}: the two ways differ by {difference:.1e} of the largest figure")
    with FlopCounterMode(display=False) as counter:
        this.run(this.items)
    flops = counter.get_total_flops() / this.items
    typical = statistics.median(seconds[this.name])
    comparison = Comparison(
        shape=shape,
        what=what,
        item=item,
        plain=plain.name,
        this=this.name,
        plain_seconds=seconds[plain.name],
        this_seconds=seconds[this.name],
        ratio=statistics.median(seconds[plain.name]) / typical,
        processor_ratio=statistics.median(processor[plain.name]) / statistics.median(processor[this.name]),
        largest_difference=difference,
        flops_per_item=flops,
        matmul_share=flops / typical / rate,
    )
    print(f"{shape}, {what}: {comparison.ratio:.1f} times faster than {plain.name}", flush=True)
    return comparison


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference of two tensors, as a share of the largest entry of the second.

    Args:
        a: Figures.
        b: Figures of the same shape.
    """
    a, b = a.double().cpu(), b.double().cpu()
    return float((a - b).abs().max() / b.abs().max())


def matmul_rate(device: str, dtype: torch.dtype = torch.float32, *, turns: int = 5) -> float:
    """Floating-point operations a second in a large square matrix product, as this code does it.

    Args:
        device: Where to multiply.
        dtype: Of the matrices.
        turns: Products to take the median of.
    """
    size = 8 * MATMUL_SIZE if is_cuda(device) else MATMUL_SIZE
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    with fast_products():
        seconds = [timed(partial(torch.mm, a, b), device)[0] for _ in range(turns + 1)]
    return 2 * size**3 / statistics.median(seconds[1:])


def peak_memory(device: str) -> float:
    """Most memory that this process has held so far, in MiB.

    It never falls, so what is measured in one process must be measured smallest first. On the GPU, memory of tensors;
    on the CPU, resident memory.

    Args:
        device: Whose memory.
    """
    if is_cuda(device):
        return torch.cuda.max_memory_allocated(device) / 2**20
    # Unlike `ru_maxrss`, this starts anew with the program and knows nothing of the parent process.
    status = Path("/proc/self/status").read_text()
    [kib] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(kib) / 2**10


def is_cuda(device: str) -> bool:
    """Whether a device is a CUDA GPU."""
    return torch.device(device).type == "cuda"


def timed(run: Callable[[], Result], device: str) -> tuple[float, Result]:
    """Seconds that a device takes to the end of what a function gives it, and what the function returns.

    Args:
        run: The function.
        device: Where it runs.
    """
    _wait(device)
    start = time.perf_counter()
    result = run()
    _wait(device)
    return time.perf_counter() - start, result


def _wait(device: str) -> None:
    if is_cuda(device):
        torch.cuda.synchronize(device)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*headers)
    for row in rows:
        table.add_row(*row)
    return table


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number

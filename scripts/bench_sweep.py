"""A sweep of many SAEs on one hook against a study of each by itself.

A sweep is one study of 16 SAEs on a cold cache: words' residuals and linear probes are made once and serve all of
them. A separate study is that of one of the same SAEs, on a cold cache of its own. Both take turns within one process,
with all default rules and with the rules that project alone. Not every SAE is studied by itself: the ratio is against
16 times the median of those that are, and their number is written down. The bundled SAEs of the hook are filled up with
variants that have their latents in another order and their decoder rows of other lengths. Rates must agree.

    python scripts/bench_sweep.py --json sweep.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from benchmarking import new_report
from rich.console import Console
from rich.table import Table
from sae_lens import SAE

from absorb_pl.saes import bundled_sae_path, list_bundled_saes
from absorb_pl.study import StudyConfig, TrainerSettings, run_study
from absorb_pl.words import TaskConfig

LAYER = "l1"
DEFAULT_RULES = ("paper", "saebench-0.6.0", "saebench-0.3.2")
PROJECTION_RULES = ("saebench-0.6.0", "saebench-0.3.2")
RULE_SETS = {"default rules": DEFAULT_RULES, "projection rules": PROJECTION_RULES}


@dataclass(frozen=True)
class Seconds:
    """What a study took.

    Attributes:
        wall: Seconds that passed.
        processor: Seconds of processor time, all threads of this process together.
    """

    wall: float
    processor: float


@dataclass(frozen=True)
class SweepComparison:
    """A sweep beside separate studies.

    Attributes:
        rules: What the rules are called.
        saes: SAEs in the sweep.
        sweeps: Seconds of each sweep.
        separate: Seconds of each separate study.
        separate_timed: How many of the SAEs were studied by themselves.
        processor_share: Median sweep over `saes` times the median separate study, processor time.
        wall_share: The same of time that passed.
        processor_studies: Median sweep in separate studies, processor time.
        largest_difference: Between rates of the sweep and of separate studies.
    """

    rules: str
    saes: int
    sweeps: list[Seconds]
    separate: list[Seconds]
    separate_timed: int
    processor_share: float
    wall_share: float
    processor_studies: float
    largest_difference: float


def main(args: list[str] | None = None) -> list[SweepComparison]:
    """Run the benchmark, print its table, and return its figures."""
    options = _parser().parse_args(args)
    count, separate, repeats = (2, 1, 1) if options.quick else (options.saes, options.separate, options.repeats)
    words = 200 if options.quick else options.words
    with TemporaryDirectory() as temporary:
        names = sae_names(Path(temporary) / "variants", count)
        if len(set(names)) != count:
            raise SystemExit(f"{count} different SAEs were asked for, there are {len(set(names))}")
        chosen = names[:: max(1, count // separate)][:separate]
        found = [
            compare_sweep(rules, names, chosen, Path(temporary) / "runs", repeats, words, options.device)
            for rules in options.rules
        ]
    machine = new_report("sweep", options.device).machine
    _show(found)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        written = {"name": "sweep", "machine": machine, "comparisons": [asdict(one) for one in found]}
        options.json.write_text(json.dumps(written, indent=2) + "\n")
    return found


def sae_names(folder: Path, count: int) -> list[str]:
    """Names of different SAEs on one hook: the bundled ones, then variants of them saved in SAELens's format.

    Args:
        folder: Where to save the variants.
        count: How many SAEs.
    """
    bundled = [name for name in list_bundled_saes() if name.startswith(f"speller/{LAYER}-")]
    variants = []
    for seed in range(max(0, count - len(bundled))):
        sae = SAE.load_from_disk(bundled_sae_path(bundled[seed % len(bundled)]))
        variants.append(str(save_variant(sae, folder / f"variant-{seed}", seed)))
    return [*bundled, *variants][:count]


@torch.no_grad()
def save_variant(sae: SAE[Any], folder: Path, seed: int) -> Path:
    """Save an SAE with its latents in another order, and with decoder rows between half and twice as long.

    A longer row goes with activations that are smaller by as much, so that the reconstruction stays.

    Args:
        sae: The SAE; it is changed.
        folder: Where to save it.
        seed: Seed of the order and the lengths.
    """
    width = sae.W_dec.shape[0]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(width, generator=generator)
    length = 2 ** (2 * torch.rand(width, generator=generator) - 1)
    for name, parameter in sae.named_parameters():
        if name == "W_enc":
            parameter.copy_(parameter[:, order] / length)
        elif name == "W_dec":
            parameter.copy_(parameter[order] * length[:, None])
        elif parameter.shape == (width,):
            parameter.copy_(parameter[order] / length)
    sae.save_model(folder)
    return folder


def compare_sweep(
    rules: str, names: Sequence[str], chosen: Sequence[str], root: Path, repeats: int, words: int | None, device: str
) -> SweepComparison:
    """Let sweeps and separate studies take turns.

    Args:
        rules: A key of `RULE_SETS`.
        names: SAEs of the sweep.
        chosen: Those studied by themselves too.
        root: Where runs and caches go.
        repeats: Turns.
        words: Most words of the task; all if None.
        device: Accelerator of the studies.

    Raises:
        SystemExit: A rate of the sweep differs from that of a separate study.
    """
    sweeps: list[Seconds] = []
    separate: list[Seconds] = []
    difference = 0.0

    def study(saes: Sequence[str], name: str) -> tuple[Seconds, pd.DataFrame]:
        folder = root / rules / name
        config = StudyConfig(
            saes=list(saes),
            run_dir=str(folder / "run"),
            cache_dir=str(folder / "cache"),
            task=TaskConfig(max_words=words),
            rules=list(RULE_SETS[rules]),
            trainer=TrainerSettings(
                accelerator="gpu" if device.startswith("cuda") else device, enable_progress_bar=False
            ),
        )
        return timed(lambda: run_study(config).tables["summary"])

    for turn in range(repeats):
        summaries: list[pd.DataFrame] = []
        for number, saes in enumerate([[chosen[0]], names, *([sae] for sae in chosen[1:])]):
            seconds, summary = study(saes, f"{turn}-{number}")
            (sweeps if number == 1 else separate).append(seconds)
            summaries.append(summary)
        alone, together = [summaries[0], *summaries[2:]], summaries[1]
        difference = max(difference, *(rate_difference(one, together) for one in alone))
    if difference > 0:
        raise SystemExit(f"{rules}: rates of the sweep and of separate studies differ by {difference:.1e}")
    processor = statistics.median(one.processor for one in sweeps), statistics.median(o.processor for o in separate)
    wall = statistics.median(one.wall for one in sweeps), statistics.median(one.wall for one in separate)
    return SweepComparison(
        rules=rules,
        saes=len(names),
        sweeps=sweeps,
        separate=separate,
        separate_timed=len(chosen),
        processor_share=processor[0] / (len(names) * processor[1]),
        wall_share=wall[0] / (len(names) * wall[1]),
        processor_studies=processor[0] / processor[1],
        largest_difference=difference,
    )


def timed(run: Callable[[], pd.DataFrame]) -> tuple[Seconds, pd.DataFrame]:
    """Run something, and say what it took.

    Args:
        run: What to run.
    """
    wall, processor = time.perf_counter(), time.process_time()
    table = run()
    return Seconds(time.perf_counter() - wall, time.process_time() - processor), table


def rate_difference(alone: pd.DataFrame, together: pd.DataFrame) -> float:
    """Largest difference of the rates of one SAE in two summaries; infinite where one is missing in one of them.

    Args:
        alone: Summary of a study of one SAE.
        together: Summary that has the same SAE among others.
    """
    columns = ["absorption_rate", "absorption_fraction", "num_splits", "l0"]
    beside = together.merge(alone[["sae", "rule"]], on=["sae", "rule"])[columns]
    own = alone[columns].reset_index(drop=True)
    if len(own) != len(beside) or not own.isna().equals(beside.isna()):
        return float("inf")
    return float((own - beside).abs().max().max())


def _show(found: Sequence[SweepComparison]) -> None:
    headers = (
        "rules",
        "SAEs",
        "sweep, CPU s",
        "one study, CPU s",
        "studies timed",
        "sweep / (SAEs x study)",
        "in wall time",
    )
    table = Table(*headers, "sweep / study")
    for one in found:
        table.add_row(
            one.rules,
            str(one.saes),
            f"{statistics.median(o.processor for o in one.sweeps):.1f}",
            f"{statistics.median(o.processor for o in one.separate):.1f}",
            f"{len(one.separate)}, of {one.separate_timed} SAEs",
            f"{one.processor_share:.2f}",
            f"{one.wall_share:.2f}",
            f"{one.processor_studies:.1f}",
        )
    Console(width=150).print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saes", type=int, default=16, help="SAEs of the sweep")
    parser.add_argument("--separate", type=int, default=3, help="SAEs that are studied by themselves too")
    parser.add_argument("--rules", nargs="+", choices=list(RULE_SETS), default=list(RULE_SETS), help="sets of rules")
    parser.add_argument("--repeats", type=int, default=1, help="turns")
    parser.add_argument("--words", type=int, help="most words of the task; all if not given")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--quick", action="store_true", help="2 SAEs, one by itself, 200 words, one turn")
    return parser


if __name__ == "__main__":
    main()

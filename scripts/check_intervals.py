"""How often the intervals of rates hold the truth, by simulation, and how wide they are beside an oracle's.

    python scripts/check_intervals.py [--simulations 2000]

Words of 26 letters are absorbed by chance: at one rate or at different ones, in classes of one size or of different
sizes, alone or in groups that one latent absorbs together, with all candidates judged or a sample of them. An oracle
knows how much the rate varies; its interval is 3.92 standard deviations wide. Exits with an error if an interval
holds the truth in fewer than 93.5 %.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from absorb_pl.functional.rates import LetterOutcome, letter_rate, sae_rate

LEAST = 0.935


@dataclass(frozen=True)
class Setting:
    """What is simulated.

    Attributes:
        rates: True rate of each letter.
        sizes: Words of each.
        group: Words that are absorbed together.
        candidates: Share of the words that can be absorbed at all.
        most: Candidates that are judged.
        pooled: Whether the rate is over all words.
    """

    rates: tuple[float, ...]
    sizes: tuple[int, ...]
    group: int = 1
    candidates: float = 1.0
    most: int = 10**6
    pooled: bool = False


def settings() -> dict[str, Setting]:
    """The settings by name."""
    same, varied = (34,) * 26, tuple(int(size) for size in np.linspace(6, 80, 26))
    mixed = (0.0,) * 16 + tuple(np.linspace(0.05, 0.9, 10).tolist())
    found = {f"{rate:g} in all letters": Setting((rate,) * 26, same) for rate in (0.005, 0.02, 0.1, 0.3, 0.6, 0.9)}
    found |= {
        "none in 16 letters, 5 to 90 % in 10": Setting(mixed, same),
        "the same, 6 to 80 words": Setting(mixed, varied),
        "the same, pooled": Setting(mixed, varied, pooled=True),
        "0.1, 6 to 80 words": Setting((0.1,) * 26, varied),
        **{
            f"{rate:g}, absorbers of {group}": Setting((rate,) * 26, (45,) * 26, group)
            for group in (3, 5, 15)
            for rate in (0.05, 0.3)
        },
        "mixed, absorbers of 5": Setting(mixed, (45,) * 26, 5),
        "one letter, 4 of 40": Setting((0.1,), (40,)),
        "one letter, 80 of 200": Setting((0.4,), (200,)),
        "50 of 150 candidates judged": Setting((0.2,) * 26, (300,) * 26, candidates=0.5, most=50),
        "20 of 100 candidates judged": Setting((0.03,) * 26, (200,) * 26, candidates=0.5, most=20),
    }
    return found


def drawn(setting: Setting, rate: float, size: int, rng: np.random.Generator) -> LetterOutcome:
    """The words of one letter.

    Args:
        setting: What is simulated.
        rate: True rate of the letter.
        size: Its words.
        rng: Source of the draws.
    """
    groups = -(-size // setting.group)
    absorbed = np.repeat(rng.random(groups) < rate / setting.candidates, setting.group)[:size]
    candidate = rng.random(size) < setting.candidates
    places = np.flatnonzero(candidate)
    judged = rng.choice(places, min(len(places), setting.most), replace=False)
    amounts = absorbed[judged]
    return LetterOutcome(
        torch.tensor(amounts.astype(float)),
        size,
        sample_portion=len(judged) / len(places) if len(places) else 1.0,
        absorbers=torch.tensor(judged[amounts] // setting.group),
    )


def simulate(setting: Setting, simulations: int, seed: int = 0) -> dict[str, Any]:
    """How often intervals hold the truth.

    Args:
        setting: What is simulated.
        simulations: How many times.
        seed: Seed of the draws.
    """
    rng = np.random.default_rng(seed)
    weights = np.array(setting.sizes) if setting.pooled else np.ones(len(setting.sizes))
    truth = float(np.average(setting.rates, weights=weights))
    low, high, rates = list[Any](), list[Any](), list[Any]()
    for _ in range(simulations):
        letters = [drawn(setting, *each, rng) for each in zip(setting.rates, setting.sizes, strict=True)]
        found = letter_rate(letters[0]) if len(letters) == 1 else sae_rate(letters, pooled=setting.pooled)
        ends = found.ci_low, found.ci_high, found.value
        for values, end in zip((low, high, rates), ends, strict=True):
            values.append(end)
    holds = (np.array(low) <= truth) & (truth <= np.array(high))
    return {
        "truth": truth,
        "coverage": holds.mean(),
        "below": (truth < np.array(low)).mean(),
        "above": (truth > np.array(high)).mean(),
        "width": np.mean(np.array(high) - np.array(low)),
        "oracle": 3.92 * np.std(rates),
    }


def main() -> None:
    """Simulate all settings and print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--simulations", type=int, default=2_000, help="Simulations per setting.")
    options = parser.parse_args()
    missed = []
    print(f"{'setting':<38} {'truth':>6} {'holds':>6} {'below':>6} {'above':>6} {'width':>6} {'of oracle':>9}")
    for name, setting in settings().items():
        found = simulate(setting, options.simulations)
        print(
            f"{name:<38} {found['truth']:6.3f} {found['coverage']:6.3f} {found['below']:6.3f} {found['above']:6.3f} "
            f"{found['width']:6.3f} {found['width'] / found['oracle']:9.2f}",
            flush=True,
        )
        if found["coverage"] < LEAST:
            missed.append(name)
    if missed:
        raise SystemExit(f"Held in fewer than {LEAST:.1%}: {', '.join(missed)}")


if __name__ == "__main__":
    main()

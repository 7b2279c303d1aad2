"""How large the page of a big study is, how long it takes to write, and how long a browser takes to open it.

    python scripts/bench_page.py --saes 100 --words 5000 --json page.json

The study is made up: verdicts and evidence of random numbers, which compress worse than real ones. Chromium must be on
the PATH; times are medians of some openings, each in a browser of its own, next to those of a page with one SAE.
"""

import argparse
import json
import shutil
import statistics
import string
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from absorb_pl.reports.page import write_page
from absorb_pl.schema import FIRINGS, HELD_OUT, K_SPARSE, LATENTS, LETTERS, SUMMARY, WORDS, Columns

RULES = ("paper", "saebench-0.6.0", "absorb-pl-1")
READY = "document.documentElement.dataset.ready"


def made_up_study(saes: int, words: int, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Tables of a study with the columns of a real one.

    Args:
        saes: Number of SAEs.
        words: Number of held-out words.
        seed: Seed of the numbers.
    """
    rng = np.random.default_rng(seed)
    labels = np.array(list(string.ascii_lowercase))[rng.integers(26, size=words)]
    names = [f"release/l{number % 12}-w16384-{number}" for number in range(saes)]
    rows = np.arange(words)
    texts = {"row": rows, "word": [f"word{row}" for row in rows], "label": labels}
    prompts = [f"other has the first letter: O\n word{row} has the first letter:" for row in rows]
    held_out = pd.DataFrame({"hook_name": "blocks.3.hook_resid_post", **texts, "prompt": prompts})
    held_out["probe_logit"] = rng.normal(5, 3, words)
    judged = [
        {"sae": name, "rule": rule, **texts, "prompt": prompts} | {"unmet": rng.choice(["", "silent", "lead"], words)}
        for name in names
        for rule in RULES
    ]
    of_words = pd.concat([_filled(WORDS, pd.DataFrame(part), rng) for part in judged], ignore_index=True)
    pairs = pd.MultiIndex.from_product([names, RULES], names=["sae", "rule"]).to_frame(index=False)
    letters = pairs.merge(pd.DataFrame({"label": list(string.ascii_lowercase)}), how="cross")
    letters["main_latents"] = [[int(one) for one in rng.integers(16384, size=2)] for _ in range(len(letters))]
    ks = pd.MultiIndex.from_product(
        [names, list(string.ascii_lowercase), [1, 2, 3, 5, 10, 50]], names=["sae", "label", "k"]
    )
    fired = {"sae": np.repeat(names, 8 * words), "row": np.tile(np.repeat(rows, 8), saes)}
    return {
        "summary": _filled(SUMMARY, pairs.assign(architecture="jumprelu", evaluable=True), rng),
        "letters": _filled(LETTERS, letters.assign(evaluable=True), rng),
        "words": of_words,
        "held_out": held_out[list(HELD_OUT)],
        "firings": _filled(FIRINGS, pd.DataFrame(fired), rng),
        "k_sparse": _filled(K_SPARSE, ks.to_frame(index=False), rng),
        "latents": _filled(LATENTS, ks.to_frame(index=False).rename(columns={"k": "rank"}), rng),
    }


def _filled(columns: Columns, table: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """A table with the columns of a schema; those of numbers that it lacks hold random ones."""
    rows = len(table)
    random = {
        "float64": lambda: rng.random(rows),
        "int64": lambda: rng.integers(1, 200, rows),
        "bool": lambda: rng.random(rows) < 0.3,
        "str": lambda: np.full(rows, ""),
    }
    missing = {name: random[one.dtype]() for name, one in columns.items() if name not in table and one.dtype in random}
    return table.assign(**missing)


def seconds_to_open(file: Path, state: str, repeats: int) -> float:
    """Median seconds from the start of navigation until a state of the page is drawn.

    Args:
        file: The page.
        state: Its address after `#`.
        repeats: Openings.
    """
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as playwright:
        for _ in range(repeats):
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-dev-shm-usage"]
            )
            page = browser.new_page()
            page.goto(f"{file.as_uri()}{state}")
            page.wait_for_function(READY)
            found.append(page.evaluate("performance.getEntriesByName('ready')[0].startTime") / 1000)
            browser.close()
    return statistics.median(found)


def measure(saes: int, words: int, repeats: int) -> dict[str, Any]:
    """Size of a page, and seconds to write and to open it.

    Args:
        saes: Number of SAEs.
        words: Number of held-out words.
        repeats: Openings of each state.
    """
    tables = made_up_study(saes, words)
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        file = write_page(Path(folder), tables, {"model": "made up", "rules": {rule: {} for rule in RULES}})
        written = time.perf_counter() - start
        sae = "sae=release/l0-w16384-0"
        return {
            "saes": saes,
            "words": words,
            "megabytes": file.stat().st_size / 1e6,
            "seconds_to_write": written,
            "seconds_to_open": seconds_to_open(file, "", repeats),
            "seconds_to_open_an_sae": seconds_to_open(file, f"#view=sae&{sae}", repeats),
            "seconds_to_open_a_letter": seconds_to_open(file, f"#view=letter&letter=s&{sae}", repeats),
        }


def main(args: list[str] | None = None) -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saes", type=int, default=100)
    parser.add_argument("--words", type=int, default=5000, help="held-out words")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(args)
    figures = [measure(saes, options.words, options.repeats) for saes in (1, options.saes)]
    table = Table(*figures[0])
    for row in figures:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=150).print(table)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"pages": figures}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

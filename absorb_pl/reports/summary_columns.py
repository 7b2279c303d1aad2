"""The summary of a study as columns of text, for terminals and wherever else it is shown."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

_Row = Mapping[Hashable, Any]


@dataclass(frozen=True)
class TextColumn:
    """A column of text.

    Attributes:
        name: What it holds.
        cells: One for each row.
        rules: The rules it is of, if it is not of the SAE alone.
    """

    name: str
    cells: tuple[str, ...]
    rules: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The name in one line, with the rules if it has any."""
        return f"{self.name} ({', '.join(self.rules)})" if self.rules else self.name


def summary_rows(summary: pd.DataFrame) -> dict[tuple[str, str], dict[str, _Row]]:
    """The rows of a summary by model and SAE, and then by rule.

    Args:
        summary: The `summary` table of a study.
    """
    rows: dict[tuple[str, str], dict[str, _Row]] = {}
    for row in summary.to_dict("records"):
        rows.setdefault((str(row["model"]), str(row["sae"])), {})[str(row["rule"])] = row
    return rows


def summary_columns(summary: pd.DataFrame) -> list[TextColumn]:
    """A row for each SAE of each model, with the rates of each rule and what they should be read beside.

    Args:
        summary: The `summary` table of a study.

    Returns:
        The columns, what matters most first. Rules that agree on all SAEs share a column.
    """
    saes = list(summary_rows(summary).values())
    rules = [str(rule) for rule in summary["rule"].unique()]
    with_one_main = [rule for rule in rules if any(pd.notna(sae[rule]["rate_one_main"]) for sae in saes if rule in sae)]
    words = _by_rule(saes, "n", rules, _words)
    return [
        *_by_rule(saes, "rate", rules, _rate),
        _of_sae(saes, "L0", lambda row: f"{row['l0']:.1f}"),
        _of_sae(saes, "splits", lambda row: f"{row['num_splits']:.2f}"),
        _of_sae(saes, "expl. var.", lambda row: f"{row['explained_variance']:.3f}"),
        *(words if len(words) > 1 else [TextColumn("n", words[0].cells)]),
        *_fractions(saes, rules),
        _of_sae(saes, "main recall", lambda row: f"{row['main_latent_recall']:.2f}"),
        _of_sae(saes, "dead", lambda row: f"{row['dead_fraction']:.0%}"),
        *_hedging(saes),
        _of_sae(saes, "probe F1", lambda row: f"{row['probe_f1']:.3f}"),
        _of_sae(saes, "width", lambda row: str(row["d_sae"])),
        _of_sae(saes, "layer", lambda row: str(row["layer"])),
        *_by_rule(saes, "pooled", rules, _pooled),
        *_by_rule(saes, "one main", with_one_main, _one_main),
    ]


def crossfit_columns(crossfit: pd.DataFrame) -> list[TextColumn]:
    """A row for each SAE, with its rates and fractions over words that were all judged out of sample.

    Args:
        crossfit: The `crossfit` table of a study.

    Returns:
        The columns. Rules that agree on all SAEs share a column.
    """
    of_saes = crossfit[crossfit["label"] == ""]
    saes = list(summary_rows(of_saes.assign(model="")).values())  # all of one model
    rules = [str(rule) for rule in of_saes["rule"].unique()]
    return [*_by_rule(saes, "rate", rules, _rate), *_fractions(saes, rules)]


def rate_text(row: _Row) -> str:
    """A rate with its interval, or that there is none.

    Args:
        row: Of a summary.

    Example:
        >>> rate_text({"evaluable": True, "absorption_rate": 0.047, "ci_low": 0.035, "ci_high": 0.06})
        '4.7% [ 3.5,  6.0]'
    """
    if not row["evaluable"]:
        return "not evaluable"
    return _with_interval(row["absorption_rate"], row["ci_low"], row["ci_high"])


def _hedging(saes: Sequence[Mapping[str, _Row]]) -> list[TextColumn]:
    """A column where it is known of any SAE."""
    column = _of_sae(saes, "hedging", lambda row: f"{row['hedging']:.2f}" if pd.notna(row.get("hedging")) else "-")
    return [column] if set(column.cells) - {"-"} else []


def _fractions(saes: Sequence[Mapping[str, _Row]], rules: Sequence[str]) -> list[TextColumn]:
    """Columns of the rules that give fractions."""
    known = [rule for rule in rules if any(pd.notna(sae[rule]["absorption_fraction"]) for sae in saes if rule in sae)]
    return _by_rule(saes, "fraction", known, _fraction)


def _rate(row: _Row | None) -> str:
    return "-" if row is None else rate_text(row)


def _fraction(row: _Row | None) -> str:
    if row is None or pd.isna(row["absorption_fraction"]):
        return "-"
    return _with_interval(row["absorption_fraction"], row["fraction_ci_low"], row["fraction_ci_high"])


def _pooled(row: _Row | None) -> str:
    if row is None or not row["evaluable"]:
        return "-"
    return _with_interval(row["pooled_rate"], row["pooled_ci_low"], row["pooled_ci_high"])


def _one_main(row: _Row | None) -> str:
    return "-" if row is None or pd.isna(row["rate_one_main"]) else f"{row['rate_one_main']:.1%}"


def _words(row: _Row | None) -> str:
    return "-" if row is None else str(row["num_words"])


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{value:.1%} [{100 * low:4.1f}, {100 * high:4.1f}]"


def _of_sae(saes: Sequence[Mapping[str, _Row]], name: str, show: Callable[[_Row], str]) -> TextColumn:
    return TextColumn(name, tuple(show(next(iter(sae.values()))) for sae in saes))


def _by_rule(
    saes: Sequence[Mapping[str, _Row]], name: str, rules: Sequence[str], show: Callable[[_Row | None], str]
) -> list[TextColumn]:
    columns: dict[tuple[str, ...], list[str]] = {}
    for rule in rules:
        columns.setdefault(tuple(show(sae.get(rule)) for sae in saes), []).append(rule)
    return [TextColumn(name, cells, tuple(agreeing)) for cells, agreeing in columns.items()]

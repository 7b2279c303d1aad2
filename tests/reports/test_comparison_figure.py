"""The figure of comparisons holds what the table says."""

import pandas as pd
import pytest

from absorb_pl.reports.comparison_table import comparison_figure
from absorb_pl.schema import COMPARISON


def table(pairs: int) -> pd.DataFrame:
    rows = [
        {
            "rule": rule,
            "a": f"rel/a{number}",
            "b": f"rel/b{number}",
            "label": label,
            "letters": 26,
            "rate_a": 0.3,
            "rate_b": 0.1,
            "difference": 0.01 * number - 0.1 * (rule == "paper"),
            "ci_low": 0.01 * number - 0.15,
            "ci_high": 0.01 * number + 0.05,
            "p_value": 0.001 * number,
            "p_holm": 0.01 * number,
        }
        for rule in ("paper", "absorb-pl-1")
        for number in range(pairs)
        for label in ("", "q")
    ]
    return pd.DataFrame(rows)[list(COMPARISON)]


def drawn(figure, panel):
    points = [line for line in figure.axes[panel].lines if line.get_marker() == "o"]
    return [(line.get_xdata()[0], int(line.get_ydata()[0]), line.get_markerfacecolor() != "white") for line in points]


@pytest.mark.parametrize("panel", [0, 1])
def test_each_pair_is_a_point_filled_if_it_differs(panel):
    figure = comparison_figure(table(8))
    of_rule = [0.01 * number - 0.1 * (panel == 0) for number in range(8)]
    found = drawn(figure, panel)
    assert [place for _, place, _ in found] == list(range(8))
    assert [value for value, _, _ in found] == pytest.approx(of_rule)
    assert [filled for _, _, filled in found] == [0.01 * number <= 0.05 for number in range(8)]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()][:2] == ["a0 − b0", "a1 − b1"]


def test_of_many_pairs_the_clearest_are_shown_and_said():
    figure = comparison_figure(table(60))
    assert len(drawn(figure, 0)) == 40
    assert "the 40 of 60 pairs with the smallest p" in figure.get_suptitle()

"""The summary of a study as a small table of HTML, for notebooks."""

from html import escape

import pandas as pd

from absorb_pl.reports.summary_columns import summary_columns, summary_rows

_SHOWN = ("rate", "fraction", "L0", "splits", "n")


def summary_html(summary: pd.DataFrame, model: str) -> str:
    """A table with a row for each SAE: rates with their intervals by rule, L0, splits and the number of words.

    Args:
        summary: The `summary` table of a study.
        model: What to call its language model, if it is one.

    Returns:
        HTML in which every text is escaped.
    """
    rows = summary_rows(summary)
    several = len({model for model, _ in rows}) > 1
    heads = [f"{model}: {sae}" if several else sae for model, sae in rows]
    columns = [column for column in summary_columns(summary) if column.name in _SHOWN]
    titles = ["<th>SAE</th>"] + [f"<th>{'<br>'.join(map(escape, (*c.rules, c.name)))}</th>" for c in columns]
    lines = [
        f"<tr><th>{escape(head)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for head, *cells in zip(heads, *(column.cells for column in columns), strict=True)
    ]
    reasons = [
        f"<div>Not evaluable by {escape(str(row['rule']))}, {escape(str(row['reason']))}: "
        f"{escape(str(row['sae']))}.</div>"
        for row in summary.to_dict("records")
        if not row["evaluable"]
    ]
    place = "" if several else f" in {escape(model)}"
    return (
        f"<div><p>Feature absorption{place}, mean over letters [95 % interval]</p>"
        f"<table><thead><tr>{''.join(titles)}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        f"{''.join(reasons)}</div>"
    )

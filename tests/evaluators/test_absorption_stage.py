"""A pass that lost verdicts is noticed."""

import pandas as pd
import pytest

from absorb_pl.errors import CacheCorruptedError
from absorb_pl.evaluators.absorption_stage import check_complete

CANDIDATES = pd.DataFrame({"row": [4, 2, 9]})


def verdicts(*rows: int) -> pd.DataFrame:
    return pd.DataFrame({"sae": ["other", *["mine"] * len(rows)], "row": [7, *rows]})


def test_every_candidate_judged_once_is_complete():
    check_complete("mine", verdicts(9, 2, 4), CANDIDATES)
    check_complete("none", verdicts(9), CANDIDATES[:0])


@pytest.mark.parametrize("rows", [(9, 2), (9, 2, 4, 4), (9, 2, 5)])
def test_lost_repeated_or_strange_verdicts_are_refused(rows):
    with pytest.raises(CacheCorruptedError, match=r"`mine`.*judged words.*each of its 3 candidate"):
        check_complete("mine", verdicts(*rows), CANDIDATES)

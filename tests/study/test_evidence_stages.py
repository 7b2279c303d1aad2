"""A pass that lost words is noticed, and candidates of another task are refused."""

import pandas as pd
import pytest

from absorb_pl.errors import CacheCorruptedError, ManifestMismatchError
from absorb_pl.evaluators.absorption import check_words
from absorb_pl.study.evidence_stages import check_complete
from absorb_pl.words import SpellingPrompt

CANDIDATES = pd.DataFrame({"row": [4, 2, 9]})


def scores(*rows: int) -> pd.DataFrame:
    return pd.DataFrame({"sae": "mine", "row": list(rows)})


def test_every_candidate_scored_once_is_complete():
    check_complete("mine", scores(9, 2, 4), CANDIDATES)
    check_complete("none", scores(), CANDIDATES[:0])


@pytest.mark.parametrize("rows", [(9, 2), (9, 2, 4, 4), (9, 2, 5)])
def test_lost_repeated_or_strange_words_are_refused(rows):
    with pytest.raises(CacheCorruptedError, match=r"`mine`.*scored words.*each of its 3 candidate"):
        check_complete("mine", scores(*rows), CANDIDATES)


@pytest.mark.parametrize(("row", "prompt"), [(1, " cat:"), (5, " dog:")])
def test_candidates_of_another_task_are_refused(row, prompt):
    texts = [SpellingPrompt(" cat:", " C", " cat"), SpellingPrompt(" dog:", " D", " dog")]
    check_words(pd.DataFrame({"row": [0, 1], "prompt": [" cat:", " dog:"]}), texts)
    with pytest.raises(ManifestMismatchError, match=f"row {row}.*same model and task"):
        check_words(pd.DataFrame({"row": [row], "prompt": [prompt]}), texts)

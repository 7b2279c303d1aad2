"""A pass that lost words is noticed, and candidates of another task are refused."""

from types import SimpleNamespace

import pandas as pd
import pytest

from absorb_pl.errors import CacheCorruptedError, ManifestMismatchError
from absorb_pl.evaluators.absorption import check_words
from absorb_pl.rules import Carried, Projections
from absorb_pl.study.evidence_stages import ProjectionStage, check_complete
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


def test_all_processes_go_through_units_in_the_order_of_the_rules(tmp_path):
    """Shares of several processes are every n-th unit, so an order that differs between them would lose units."""
    probing = SimpleNamespace(saes=["a", "b"])
    for asked in ([Carried(), Projections(5), Projections(7)], [Projections(5), Carried(), Carried(0.9)]):
        stage = ProjectionStage(tmp_path, SimpleNamespace(), probing, asked)
        kinds = list(dict.fromkeys(type(each).__name__ if isinstance(each, Projections) else each for each in asked))
        assert [type(each) if isinstance(each, Projections) else each for _, each in stage._units.values()] == [
            Projections if kind == "Projections" else kind for _ in ("a", "b") for kind in kinds
        ]
        assert {each.stored_absorbers for _, each in stage._units.values() if isinstance(each, Projections)} <= {5, 7}

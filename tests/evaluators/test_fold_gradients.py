"""Rules that read gradients, cross-fitted: candidates, samples and verdicts against a count by hand, word by word."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import one_hot

from absorb_pl.errors import AbsorbError, RuleError
from absorb_pl.evaluators.crossfit import crossfit
from absorb_pl.evaluators.fold_mains import FoldMains, fold_mains
from absorb_pl.evaluators.folds import CrossfitSettings, Folds
from absorb_pl.evaluators.sae_probing import SplitSettings
from absorb_pl.probes.settings import KSparseSettings
from absorb_pl.rules import configured_rules
from absorb_pl.rules.evidence import Gradients
from absorb_pl.rules.paper import PaperRule
from absorb_pl.rules.rule import Decisions
from absorb_pl.truth import PlantedAbsorption, WorldSettings, make_world, planted_sae

QUICK = KSparseSettings(ks=(1, 2, 3))
RULES = configured_rules({"paper": {"delta_threshold": 0.5, "cos_threshold": 0.0}})
SETTINGS = CrossfitSettings(folds=3, repeats=2)


@pytest.fixture(scope="module")
def planted() -> Any:
    world = make_world(WorldSettings(classes=4, words_per_class=60, unrelated=20, unrelated_active=3))
    _, made = planted_sae(world, PlantedAbsorption(0.3))
    return made.sae, Folds(world.activations, one_hot(world.classes).bool(), world.class_names, SETTINGS, seed=5)


def drawn_scores(sae: Any, words: pd.DataFrame) -> pd.DataFrame:
    """Scores of five latents a word, drawn from the word's number."""
    rows = []
    for row, label in words[["row", "label"]].itertuples(index=False):
        generator = np.random.default_rng(row)
        latents = generator.permutation(len(sae.W_dec))[:5]
        scores = np.sort(generator.normal(-0.5, 1.0, 5))
        activations = generator.choice([-1.0, 1.0], 5)
        rows.append({"row": row, "label": label, "latents": latents, "scores": scores, "activations": activations})
    return pd.DataFrame(rows, columns=["row", "label", "latents", "scores", "activations"])


def mains_of(planted: Any, **splits: Any) -> FoldMains:
    sae, folds = planted
    return fold_mains(sae, folds, folds.probe_of_fold(), QUICK, SplitSettings(**splits))


def expected_candidates(planted: Any, mains: FoldMains) -> set[tuple[int, int, int]]:
    """Words that the linear probe sees, scikit-learn's probe on the main latents does not, with the mains silent."""
    sae, folds = planted
    latents, probe = sae.encode(folds.x).double().numpy(), folds.probe_of_fold()
    found = set()
    for repeat in range(SETTINGS.repeats):
        for fold, (train, test) in enumerate(folds.of_repeat(repeat)):
            weight, bias = probe(repeat, fold, train)
            seen = folds.x[test] @ weight.T + bias > 0
            for row in mains.of_fold(repeat, fold).letters.to_dict("records"):
                c, chosen = folds.class_names.index(row["label"]), row["main_latents"]
                sparse = LogisticRegression(C=1.0, class_weight="balanced", tol=1e-10, max_iter=10_000)
                sparse.fit(latents[train][:, chosen], folds.y[train, c])
                missed = sparse.decision_function(latents[test][:, chosen]) <= 0
                silent = np.abs(latents[test][:, chosen]).sum(axis=1) < 1e-8
                own = folds.y[test, c].numpy() & seen[:, c].numpy() & missed & silent
                found |= {(repeat, fold, int(word)) for word in test[torch.from_numpy(own)]}
                assert row["num_candidates"] == own.sum()
                assert row["num_probe_true_positives"] == (folds.y[test, c] & seen[:, c]).sum()
    return found


def test_candidates_are_those_of_the_papers_three_conditions(planted: Any):
    mains = mains_of(planted)
    found = set(mains.candidates[["repeat", "fold", "row"]].itertuples(index=False, name=None))
    assert found == expected_candidates(planted, mains)
    assert len(found) > 40
    assert (mains.letters["sample_portion"] == 1).all()
    assert len(mains.to_score) == mains.candidates["row"].nunique() < len(mains.candidates)


def test_a_sample_has_the_same_words_in_all_repeats_where_it_can(planted: Any):
    whole, sampled = mains_of(planted), mains_of(planted, max_words_per_letter=4)
    words, all_words = sampled.candidates, whole.candidates
    pd.testing.assert_frame_equal(
        whole.letters.drop(columns="sample_portion"), sampled.letters.drop(columns="sample_portion")
    )
    merged = words.merge(all_words, on=["repeat", "fold", "row", "label"])
    assert len(merged) == len(words) < len(all_words)
    eligible = all_words.groupby(["repeat", "label"])["row"].agg(set)
    for (repeat, label), kept in words.groupby(["repeat", "label"])["row"].agg(set).items():
        assert len(kept) == min(4, len(eligible[repeat, label]))
        own = sampled.letters[(sampled.letters["repeat"] == repeat) & (sampled.letters["label"] == label)]
        assert (own["sample_portion"] == len(kept) / len(eligible[repeat, label])).all()
        # no word that is left out in one repeat comes before one that is kept there
        other = set(words.loc[(words["repeat"] != repeat) & (words["label"] == label), "row"])
        left_out = eligible[repeat, label] - kept
        assert not (other & left_out) or kept <= other | (kept - eligible[1 - repeat, label])


@pytest.mark.parametrize("most", [200, 8])
def test_verdicts_and_rates_are_those_of_a_count_by_hand(planted: Any, most: int):
    sae, folds = planted
    mains, probe = mains_of(planted, max_words_per_letter=most), folds.probe_of_fold()
    asked = []

    def score(words: pd.DataFrame, evidence: Gradients) -> pd.DataFrame:
        asked.append(evidence)
        assert not words.duplicated().any()
        return drawn_scores(sae, words)

    found = crossfit(
        sae,
        folds,
        RULES,
        k_sparse=QUICK,
        splits=SplitSettings(max_words_per_letter=most),
        score_words=score,
    )
    assert asked == [Gradients()]
    scores = drawn_scores(sae, mains.to_score).set_index("row")
    absorbed: dict[tuple[int, str], list[int]] = {}
    verdicts = {}
    for repeat in range(SETTINGS.repeats):
        for fold, (train, _) in enumerate(folds.of_repeat(repeat)):
            weight, _ = probe(repeat, fold, train)
            for row, label in mains.of_fold(repeat, fold).candidates[["row", "label"]].itertuples(index=False):
                top = int(scores.loc[row, "latents"][0])
                first, second = scores.loc[row, "scores"][:2]
                direction = sae.W_dec[top] * np.sign(scores.loc[row, "activations"][0])
                cosine = torch.cosine_similarity(direction.double(), weight[folds.class_names.index(label)], dim=0)
                counts = first <= 0 and abs(first) - abs(second) >= 0.5 and float(cosine) >= 0
                verdicts[repeat, fold, row] = (counts, top)
                absorbed.setdefault((repeat, label), []).append(counts)
    words = found["crossfit_words"]
    assert {
        (repeat, fold, row): (bool(counts), latent)
        for repeat, fold, row, counts, latent in words[
            ["repeat", "fold", "row", "is_absorption", "top_latent"]
        ].itertuples(index=False)
    } == verdicts
    assert 0 < sum(counts for counts, _ in verdicts.values()) < len(verdicts)
    letters = found["crossfit_letters"].set_index(["repeat", "label"])
    table = found["crossfit"].set_index("label")
    for label in folds.class_names:
        rates = []
        for repeat in range(SETTINGS.repeats):
            row = letters.loc[(repeat, label)]
            portion = len(absorbed[repeat, label]) / row["num_candidates"]
            assert row["sample_portion"] == pytest.approx(portion)
            assert row["num_words"] == 60
            rates.append(sum(absorbed[repeat, label]) / portion / row["num_probe_true_positives"])
        assert table.loc[label, "absorption_rate"] == pytest.approx(np.mean(rates), rel=1e-9)
    assert table["absorption_fraction"].isna().all()
    assert (table.loc["", "se_sampling"] > 0) == (most == 8)


def test_where_there_are_no_candidates_nothing_is_absorbed():
    world = make_world(WorldSettings(classes=3, words_per_class=30, unrelated=0, unrelated_active=0))
    _, made = planted_sae(world, PlantedAbsorption(0.0))
    folds = Folds(world.activations, one_hot(world.classes).bool(), world.class_names, SETTINGS, seed=1)
    rules = [*RULES, *configured_rules("absorb-pl-1")]
    found = crossfit(made.sae, folds, rules, k_sparse=QUICK, score_words=lambda words, _: drawn_scores(made.sae, words))
    table = found["crossfit"].set_index(["rule", "label"])
    assert "paper" not in set(found["crossfit_words"]["rule"])
    assert table.loc[("paper", ""), "absorption_rate"] == 0
    assert table.loc[("paper", ""), "ci_high"] > 0
    assert table.loc["paper", "absorption_fraction"].isna().all()
    assert table.loc[("absorb-pl-1", ""), "absorption_fraction"] < 0.05


class _MeanOfTheBest(PaperRule):
    """A rule of one's own, on other columns of the evidence."""

    name = "mean-of-the-best"
    reads = ("scores", "activations", "probe_cos")

    def decide(self, stored: Mapping[str, torch.Tensor]) -> Decisions:
        return Decisions((stored["scores"] * stored["probe_cos"].sign()).mean(dim=1) < 0)

    def conditions(self, stored: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:  # noqa: ARG002
        return {}


def test_a_rule_of_ones_own_may_read_the_best_latents(planted: Any):
    sae, folds = planted
    mains, probe = mains_of(planted), folds.probe_of_fold()
    found = crossfit(
        sae, folds, [_MeanOfTheBest()], k_sparse=QUICK, score_words=lambda words, _: drawn_scores(sae, words)
    )
    scores = drawn_scores(sae, mains.to_score).set_index("row")
    train = [[rows for rows, _ in folds.of_repeat(repeat)] for repeat in range(SETTINGS.repeats)]
    words = found["crossfit_words"]
    for row, label, repeat, fold, counts in words[["row", "label", "repeat", "fold", "is_absorption"]].itertuples(
        index=False
    ):
        weight, _ = probe(repeat, fold, train[repeat][fold])
        cosines = sae.W_dec[torch.from_numpy(scores.loc[row, "latents"])] @ weight[folds.class_names.index(label)]
        assert counts == (np.mean(scores.loc[row, "scores"] * np.sign(cosines.numpy())) < 0)
    assert 0 < words["is_absorption"].sum() < len(words) == len(mains.candidates)


def test_thresholds_that_candidates_cannot_answer_are_refused(planted: Any):
    sae, folds = planted
    with pytest.raises(RuleError, match="silent"):
        crossfit(
            sae,
            folds,
            configured_rules({"paper": {"silent": 0.1}}),
            k_sparse=QUICK,
            score_words=lambda words, _: drawn_scores(sae, words),
        )


def test_scores_that_are_missing_are_named(planted: Any):
    sae, folds = planted
    with pytest.raises(AbsorbError, match=r"scores.*FoldMains\.to_score"):
        crossfit(sae, folds, RULES, k_sparse=QUICK, score_words=lambda words, _: drawn_scores(sae, words[1:]))

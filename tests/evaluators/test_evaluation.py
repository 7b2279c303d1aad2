"""One SAE on activations of one's own: the figures of a study on the same words, and what is refused."""

import pandas as pd
import pytest
import torch

from absorb_pl import evaluate_activations
from absorb_pl.errors import LabelError, NonFiniteError, RuleError, SaeWidthError
from absorb_pl.evaluators.evaluation import gather_one_main
from absorb_pl.evaluators.projections import gather_projections
from absorb_pl.evaluators.sae_probing import SplitSettings
from absorb_pl.rules.evidence import Projections
from absorb_pl.saes import load_sae
from absorb_pl.truth import PlantedAbsorption, WorldSettings, make_world, planted_sae

HOOK = "blocks.3.hook_resid_pre"
SAE = "tests/golden/gpt2-micro/sae_topk_B"
RULES = ["saebench-0.6.0", "saebench-0.3.2"]

pytestmark = pytest.mark.usefixtures("at_root", "_one_thread")


@pytest.fixture(scope="module")
def rows(study):
    """Activations, classes and words of the finished study."""
    stages = study[1].stages
    words = stages.subject.words
    x = stages.activations.rows(HOOK, torch.arange(len(words.texts)))
    return x, [words.task.classes[label] for label in words.labels.tolist()], [text.word for text in words.texts]


@pytest.fixture(scope="module")
def tables(study, rows, request):
    config = study[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        return evaluate_activations(
            SAE,
            *rows[:2],
            {name: config.rules[name] for name in RULES},
            words=rows[2],
            test_fraction=config.test_fraction,
            seed=config.seed,
            k_sparse=config.k_sparse,
            rates=config.rates,
        )


@pytest.mark.parametrize("name", ["summary", "letters", "words", "sensitivity", "latents", "k_sparse"])
def test_the_tables_are_those_of_the_study(study, tables, name):
    expected = study[1].tables[name]
    expected = expected[(expected["sae"] == SAE) & (expected["rule"].isin(RULES) if "rule" in expected else True)]
    found, columns = tables[name], [column for column in tables[name] if column not in ("sae", "prompt")]
    assert len(found) == len(expected) > 0
    for column in columns:
        ours, theirs = (
            [list(value) if hasattr(value, "tolist") else value for value in frame[column]]
            for frame in (found.reset_index(drop=True), expected.reset_index(drop=True))
        )
        for one, other in zip(ours, theirs, strict=True):
            missing = not isinstance(one, list) and pd.isna(one)
            assert missing == (not isinstance(other, list) and pd.isna(other)), column
            assert missing or one == pytest.approx(other), column


def test_evidence_with_one_main_is_that_of_the_first_alone(study):
    stages = study[1].stages
    for name, source in stages.probing.saes.items():
        sae, rows = source.load(torch.device("cpu")), stages.probes.held_out(source.hook_name)
        letters = stages.probing.result(name).letters
        whole = gather_projections(sae, rows, letters, Projections())
        first = letters.assign(main_latents=letters["main_latents"].str[:1])
        alone = gather_one_main(sae, rows, letters, Projections(), whole)
        pd.testing.assert_frame_equal(alone, gather_projections(sae, rows, first, Projections()))
        assert (letters["num_splits"] > 0).any()


def test_an_sae_as_an_object_gives_the_same(study, rows, tables):
    config = study[0]
    again = evaluate_activations(
        load_sae(SAE),
        *rows[:2],
        {name: config.rules[name] for name in RULES},
        k_sparse=config.k_sparse,
        rates=config.rates,
        seed=config.seed,
    )
    figures = ["absorption_rate", "ci_low", "ci_high", "num_splits", "l0"]
    pd.testing.assert_frame_equal(again["summary"][figures], tables["summary"][figures], check_exact=True)
    assert again["words"]["word"].isna().all()


def test_what_cannot_be_evaluated_is_named(rows):
    x, labels, _ = rows
    with pytest.raises(RuleError, match=r"`rules` was 'paper', expected rules that activations are.*run_study"):
        evaluate_activations(SAE, x, labels, ["saebench-0.6.0", "paper"])
    with pytest.raises(LabelError, match=r"`labels` was '3 labels of 1 classes'"):
        evaluate_activations(SAE, x, ["a"] * 3)
    with pytest.raises(LabelError, match="two classes or more"):
        evaluate_activations(SAE, x, ["a"] * len(x))
    with pytest.raises(SaeWidthError):
        evaluate_activations(SAE, x[:, :7], labels)
    with pytest.raises(NonFiniteError):
        evaluate_activations(SAE, x.clone().index_fill_(0, torch.tensor([3]), torch.nan), labels)


def test_the_rate_with_one_main_latent_is_that_of_a_walk_that_stops_at_one():
    world, made = planted_sae(
        make_world(WorldSettings(classes=4, words_per_class=50, unrelated=20, unrelated_active=3)),
        PlantedAbsorption(0.1, split=0.4),
    )
    labels = [world.class_names[c] for c in world.classes.tolist()]
    rules = ["saebench-0.6.0", "absorb-pl-1"]
    whole, one = (
        evaluate_activations(made.sae, world.activations, labels, rules, splits=SplitSettings(max_k=max_k))["summary"]
        .set_index("rule")
        .drop(columns="sae")
        for max_k in (15, 1)
    )
    assert whole.loc["saebench-0.6.0", "num_splits"] > 0
    assert one.loc["saebench-0.6.0", "num_splits"] == 0
    rule = "saebench-0.6.0"
    assert whole.loc[rule, "rate_one_main"] == pytest.approx(one.loc[rule, "absorption_rate"], abs=1e-12)
    assert whole.loc[rule, "rate_one_main"] > whole.loc[rule, "absorption_rate"] + 0.1
    assert pd.isna(whole.loc["absorb-pl-1", "rate_one_main"])

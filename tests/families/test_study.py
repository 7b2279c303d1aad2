"""A study of an encoder: rules that project alone, and what reads next-token logits is refused by name."""

import dataclasses
import json

import pandas as pd
import pytest

from absorb_pl.errors import NotCausalError
from absorb_pl.evaluators import AblationEvaluator, FeatureAbsorptionCalculator, SpellingGrader, SpellingSweep
from absorb_pl.experiments import run_k_sparse_probing_experiments, run_latent_evaluation_experiments
from absorb_pl.models import load_language_model
from absorb_pl.reports import report
from absorb_pl.rules import configured_rules, known_rules
from absorb_pl.rules.registry import check_rules_fit
from absorb_pl.study import rescore_run, run_study
from absorb_pl.words import TableSettings, TaskConfig

HOOKS = {"topk": "blocks.1.hook_resid_post", "abstopk": "blocks.1.attn.hook_z"}


@pytest.fixture(scope="module")
def bert(family_folder):
    return load_language_model(str(family_folder("bert")))


@pytest.fixture(scope="module")
def finished(family_folder, known_words, make_sae, study_config, tmp_path_factory):
    """A study of words written forwards and backwards, the short and the long of each apart."""
    folder = tmp_path_factory.mktemp("encoder")
    for architecture, hook in HOOKS.items():
        make_sae(architecture, hook).save_model(folder / architecture)
    both = {word: "forwards" for word in known_words} | {word[::-1]: "backwards" for word in known_words}
    lines = [f"{word},{kind},{kind} {'short' if len(word) < 6 else 'long'}" for word, kind in both.items()]
    (folder / "words.csv").write_text("\n".join(["text,parent,label", *lines]))
    config = dataclasses.replace(
        study_config(folder, "--k_sparse.max_epochs=1", "--rules=[saebench-0.6.0,saebench-0.3.2]"),
        model=str(family_folder("bert")),
        saes=[str(folder / architecture) for architecture in HOOKS],
        task=TaskConfig(
            name="table",
            template="{word} is:",
            table=TableSettings(path=str(folder / "words.csv"), parent="parent"),
            max_icl_examples=1,
        ),
        test_fraction=0.5,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_figures", lambda _: {})
        return config, run_study(config)


def test_a_study_of_an_encoder_by_rules_that_project(finished):
    config, result = finished
    summary, words = result.tables["summary"], result.tables["words"]
    assert summary["hook_name"].tolist() == [hook for hook in HOOKS.values() for _ in config.rules]
    assert (summary["num_words"] > 0).all()
    assert summary["absorption_fraction"].between(0, 1).all()
    assert set(words["rule"]) == set(config.rules)
    judged = words.groupby(["sae", "rule"])["row"].agg(list)
    for sae in config.saes:
        assert judged[sae, "saebench-0.6.0"] == judged[sae, "saebench-0.3.2"]
    stages = json.loads((result.run_dir / "manifest.json").read_text())["stages"]
    assert "absorption" not in stages
    pd.testing.assert_frame_equal(pd.read_parquet(result.run_dir / "tables/words.parquet"), words)


def test_experiments_take_encoders_other_labels_and_narrow_saes(finished, tmp_path):
    config, result = finished
    own = ("saes", "models", "run_dir", "until")
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in own}
    latents = run_latent_evaluation_experiments(config.saes, tmp_path / "latents", **settings)
    k_sparse = run_k_sparse_probing_experiments(config.saes, tmp_path / "k_sparse", **settings)
    tables = result.tables
    for sae, (of_latents, _), (of_k, _) in zip(config.saes, latents[1], k_sparse[1], strict=True):
        top, ks = (table[table["sae"] == sae] for table in (tables["latents"], tables["k_sparse"]))
        assert of_latents["letter"].tolist() == of_k["letter"].tolist() == ks["label"].drop_duplicates().tolist()
        assert of_latents["sae_top_0_feat"].tolist() == top[top["rank"] == 0]["latent"].tolist()
        assert ("f1_sparse_sae_20" in of_k, "f1_sparse_sae_50" in of_k) == (True, False)
        assert of_k["f1_sparse_sae_20"].tolist() == pytest.approx(ks[ks["k"] == 20]["f1"].tolist())


def test_children_share_out_what_their_class_has(finished):
    config, result = finished
    words, children, letters = (result.tables[name] for name in ("words", "children", "letters"))
    pd.testing.assert_frame_equal(pd.read_parquet(result.run_dir / "tables/children.parquet"), children)
    assert len(children) == len(config.saes) * len(config.rules) * 4
    assert not children.duplicated(["sae", "rule", "label", "child"]).any()
    assert all(child.startswith(label) for label, child in zip(children["label"], children["child"], strict=True))
    keys = ["sae", "rule", "label"]
    counts = ["num_words", "num_probe_true_positives", "num_candidates", "num_absorbed"]
    of_labels = children.groupby(keys)[counts].sum()
    pd.testing.assert_frame_equal(of_labels, letters.set_index(keys)[counts].sort_index(), check_dtype=False)
    absorbed = words.groupby([*keys, "child"])["is_absorption"].mean()
    known = children[children["num_probe_true_positives"] > 0].set_index([*keys, "child"])["absorption_rate"]
    assert known.to_dict() == pytest.approx(absorbed.to_dict())
    assert children.loc[children["num_probe_true_positives"] == 0, "absorption_rate"].isna().all()


def test_children_are_rescored_with_their_classes(finished):
    """The study's own thresholds give its own table; with others verdicts are counted on the same words."""
    _, result = finished
    rule = "saebench-0.6.0"
    children = result.tables["children"]
    children = children[children["rule"] == rule].reset_index(drop=True)
    found = rescore_run(result.run_dir, rule)
    pd.testing.assert_frame_equal(pd.read_parquet(found.folder / "tables/children.parquet"), children)
    lenient = rescore_run(result.run_dir, rule, proportion_threshold=0.01, silent=1e6).tables
    strict = rescore_run(result.run_dir, rule, full_cos_threshold=1.0).tables
    for tables in (lenient, strict):
        keys = ["sae", "label", "child"]
        verdicts = tables["words"].groupby(keys)["is_absorption"].sum()
        counted = tables["children"].set_index(keys)["num_absorbed"]
        assert counted.to_dict() == {key: verdicts.get(key, 0) for key in counted.index}
        assert tables["children"]["num_candidates"].tolist() == children["num_candidates"].tolist()
    assert lenient["children"]["num_absorbed"].sum() > children["num_absorbed"].sum()
    assert strict["children"]["num_absorbed"].sum() == 0


def test_rules_that_read_answers_are_refused_with_those_that_do_not(bert, gpt2):
    projecting = configured_rules(["saebench-0.6.0", "saebench-0.3.2"])
    check_rules_fit(projecting, bert)
    check_rules_fit(configured_rules(list(known_rules())), gpt2)
    with pytest.raises(NotCausalError, match=r"was 'paper'.*saebench-0\.3\.2, saebench-0\.6\.0"):
        check_rules_fit([*projecting, *configured_rules("paper")], bert)


@pytest.mark.parametrize(
    "make",
    [
        AblationEvaluator,
        SpellingSweep,
        lambda model: SpellingGrader(model, ["cat", "dog"]),
        lambda model: FeatureAbsorptionCalculator(model, ["cat", "dog"]),
    ],
    ids=["AblationEvaluator", "SpellingSweep", "SpellingGrader", "FeatureAbsorptionCalculator"],
)
def test_what_reads_answers_refuses_an_encoder(bert, make, request):
    with pytest.raises(NotCausalError, match=request.node.callspec.id):
        make(bert)

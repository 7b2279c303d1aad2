"""The experiments from end to end on the micro model: what they leave, and that nothing is made twice."""

import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from absorb_pl.data import PromptDataModule
from absorb_pl.errors import AbsorbError, ManifestMismatchError, RuleError
from absorb_pl.experiments import (
    SaeInfo,
    humanify_sae_width,
    run_feature_absortion_experiments,
    run_k_sparse_probing_experiments,
    run_latent_evaluation_experiments,
)
from absorb_pl.experiments.feature_absorption import (
    absorption_rate,
    get_stats_and_likely_false_negative_tokens,
    plot_absorption_rate_vs_l0,
    plot_absorption_rate_vs_layer,
)
from absorb_pl.experiments.k_sparse_probing import (
    plot_feature_splits_vs_l0,
    plot_k1_metric_vs_l0,
    plot_k1_metric_vs_layer,
)
from absorb_pl.experiments.latent_evaluation import plot_metric_vs_l0, plot_metric_vs_layer
from absorb_pl.experiments.runs import FrameStage, folder_of_sae
from absorb_pl.saes import load_sae
from absorb_pl.study import StudyConfig

pytestmark = pytest.mark.usefixtures("at_root", "_one_thread")

SAES = [f"tests/golden/gpt2-micro/sae_{name}" for name in ("jumprelu_A", "standard_A", "topk_B")]


@pytest.fixture(scope="module")
def settings(study, tmp_path_factory):
    """The settings of the finished study, over a copy of its cache."""
    config, _ = study
    cache = tmp_path_factory.mktemp("experiments") / "cache"
    shutil.copytree(config.cache_dir, cache)
    own = ("saes", "models", "run_dir", "until", "rules", "cache_dir")
    kept = {field.name: getattr(config, field.name) for field in fields(StudyConfig) if field.name not in own}
    return {**kept, "cache_dir": str(cache)}


@pytest.fixture(scope="module")
def folder(settings):
    return Path(settings["cache_dir"]).parent


@pytest.fixture(scope="module")
def ran(study, settings, folder):
    """Results of the three experiments by name."""
    rules = {"paper": study[0].rules["paper"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parents[2])
        return {
            "latents": run_latent_evaluation_experiments(SAES, folder / "latents", **settings),
            "k_sparse": run_k_sparse_probing_experiments(SAES, folder / "k_sparse", **settings),
            "absorption": run_feature_absortion_experiments(SAES, folder / "absorption", rules=rules, **settings),
        }


def of_sae(table, name):
    """Rows of an SAE, by the paper's rule where there are several."""
    rows = table[table["sae"] == name]
    return rows[rows["rule"] == "paper"] if "rule" in rows else rows


def by_name(results):
    return {info.path: (frame, info) for found in results.values() for frame, info in found}


def test_saes_stand_by_layer_with_what_was_measured(ran, study):
    summary = study[1].tables["summary"].drop_duplicates("sae").set_index("sae")
    for results in ran.values():
        assert {layer: [info.path for _, info in found] for layer, found in results.items()} == {
            1: SAES[:2],
            3: SAES[2:],
        }
        for name, (_, info) in by_name(results).items():
            assert (info.l0, info.width) == (pytest.approx(summary.loc[name, "l0"]), summary.loc[name, "d_sae"])


def test_metrics_are_those_of_the_study(ran, study):
    tables = study[1].tables
    for name, (frame, _) in by_name(ran["latents"]).items():
        expected = of_sae(tables["latents"], name).pivot(index="label", columns="rank")
        assert frame["letter"].tolist() == expected.index.tolist()
        for rank in range(5):
            assert frame[f"sae_top_{rank}_feat"].tolist() == expected["latent", rank].tolist()
            for ours, theirs in (("f1", "f1"), ("precision", "precision"), ("recall", "recall"), ("auc", "auroc")):
                assert frame[f"{ours}_sae_top_{rank}"].tolist() == pytest.approx(expected[theirs, rank].tolist())
    for name, (frame, _) in by_name(ran["k_sparse"]).items():
        expected = of_sae(tables["k_sparse"], name).pivot(index="label", columns="k")["f1"]
        for k in expected.columns:
            assert frame[f"f1_sparse_sae_{k}"].tolist() == pytest.approx(expected.loc[frame["letter"], k].tolist())
        letters = of_sae(tables["letters"], name).set_index("label")
        assert frame["num_split_features"].tolist() == letters.loc[frame["letter"], "num_splits"].tolist()


def test_verdicts_are_those_of_the_study(ran, study):
    for name, (frame, _) in by_name(ran["absorption"]).items():
        words = of_sae(study[1].tables["words"], name)
        ours, theirs = frame.set_index("token").sort_index(), words.set_index("word").sort_index()
        assert ours.index.tolist() == theirs.index.tolist()
        for one, other in (
            *(("letter", "label"), ("is_absorption", "is_absorption"), ("prompt", "prompt")),
            *(("top_ablation_feat", "top_latent"), ("top_ablation_score", "top_score")),
            *(("second_ablation_feat", "second_latent"), ("second_ablation_score", "second_score")),
        ):
            assert ours[one].tolist() == theirs[other].tolist()
        assert [list(x) for x in ours["ablation_feat_acts"]] == [list(x) for x in theirs["activations"]]
    assert sum(frame["is_absorption"].sum() for frame, _ in by_name(ran["absorption"]).values()) >= 1


def test_main_latents_at_a_word_are_those_of_a_run_of_the_model(ran, study, gpt2):
    config, _ = study
    words = PromptDataModule(gpt2, config.task)
    checked = 0
    for name, (frame, _) in by_name(ran["absorption"]).items():
        sae = load_sae(name)
        hook = sae.cfg.metadata.hook_name
        for row in frame.to_dict("records")[:3]:
            at = [text.word for text in words.texts].index(row["token"])
            ids = words.prompts.input_ids[at, : words.prompts.lengths[at]]
            with torch.no_grad():
                x = gpt2.run_with_cache(ids[None], names_filter=hook)[1][hook][0, words.prompts.word_positions[at]]
                latents = sae.encode(x)
                terms = (x.abs() @ sae.W_enc.abs()).max().item()
            # the rounding of a float32 sum of products, in the SAE and in the residual stream before it
            rounding = 4 * len(x) * torch.finfo(torch.float32).eps * terms
            for acts, feats in (("split_feat_acts", "split_feats"), ("ablation_feat_acts", "ablation_feats")):
                assert row[acts] == pytest.approx(latents[row[feats]].tolist(), abs=rounding)
            checked += 1
    assert checked >= 5


def test_each_sae_has_a_folder_with_the_published_files(ran, folder):
    frame, info = by_name(ran["k_sparse"])[SAES[0]]
    stem = f"layer_1_160_{info.l0:g}"
    expected = {
        "latents": [f"{stem}_auroc_f1.parquet", f"{stem}_raw_results.parquet"],
        "k_sparse": [f"{stem}_{part}.parquet" for part in ("auroc_f1", "metadata", "raw_results")],
        "absorption": [f"layer_1_width_160_l0_{info.l0:g}.parquet"],
    }
    for experiment, names in expected.items():
        folders = [path for path in (folder / experiment).iterdir() if path.is_dir()]
        assert len(folders) == len(SAES)
        (own,) = [path for path in folders if "jumprelu" in path.name]
        assert sorted(path.name for path in own.iterdir()) == names
        assert (folder / experiment / "manifest.json").is_file()
    stats = get_stats_and_likely_false_negative_tokens(frame, info, next((folder / "k_sparse").glob("*jumprelu*")))
    metadata = pd.read_parquet(next((folder / "k_sparse").glob("*jumprelu*")) / f"{stem}_metadata.parquet")
    for letter, found in stats.items():
        of_letter = metadata[(metadata["letter"] == letter) & (metadata["k"] == len(found.split_feats))]
        assert of_letter["feats"].iloc[0].tolist() == found.split_feats


def test_nothing_is_made_twice(ran, settings, folder, monkeypatch):
    def fail(*_args, **_kwargs):
        raise AssertionError("made again")

    monkeypatch.setattr(FrameStage, "make", fail)
    monkeypatch.setattr("absorb_pl.evaluators.training.fit_probe", fail)
    again = run_k_sparse_probing_experiments(SAES, folder / "k_sparse", **settings)
    for name, (frame, info) in by_name(ran["k_sparse"]).items():
        found, same = by_name(again)[name]
        assert info == same
        pd.testing.assert_frame_equal(found, frame, check_exact=True)
    with pytest.raises(ManifestMismatchError, match="seed"):
        run_k_sparse_probing_experiments(SAES, folder / "k_sparse", **{**settings, "seed": 3})


def test_saes_go_by_what_the_caller_calls_them(settings, tmp_path):
    called = SaeInfo(l0=12, layer=1, width=16_000, path=SAES[1])
    results = run_latent_evaluation_experiments([called], tmp_path, topk=2, **settings)
    ((frame, info),) = results[1]
    assert info == called
    assert frame[["sae_l0", "sae_width"]].drop_duplicates().to_numpy().tolist() == [[12, 16_000]]
    assert "sae_top_2_feat" not in frame
    (own,) = tmp_path.glob("*standard*")
    raw = pd.read_parquet(own / "layer_1_16000_12_raw_results.parquet")
    assert raw[["layer", "sae_l0", "sae_width"]].drop_duplicates().to_numpy().tolist() == [[1, 12, 16_000]]


def test_plots_draw_a_point_an_sae(ran, tmp_path):
    latents, k_sparse, absorption = ran["latents"], ran["k_sparse"], ran["absorption"]
    rates = {name: absorption_rate(frame) for name, (frame, _) in by_name(absorption).items()}

    def means(results, column):
        return [frame[column].mean() for frame, _ in by_name(results).values()]

    drawn = {
        "f1_vs_l0": (plot_metric_vs_l0(latents, "f1", tmp_path), means(latents, "f1_sae_top_0")),
        "recall_vs_layer": (plot_metric_vs_layer(latents, "recall", tmp_path), means(latents, "recall_sae_top_0")),
        "feature_splitting_vs_l0": (
            plot_feature_splits_vs_l0(k_sparse, tmp_path),
            means(k_sparse, "num_split_features"),
        ),
        "k1_f1_vs_l0": (plot_k1_metric_vs_l0(k_sparse, "f1", tmp_path), means(k_sparse, "f1_sum_sparse_sae_1")),
        "k1_precision_vs_layer": (
            plot_k1_metric_vs_layer(k_sparse, "precision", tmp_path),
            means(k_sparse, "precision_sum_sparse_sae_1"),
        ),
        "absorption_rate_vs_l0": (plot_absorption_rate_vs_l0(absorption, tmp_path), list(rates.values())),
        "absorption_rate_vs_layer": (plot_absorption_rate_vs_layer(absorption, tmp_path), list(rates.values())),
    }
    for name, (figure, values) in drawn.items():
        (axis,) = figure.axes
        points = [line for line in axis.lines if line.get_label() != "linear probe"]
        heights = np.concatenate([line.get_ydata() for line in points])
        assert sorted(heights) == pytest.approx(sorted(value for value in values if not np.isnan(value)))
        assert [line.get_label() for line in points] == [humanify_sae_width(160)] * len(points)
        if name.endswith("layer"):
            assert [tick.get_text() for tick in axis.get_xticklabels()] == ["1", "3"]
            places = np.concatenate([line.get_xdata() for line in points])
            assert len({*places.round(6)}) == len(places)
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    (line,) = [line for line in drawn["recall_vs_layer"][0].axes[0].lines if line.get_label() == "linear probe"]
    assert line.get_ydata() == pytest.approx([latents[layer][0][0]["recall_probe"].mean() for layer in (1, 3)])
    assert not list(tmp_path.glob("*.part"))


def test_layers_can_be_chosen_and_missing_values_are_said(ran, tmp_path):
    figure = plot_metric_vs_l0(ran["latents"], "f1", tmp_path, layers_range=(1, 3))
    assert figure.axes[0].get_title() == "SAE F1 vs L0 (layers 1-2)"
    assert sum(len(line.get_xdata()) for line in figure.axes[0].lines) == 2
    assert (tmp_path / "f1_vs_l0_layers_1_2.png").is_file()
    emptied = {1: [(frame.iloc[:0], info) for frame, info in ran["absorption"][1]], 3: ran["absorption"][3]}
    assert "2 without a value" in plot_absorption_rate_vs_l0(emptied, tmp_path).axes[0].get_xlabel()


def test_other_rules_and_settings_are_refused(settings, tmp_path):
    with pytest.raises(AbsorbError, match="`until` was 'absorption'"):
        run_feature_absortion_experiments(SAES[:1], tmp_path, rule_name="saebench-0.6.0", **settings)
    with pytest.raises(RuleError):
        run_feature_absortion_experiments(SAES[:1], tmp_path, rule_name="papers", **settings)
    with pytest.raises(TypeError, match="skip_1m_saes"):
        run_latent_evaluation_experiments(SAES[:1], tmp_path, skip_1m_saes=True, **settings)
    assert not list(tmp_path.iterdir())


def test_folders_differ_where_names_or_contents_do():
    names = {folder_of_sae(name, identity) for name in ("a/b", "a_b") for identity in ("0" * 16, "1" * 16)}
    assert len(names) == 4

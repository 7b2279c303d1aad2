"""Figures and reports of the ablation evaluator and the spelling sweep, and the configurations that make them."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from absorb_pl.cli import main
from absorb_pl.data.publication import publishing
from absorb_pl.evaluators import agreement_table
from absorb_pl.reports.ablation_figures import ablation_figure
from absorb_pl.reports.sweep_figures import spelling_figure

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def pairs():
    generator = np.random.default_rng(0)
    effects = generator.normal(size=40)
    return pd.DataFrame(
        {
            "sae": ["suite/a"] * 25 + ["suite/b"] * 15,
            "row": np.arange(40) // 5,
            "ig_score": effects * 1.5,
            "attribution": -effects + generator.normal(size=40),
            "ablation_effect": effects,
        }
    )


def test_dots_are_the_pairs_with_attributions_negated(pairs):
    figure = ablation_figure(pairs)
    assert len(figure.axes) == 4
    for sae, axes in (("suite/a", figure.axes[:2]), ("suite/b", figure.axes[2:])):
        rows = pairs[pairs["sae"] == sae]
        for axis, estimates in zip(axes, (rows["ig_score"], -rows["attribution"]), strict=True):
            dots = np.asarray(axis.collections[0].get_offsets())
            np.testing.assert_allclose(dots, np.column_stack([estimates, rows["ablation_effect"]]))
        assert "r = 1.00" in axes[0].get_title()
        assert axes[0].get_ylabel().startswith(sae.split("/")[1])


def test_undefined_correlations_are_said_to_be_so(pairs):
    alone = pairs.head(1)
    assert "undefined" in ablation_figure(alone).axes[0].get_title()
    found = agreement_table(alone).iloc[0]
    assert np.isnan(found["ig_score_pearson"])
    assert np.isnan(found["ig_score_top"])
    assert (found["num_words"], found["num_ranked_words"], found["ig_score_sign"]) == (1, 0, 1.0)


def test_heat_maps_hold_the_accuracies():
    rows = [
        {"casing": casing, "separator": separator, "word_length": length, "num_icl_examples": count}
        for casing in ("upper", "lower")
        for separator in ("-", " ")
        for length in (8, 3)
        for count in (10, 2, 5)
    ]
    table = pd.DataFrame(rows).assign(accuracy=np.linspace(0, 1, len(rows)))
    table.loc[4, "accuracy"] = np.nan
    figure = spelling_figure(table)
    panels = [axis for axis in figure.axes if axis.images]
    assert len(panels) == 4
    for axis, (casing, separator) in zip(panels, table[["casing", "separator"]].drop_duplicates().values, strict=True):
        assert axis.get_title() == f"{casing} case, {separator!r}"
        image = axis.images[0].get_array()
        way = table[(table["casing"] == casing) & (table["separator"] == separator)]
        for row, length in enumerate((3, 8)):
            for column, count in enumerate((2, 5, 10)):
                here = way[(way["word_length"] == length) & (way["num_icl_examples"] == count)]
                value = float(here["accuracy"].iloc[0])
                shown = image[row, column]
                assert np.isnan(value) if np.ma.is_masked(shown) else float(shown) == pytest.approx(value)


def micro_study(golden, folder):
    """What the ablation configuration reads of a study: candidate words and probes."""
    probe = golden / "gpt2-micro" / "probe_inputs.safetensors"
    folder.mkdir()
    with publishing(folder) as part:
        (part / "tables").mkdir()
        (part / "probes").mkdir()
        pd.DataFrame({"row": [4, 9, 9, 30]}).to_parquet(part / "tables" / "candidates.parquet")
        shutil.copy(probe, part / "probes" / "blocks.1.hook_resid_post.safetensors")


def test_ablation_config_writes_table_summary_figure_and_events(golden, tmp_path):
    micro = golden / "gpt2-micro"
    micro_study(golden, tmp_path / "study")
    main(
        [
            "predict",
            f"--config={CONFIGS / 'predict_ablation.yaml'}",
            f"--model.init_args.model={micro}",
            f"--model.init_args.saes=[{micro / 'sae_standard_A'}, {micro / 'sae_topk_B'}]",
            f"--model.init_args.probes={tmp_path / 'study'}",
            f"--data.init_args.model={micro}",
            f"--data.init_args.rows={tmp_path / 'study' / 'tables' / 'candidates.parquet'}",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            f"--trainer.logger.init_args.save_dir={tmp_path}",
            f"--trainer.callbacks.path={tmp_path / 'ablation' / 'ablations.parquet'}",
        ]
    )
    table = pd.read_parquet(tmp_path / "ablation" / "ablations.parquet")
    assert set(table["row"]) == {4, 9, 30}
    assert table.groupby(table["sae"].str[-1])["probe_cos"].count().gt(0).to_dict() == {"A": True, "B": False}
    agreement = pd.read_parquet(tmp_path / "ablation" / "agreement.parquet")
    pd.testing.assert_frame_equal(agreement, agreement_table(table))
    assert (tmp_path / "ablation" / "estimates.png").stat().st_size > 10_000
    events = EventAccumulator(str(tmp_path / "tensorboard" / "version_0")).Reload()
    assert events.Tags()["images"] == ["ablation/estimates"]
    logged = events.Scalars(f"ablation/{agreement['sae'][0]}/ig_score_pearson")[0].value
    assert logged == pytest.approx(agreement["ig_score_pearson"][0], rel=1e-6)


def test_spelling_config_writes_table_figure_and_events(golden, tmp_path):
    main(
        [
            "predict",
            f"--config={CONFIGS / 'predict_spelling.yaml'}",
            f"--model.init_args.model={golden / 'gpt2-micro'}",
            "--model.init_args.num_words=5",
            "--data.init_args.word_lengths=[4, 6]",
            "--data.init_args.num_icl_examples=[0, 3]",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            f"--trainer.logger.init_args.save_dir={tmp_path}",
            f"--trainer.callbacks.path={tmp_path / 'spelling' / 'sweep.parquet'}",
        ]
    )
    table = pd.read_parquet(tmp_path / "spelling" / "sweep.parquet")
    assert len(table) == 8
    assert (table["num_words"] == 5).all()
    assert (tmp_path / "spelling" / "accuracy.png").stat().st_size > 5_000
    events = EventAccumulator(str(tmp_path / "tensorboard" / "version_0")).Reload()
    assert events.Tags()["images"] == ["spelling/accuracy"]
    assert events.Scalars("spelling/answer_log_prob")[0].value == pytest.approx(
        table["answer_log_prob"].mean(), rel=1e-5
    )


@pytest.mark.slow
def test_two_processes_give_the_table_of_one(golden, tmp_path):
    def words(folder):
        return [
            "predict",
            f"--config={CONFIGS / 'predict_spelling.yaml'}",
            f"--model.init_args.model={golden / 'gpt2-micro'}",
            "--model.init_args.num_words=5",
            "--data.init_args.word_lengths=[4, 6]",
            "--data.init_args.num_icl_examples=[0, 3]",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            f"--trainer.logger.init_args.save_dir={folder}",
            f"--trainer.callbacks.path={folder / 'sweep.parquet'}",
        ]

    main(words(tmp_path / "one"))
    main([*words(tmp_path / "two"), "--trainer.devices=2", "--trainer.strategy=ddp_fork"])
    assert (tmp_path / "two" / "accuracy.png").is_file()
    found, expected = (pd.read_parquet(tmp_path / name / "sweep.parquet") for name in ("two", "one"))
    pd.testing.assert_frame_equal(found, expected, rtol=1e-6)

"""What figures, terminal and events show, read back from them."""

import io
import re

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from absorb_pl.errors import OutputFolderError
from absorb_pl.reports import draw_figures, print_summary, save_figures
from absorb_pl.reports.figures import (
    absorption_figure,
    f1_vs_k_figure,
    letters_figure,
    splits_figure,
    top_latent_figure,
)
from absorb_pl.reports.sensitivity_figures import sensitivity_figure
from absorb_pl.reports.tensorboard import log_study
from absorb_pl.reports.terminal import print_crossfit

SUMMARY = pd.DataFrame(
    {
        "sae": ["rel/wide", "rel/narrow", "rel/deep"],
        "model": "tiny",
        "hook_name": ["blocks.1.hook_resid_post"] * 2 + ["blocks.5.hook_resid_post"],
        "layer": [1, 1, 5],
        "architecture": ["topk", "standard", "topk"],
        "control": ["", "", ""],
        "d_sae": [1024, 256, 1024],
        "l0": [10.0, 40.0, 25.0],
        "explained_variance": [0.9, 0.8, 0.7],
        "dead_fraction": [0.0, 0.25, 0.5],
        "rule": "paper",
        "probe_f1": [0.95, 0.95, 0.85],
        "probe_precision": [0.9, 0.9, 0.8],
        "probe_recall": [0.99, 0.99, 0.9],
        "top_latent_f1": [0.5, 0.6, 0.4],
        "top_latent_precision": [0.7, 0.8, 0.6],
        "top_latent_recall": [0.3, 0.4, 0.2],
        "main_latent_recall": [0.8, 0.9, 0.7],
        "num_splits": [0.5, 0.25, 0.75],
        "absorption_rate": [0.3, 0.1, np.nan],
        "ci_low": [0.2, 0.05, np.nan],
        "ci_high": [0.45, 0.2, np.nan],
        "absorption_fraction": np.nan,
        "fraction_ci_low": np.nan,
        "fraction_ci_high": np.nan,
        "pooled_rate": [0.32, 0.12, np.nan],
        "pooled_ci_low": [0.22, 0.06, np.nan],
        "pooled_ci_high": [0.44, 0.2, np.nan],
        "weak_mains": [1, 0, 0],
        "rate_one_main": [0.35, 0.1, np.nan],
        "evaluable": [True, True, False],
        "reason": ["", "", "no evaluable label"],
        "num_words": [100, 90, 0],
    }
)
LETTERS = pd.DataFrame(
    [
        {
            "sae": sae,
            "label": label,
            "rule": "paper",
            "absorption_rate": rate,
            "ci_low": rate and rate - 0.1,
            "ci_high": rate and rate + (0.4 if label == "a" else 0.1),
            "num_words": 7 if label == "a" else 30,
        }
        for sae, rates in (("rel/wide", (0.4, 0.2)), ("rel/narrow", (0.2, 0.0)), ("rel/deep", (None, None)))
        for label, rate in zip("ab", rates, strict=True)
    ]
)
K_SPARSE = pd.DataFrame(
    [
        {"sae": sae, "label": label, "k": k, "f1": base + k / 100 + (label == "b") / 10}
        for sae, base in (("rel/wide", 0.5), ("rel/narrow", 0.6), ("rel/deep", 0.4))
        for label in "ab"
        for k in (1, 2, 20)
    ]
)
TRAINING = pd.DataFrame(
    {"probe": "linear_probe", "name": "blocks.1.hook_resid_post", "epoch": [0, 1], "train/loss": [1.5, 0.5]}
)
SENSITIVITY = pd.DataFrame(
    [
        {
            "sae": sae,
            "rule": "paper",
            "threshold": threshold,
            "value": value,
            "is_default": value == 1.0,
            "absorption_rate": rate / (1 + value),
            "absorption_fraction": np.nan,
        }
        for sae, rate in (("rel/wide", 0.6), ("rel/narrow", 0.2))
        for threshold in ("delta_threshold", "cos_threshold")
        for value in (0.0, 1.0, 3.0)
    ]
)
TABLES = {
    "summary": SUMMARY,
    "letters": LETTERS,
    "k_sparse": K_SPARSE,
    "training": TRAINING,
    "sensitivity": SENSITIVITY,
}


def points(axis):
    """What is plotted with single markers."""
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in axis.get_lines()
        if len(line.get_xdata()) == 1
    ]


def test_top_latents_against_l0():
    axes = top_latent_figure(SUMMARY, "l0").axes
    assert [axis.get_title() for axis in axes] == ["F1", "Precision", "Recall"]
    for axis, metric in zip(axes, ("f1", "precision", "recall"), strict=True):
        assert points(axis) == list(zip(SUMMARY["l0"], SUMMARY[f"top_latent_{metric}"], strict=True))
        lines = {line.get_ydata()[0] for line in axis.get_lines() if line.get_linestyle() == "--"}
        assert lines == set(SUMMARY[f"probe_{metric}"])
        assert axis.get_xlabel() == "L0 (latents that fire per word)"


def test_top_latents_against_layers():
    axis = top_latent_figure(SUMMARY, "layer").axes[0]
    found = points(axis)
    assert [y for _, y in found] == SUMMARY["top_latent_f1"].tolist()
    # SAEs of a layer stand side by side, each nearer to its own layer than to any other.
    assert [round(x) for x, _ in found] == [1, 1, 5]
    assert len({x for x, _ in found}) == 3
    probe = next(line for line in axis.get_lines() if line.get_linestyle() == "--")
    assert probe.get_xydata().tolist() == [[1, 0.95], [5, 0.85]]


def test_splits():
    assert points(splits_figure(SUMMARY).axes[0]) == list(zip(SUMMARY["l0"], SUMMARY["num_splits"], strict=True))


def test_absorption_leaves_out_what_cannot_be_evaluated():
    (axis,) = absorption_figure(SUMMARY, "l0").axes
    assert [bar.lines[0].get_xydata().tolist() for bar in axis.containers] == [[[10, 0.3]], [[40, 0.1]]]
    bars = [segment for bar in axis.collections for segment in bar.get_segments()]
    assert np.allclose(bars, [[[10, 0.2], [10, 0.45]], [[40, 0.05], [40, 0.2]]])
    assert "paper" in axis.get_title()


def test_each_rule_has_its_panel():
    both = pd.concat([SUMMARY, SUMMARY.assign(rule="saebench-0.6.0")], ignore_index=True)
    titles = [axis.get_title() for axis in absorption_figure(both, "layer").axes]
    assert [title.split("rule ")[1] for title in titles] == ["paper)", "saebench-0.6.0)"]


def test_letters():
    bars, heat, _ = letters_figure(LETTERS, SUMMARY).axes
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([0.3, 0.1])
    image = heat.images[0].get_array()
    assert [label.get_text() for label in heat.get_yticklabels()] == ["wide", "narrow", "deep"]
    assert [label.get_text() for label in heat.get_xticklabels()] == ["a\n7", "b\n30"]
    (crosses,) = heat.get_lines()
    assert crosses.get_xydata().tolist() == [[0, 0], [0, 1]]  # the wide intervals
    assert image[:2].tolist() == [[0.4, 0.2], [0.2, 0.0]]
    assert np.ma.getmaskarray(image)[2].all() or np.isnan(np.asarray(image)[2]).all()


def test_f1_against_k():
    axes = f1_vs_k_figure(K_SPARSE, SUMMARY).axes
    assert [axis.get_title() for axis in axes] == ["k-sparse probes, layer 1", "k-sparse probes, layer 5"]
    curves = {line.get_label(): line.get_xydata().tolist() for line in axes[0].get_lines()}
    assert list(curves) == ["narrow", "wide", "linear probe"]
    labels = {text.get_text(): text for text in axes[0].texts}
    assert set(labels) == {"wide", "narrow"}
    assert labels["wide"].get_color() != labels["narrow"].get_color()  # their architectures differ
    assert labels["wide"].xy == pytest.approx((20, 0.75))
    assert np.allclose(curves["wide"], [[1, 0.56], [2, 0.57], [20, 0.75]])
    assert curves["linear probe"][0][1] == 0.95


def test_figures_are_saved_under_their_names(tmp_path):
    figures = draw_figures(TABLES)
    save_figures(figures, tmp_path / "figures", "gpt2 · first letter · 37 held-out words")
    for name in figures:
        image = matplotlib.image.imread(tmp_path / "figures" / f"{name}.png")
        assert min(image.shape[:2]) > 300
        assert image[..., :3].std() > 0.02
        drawing = (tmp_path / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert "gpt2 · first letter · 37 held-out words" in drawing
    assert len(list((tmp_path / "figures").iterdir())) == 2 * len(figures)


def test_figures_of_one_sae_and_of_none_evaluable():
    one = SUMMARY.iloc[[2]].reset_index(drop=True)
    figures = draw_figures({**TABLES, "summary": one, "letters": LETTERS[LETTERS["sae"] == "rel/deep"]})
    assert points(figures["absorption_vs_l0"].axes[0]) == []
    assert len(figures) == 8


def test_reports_below_a_file_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputFolderError, match="Not a directory"):
        save_figures({"rate": Figure()}, tmp_path / "file" / "figures")
    with pytest.raises(OutputFolderError, match="output folder"):
        log_study(tmp_path / "file", TABLES, {})


def runs_below(folder):
    return {
        name: sorted(path.name for path in (folder / name).glob("*")) for name in ("tensorboard", "tensorboard_saes")
    }


def test_the_study_and_each_sae_are_one_run(tmp_path):
    log_study(tmp_path, TABLES, {})
    assert runs_below(tmp_path) == {"tensorboard": ["deep", "narrow", "study", "wide"], "tensorboard_saes": []}
    assert all(len(list(run.iterdir())) == 1 for run in (tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize(("saes", "runs", "apart"), [(39, 40, 0), (40, 1, 40), (100, 1, 100)])
def test_many_saes_leave_the_folder_of_figures_to_the_study(tmp_path, saes, runs, apart):
    summary = SUMMARY.iloc[[0] * saes].assign(sae=[f"rel/{i}" for i in range(saes)])
    folders = log_study(tmp_path, {"summary": summary}, {})
    found = runs_below(tmp_path)
    assert [len(names) for names in found.values()] == [runs, apart]
    assert folders == [name for name, names in found.items() if names]
    assert "study" in found["tensorboard"]


def test_names_that_look_alike_get_runs_of_their_own(tmp_path):
    names = ["a/b", "a-b", "study", "../up"]
    log_study(tmp_path, {"summary": SUMMARY.iloc[[0] * 4].assign(sae=names)}, {})
    assert sorted(path.name for path in (tmp_path / "tensorboard").iterdir()) == [
        "a-b",
        "a-b-2",
        "study",
        "study-2",
        "up",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]


def printed(summary, width=200, columns="fit"):
    stream = io.StringIO()
    print_summary(summary, Console(file=stream, width=width), columns=columns)
    return stream.getvalue().splitlines()


def cells(line):
    return re.split(r"\s{2,}", line.strip())


def line_of(lines, head):
    (line,) = (line for line in lines if line.startswith(f"{head} "))
    return line


def test_the_terminal_table_holds_every_figure():
    lines = printed(SUMMARY)
    assert cells(line_of(lines, "wide")) == [
        *("wide", "30.0% [20.0, 45.0]", "10.0", "0.50", "0.900", "100", "0.80", "0%", "0.950", "1024", "1"),
        *("32.0% [22.0, 44.0]", "35.0%"),
    ]
    assert "10.0% [ 5.0, 20.0]" in line_of(lines, "narrow")
    assert cells(line_of(lines, "deep"))[1] == "not evaluable"
    assert lines[-2:] == [
        "Not evaluable by paper, no evaluable label: deep.",
        "Classes that main latents tell with an F1 below 0.5: wide (1).",
    ]
    assert lines[0].endswith("SAEs of rel")


@pytest.mark.parametrize("columns", ["fit", "all"])
@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 120])
def test_nothing_is_wider_than_the_terminal_or_lost(width, columns):
    lines, whole = printed(SUMMARY, width, columns), cells(line_of(printed(SUMMARY), "narrow"))
    assert max(map(len, lines)) <= width
    shown = [cell for line in lines if line.startswith("narrow ") for cell in cells(line)[1:]]
    assert shown[0] == whole[1]
    told = " ".join(lines)
    left_out = told.split("Left out at this width: ")[1].split(". `--")[0].split(", ") if "Left out" in told else []
    assert len(shown) + len(left_out) == len(whole) - 1
    assert (left_out == []) == (columns == "all" or width == 120)
    assert set(shown) <= set(whole)


def test_names_too_long_for_the_terminal_are_listed_below_it():
    long = SUMMARY.assign(sae=[f"{'x' * 60}{i}" for i in range(3)])
    lines = printed(long, 60)
    assert any(cells(line)[:2] == ["2", "10.0% [ 5.0, 20.0]"] for line in lines)
    assert f"2  {'x' * 60}1" in lines


def test_the_same_sae_on_two_models_has_a_row_for_each():
    other = SUMMARY.assign(model="large", l0=77.0)
    lines = printed(pd.concat([SUMMARY, other], ignore_index=True))
    assert [cells(line_of(lines, f"{model}: wide"))[2] for model in ("tiny", "large")] == ["10.0", "77.0"]


def test_rules_stand_side_by_side_on_the_terminal():
    other = SUMMARY.assign(
        rule="other",
        absorption_rate=[0.6, 0.5, np.nan],
        absorption_fraction=[0.7, 0.65, np.nan],
        fraction_ci_low=[0.6, 0.55, np.nan],
        fraction_ci_high=[0.8, 0.75, np.nan],
        num_words=[90, 90, 0],
    )
    lines = printed(pd.concat([SUMMARY, other], ignore_index=True))
    wide, deep = cells(line_of(lines, "wide")), cells(line_of(lines, "deep"))
    assert wide[1:3] == ["30.0% [20.0, 45.0]", "60.0% [20.0, 45.0]"]
    assert wide[6:9] == ["100", "90", "70.0% [60.0, 80.0]"]
    assert deep[1:3] + deep[8:9] == ["not evaluable", "not evaluable", "-"]


def test_rules_that_agree_share_a_column_under_both_names():
    text = "\n".join(printed(pd.concat([SUMMARY, SUMMARY.assign(rule="other")], ignore_index=True)))
    assert text.count("30.0% [20.0, 45.0]") == 1
    assert "paper" in text
    assert "other" in text


def test_sensitivity_panels_have_the_default_marked():
    figure = sensitivity_figure(SENSITIVITY, SUMMARY)
    axes = [axis for axis in figure.axes if axis.get_visible()]
    named = ["least lead over the second latent, in logits", "least cosine with the probe"]
    assert [axis.get_xlabel().partition("\n")[0] for axis in axes] == named
    for axis in axes:
        curves = [line.get_xydata().tolist() for line in axis.get_lines() if len(line.get_xdata()) == 3]
        assert np.allclose(curves, [[[0, 0.2], [1, 0.1], [3, 0.05]], [[0, 0.6], [1, 0.3], [3, 0.15]]])
        (marked,) = (line for line in axis.get_lines() if len(line.get_xdata()) == 2)
        assert set(marked.get_xdata()) == {1.0}


@pytest.mark.parametrize("width", [70, 100, 200])
def test_cross_fitted_rates_fit_the_console_and_rules_that_agree_share_a_column(width):
    def row(sae, rule, rate, fraction, **more):
        rates = {"absorption_rate": rate, "ci_low": rate - 0.01, "ci_high": rate + 0.01}
        parts = {
            "absorption_fraction": fraction,
            "fraction_ci_low": fraction - 0.01,
            "fraction_ci_high": fraction + 0.01,
        }
        about = {"sae": sae, "rule": rule, "label": "", "folds": 5, "repeats": 3, "evaluable": True, "reason": ""}
        return about | rates | parts | more

    nan = float("nan")
    table = pd.DataFrame(
        [
            row("a", "paper", 0.12, nan),
            row("a", "saebench-0.6.0", 0.34, 0.41),
            row("a", "saebench-0.3.2", 0.34, 0.52),
            row("a", "paper", 0.99, nan, label="x"),
            row("b", "paper", nan, nan, evaluable=False, reason="no words"),
            row("b", "saebench-0.6.0", 0.56, 0.43),
            row("b", "saebench-0.3.2", 0.56, 0.63),
        ]
    )
    stream = io.StringIO()
    print_crossfit(table, Console(file=stream, width=width))
    said = stream.getvalue()
    assert max(map(len, said.splitlines())) <= width
    assert "5 folds, 3 repeats" in said
    rates = ["12.0%", "34.0%", "56.0%", "41.0%", "52.0%", "43.0%", "63.0%", "not evaluable"]
    assert [said.count(rate) for rate in rates] == [1] * len(rates)  # the two rules' equal rates stand there once
    assert "99.0%" not in said
    assert said.count("fraction") == 2

"""Files in SAEBench's format: their fields and types, written out here, and their figures from the table of words."""

import json
import statistics

import pandas as pd
import pytest

from absorb_pl.reports.saebench_results import result_file

SAES = {name: f"tests/golden/gpt2-micro/sae_{name}" for name in ("jumprelu_A", "standard_A", "topk_B")}
FIELDS = {
    "eval_type_id": str,
    "eval_config": dict,
    "eval_id": str,
    "datetime_epoch_millis": int,
    "eval_result_metrics": dict,
    "eval_result_details": list,
    "sae_bench_commit_hash": str,
    "sae_lens_id": str,
    "sae_lens_release_id": str,
    "sae_lens_version": str,
    "sae_cfg_dict": dict,
    "eval_result_unstructured": dict,
}
CONFIG = {
    "model_name": str,
    "random_seed": int,
    "f1_jump_threshold": float,
    "max_k_value": int,
    "prompt_template": str,
    "prompt_token_pos": int,
    "llm_batch_size": int,
    "llm_dtype": str,
    "k_sparse_probe_l1_decay": float,
    "k_sparse_probe_batch_size": int,
    "k_sparse_probe_num_epochs": int,
    "min_GT_probe_f1": float,
    "min_feats_for_eval": int,
    "eval_k_sparse_probe_batch_size": int,
}
DETAIL = {
    "first_letter": str,
    "mean_absorption_fraction": float,
    "full_absorption_rate": float,
    "num_full_absorption": int,
    "num_probe_true_positives": int,
    "num_split_features": int,
}
MEANS = {
    "absorption_fraction_score": "mean_absorption_fraction",
    "full_absorption_score": "full_absorption_rate",
    "num_split_features": "num_split_features",
}


@pytest.fixture(params=SAES)
def result(request, study):
    """The name of an SAE and its file."""
    file = study[1].run_dir / "saebench" / f"tests_golden_gpt2-micro_sae_{request.param}_custom_sae_eval_results.json"
    return SAES[request.param], json.loads(file.read_text())


def assert_types(found, expected):
    assert list(found) == list(expected)
    for name, kind in expected.items():
        assert isinstance(found[name], kind if kind is not float else (int, float)), name
        assert not isinstance(found[name], bool), name


def test_fields_and_types_are_those_of_the_schema(result):
    _, found = result
    assert_types(found, FIELDS)
    assert_types(found["eval_config"], CONFIG)
    assert found["eval_type_id"] == "absorption_first_letter"
    assert list(found["eval_result_metrics"]) == ["mean"]
    means = [f"mean_{name}" for name in MEANS] + [f"std_dev_{name}" for name in MEANS]
    assert_types(found["eval_result_metrics"]["mean"], dict.fromkeys(means, float))
    for detail in found["eval_result_details"]:
        assert_types(detail, DETAIL)


def test_figures_follow_from_the_words(result, study):
    sae, found = result
    config, tables = study[0], study[1].tables
    words = tables["words"].query("rule == 'saebench-0.6.0'")
    words = words[words["sae"] == sae]
    letters = tables["letters"].query("rule == 'saebench-0.6.0'").set_index(["sae", "label"]).loc[sae]
    good = letters[(letters["probe_f1"] > config.rates.min_probe_f1) & (letters["num_probe_true_positives"] > 0)]
    assert [detail["first_letter"] for detail in found["eval_result_details"]] == good.index.tolist()
    for detail in found["eval_result_details"]:
        own = words[words["label"] == detail["first_letter"]]
        assert detail["num_probe_true_positives"] == len(own)
        assert detail["num_full_absorption"] == own["is_absorption"].sum()
        assert detail["mean_absorption_fraction"] == pytest.approx(own["absorption_fraction"].mean())
        assert detail["full_absorption_rate"] == pytest.approx(own["is_absorption"].mean())
        assert detail["num_split_features"] == len(good.loc[detail["first_letter"], "main_latents"])
    for name, field in MEANS.items():
        values = [detail[field] for detail in found["eval_result_details"]]
        assert found["eval_result_metrics"]["mean"][f"mean_{name}"] == pytest.approx(statistics.mean(values))
        assert found["eval_result_metrics"]["mean"][f"std_dev_{name}"] == pytest.approx(statistics.stdev(values))


def test_what_else_is_known_is_kept_beside(result, study):
    sae, found = result
    beside, summary = found["eval_result_unstructured"], study[1].tables["summary"]
    row = summary[(summary["sae"] == sae) & (summary["rule"] == "saebench-0.6.0")].iloc[0]
    assert beside["rule"] == "saebench-0.6.0"
    assert beside["rule_settings"]["max_absorbers"] == 3
    for name in ("absorption_rate", "ci_low", "ci_high", "absorption_fraction", "fraction_ci_low", "fraction_ci_high"):
        assert beside["rates"][name] == pytest.approx(row[name])
    assert beside["seeds"]["split_and_probes"] == 42
    assert len(beside["letters"]) == 26
    assert {letter["label"] for letter in beside["letters"] if letter["reason"]} | {
        detail["first_letter"] for detail in found["eval_result_details"]
    } <= set(pd.Series(list("abcdefghijklmnopqrstuvwxyz")))
    assert found["sae_cfg_dict"]["d_sae"] == 160
    assert (found["sae_lens_release_id"], found["sae_lens_id"]) == (sae, "custom_sae")


def test_names_of_files():
    assert result_file("speller/l1-a") == "speller_l1-a_eval_results.json"
    assert result_file("release/layer_1/width_16k") == "release_layer_1_width_16k_eval_results.json"

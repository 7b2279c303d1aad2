"""Results in the format of SAEBench's absorption evaluation, one file per SAE."""

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from absorb_pl import __version__
from absorb_pl.data.drafts import whole_file, writing_to
from absorb_pl.data.file_names import distinct_names
from absorb_pl.functional.rates import NEVER_FIRES
from absorb_pl.functional.saebench_aggregate import SaeBenchAggregate, saebench_aggregate
from absorb_pl.rules.rates import RateSettings
from absorb_pl.rules.saebench import SaeBench060Rule

EVAL_TYPE = "absorption_first_letter"
_MEANS = (
    "mean_absorption_fraction_score",
    "mean_full_absorption_score",
    "mean_num_split_features",
    "std_dev_absorption_fraction_score",
    "std_dev_full_absorption_score",
    "std_dev_num_split_features",
)
_INTERVALS = ("absorption_rate", "ci_low", "ci_high", "absorption_fraction", "fraction_ci_low", "fraction_ci_high")


@dataclass(frozen=True)
class SaeBenchRun:
    """What a study's files in SAEBench's format have in common.

    Attributes:
        rule: The rule, with its settings.
        rates: How this package sums up rates; its least F1 is also that of SAEBench's aggregate.
        eval_config: The study's settings under SAEBench's names.
        facts: Further facts of the run, kept among the unstructured results.
        sae_cfgs: Configuration of each SAE, as SAELens writes it.
    """

    rule: SaeBench060Rule
    rates: RateSettings
    eval_config: Mapping[str, Any]
    facts: Mapping[str, Any]
    sae_cfgs: Mapping[str, dict[str, Any] | None]
    eval_id: str = field(default_factory=lambda: str(uuid.uuid4()))


def release_and_id(sae: str) -> tuple[str, str]:
    """The two halves of an SAE's name in SAEBench: a folder of one's own is a release with the id `custom_sae`.

    Args:
        sae: Name of the SAE.

    Example:
        >>> release_and_id("speller/l1-standard-w512-dense")
        ('speller', 'l1-standard-w512-dense')
        >>> release_and_id(".")
        ('.', 'custom_sae')
    """
    release, _, sae_id = sae.partition("/")
    own = not sae_id or Path(sae.partition("#")[0]).expanduser().is_dir()
    return (sae, "custom_sae") if own else (release, sae_id)


def result_file(sae: str) -> str:
    """Name of an SAE's file, as SAEBench forms it.

    Args:
        sae: Name of the SAE.

    Example:
        >>> result_file("gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_59")
        'gemma-scope-2b-pt-res_layer_3_width_16k_average_l0_59_eval_results.json'
    """
    return f"{'_'.join(release_and_id(sae))}_eval_results.json".replace("/", "_")


def aggregate_letters(letters: pd.DataFrame, run: SaeBenchRun) -> SaeBenchAggregate:
    """SAEBench's own figures of one SAE (see `functional.saebench_aggregate`).

    Args:
        letters: Its rows of a study's table of letters, by the rule `saebench-0.6.0`.
        run: What all files have in common.
    """
    letters = _with_shares(letters)
    return saebench_aggregate(
        letters["mean_fraction"].tolist(),
        letters["full_rate"].tolist(),
        [len(mains) for mains in letters["main_latents"]],
        letters["num_probe_true_positives"].tolist(),
        letters["probe_f1"].tolist(),
        min_probe_f1=run.rates.min_probe_f1,
        min_letters=run.rule.settings.min_letters,
    )


def saebench_result(
    sae: str, letters: pd.DataFrame, summary: Mapping[str, Any], found: SaeBenchAggregate, run: SaeBenchRun
) -> dict[str, Any]:
    """The result of one SAE.

    Args:
        sae: Name of the SAE.
        letters: Its rows of a study's table of letters, by the rule `saebench-0.6.0`.
        summary: Its row of the summary, by the same rule.
        found: From `aggregate_letters`, with figures.
        run: What all files have in common.

    Returns:
        The fields of SAEBench's schema.
    """
    release, sae_id = release_and_id(sae)
    return {
        "eval_type_id": EVAL_TYPE,
        "eval_config": dict(run.eval_config),
        "eval_id": run.eval_id,
        "datetime_epoch_millis": time.time_ns() // 1_000_000,
        "eval_result_metrics": {"mean": {name: getattr(found, name) for name in _MEANS}},
        "eval_result_details": [
            {
                "first_letter": row["label"],
                "mean_absorption_fraction": float(row["mean_fraction"]),
                "full_absorption_rate": float(row["full_rate"]),
                "num_full_absorption": int(row["num_absorbed"]),
                "num_probe_true_positives": int(row["num_probe_true_positives"]),
                "num_split_features": len(row["main_latents"]),
            }
            for row in _with_shares(letters).iloc[list(found.letters)].to_dict("records")
        ],
        "sae_bench_commit_hash": f"none: made by absorb_pl {__version__}",
        "sae_lens_id": sae_id,
        "sae_lens_release_id": release,
        "sae_lens_version": version("sae-lens"),
        "sae_cfg_dict": run.sae_cfgs.get(sae),
        "eval_result_unstructured": {
            "made_with": f"absorb_pl {__version__}",
            "rule": run.rule.name,
            "rule_settings": asdict(run.rule.settings),
            "rates": {name: _plain(summary[name]) for name in _INTERVALS},
            "rate_settings": asdict(run.rates),
            "letters": [_plain_row(row) for row in letters.to_dict("records")],
            **run.facts,
        },
    }


def write_saebench_results(folder: Path, tables: Mapping[str, pd.DataFrame], run: SaeBenchRun) -> dict[str, str]:
    """Write the results of all SAEs, each to the file that SAEBench would name.

    SAEs whose files would share a name (`a/b` and `a_b`) get a hash of their name in front.

    Args:
        folder: Where the files go.
        tables: `summary` and `letters` of a study.
        run: What all files have in common.

    Returns:
        By the name of each SAE for which SAEBench would give no result, the reason.

    Raises:
        OutputFolderError: The folder cannot be written.
    """
    reasons, run_files = {}, distinct_names(tables["summary"]["sae"].unique(), result_file)
    summary, letters = (table[table["rule"] == run.rule.name] for table in (tables["summary"], tables["letters"]))
    with writing_to(folder):
        folder.mkdir(exist_ok=True)
        for row in summary.to_dict("records"):
            name = row["sae"]
            file = folder / run_files[name]
            own = letters[letters["sae"] == name]
            found = aggregate_letters(own, run)
            if reason := NEVER_FIRES if row["reason"] == NEVER_FIRES else found.reason:
                reasons[name] = reason
                file.unlink(missing_ok=True)
            else:
                result = saebench_result(name, own, {str(key): value for key, value in row.items()}, found, run)
                with whole_file(file) as part:
                    part.write_text(json.dumps(result, indent=2, allow_nan=False), encoding="utf-8")
    return reasons


def _with_shares(letters: pd.DataFrame) -> pd.DataFrame:
    count = letters["num_probe_true_positives"]
    return letters.assign(mean_fraction=letters["sum_fraction"] / count, full_rate=letters["num_absorbed"] / count)


def _plain_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): _plain(value) for name, value in row.items() if name not in ("sae", "hook_name", "rule")}


def _plain(value: Any) -> Any:
    """A value as JSON has it; what is missing is null."""
    if isinstance(value, list) or hasattr(value, "tolist"):
        value = value if isinstance(value, list) else value.tolist()
    return None if not isinstance(value, list) and pd.isna(value) else value

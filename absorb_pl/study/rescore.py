"""Other thresholds on a finished study: new tables from its stored scores, without a model."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from absorb_pl.data.drafts import user_path
from absorb_pl.data.publication import publishing
from absorb_pl.errors import CacheCorruptedError, RuleError
from absorb_pl.evaluators.writers import write_table
from absorb_pl.ranges import check_ranges
from absorb_pl.reports.controls import without_controls
from absorb_pl.reports.figures import about_study, absorption_figure, save_figures
from absorb_pl.reports.page import write_page
from absorb_pl.reports.sensitivity_figures import sensitivity_figure
from absorb_pl.reports.style import house_style
from absorb_pl.reports.tensorboard import log_study
from absorb_pl.reports.terminal import ColumnChoice, print_places, print_summary
from absorb_pl.rules.children import children_table
from absorb_pl.rules.judgement import judge
from absorb_pl.rules.rates import NO_WORDS, RateSettings
from absorb_pl.rules.registry import configured_rules, rule_named
from absorb_pl.rules.rule import AbsorptionRule
from absorb_pl.schema import FOUND_BY_RULE, ordered_words, stacked
from absorb_pl.study.finished import settings_of_run

_NEEDED = ("summary", "letters", "words", "latents")
_CHILDREN = "children"
_FOUND_OF_CHILDREN = ["num_candidates", "num_absorbed", "absorption_rate"]


@dataclass(frozen=True)
class Rescored:
    """What rescoring leaves.

    Attributes:
        folder: Where the tables and figures are.
        tables: `summary`, `letters`, `words` and `sensitivity`, and `children` of a task with finer labels, as
            written to `folder/tables`.
    """

    folder: Path
    tables: dict[str, pd.DataFrame]


def rescore_run(
    run_dir: str | Path, rule: str = "paper", *, columns: ColumnChoice = "fit", **thresholds: float | int | None
) -> Rescored:
    """Apply a rule with other thresholds to the scores that a finished study stored.

    Writes tables, figures, TensorBoard events and a page below `run_dir/rescored/`, in a folder named by the rule and
    what differs from the study, and prints the table. The study's own tables stay as they are.

    Args:
        run_dir: The run folder of a finished study.
        rule: Name of a rule of that study.
        columns: Columns of the printed table: `fit` for those that fit the terminal, or `all`.
        thresholds: The rule's thresholds by name; those of the study if they are left out or None.

    Returns:
        The tables: those of a study with these thresholds.

    Raises:
        RangeError: A threshold is outside its range.
        RuleError: The study lacks the rule, or the stored scores cannot answer a threshold; says what to run again.
        CacheCorruptedError: The folder holds no finished study, or its report was cut short.
        OutputFolderError: The folder cannot be written.

    Example:
        >>> rescore_run("no/such/run", delta_threshold=0.5)
        Traceback (most recent call last):
            ...
        absorb_pl.errors.CacheCorruptedError: `run_dir` was '...', expected the run folder of a finished...
    """
    run_dir = user_path(run_dir)
    changed = {name: value for name, value in thresholds.items() if value is not None}
    check_ranges(rule_named(rule).settings_type, changed)
    config, tables = _read(run_dir)
    asked = _rule(config, rule).with_thresholds(changed)
    asked.check_stored(config["splits"]["silent"])
    rates = RateSettings(**config["rates"])
    of_rule = {name: table[table["rule"] == rule] for name, table in tables.items() if "rule" in table}
    found = _judge(asked, of_rule, tables["latents"], rates)
    name = "-".join([rule, *(f"{key}={value:g}" for key, value in sorted(changed.items()))])
    folder = run_dir / "rescored" / name
    drawn = without_controls(found)
    with house_style():
        figures = {
            "absorption_vs_l0": absorption_figure(drawn["summary"], "l0"),
            f"sensitivity_{rule}": sensitivity_figure(drawn["sensitivity"], drawn["summary"]),
        }
    with publishing(folder) as part:
        for table, frame in found.items():
            write_table(frame, part / "tables" / f"{table}.parquet")
        events = log_study(part, found, save_figures(figures, part / "figures", about_study(found, config)))
    others = [file for file in (run_dir / "tables").glob("*.parquet") if file.stem not in found]
    rest = {file.stem: pd.read_parquet(file) for file in others}
    write_page(folder, {**rest, **found}, {**config, "rules": {rule: asked.own_settings()}})
    print_summary(found["summary"], notes=[f"Rescored with {_described(asked)}."], columns=columns)
    print_places(folder, events)
    return Rescored(folder, found)


def _read(run_dir: Path) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    files = {name: run_dir / "tables" / f"{name}.parquet" for name in (*_NEEDED, _CHILDREN)}
    config = settings_of_run(run_dir, _NEEDED)
    known = {setting.name for setting in fields(RateSettings)}
    if not isinstance(config.get("rules"), dict) or not known >= set(config.get("rates", {})):
        raise CacheCorruptedError(
            "run_dir",
            str(run_dir),
            expected="the run folder of a study by this version, with the settings of its `rules`",
            remedy="Run `absorb-pl study` again; finished stages are not made again.",
        )
    return config, {name: pd.read_parquet(file) for name, file in files.items() if file.is_file()}


def _rule(config: dict[str, Any], name: str) -> AbsorptionRule:
    if name not in config["rules"]:
        raise RuleError(
            "rule",
            name,
            expected=f"a rule of the study: {', '.join(config['rules'])}",
            remedy="Run the study again with it among its `rules`, in another folder.",
        )
    (rule,) = configured_rules({name: config["rules"][name]})
    return rule


def _judge(
    rule: AbsorptionRule, tables: dict[str, pd.DataFrame], latents: pd.DataFrame, rates: RateSettings
) -> dict[str, pd.DataFrame]:
    parts: dict[str, list[pd.DataFrame]] = {"summary": [], "letters": [], "words": [], "sensitivity": []}
    for row in tables["summary"].to_dict("records"):
        of_sae = {name: frame[frame["sae"] == row["sae"]] for name, frame in {**tables, "latents": latents}.items()}
        every = of_sae["letters"]
        letters = every[every["reason"] != NO_WORDS].drop(columns=["sae", "hook_name", *FOUND_BY_RULE])
        found = judge(rule, of_sae["words"], letters, of_sae["latents"], rates, tuple(every["label"]))
        parts["summary"].append(pd.DataFrame([{**row, **found.figures}]))
        parts["words"].append(found.words)
        for name, frame in (("letters", found.letters), ("sensitivity", found.sensitivity)):
            frame.insert(0, "sae", str(row["sae"]))
            parts[name].append(frame)
        found.letters.insert(1, "hook_name", row["hook_name"])
        if _CHILDREN in of_sae:
            before = of_sae[_CHILDREN]
            held_out = before.drop(columns=["sae", "rule", *_FOUND_OF_CHILDREN])
            rates_of = children_table(found.words, found.letters, held_out)
            parts.setdefault(_CHILDREN, []).append(before.assign(**rates_of[_FOUND_OF_CHILDREN]))
    joined = {name: stacked(frames) for name, frames in parts.items()}
    return {**joined, "words": ordered_words(joined["words"])}


def _described(rule: AbsorptionRule) -> str:
    return f"{rule.name}: " + ", ".join(f"{name} = {getattr(rule.settings, name):g}" for name in rule.thresholds)

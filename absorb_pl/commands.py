"""The commands beside those of Lightning's Trainer: what each takes, and what it does with it."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEMO = "Study the SAEs of the bundled language model; takes what `study` takes."
STUDY = "Measure splitting and absorption in a list of SAEs, from words to tables and figures."
RESCORE = "Apply other thresholds of a rule to the evidence that a finished study stored, without a model."
CALIBRATE = "Hold absorption rules against SAEs of which it is known what they absorb."
COMPARE = "Compare the SAEs of finished studies on the words that they share."
PAGE = "Write the page of a finished study again, or of two runs together; no model is needed."
POWER = "Say what difference of rates the words of a finished study can tell."
LIST = "Show which SAEs names or patterns select, with width and published L0; nothing is downloaded."
_RULES = "--rules."


@dataclass(frozen=True)
class Command:
    """A command of our own under the common parser.

    Attributes:
        add_arguments: Adds its arguments to a parser.
        run: Does it, with the arguments by name.
    """

    add_arguments: Callable[[Any], None]
    run: Callable[[dict[str, Any]], None]


def _add_study(parser: Any) -> None:
    from absorb_pl.study import StudyConfig

    parser.add_class_arguments(StudyConfig)


def _run_study(settings: dict[str, Any]) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    from absorb_pl.study import StudyConfig, run_study

    config = StudyConfig(**settings)
    run_study(config)
    if config.until != "report" and getattr(rank_zero_only, "rank", 0) == 0:
        sys.stdout.write(f"Stopped after the stage {config.until}; without `until` the next run goes on from there.\n")


def _add_rescore(parser: Any) -> None:
    from absorb_pl.reports.terminal import ColumnChoice
    from absorb_pl.rules.registry import known_rules, threshold_types

    parser.add_argument("--run_dir", type=str, required=True, help="The run folder of a finished study.")
    parser.add_argument("--rule", type=str, default="paper", help=f"One of {', '.join(known_rules())}.")
    parser.add_argument("--columns", type=ColumnChoice, default="fit", help="Columns of the printed table: fit or all.")
    for name, kind in threshold_types().items():
        parser.add_argument(f"--{name}", type=kind | None, default=None, help="As in the study if left out.")


def _run_rescore(settings: dict[str, Any]) -> None:
    from absorb_pl.study import rescore_run

    rescore_run(**settings)


def _add_list(parser: Any) -> None:
    parser.add_argument(
        "patterns", nargs="+", type=str, help="Such as 'speller/*' or 'gemma-scope-2b-pt-res/layer_12/*'."
    )


def _run_list(settings: dict[str, Any]) -> None:
    from absorb_pl.reports.terminal import print_listing
    from absorb_pl.saes.listing import list_saes

    print_listing(list_saes(settings["patterns"]))


def _add_calibrate(parser: Any) -> None:
    from absorb_pl.study.calibration import CalibrationConfig

    parser.add_class_arguments(CalibrationConfig)


def _run_calibrate(settings: dict[str, Any]) -> None:
    from absorb_pl.study.calibration import CalibrationConfig, calibrate

    calibrate(CalibrationConfig(**settings))


def _add_compare(parser: Any) -> None:
    from absorb_pl.study.compare import print_comparisons

    parser.add_function_arguments(print_comparisons)


def _run_compare(settings: dict[str, Any]) -> None:
    from absorb_pl.study.compare import print_comparisons

    print_comparisons(**settings)


def _add_page(parser: Any) -> None:
    from absorb_pl.study.page import make_page

    parser.add_function_arguments(make_page)


def _run_page(settings: dict[str, Any]) -> None:
    from absorb_pl.study.page import make_page

    sys.stdout.write(f"{make_page(**settings)}\n")


def _add_power(parser: Any) -> None:
    from absorb_pl.study.compare import print_resolution

    parser.add_function_arguments(print_resolution)


def _run_power(settings: dict[str, Any]) -> None:
    from absorb_pl.study.compare import print_resolution

    print_resolution(**settings)


COMMANDS = {
    "study": Command(_add_study, _run_study),
    "rescore": Command(_add_rescore, _run_rescore),
    "list": Command(_add_list, _run_list),
    "compare": Command(_add_compare, _run_compare),
    "page": Command(_add_page, _run_page),
    "power": Command(_add_power, _run_power),
    "calibrate": Command(_add_calibrate, _run_calibrate),
}


def with_rule_settings(words: Sequence[str]) -> list[str]:
    """Words of a command line in which single settings of rules are merged with those of configuration files.

    `--rules.saebench-0.6.0.min_letters=3` changes that setting alone; the parser would drop the rule's other settings.

    Args:
        words: Words of the command line.

    Returns:
        The words, with one `--rules` in place of all that say something about single settings.

    Example:
        >>> with_rule_settings(["study", "--rules=paper", "--rules.paper.steps=9"])
        ['study', '--rules={"paper": {"steps": 9}}']
    """
    if not any(word.startswith(_RULES) for word in words):
        return list(words)
    import yaml

    from absorb_pl.rules.registry import rules_of

    chosen: Any = None
    kept, words = list[str](), list(words)
    while words:
        option, equals, value = words.pop(0).partition("=")
        if option in ("--config", "-c", "--rules") or option.startswith(_RULES):
            value = value if equals else words.pop(0) if words else ""
            if option in ("--config", "-c"):
                kept.append(f"--config={value}")
                if Path(value).is_file():
                    read = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
                    chosen = read.get("rules", chosen) if isinstance(read, dict) else chosen
            elif option == "--rules":
                chosen = yaml.safe_load(value)
            else:
                rule, _, setting = option.removeprefix(_RULES).rpartition(".")
                chosen = rules_of(["paper", "saebench-0.6.0", "saebench-0.3.2"] if chosen is None else chosen)
                chosen[rule] = {**chosen.get(rule, {}), setting: yaml.safe_load(value)}
        else:
            kept.append(option + equals + value)
    return [*kept, f"--rules={json.dumps(chosen)}"]

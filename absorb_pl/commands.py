"""The commands that have a parser of their own; what is heavy is imported once one of them runs."""

import sys

STUDY = "Measure splitting and absorption in a list of SAEs, from words to tables and figures."
RESCORE = "Apply other thresholds of a rule to the scores that a finished study stored, without a model."
LIST = "Show which SAEs names or patterns select, with width and published L0; nothing is downloaded."


def parse_study(words: list[str]) -> None:
    """Run `absorb-pl study` with the words behind it."""
    from jsonargparse import ArgumentParser
    from lightning.pytorch.utilities import rank_zero_only

    from absorb_pl.study import StudyConfig, run_study

    parser = ArgumentParser(prog="absorb-pl study", description=STUDY)
    parser.add_argument("--config", action="config", help="A YAML file with any of the settings below.")
    parser.add_class_arguments(StudyConfig)
    settings = parser.instantiate_classes(parser.parse_args(words))
    settings.pop("config")
    config = StudyConfig(**settings)
    run_study(config)
    if config.until != "report" and getattr(rank_zero_only, "rank", 0) == 0:
        sys.stdout.write(f"Stopped after the stage {config.until}; without `until` the next run goes on from there.\n")


def parse_rescore(words: list[str]) -> None:
    """Run `absorb-pl rescore` with the words behind it."""
    from jsonargparse import ArgumentParser

    from absorb_pl.reports import ColumnChoice
    from absorb_pl.rules.registry import known_rules, threshold_types
    from absorb_pl.study import rescore_run

    parser = ArgumentParser(prog="absorb-pl rescore", description=RESCORE)
    parser.add_argument("--config", action="config", help="A YAML file with any of the settings below.")
    parser.add_argument("--run_dir", type=str, required=True, help="The run folder of a finished study.")
    parser.add_argument("--rule", type=str, default="paper", help=f"One of {', '.join(known_rules())}.")
    parser.add_argument("--columns", type=ColumnChoice, default="fit", help="Columns of the printed table: fit or all.")
    for name, kind in threshold_types().items():
        parser.add_argument(f"--{name}", type=kind | None, default=None, help="As in the study when left out.")
    settings = parser.parse_args(words).as_dict()
    settings.pop("config")
    rescore_run(**settings)


def parse_list(words: list[str]) -> None:
    """Run `absorb-pl list` with the words behind it."""
    from argparse import ArgumentParser

    parser = ArgumentParser(prog="absorb-pl list", description=LIST)
    parser.add_argument("patterns", nargs="+", help="Such as 'speller/*' or 'gemma-scope-2b-pt-res/layer_12/*'.")
    patterns = parser.parse_args(words).patterns

    from absorb_pl.reports import print_listing
    from absorb_pl.saes import list_saes

    print_listing(list_saes(patterns))


OWN_PARSERS = {"study": parse_study, "rescore": parse_rescore, "list": parse_list}

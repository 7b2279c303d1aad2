"""The command line: `absorb-pl fit | validate | test | predict | study | rescore`."""

import sys
from collections.abc import Sequence
from importlib import import_module

from absorb_pl import __version__
from absorb_pl.errors import AbsorbError

COMMANDS = {
    "study": "Measure splitting and absorption in a list of SAEs, from words to tables and figures.",
    "rescore": "Apply other thresholds of a rule to the scores that a finished study stored, without a model.",
    "fit": "Train a linear or k-sparse probe on cached activations.",
    "validate": "Score a trained probe on the validation words.",
    "test": "Score a trained probe on the held-out words; evaluators run as callbacks.",
    "predict": "Run one stage alone: cache activations, or score candidate words for absorption.",
}
_HELP = f"""usage: absorb-pl COMMAND [--config FILE] [--print_config] [--help] [OVERRIDES ...]

How much does a sparse autoencoder split and absorb features?

commands:
{chr(10).join(f"  {name:<10} {line}" for name, line in COMMANDS.items())}

options:
  --help     This text; after a command, all its settings.
  --version  The version.
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Words of the command line without the program's name; those of this process when None.

    Raises:
        SystemExit: With code 2 for a bad command line, and 1 after a named error, which is printed.
    """
    words = list(sys.argv[1:] if args is None else args)
    command = words[0] if words else "--help"
    if command in ("--help", "-h"):
        sys.stdout.write(_HELP)
    elif command == "--version":
        sys.stdout.write(f"absorb-pl {__version__}\n")
    elif command not in COMMANDS:
        sys.stderr.write(f"absorb-pl: there is no command {command!r}.\n\n{_HELP}")
        raise SystemExit(2)
    else:
        try:
            if command in _OWN:
                _OWN[command](words[1:])
            else:
                _run_trainer(None if args is None else words)
        except ValueError as error:
            named = _named_error(error)
            if named is None:
                raise
            sys.stderr.write(f"absorb-pl {command}: {type(named).__name__}: {named}\n")
            raise SystemExit(1) from named


def _named_error(error: BaseException | None) -> AbsorbError | None:
    """The named error behind an error: the parser wraps what classes raise while they are made."""
    while error is not None and not isinstance(error, AbsorbError):
        error = error.__cause__ or error.__context__
    return error


def _run_study(words: list[str]) -> None:
    from jsonargparse import ArgumentParser

    from absorb_pl.study import StudyConfig, run_study

    parser = ArgumentParser(prog="absorb-pl study", description=COMMANDS["study"])
    parser.add_argument("--config", action="config", help="A YAML file with any of the settings below.")
    parser.add_class_arguments(StudyConfig)
    settings = parser.instantiate_classes(parser.parse_args(words))
    settings.pop("config")
    run_study(StudyConfig(**settings))


def _run_rescore(words: list[str]) -> None:
    from jsonargparse import ArgumentParser

    from absorb_pl.evaluators import known_rules, threshold_types
    from absorb_pl.reports import rescore_run

    parser = ArgumentParser(prog="absorb-pl rescore", description=COMMANDS["rescore"])
    parser.add_argument("--config", action="config", help="A YAML file with any of the settings below.")
    parser.add_argument("--run_dir", type=str, required=True, help="The run folder of a finished study.")
    parser.add_argument("--rule", type=str, default="paper", help=f"One of {', '.join(known_rules())}.")
    for name, kind in threshold_types().items():
        parser.add_argument(f"--{name}", type=kind | None, default=None, help="As in the study when left out.")
    settings = parser.parse_args(words).as_dict()
    settings.pop("config")
    rescore_run(**settings)


_OWN = {"study": _run_study, "rescore": _run_rescore}


def _run_trainer(words: list[str] | None) -> None:
    from lightning.pytorch import LightningDataModule, LightningModule
    from lightning.pytorch.cli import LightningCLI

    for room in ("data", "evaluators", "probes"):  # their classes are known by short names once imported
        import_module(f"absorb_pl.{room}")

    LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=42,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},  # without a logger all runs share a folder
        args=words,
    )

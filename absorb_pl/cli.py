"""The command line: `absorb-pl study | rescore | list | fit | validate | test | predict`."""

import errno
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from absorb_pl import __version__
from absorb_pl.commands import LIST, OWN_PARSERS, RESCORE, STUDY
from absorb_pl.errors import AbsorbError, ConfigFileError, OutputFolderError
from absorb_pl.interruption import exit_code, interruptible

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
COMMANDS = {
    "study": STUDY,
    "rescore": RESCORE,
    "list": LIST,
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
        SystemExit: With code 2 for a bad command line, 1 after a named error, which is printed, 143 after SIGTERM and
            130 after SIGINT.
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
            _check_config_files(words)
            with interruptible():
                if command in OWN_PARSERS:
                    OWN_PARSERS[command](words[1:])
                else:
                    _run_trainer(None if args is None else words)
        except KeyboardInterrupt:
            raise SystemExit(exit_code(signal.SIGINT)) from None
        except (OSError, ValueError) as error:
            named = _named_error(error)
            if named is None:
                raise
            sys.stderr.write(f"absorb-pl {command}: {type(named).__name__}: {named}\n")
            raise SystemExit(1) from named


def _check_config_files(words: Sequence[str]) -> None:
    """Refuse configuration files that are no text, which the parsers pass on as they come."""
    for word, following in pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        file = Path(value if equals else following)
        if option in ("--config", "-c") and file.is_file():
            try:
                file.read_text("utf-8")
            except UnicodeDecodeError as error:
                raise ConfigFileError(
                    "config", str(file), expected="text in UTF-8", remedy=f"Save it so; byte {error.start} is not."
                ) from error


def _named_error(error: BaseException | None) -> AbsorbError | None:
    """The named error behind an error: the parser wraps what classes raise while they are made.

    Also the name of a full disk, where Lightning itself writes.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        return OutputFolderError(
            "output folder",
            error.filename or "that of this command",
            expected="a folder with room that can be written",
            remedy=f"The system said: {error.strerror}. Free space, or name another folder.",
        )
    while error is not None and not isinstance(error, AbsorbError):
        error = error.__cause__ or error.__context__
    return error


def _run_trainer(words: list[str] | None) -> None:
    from lightning.pytorch import LightningDataModule, LightningModule, Trainer
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    from absorb_pl.data import check_trainer_numbers, checkpoint_file, named_trainer_errors, stoppable

    for room in ("data", "evaluators", "probes"):  # their classes are known by short names once imported
        import_module(f"absorb_pl.{room}")

    class CommandLine(LightningCLI):
        def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
            super().parse_arguments(parser, args)
            settings = self.config[self.config.subcommand]
            if settings.ckpt_path is not None:
                settings.ckpt_path = checkpoint_file(str(settings.ckpt_path))
            if not 0 <= int(settings.seed_everything) < 2**32:
                raise AbsorbError(
                    "seed_everything", settings.seed_everything, expected="0 to 2³² - 1", remedy="Choose another seed."
                )

        def instantiate_trainer(self, **settings: Any) -> Trainer:
            asked = self.config[str(self.subcommand)].trainer
            check_trainer_numbers(**asked.as_dict())
            with named_trainer_errors({name: asked[name] for name in ("accelerator", "devices", "strategy")}):
                return stoppable(super().instantiate_trainer(**settings))

    CommandLine(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=42,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},  # without a logger all runs share a folder
        args=words,
    )


if __name__ == "__main__":
    main()

"""The command line: `absorb-pl demo | study | rescore | compare | … | fit | validate | test | predict`."""

import errno
import inspect
import signal
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from pydoc import locate
from typing import Any, cast

from absorb_pl import __version__
from absorb_pl.commands import CALIBRATE, COMPARE, DEMO, LIST, PAGE, POWER, RESCORE, STUDY, with_rule_settings
from absorb_pl.commands import COMMANDS as OWN_COMMANDS
from absorb_pl.errors import AbsorbError, ConfigFileError, OutputFolderError
from absorb_pl.interruption import exit_code, interruptible

_DEMO_SETTINGS = Path(__file__).with_name("demo.yaml")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
COMMANDS = {
    "demo": DEMO,
    "study": STUDY,
    "rescore": RESCORE,
    "list": LIST,
    "compare": COMPARE,
    "page": PAGE,
    "power": POWER,
    "calibrate": CALIBRATE,
    "fit": "Train SAEs, or a linear or k-sparse probe on cached activations.",
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
    if words[:1] == ["demo"]:
        words = ["study", f"--config={_DEMO_SETTINGS}", *words[1:]]
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
                _run(command, words)
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
    """The named error that caused an error: the parser wraps what classes raise while they are made.

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


def _run(command: str, words: list[str]) -> None:
    from lightning.pytorch import LightningDataModule, LightningModule, Trainer
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    from absorb_pl.data.labelled_datamodule import LabelledDataModule
    from absorb_pl.data.prompt_datamodule import PromptDataModule
    from absorb_pl.data.stopping import stoppable
    from absorb_pl.data.trainers import check_trainer_numbers, checkpoint_file, named_trainer_errors

    own = OWN_COMMANDS.get(command)
    if own is None:
        for room in (
            "data",
            "evaluators",
            "probes",
            "reports",
            "training",
            "truth",
        ):  # their classes are known by short names once imported
            import_module(f"absorb_pl.{room}")

    class CommandLine(LightningCLI):
        """One parser for all commands; only that of the command given is made."""

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {name: skip for name, skip in LightningCLI.subcommands().items() if name == command}

        def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
            super()._add_subcommands(parser, **kwargs)
            if own is not None:
                self._subcommand_parsers[command] = self.init_parser(description=COMMANDS[command])
                own.add_arguments(self._subcommand_parsers[command])
                cast(Any, parser)._subcommands_action.add_subcommand(command, self._subcommand_parsers[command])

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            for argument, of_data in (
                ("input_dim", "width"),
                ("num_outputs", "num_classes"),
                ("class_names", "class_names"),
                ("hook_widths", "hook_widths"),
            ):
                parser.link_arguments(
                    "data",
                    f"model.init_args.{argument}",
                    compute_fn=partial(_said_by, of_data),
                    apply_on="instantiate",
                )

        def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
            self.config = parser.parse_args(with_rule_settings(args) if command == "study" else args)
            if own is not None:
                return
            from absorb_pl.training import TokenActivationDataModule

            settings = self.config[command]
            if settings.ckpt_path is not None:
                settings.ckpt_path = checkpoint_file(str(settings.ckpt_path))
            if not 0 <= int(settings.seed_everything) < 2**32:
                raise AbsorbError(
                    "seed_everything", settings.seed_everything, expected="0 to 2³² - 1", remedy="Choose another seed."
                )
            kind = _class_of(settings.data)
            links = cast(Any, self._parser(command))._links_group._group_actions
            says_widths = issubclass(kind, LabelledDataModule | TokenActivationDataModule)
            links[:] = [link for link in links if says_widths and _is_open(link, settings)]
            if issubclass(kind, PromptDataModule):
                _check_one_model(settings)
                self._parser(command).link_arguments(
                    "data",
                    "model.init_args.model",
                    compute_fn=attrgetter("language_model"),
                    apply_on="instantiate",
                )

        def _parse_ckpt_path(self) -> None:
            # SAEs in training compare the checkpoint's settings with those asked for, rather than give way to them.
            if own is None:
                from absorb_pl.training import SparseAutoencoderModule

                if not issubclass(_class_of(self.config[command].model), SparseAutoencoderModule):
                    super()._parse_ckpt_path()

        def _set_seed(self) -> None:
            if own is None:
                super()._set_seed()

        def instantiate_classes(self) -> None:
            if own is None:
                super().instantiate_classes()

        def instantiate_trainer(self, **settings: Any) -> Trainer:
            asked = self.config[command].trainer
            check_trainer_numbers(**asked.as_dict())
            with named_trainer_errors({name: asked[name] for name in ("accelerator", "devices", "strategy")}):
                return stoppable(super().instantiate_trainer(**settings))

        def _run_subcommand(self, subcommand: str) -> None:
            if own is None:
                super()._run_subcommand(subcommand)
            else:
                settings = self.parser.instantiate(self.config)[command]
                own.run({name: value for name, value in vars(settings).items() if name != "config"})

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


def _class_of(asked: Any) -> type:
    return cast(type, locate(asked.class_path)) if asked else object


def _is_open(link: Any, settings: Any) -> bool:
    """Whether an argument that the data can say is one of the module's, and was not given."""
    argument = link.target[0].rpartition(".")[2]
    parameters = inspect.signature(_class_of(settings.model).__init__).parameters
    needed = ["num_outputs", argument] if argument == "class_names" else [argument]
    given = settings.model.init_args
    return all(name in parameters and given.get(name) in (None, parameters[name].default) for name in needed)


def _check_one_model(settings: Any) -> None:
    """Refuse another language model for the module than for its data, which is given to both."""
    of_module, of_data = settings.model.init_args.get("model"), settings.data.init_args.get("model")
    if of_module not in (None, "speller", of_data):  # the speller is the default
        raise AbsorbError(
            "model.init_args.model",
            of_module,
            expected=f"{of_data}, the model of the data, which the module is given too",
            remedy="Name the model under `data` alone.",
        )


def _said_by(attribute: str, data: Any) -> Any:
    return getattr(data, attribute, None)


if __name__ == "__main__":
    main()

"""Ranges of settings: each number has one where it is declared, and nothing outside is accepted or leaves a trace."""

import importlib
import inspect
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import SimpleNamespace
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from absorb_pl.cli import main
from absorb_pl.data.trainers import check_trainer_numbers
from absorb_pl.errors import RangeError
from absorb_pl.ranges import Range
from absorb_pl.rules import known_rules, rule_named
from absorb_pl.study import StudyConfig

pytestmark = pytest.mark.usefixtures("at_root", "_one_thread")

ROOMS = [
    "attribution",
    "data",
    "evaluators",
    "experiments",
    "functional",
    "models",
    "probes",
    "reports",
    "study",
    "training",
    "words",
]
# Bases of others, and what takes objects alone.
BASES = {
    "OneVsRestModule",
    "LatentRanking",
    "LatentRankings",
    "FoldRanking",
    "CausalEvaluator",
    "GradientEvaluator",
    "SaeEvaluation",
    "LabelledDataModule",
}

# Numbers on the command line that no range is declared for, and who refuses them.
WITHOUT_RANGE = {
    "study trainer.devices": "Lightning knows the machine; `TrainerError`",
    "PromptDataModule.rows": "compared with the number of words; `RowsError`",
    "SparseAutoencoderModule.hook_widths": "compared with the data's by the module; `HookMismatchError`",
    "LinearProbe.pos_weight": "one number per class, compared with the classes by the probe",
    "Trainer.devices": "Lightning knows the machine; `TrainerError`",
    "Trainer.fast_dev_run": "Lightning; `TrainerError`",
    "Trainer.max_time": "a duration, which Lightning reads; `TrainerError`",
    "Trainer.val_check_interval": "a number or a duration, which Lightning reads; `TrainerError`",
}


def subclasses(kind):
    for cls in kind.__subclasses__():
        yield from (cls, *subclasses(cls))


def on_the_command_line(kind):
    """Classes of the package that the Trainer's commands can be told to make."""
    for room in ROOMS:
        importlib.import_module(f"absorb_pl.{room}")
    ours = {cls for cls in subclasses(kind) if cls.__module__.startswith("absorb_pl.") and cls.__name__[0] != "_"}
    return sorted((cls for cls in ours if cls.__name__ not in BASES), key=lambda cls: cls.__name__)


def settings_of(declared, prefix=""):
    """Settings by name with their types, those of nested dataclasses among them."""
    for name, hint in get_type_hints(declared, include_extras=True).items():
        nested = [part for part in (hint, *get_args(hint)) if inspect.isclass(part) and is_dataclass(part)]
        if nested:
            yield from settings_of(nested[0], f"{prefix}{name}.")
        elif name != "return":
            yield prefix + name, hint


def settings_of_rules():
    """Settings of two rules by name with their types."""
    for rule in ("paper", "saebench-0.6.0"):
        for name, hint in settings_of(rule_named(rule).settings_type):
            yield f"rules.{rule}.{name}", hint


def settings_of_modules():
    """Words of a command, and name and type of each setting, for the classes that the Trainer's commands make."""
    needed = {
        "sae": "tests/golden/gpt2-micro/sae_standard_A",
        "input_dim": "48",
        "saes": '{"a": {"architecture": "topk", "d_sae": 200}}',
        "hook_widths": '{"x": 4}',
        "source": "WorldActivations",
        "words": "HierarchyDataModule",
    }
    probe, data = ["--model=LinearProbe", "--model.input_dim=48"], ["--data=PromptDataModule"]
    for kind, place in ((LightningModule, "model"), (LightningDataModule, "data"), (Callback, "trainer.callbacks")):
        for cls in on_the_command_line(kind):
            asked = get_type_hints(cls.__init__)
            of_cls = [f"--{place}{'+' * (kind is Callback)}={cls.__name__}"]
            of_cls += [
                f"--{place}.{name}={value}"
                for name, value in needed.items()
                if name in asked and (name != "words" or cls.__name__ == "AbsorptionMonitor")
            ]
            words = {"model": [*of_cls, *data], "data": [*probe, *of_cls]}.get(place, [*probe, *data, *of_cls])
            yield from ((words, cls.__name__, f"{place}.{name}", hint) for name, hint in settings_of(cls.__init__))


def ranges_in(hint):
    """Each range in a type, with the kind of number that it is of."""
    if get_origin(hint) is Annotated:
        kind, *rest = get_args(hint)
        return [(int if kind is int else float, part) for part in rest if isinstance(part, Range)]
    return [found for part in get_args(hint) for found in ranges_in(part)]


def has_free_number(hint):
    if get_origin(hint) is Annotated:
        return not ranges_in(hint)
    return hint in (int, float) or any(has_free_number(part) for part in get_args(hint))


def inside(value, kind, allowed):
    if not math.isfinite(value) or (kind is int and value != int(value)):
        return False
    low = value > allowed.least if allowed.above else value >= allowed.least
    return low and (value < allowed.most if allowed.below else value <= allowed.most)


def is_list(hint):
    kinds = [get_origin(part) for part in (hint, *get_args(hint))]
    return any(inspect.isclass(kind) and issubclass(kind, Sequence) for kind in kinds)


def refused_values(hint):
    """Values just outside of what a type allows, then those that no range allows."""
    found = ranges_in(hint)
    values: list[Any] = []
    for kind, allowed in found:
        for end, without_end, away in ((allowed.least, allowed.above, -1), (allowed.most, allowed.below, 1)):
            if math.isfinite(end):
                beyond = end + away if kind is int else math.nextafter(end, away * math.inf)
                values.append(end if without_end else beyond)
        if kind is int:
            values.append(max(allowed.least, 0) + 0.5)
    values = [value for value in values if not any(inside(value, *one) for one in found)]
    values += [math.nan, math.inf, -math.inf, 10**400]
    return [[value] for value in values] + [[]] if is_list(hint) else values


def said(value):
    """A value as it is written on a command line."""
    if isinstance(value, list):
        return f"[{', '.join(map(said, value))}]"
    return {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}.get(repr(value), repr(value))


@pytest.fixture
def outcome_of(capsys):
    """How a command ends that is given a bad value: `named`, `usage` for a bad command line, else what happened."""

    def run(words, name, value):
        what, argument = f"{name} = {value}", name.rpartition(".")[2]
        try:
            main([*words, f"--{name}={said(value)}"])
        except SystemExit as stopped:
            error, message = stopped.__cause__, capsys.readouterr().err
            if stopped.code == 1 and isinstance(error, RangeError) and error.argument == argument:
                assert f"RangeError: `{argument}` was " in message
                return "named"
            if stopped.code == 2 and argument in message.rpartition("error: ")[2]:
                return "usage"
            return f"{what}: {message}"
        except Exception as error:
            return f"{what}: traceback of {error!r}"
        return f"{what}: accepted"

    return run


def test_every_number_on_the_command_line_has_a_range():
    settings = [(f"study {name}", hint) for name, hint in settings_of(StudyConfig)]
    settings += [(f"{cls}.{name.rpartition('.')[2]}", hint) for _, cls, name, hint in settings_of_modules()]
    settings += [(f"study {name}", hint) for name, hint in settings_of_rules()]
    ours = get_type_hints(check_trainer_numbers, include_extras=True)
    of_trainer = {name: ours.get(name, hint) for name, hint in get_type_hints(Trainer.__init__).items()}
    settings += [(f"Trainer.{name}", hint) for name, hint in of_trainer.items()]
    assert {name for name, hint in settings if has_free_number(hint)} == set(WITHOUT_RANGE)
    assert len([name for name, hint in settings if ranges_in(hint)]) > 120


def test_a_study_refuses_what_is_outside(tmp_path, outcome_of):
    places = ["--config=tests/conf/study.yaml", f"--run_dir={tmp_path / 'run'}", f"--cache_dir={tmp_path / 'cache'}"]
    table = ["--task.name=table", "--task.table.path=words.csv"]
    outcomes = Counter()
    ranged = [(name, hint) for name, hint in [*settings_of(StudyConfig), *settings_of_rules()] if ranges_in(hint)]
    for number, (name, hint) in enumerate(ranged):
        words = ["study", *places, *(table if ".table." in name else [])]
        for value in [*refused_values(hint), "much"][number % 4 :: 4]:
            outcomes[outcome_of(words, name, value)] += 1
    assert set(outcomes) == {"named", "usage"}
    assert outcomes["named"] > 40
    assert not list(tmp_path.iterdir())


def test_other_commands_refuse_what_is_outside(tmp_path, outcome_of):
    root = f"--trainer.default_root_dir={tmp_path / 'run'}"
    outcomes = Counter()
    for words, _, name, hint in settings_of_modules():
        if ranges_in(hint) and name.count(".") == 1 + name.startswith("trainer"):  # those below are a study's, too
            outcomes[outcome_of(["test", *words, root], name, refused_values(hint)[0])] += 1
    words = ["test", "--model=LinearProbe", "--model.input_dim=48", "--data=PromptDataModule", root]
    words.append("--data.task={max_words: 30, max_icl_examples: 2}")
    outcomes[outcome_of(words, "trainer.accumulate_grad_batches", 0)] += 1
    assert set(outcomes) == {"named"}
    assert outcomes["named"] > 30
    assert not list(tmp_path.iterdir())


def test_rescore_refuses_what_is_outside(tmp_path, outcome_of):
    outcomes = Counter()
    for rule in known_rules():
        hints = get_type_hints(rule_named(rule).settings_type, include_extras=True)
        for name in rule_named(rule).thresholds:
            for value in refused_values(hints[name]):
                outcomes[outcome_of(["rescore", f"--run_dir={tmp_path}", f"--rule={rule}"], name, value)] += 1
    assert set(outcomes) == {"named", "usage"}
    assert outcomes["named"] > 60


def ranged_functions():
    """Functions, methods and dataclasses of the package that declare a range, with the types of their arguments."""
    for room in ROOMS:
        module = importlib.import_module(f"absorb_pl.{room}")
        for name in module.__all__:
            thing = getattr(module, name)
            parts = [(name, thing)] if inspect.isfunction(thing) or is_dataclass(thing) else []
            parts += [(f"{name}.{key}", part) for key, part in getattr(thing, "__dict__", {}).items()]
            for full, part in parts:
                made = is_dataclass(thing) and full.endswith("__init__")
                if not made and (inspect.isfunction(part) or (part is thing and inspect.isclass(part))):
                    hints = get_type_hints(part, include_extras=True)
                    hints.pop("return", None)
                    if any(map(ranges_in, hints.values())):
                        yield f"{room}.{full}", part, hints


def harmless(hint):
    """A value that a type allows, where it says which; None for others, which are not looked at."""
    words = [get_args(part) for part in (hint, *get_args(hint)) if get_origin(part) is Literal]
    numbers = [number for number in (1, 100, 0.5, -1) if any(inside(number, *one) for one in ranges_in(hint))]
    value = next((value for value in (*sum(words, ()), *numbers)), None)
    return [value] if is_list(hint) else value


def call_with(part, hints, name, value):
    """Call something with one bad argument, the others by default or harmless, without the tests' type checks."""
    given = {key: harmless(hint) for key, hint in hints.items()}
    if inspect.isclass(part):
        given |= {one.name: one.default for one in fields(part) if one.default is not MISSING}
        inspect.unwrap(part.__post_init__)(SimpleNamespace(**{**given, name: value}))
    else:
        bare = inspect.unwrap(part)
        parameters = inspect.signature(bare).parameters
        given |= {key: one.default for key, one in parameters.items() if one.default is not one.empty}
        bare(*[None] * ("self" in parameters), **{**given, name: value})


def test_public_functions_refuse_what_is_outside():
    outcomes = Counter()
    for full, part, hints in ranged_functions():
        for name in (name for name, hint in hints.items() if ranges_in(hint)):
            for value in [*refused_values(hints[name]), {}, True]:
                try:
                    call_with(part, hints, name, value)
                    outcomes[f"{full}({name}={value}): accepted"] += 1
                except RangeError as error:
                    named = (error.argument, error.value) == (name, value) or (
                        error.argument == name and value != value
                    )
                    outcomes["named" if named or is_list(hints[name]) else f"{full}({name}={value}): {error}"] += 1
                except Exception as error:
                    outcomes[f"{full}({name}={value}): {error!r}"] += 1
    assert set(outcomes) == {"named"}
    assert outcomes["named"] > 1000

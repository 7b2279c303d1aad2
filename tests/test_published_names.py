"""Every public name of the paper's package against its place here: arguments, their order and their defaults.

`published_names.csv` holds facts read from the released code of arXiv 2409.14507 (`sae_spelling`), the last version of
each file that could be read: a row for each name (`argument` empty, `default` its value or `callable`, `property`,
`anything`) and for each argument of a callable in its order. Defaults are Python literals, or say what a default is:

    required               there is none
    answers(' cat', ' C')  a function that gives ' C' for ' cat'
    below('a/b')           a path that ends so
    gpu_or_cpu             a GPU where there is one
    bfloat16_on_gpu        bfloat16 where there is a GPU, else float32

`docs/coming-from-sae-spelling.md` says where a module or name has its place, and lists what differs on purpose.
"""

import ast
import csv
import importlib
import inspect
import re
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

import absorb_pl.words

DOCUMENT = Path(__file__).parents[1] / "docs/coming-from-sae-spelling.md"
FACTS = Path(__file__).parent / "published_names.csv"
MISSING = object()


def table_under(heading):
    """Cells of the table under a heading of the document, a list of the terms in backticks for each cell."""
    text = DOCUMENT.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[re.findall(r"`([^`]+)`", cell) for cell in line.strip("| ").split("|")] for line in lines]


@pytest.fixture(scope="module")
def places():
    return {name: place[0] for names, place in table_under("Where everything is") for name in names}


@pytest.fixture(scope="module")
def explained():
    rows = table_under("What differs on purpose")
    assert all(len(row) == 5 for row in rows)
    return [pair for names, arguments, *_ in rows for pair in product(names, arguments or [""])]


@pytest.fixture(scope="module")
def facts():
    with FACTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for row in rows:
        names.setdefault((row["module"], row["name"]), []).append((row["argument"], row["default"]))
    return names


def found_here(module, name, places) -> Any:
    """What stands here for a published name, or `MISSING`."""
    place = places.get(f"{module}.{name.split('.')[0]}", places.get(module))
    if place is None:
        return MISSING
    try:
        return reduce(getattr, name.split("."), importlib.import_module(place))
    except AttributeError:
        return MISSING


def is_as_recorded(value: Any, recorded: str) -> bool:
    gpu = torch.cuda.is_available()
    if recorded == "anything":
        return True
    if recorded == "gpu_or_cpu":
        return str(value) == ("cuda" if gpu else "cpu")
    if recorded == "bfloat16_on_gpu":
        return value == (torch.bfloat16 if gpu else torch.float32)
    if recorded == "property":
        return isinstance(value, property)
    if recorded == "callable":
        return callable(value)
    if recorded == "required":
        return value is inspect.Parameter.empty
    if recorded.startswith("answers("):
        question, answer = ast.literal_eval(recorded.removeprefix("answers"))
        return callable(value) and value(question) == answer
    if recorded.startswith("below("):
        return str(value).endswith(ast.literal_eval(recorded.removeprefix("below")))
    expected = ast.literal_eval(recorded)
    return value == expected and isinstance(value, bool) == isinstance(expected, bool)


def differences(module, name, recorded, places):
    """Pairs of name and argument (empty for the name itself) that are not as published."""
    here = found_here(module, name, places)
    name = f"{module}.{name}"
    if here is MISSING or not is_as_recorded(here, recorded[0][1]):
        return [(name, "")]
    if len(recorded) == 1:
        return []
    parameters = inspect.signature(here).parameters
    positional = [key for key, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    positional = positional[positional[:1] == ["self"] :]
    kept = [argument for argument, _ in recorded[1:] if argument in parameters]
    other = [
        (name, argument)
        for argument, default in recorded[1:]
        if argument not in parameters or not is_as_recorded(parameters[argument].default, default)
    ]
    # A published argument given by its place means the same here, up to the first that is explained as missing.
    for place, (argument, _) in enumerate(recorded[1:]):
        if argument not in kept:
            break
        if positional[place : place + 1] != [argument]:
            other.append((name, argument))
    return other


def test_nothing_differs_without_its_reason(facts, places, explained):
    found = [pair for (module, name), recorded in facts.items() for pair in differences(module, name, recorded, places)]
    assert sorted(set(found) - set(explained)) == []


def test_no_reason_stands_for_what_does_not_differ(facts, places, explained):
    found = {pair for (module, name), recorded in facts.items() for pair in differences(module, name, recorded, places)}
    assert sorted(set(explained) - found) == []
    assert len(explained) == len(set(explained))


def test_the_facts_are_about_the_whole_package(facts):
    modules = {module for module, _ in facts}
    assert {"vocab", "prompting", "spelling_grader", "sae_utils", "feature_attribution", "feature_ablation"} < modules
    assert {"probing", "feature_absorption_calculator", "experiments.feature_absorption"} < modules
    assert len(facts) == 151


@pytest.mark.parametrize(
    ("signature", "default", "expected"),
    [
        ("a, b=1", "1", []),
        ("a, b=2", "1", ["b"]),
        ("a, b=True", "1", ["b"]),
        ("b, a", "required", ["a", "b"]),
        ("a, *, b=1", "1", ["b"]),
        ("a", "1", ["b"]),
        ("a, c=0, b=1", "1", ["b"]),
        ("a, b=1, *, c=0", "1", []),
        ("a, b=str.upper", "answers(' c', ' C')", []),
        ("a, b=str.lower", "answers(' c', ' C')", ["b"]),
    ],
)
def test_a_difference_is_seen(monkeypatch, signature, default, expected):
    monkeypatch.setattr(absorb_pl.words, "trial", eval(f"lambda {signature}: None"), raising=False)
    recorded = [("", "callable"), ("a", "required"), ("b", default)]
    found = differences("vocab", "trial", recorded, {"vocab": "absorb_pl.words"})
    assert [argument for _, argument in found] == expected

"""The package's own names: light until used, all there, and each in one room."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import Distribution

import absorb_pl

ROOMS = sorted(path.parent.name for path in Path(absorb_pl.__file__).parent.glob("*/__init__.py"))


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, absorb_pl; dir(absorb_pl); print([m for m in ('torch', 'pandas') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_names_of_the_package_are_those_of_its_rooms():
    assert sorted(absorb_pl._PLACES) == sorted(absorb_pl.__all__)
    for name, room in absorb_pl._PLACES.items():
        assert getattr(absorb_pl, name) is getattr(importlib.import_module(f"absorb_pl.{room}"), name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        absorb_pl.nonsense  # noqa: B018


def test_what_type_checkers_see_is_what_there_is():
    (block,) = [node for node in ast.parse(Path(absorb_pl.__file__).read_text()).body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"absorb_pl.{room}" for name, room in absorb_pl._PLACES.items()}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_exports_what_it_defines_once(room):
    module = importlib.import_module(f"absorb_pl.{room}")
    assert len(set(module.__all__)) == len(module.__all__) > 0
    for name in module.__all__:
        origin = getattr(getattr(module, name), "__module__", None)
        assert origin is None or not origin.startswith("absorb_pl.") or origin.startswith(f"absorb_pl.{room}.")


def test_a_wheel_holds_all_files_of_the_package(monkeypatch):
    root = Path(absorb_pl.__file__).parent
    monkeypatch.chdir(root.parent)
    distribution = Distribution({"script_name": "setup.py"})
    distribution.parse_config_files()
    command = distribution.get_command_obj("build_py")
    command.ensure_finalized()
    held = {Path(file).relative_to(command.build_lib) for file in command.get_outputs(include_bytecode=False)}
    there = {file.relative_to(root.parent) for file in root.rglob("*") if file.is_file() and file.suffix != ".pyc"}
    assert held == there

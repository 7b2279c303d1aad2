"""Units of a stage that two studies need at the same time."""

import threading
from collections import Counter

import pytest
import torch
from lightning.pytorch import Trainer

from absorb_pl.study.stage import Stage, _UnitLoop


class Counting(Stage):
    """Counts how often each unit is made; the making of `slow` waits for `go`, and may fail."""

    name = title = "counting"

    def __init__(self, cache_dir, made):
        super().__init__(cache_dir)
        self.made, self.go, self.begun, self.fails = made, threading.Event(), threading.Event(), False

    def identity(self, unit):
        return {"unit": unit}

    def make(self, unit, *_):
        self.begun.set()
        if unit == "slow":
            assert self.go.wait(30)
            if self.fails:
                raise RuntimeError("out of luck")
        self.made[unit] += 1
        return {"said.json": unit}


def begun_by_another(stage):
    """A thread that takes the place of another study, in the middle of `slow`."""
    loop, errors = _UnitLoop(stage), []

    def work():
        try:
            loop.predict_step(["slow"], 0)
            loop.predict_step(["quick"], 1)
            loop.on_predict_epoch_end()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert stage.begun.wait(30)
    return thread, errors


def test_each_unit_is_made_once(tmp_path):
    made = Counter()
    first, second = Counting(tmp_path, made), Counting(tmp_path, made)
    thread, errors = begun_by_another(first)
    loop = _UnitLoop(second)
    loop.predict_step(["slow"], 0)
    loop.predict_step(["quick"], 1)
    assert made == {"quick": 1}
    assert second.missing(["slow", "quick"]) == ["slow"]
    first.go.set()
    loop.on_predict_epoch_end()
    thread.join(30)
    assert not errors
    assert made == {"quick": 1, "slow": 1}
    assert second.read("slow", "said.json") == "slow"
    assert not list(tmp_path.rglob("*.claim"))


def test_what_another_study_failed_at_is_made(tmp_path):
    made = Counter()
    first, second = Counting(tmp_path, made), Counting(tmp_path, made)
    first.fails = True
    thread, errors = begun_by_another(first)
    loop = _UnitLoop(second)
    loop.predict_step(["slow"], 0)
    assert not made
    first.go.set()
    second.go.set()
    loop.on_predict_epoch_end()
    thread.join(30)
    assert [str(error) for error in errors] == ["out of luck"]
    assert made["slow"] == 1
    assert second.missing(["slow"]) == []


def test_units_are_made_side_by_side_but_for_those_of_another_study(tmp_path):
    class SideBySide(Counting):
        side_by_side = 3

        def __init__(self, cache_dir, made):
            super().__init__(cache_dir, made)
            self.groups = []

        def make_some(self, units, device):
            self.groups.append(list(units))
            return super().make_some(units, device)

    made = Counter()
    first, second = Counting(tmp_path, made), SideBySide(tmp_path, made)
    thread, _ = begun_by_another(first)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    first.go.set()
    thread.join(30)
    second.go.set()
    assert second.run(["slow", "one", "two", "three", "four"], lambda _: trainer) == 4
    assert second.groups == [["one", "two", "three"], ["four"]]
    thread, _ = begun_by_another(third := Counting(tmp_path / "other", made))
    loop = _UnitLoop(fourth := SideBySide(tmp_path / "other", made))
    loop.predict_step(["one", "slow", "two"], 0)
    assert fourth.groups == [["one", "two"]]
    third.go.set()
    thread.join(30)
    loop.on_predict_epoch_end()
    assert fourth.missing(["one", "slow", "two"]) == []


def test_gradients_are_allowed(tmp_path):
    class Differentiating(Counting):
        def make(self, *_):
            x = torch.ones((), requires_grad=True)
            (2 * x).backward()
            return {"said.json": float(x.grad)}

    stage = Differentiating(tmp_path, Counter())
    with torch.no_grad():
        _UnitLoop(stage).predict_step(["one"], 0)
    assert stage.read("one", "said.json") == pytest.approx(2.0)

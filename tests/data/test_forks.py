"""Work in forked processes: its order, its errors, and how processes end."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule

from absorb_pl.data import forks
from absorb_pl.data.forked_steps import ForkedSteps
from absorb_pl.data.forks import MOST_VALUES, at_a_time, forks_for, in_forks, without_forks
from absorb_pl.data.shares import Share
from absorb_pl.errors import RangeError, WorkerError
from absorb_pl.interruption import interruptible

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")


@pytest.fixture
def _three_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)


def alive(pid):
    """Whether a process runs; one that has ended and is not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def slow_first(number):
    time.sleep(0.3 if number == 0 else 0.0)
    return number, os.getpid(), torch.get_num_threads()


def test_results_come_in_the_order_of_the_items_from_processes_of_one_thread():
    found = list(in_forks(slow_first, range(7), forks=2))
    assert [number for number, _, _ in found] == list(range(7))
    assert {threads for _, _, threads in found} == {1}
    pids = {pid for _, pid, _ in found}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert sum(pid == found[0][1] for _, pid, _ in found) == 1  # the others did not wait for the slow one
    wait_until(lambda: not any(map(alive, pids)))


def test_one_process_does_the_work_by_itself():
    assert [pid for _, pid, _ in in_forks(slow_first, [1, 2], forks=1)] == [os.getpid()] * 2


@pytest.mark.usefixtures("_three_threads")
def test_no_more_processes_than_pieces_and_threads(monkeypatch):
    assert [forks_for(pieces) for pieces in (0, 1, 2, 9)] == [1, 1, 2, 3]
    assert forks_for(9, MOST_VALUES) == 3
    assert forks_for(9, MOST_VALUES + 1) == 1
    assert list(in_forks(lambda _: forks_for(9), [0, 1], forks=2)) == [1, 1]  # not of a fork
    monkeypatch.setattr(sys, "platform", "darwin")
    assert forks_for(9) == 1
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert forks_for(9) == 1


@pytest.mark.parametrize("pieces", range(1, 40))
@pytest.mark.parametrize("processes", [2, 3, 8])
def test_processes_get_about_as_many_pieces(pieces, processes):
    together = at_a_time(pieces, processes, most=4)
    assert 1 <= together <= 4
    rounds = -(-pieces // (processes * 4))
    assert -(-pieces // together) <= processes * rounds


class Refused(Exception):
    def __init__(self, first, *, second):
        super().__init__(first, second)


def test_errors_come_with_where_they_were_raised():
    def refuse(number):
        if number == 1:
            raise RangeError("k", number, expected="another", remedy="Take it.")
        return number

    made = in_forks(refuse, [0, 1, 2], forks=2)
    assert next(made) == 0
    with pytest.raises(RangeError, match=r"`k` was 1, expected another. Take it.") as raised:
        next(made)
    assert raised.value.argument == "k"
    assert "in refuse" in str(raised.value.__cause__)


def test_errors_and_results_that_cannot_be_pickled_are_told():
    def refuse(_):
        raise Refused("one", second="two")

    with pytest.raises(RuntimeError, match=r"Refused: .*one"):
        list(in_forks(refuse, [0, 1], forks=2))
    with pytest.raises(Exception, match=r"pickle"):
        list(in_forks(lambda _: lambda: None, [0, 1], forks=2))


def test_a_killed_process_is_told():
    with pytest.raises(WorkerError, match=r"exit code -9.*OMP_NUM_THREADS=1"):
        list(in_forks(lambda number: os.kill(os.getpid(), signal.SIGKILL) if number else 0, [0, 1], forks=2))
    assert not multiprocessing.active_children()


def test_processes_end_with_the_iterator_whatever_they_are_at():
    made = in_forks(lambda number: time.sleep(600 if number else 0), [0, 1, 2], forks=2)
    next(made)
    children = multiprocessing.active_children()
    assert len(children) == 2
    begun = time.monotonic()
    made.close()
    assert time.monotonic() - begun < 10
    assert not any(child.is_alive() for child in children)


def test_the_signal_to_stop_ends_them():
    def work(number):
        if number == 1:
            os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(600)

    begun = time.monotonic()
    with pytest.raises(SystemExit, match="143"), interruptible():
        list(in_forks(work, [0, 1], forks=2))
    assert time.monotonic() - begun < 10
    wait_until(lambda: not multiprocessing.active_children())


PARENT = """
import time
from absorb_pl.data.forks import in_forks

def work(number):
    print("begun", flush=True)
    time.sleep(600)

list(in_forks(work, range(100), forks=2))
"""


def test_processes_end_with_their_parent():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert [parent.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    assert len(children) == 2
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(map(alive, children)))


class Squares(ForkedSteps):
    def __init__(self, fails_at=None, size=0):
        super().__init__()
        self.fails_at, self.size, self.weight = fails_at, size, torch.tensor(3.0, requires_grad=True)

    def largest(self, _):
        return self.size

    def step(self, batch):
        if self.fails_at in batch:
            raise RuntimeError("out of luck")
        with torch.enable_grad():
            loss = self.weight**2 * sum(batch)
        return {"gradient": torch.autograd.grad(loss, self.weight)[0], "pid": os.getpid()}


@pytest.fixture
def predicted(trainer_of):
    """What a module predicts of ten numbers, three at a time."""

    def predict(module, callbacks=(), **settings):
        trainer = trainer_of(list(callbacks), inference_mode=False, **settings)
        return trainer.predict(module, Share(range(10), 0, trainer).loader(3))

    return predict


@pytest.mark.usefixtures("_three_threads")
def test_small_predict_steps_are_done_in_forked_processes(predicted):
    found = predicted(Squares())
    assert [float(step["gradient"]) for step in found] == [6.0 * total for total in (3, 12, 21, 9)]
    assert os.getpid() not in {step["pid"] for step in found}
    assert len(predicted(Squares(), limit_predict_batches=2)) == 2
    for large in (MOST_VALUES + 1, None):
        assert {step["pid"] for step in predicted(Squares(size=large))} == {os.getpid()}
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("_three_threads")
def test_a_trainer_goes_on_to_other_modules(trainer_of):
    class Other(LightningModule):
        def predict_step(self, batch, _):
            return batch

    trainer = trainer_of([], inference_mode=False)
    for module in (Squares(), Other(), Squares()):
        assert len(trainer.predict(module, Share(range(10), 0, trainer).loader(3))) == 4
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("_three_threads")
def test_a_profiler_sees_the_steps(predicted):
    assert {step["pid"] for step in predicted(Squares(), profiler="simple")} == {os.getpid()}
    with without_forks():
        assert forks_for(9) == 1
    assert forks_for(9) == 3


def test_where_no_process_can_be_forked_this_one_does_the_work(monkeypatch):
    def full(*_):
        raise BlockingIOError

    monkeypatch.setattr(forks, "_start", full)
    assert list(in_forks(abs, [-1, 2], forks=2)) == [1, 2]


class Failing(Callback):
    def on_predict_batch_end(self, *_):
        raise OSError("no room")


@pytest.mark.usefixtures("_three_threads")
@pytest.mark.parametrize(
    ("module", "callbacks", "error"), [(Squares(fails_at=4.0), [], RuntimeError), (Squares(), [Failing()], OSError)]
)
def test_a_predict_loop_that_fails_leaves_no_process(predicted, module, callbacks, error):
    with pytest.raises(error):
        predicted(module, callbacks=callbacks)
    assert not multiprocessing.active_children()

"""Work on small pieces in forked processes of one thread each, which use several cores better than threads do.

The operations on a small SAE are too short for several threads. Pieces of work done side by side take all cores, and a
piece of one thread gives the same bits however many cores there are.
"""

import ctypes
import gc
import math
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar, cast

import torch

from absorb_pl.errors import WorkerError
from absorb_pl.interruption import leave_signals, signals_held

Item = TypeVar("Item")
Made = TypeVar("Made")

MOST_VALUES = 2**23
"""Most values of the largest matrix that a piece works on, 32 MiB in float32; threads are used well by larger ones."""
MOST_FORKS = 16
"""Most processes, so that their memory stays small beside what a machine of many cores has."""
_GRACE_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1
_held_back = False


@contextmanager
def without_forks() -> Iterator[None]:
    """Do all work in this process for a while, where a profiler sees it.

    Example:
        >>> with without_forks():
        ...     forks_for(pieces=8)
        1
    """
    global _held_back
    before, _held_back = _held_back, True
    try:
        yield
    finally:
        _held_back = before


def forks_for(pieces: int, largest: int = 0) -> int:
    """How many processes to fork for pieces of work; 1 where this process had better do them by itself.

    A process cannot be forked safely outside Linux, nor where PyTorch may have started threads for a GPU's gradients.
    One of several processes that share out the work does its part by itself.

    Args:
        pieces: How many pieces there are.
        largest: Values of the largest matrix that a piece works on.

    Returns:
        At most the number of PyTorch's threads (`OMP_NUM_THREADS`), and 16.

    Example:
        >>> forks_for(pieces=2, largest=2**30), forks_for(pieces=1)
        (1, 1)
    """
    if sys.platform != "linux" or torch.accelerator.is_available() or largest > MOST_VALUES:
        return 1
    if _held_back or torch.distributed.is_initialized() or multiprocessing.current_process().daemon:  # a fork itself
        return 1
    return max(1, min(torch.get_num_threads(), pieces, MOST_FORKS))


def at_a_time(pieces: int, forks: int, most: int) -> int:
    """How many pieces to give a process together, so that all processes get about as many in the end.

    Args:
        pieces: How many pieces there are.
        forks: How many processes there are.
        most: Most pieces together.

    Example:
        >>> at_a_time(18, forks=1, most=4), at_a_time(18, forks=2, most=4), at_a_time(3, forks=2, most=4)
        (4, 3, 2)
    """
    if forks == 1:
        return most
    rounds = math.ceil(pieces / (forks * most))
    return math.ceil(pieces / (forks * rounds))


def in_forks(work: Callable[[Item], Made], items: Sequence[Item], forks: int) -> Generator[Made]:
    """Do work on items in forked processes, and yield what it gives in the order of the items.

    Processes end with the iterator, whatever they are at, and with this process.

    Args:
        work: Takes an item; what it gives is pickled, and it leaves nothing else in this process.
        items: The items; each is begun when a process is free.
        forks: How many processes; with 1 this process does the work.

    Raises:
        WorkerError: A process was killed.
        Exception: What `work` raised.

    Example:
        >>> list(in_forks(abs, [-1, 2, -3], forks=2))
        [1, 2, 3]
    """
    if forks == 1:
        yield from map(work, items)
        return
    workers: dict[Connection, BaseProcess] = {}
    try:
        with suppress(OSError):  # fewer do where the system has no room for more
            for _ in range(min(forks, len(items))):
                _start(work, items, workers)
        if not workers:
            yield from map(work, items)
            return
        waiting = iter(range(len(items)))
        for connection in workers:
            _ask(connection, waiting)
        found: dict[int, Made] = {}
        for number in range(len(items)):
            while number not in found:
                for connection in cast("list[Connection]", wait(list(workers))):
                    made, outcome = _received(connection, workers)
                    found[made] = outcome
                    _ask(connection, waiting)
            yield found.pop(number)
    finally:
        _end(workers)


class _Elsewhere(Exception):
    """The traceback of an error in another process, as its cause."""


def _start(work: Callable[[Item], Made], items: Sequence[Item], workers: dict[Connection, BaseProcess]) -> None:
    """Fork a worker."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    worker = context.Process(target=_serve, args=(work, items, theirs, [*workers, ours], os.getpid()), daemon=True)
    with signals_held(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks in processes with threads
        worker.start()
        workers[ours] = worker
    theirs.close()


def _ask(connection: Connection, waiting: Iterator[int]) -> None:
    """Give a worker the number of the next item, if there is one."""
    if (number := next(waiting, None)) is not None:
        with suppress(BrokenPipeError):  # it was killed, which is told when its answer is missing
            connection.send(number)


def _end(workers: Mapping[Connection, BaseProcess]) -> None:
    """End workers; those that are in the middle of something may put away what they have begun."""
    for connection, worker in workers.items():
        connection.close()
        worker.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    for worker in workers.values():
        worker.join(max(0.0, deadline - time.monotonic()))
        worker.kill()
        worker.join()


def _serve(
    work: Callable[[Item], Made],
    items: Sequence[Item],
    connection: Connection,
    others: Sequence[Connection],
    parent: int,
) -> None:
    """Do what the parent asks for until it asks no more."""
    leave_signals()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it has ended before it could be watched
        return
    for other in others:  # as long as they are open here, their ends do not see the parent end
        other.close()
    torch.set_num_threads(1)
    gc.freeze()  # a collector that goes through all that was there before would copy its memory
    while True:
        try:
            number = connection.recv()
        except EOFError:
            return
        connection.send((number, _outcome(work, items[number])))


def _outcome(work: Callable[[Item], Made], item: Item) -> bytes:
    """What work on an item gives, or the error that it raises, with its traceback; pickled."""
    try:
        return pickle.dumps((work(item), ""))
    except Exception as error:
        raised = traceback.format_exc()
        try:
            pickle.loads(said := pickle.dumps((error, raised)))
        except Exception:  # errors of other packages may not survive it
            return pickle.dumps((RuntimeError(f"{type(error).__name__}: {error}"), raised))
        return said


def _received(connection: Connection, workers: dict[Connection, BaseProcess]) -> tuple[int, Any]:
    """Number of an item and what was made of it."""
    try:
        number, said = connection.recv()
    except (EOFError, OSError) as error:
        worker = workers[connection]
        worker.join()
        raise WorkerError(
            "worker",
            f"process {worker.pid} with exit code {worker.exitcode}",
            expected="a process that ends with its work",
            remedy="The system may have killed it for want of memory; OMP_NUM_THREADS=1 does all work in one process.",
        ) from error
    outcome, raised = pickle.loads(said)
    if raised:
        raise outcome from _Elsewhere(raised)
    return number, outcome

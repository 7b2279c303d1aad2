"""Stopping on request: SIGTERM and SIGINT end the work at the next safe point, with a word on what is kept.

All that this package writes is whole or absent, so almost every point is a safe one: the signal becomes an exception in
the main thread. Where that thread hears nothing, in a long computation or waiting for another process, a watching
thread ends the process a few seconds later.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

GRACE_SECONDS = 5.0
"""How long the main thread has to stop by itself, and workers after it."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_END = b"\0"


class Interruption(BaseException):
    """Raised in the main thread when the process was asked to stop.

    Attributes:
        signum: The signal.
        kept: What is kept, and how to go on.
    """

    def __init__(self, signum: int, kept: str = "") -> None:
        super().__init__(signum)
        self.signum, self.kept = signum, kept


class _Watch:
    """Turns signals into an `Interruption`, passes them on to workers, and waits for neither for ever."""

    def __init__(self) -> None:
        self.said: list[Callable[[], str]] = []
        self.launchers: list[Any] = []
        self.received = 0
        self.deferred = 0
        self._raised = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True, name="interruption")
        self._thread.start()
        self.listen()

    @property
    def workers(self) -> list[subprocess.Popen[Any]]:
        return [worker for launcher in self.launchers for worker in launcher.procs]

    def listen(self) -> None:
        for signum in _SIGNALS:
            signal.signal(signum, self._on_signal)

    def close(self) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        os.write(self._write, _END)
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def raise_if_received(self) -> None:
        if self.received and not self.deferred and not self._raised:
            self._raised = True
            raise Interruption(self.received)

    def _on_signal(self, signum: int, _: FrameType | None) -> None:
        self.received = self.received or signum
        self.raise_if_received()

    def _watch(self) -> None:
        deadline = None
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._read], [], [], left)[0]:
                self._give_up()
            signum = os.read(self._read, 1)[0]
            if signum == _END[0]:
                return
            if signum not in _SIGNALS:
                continue
            if deadline is None:
                self.received = self.received or signum
                deadline = time.monotonic() + GRACE_SECONDS
                for worker in self.workers:
                    worker.send_signal(signum)
            elif not _is_worker():
                self._give_up()

    def _give_up(self) -> NoReturn:
        """End the process from this thread; drafts it leaves are dropped by the next run."""
        _tell(self.received, self.said[-1]() if self.said else "")
        self.end_workers(0.0)
        os._exit(exit_code(self.received))

    def end_workers(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for worker in self.workers:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(max(0.0, deadline - time.monotonic()))
            if worker.poll() is None:
                worker.kill()
                worker.wait()


_watch: _Watch | None = None
_forked = False


@contextmanager
def interruptible(kept: Callable[[], str] | None = None) -> Iterator[None]:
    """Stop the block when the process is sent SIGTERM or SIGINT, and say on standard error what is kept.

    Blocks may stand inside each other; the outermost takes the signals. Only the main thread can: elsewhere the block
    runs as it would without this.

    Args:
        kept: Says what is kept and how to go on, when asked.

    Raises:
        SystemExit: After SIGTERM, with code 143.
        KeyboardInterrupt: After SIGINT.

    Example:
        >>> with interruptible():
        ...     os.kill(os.getpid(), signal.SIGTERM)
        Traceback (most recent call last):
            ...
        SystemExit: 143
    """
    global _watch
    if _forked or threading.current_thread() is not threading.main_thread():
        yield
    elif _watch is not None:
        with _saying(_watch, kept):
            yield
    else:
        _watch = watch = _Watch()
        try:
            with _saying(watch, kept):
                yield
        except Interruption as stop:
            _tell(stop.signum, stop.kept)
            watch.end_workers(GRACE_SECONDS)
            if stop.signum == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(exit_code(stop.signum)) from None
        finally:
            _watch = None
            watch.close()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold signals back until the end of the block, which is short."""
    watch = _watch
    if watch is None:
        yield
        return
    watch.deferred += 1
    try:
        yield
    finally:
        watch.deferred -= 1
    watch.raise_if_received()


def take_signals() -> None:
    """Take SIGTERM and SIGINT again after something else did, as Lightning's Trainers do, inside `interruptible`."""
    if _forked:
        _let_go()
    elif _watch is not None and threading.current_thread() is threading.main_thread():
        _watch.listen()
        _watch.raise_if_received()


def watch_launcher(launcher: Any) -> None:
    """Stop the processes that a launcher starts with this one, inside `interruptible`.

    Args:
        launcher: Keeps processes in `procs`; others are passed over.
    """
    if _watch is not None and hasattr(launcher, "procs"):
        _watch.launchers.append(launcher)


@contextmanager
def signals_held() -> Iterator[None]:
    """Let signals wait until the end of a block that forks, so that the fork does not take any as its parent would."""
    with uninterrupted():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals() -> None:
    """In a process forked within `signals_held`: end on SIGTERM without a word, and leave Ctrl-C to the parent."""
    global _watch, _forked
    _watch, _forked = None, True
    signal.set_wakeup_fd(-1)
    _let_go()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def exit_code(signum: int) -> int:
    """The code that a process ends with after a signal.

    Args:
        signum: The signal.

    Returns:
        128 + `signum`; 0 for a worker of a Trainer, whose main process takes other codes for a crash.
    """
    return 0 if _is_worker() else 128 + signum


@contextmanager
def _saying(watch: _Watch, kept: Callable[[], str] | None) -> Iterator[None]:
    if kept is None:
        yield
        return
    watch.said.append(kept)
    try:
        yield
    except Interruption as stop:
        stop.kept = stop.kept or kept()
        raise
    finally:
        watch.said.pop()


def _let_go() -> None:
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _leave(signum: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)


def _is_worker() -> bool:
    return os.environ.get("LOCAL_RANK", "0") != "0"


def _tell(signum: int, kept: str) -> None:
    if not _is_worker():
        sys.stderr.write(f"Stopped by {signal.Signals(signum).name}. {kept or 'Nothing half-written is left.'}\n")
        sys.stderr.flush()

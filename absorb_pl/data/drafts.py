"""Drafts: temporary folders beside what they become, so that a file or folder is whole or absent.

A draft's name is drawn at random, and whoever writes it holds a lock on it. So what killed processes left is told from
what others have under way, whatever their process numbers and host names are.
"""

import fcntl
import glob
import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from absorb_pl.errors import AbsorbError, OutputFolderError
from absorb_pl.interruption import uninterrupted

_held: dict[Path, int] = {}


def user_path(path: str | Path) -> Path:
    """The absolute path that a user means, a leading `~` resolved.

    Raises:
        AbsorbError: `~` is of a user without a home.

    Example:
        >>> user_path("~/runs") == Path.home() / "runs"
        True
    """
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise AbsorbError(
            "path", str(path), expected="a path below the home of a user that exists", remedy="Write it out."
        ) from error


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn failures of the file system under `folder` into an `OutputFolderError` that names it.

    Raises:
        OutputFolderError: The folder is read-only, full, or not a folder.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OutputFolderError(
            "output folder",
            str(folder),
            expected="a folder with room that can be written",
            remedy=f"The system said: {getattr(error, 'strerror', None) or error}. Free space, or name another folder.",
        ) from error


def check_writable(folder: Path) -> None:
    """Check that a folder can be made and written, and leave nothing behind.

    Raises:
        OutputFolderError: It cannot.
    """
    with writing_to(folder):
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        trial = there / f".{secrets.token_hex(8)}.part"
        trial.touch()
        trial.unlink()


def new_owner() -> str:
    """A name that nobody else has, for what this process has under way."""
    return f"{platform.node()}-{secrets.token_hex(8)}"


def draft_of(path: Path, owner: str) -> Path:
    """The folder in which `owner` builds what will be at `path`."""
    return path.with_name(f".{path.name}.{owner}.part")


def begin_draft(path: Path, owner: str) -> Path:
    """Make an empty draft of `path`, and drop what killed processes left of it on this machine.

    Args:
        path: What the draft will become.
        owner: From `new_owner`.

    Raises:
        OutputFolderError: The folder cannot be written.
    """
    draft = draft_of(path, owner)
    with writing_to(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(platform.node())}-*.part"):
            _drop_if_left(left)
        _held[draft] = _made_and_locked(draft)
    return draft


def end_draft(draft: Path) -> None:
    """Remove what is left of a draft; of one that was renamed nothing is."""
    shutil.rmtree(draft, ignore_errors=True)
    descriptor = _held.pop(draft, None)
    if descriptor is not None:
        os.close(descriptor)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: yields a path beside `path` that takes its place when the block ends well.

    Args:
        path: The file; its folder is made if it does not exist.

    Raises:
        OutputFolderError: The folder cannot be written.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with whole_file(file) as part:
        ...     _ = part.write_text("whole")
        >>> file.read_text()
        'whole'
    """
    draft = begin_draft(path, new_owner())
    try:
        with writing_to(path.parent):
            yield draft / path.name
            (draft / path.name).replace(path)
    finally:
        end_draft(draft)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Write a folder whole or not at all: yields an empty one that takes the place of `path` when the block ends well.

    Args:
        path: The folder.

    Raises:
        OutputFolderError: The folder cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "notes"
        >>> with whole_folder(folder) as part:
        ...     _ = (part / "note.txt").write_text("whole")
        >>> (folder / "note.txt").read_text()
        'whole'
    """
    draft = begin_draft(path, new_owner())
    try:
        with writing_to(path.parent):
            (draft / "new").mkdir()
            yield draft / "new"
            with uninterrupted():
                replace_folder(path, draft / "new", aside=draft / "old")
    finally:
        end_draft(draft)


def replace_folder(path: Path, new: Path, aside: Path) -> None:
    """Move a folder to a place where another may lie, which comes back if that fails.

    Args:
        path: Where to.
        new: The folder.
        aside: Where what lies at `path` goes meanwhile; it is removed in the end.
    """
    if path.exists():
        path.rename(aside)
    try:
        new.rename(path)
    except OSError:
        if aside.exists():
            aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _made_and_locked(draft: Path) -> int:
    while True:
        draft.mkdir()
        try:
            descriptor = os.open(draft, os.O_RDONLY)
        except FileNotFoundError:  # another process dropped it before it was locked
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a file system without locks, where nothing is dropped either
            return descriptor
        if draft.exists():
            return descriptor
        os.close(descriptor)


def _drop_if_left(draft: Path) -> None:
    try:
        descriptor = os.open(draft, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(draft, ignore_errors=True)
    except OSError:  # somebody is at work on it
        pass
    finally:
        os.close(descriptor)

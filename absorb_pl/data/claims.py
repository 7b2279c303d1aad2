"""Claims: who makes an artifact, so that two studies that need the same one do not both make it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from absorb_pl.data.drafts import writing_to


@contextmanager
def claim(path: Path, *, wait: bool) -> Iterator[bool]:
    """Claim what will be at `path` for a while, on this machine; yields whether it is this process's to make.

    A claim ends with its process. Where the file system has no locks everybody gets every claim. Once the claim is
    yours, look whether the artifact is there: another may have made it meanwhile.

    Args:
        path: Where the artifact will be.
        wait: Whether to wait for another process that has claimed it.

    Raises:
        OutputFolderError: The folder cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "probes"
        >>> with claim(path, wait=True) as first, claim(path, wait=False) as second:
        ...     first, second
        (True, False)
    """
    lock = path.with_name(f".{path.name}.claim")
    with writing_to(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR)
    is_ours = False
    try:
        is_ours = _locked(descriptor, wait=wait)
        yield is_ours
    finally:
        if is_ours:
            lock.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(descriptor: int, *, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True

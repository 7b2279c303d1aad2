"""Artifacts: folders that are whole or absent, and say what they were made from.

An artifact is a folder with a `manifest.json` that holds its *identity* (everything that determines the content)
and, for every other file, its size and BLAKE2b checksum. It is written under a temporary name and renamed when
whole, so a killed process leaves nothing that could be mistaken for a finished one.
"""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absorb_pl.errors import CacheCorruptedError, ManifestMismatchError, OutputFolderError

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 22

Identity = Mapping[str, Any]


def identity_key(identity: Identity) -> str:
    """Short content hash of an identity; equal identities have equal keys whatever their order.

    Args:
        identity: Plain JSON types only.

    Example:
        >>> identity_key({"a": 1, "b": 2}) == identity_key({"b": 2, "a": 1})
        True
    """
    return hashlib.blake2b(_canonical(identity).encode(), digest_size=8).hexdigest()


def artifact_path(root: Path, stage: str, name: str, identity: Identity) -> Path:
    """Where the artifact of this identity lives: `root/stage/name-key`."""
    readable = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    return root / stage / f"{readable}-{identity_key(identity)}"


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn failures of the file system under `folder` into an `OutputFolderError` that names it.

    Raises:
        OutputFolderError: The folder is read-only, full, or not a folder.
    """
    try:
        yield
    except OSError as error:
        raise OutputFolderError(
            "output folder",
            str(folder),
            expected="a folder with room that can be written",
            remedy=f"The system said: {error.strerror or error}. Free space, or name another folder.",
        ) from error


def this_process() -> str:
    """Name of this process, by which what it has under way is told from others' work."""
    return f"{platform.node()}-{os.getpid()}"


def temporary_path(path: Path, owner: str) -> Path:
    """The name under which `owner` builds the artifact at `path` before it is whole."""
    return path.with_name(f".{path.name}.{owner}.part")


def begin_artifact(path: Path, owner: str) -> Path:
    """Make an empty temporary folder for the artifact at `path`, and drop what killed runs of it left on this machine.

    Args:
        path: Final folder.
        owner: Name of the process that will finish it, from `this_process`.

    Raises:
        OutputFolderError: The folder cannot be written.
    """
    part = temporary_path(path, owner)
    with writing_to(path.parent):
        for left in path.parent.glob(f".{path.name}.{platform.node()}-*.part"):
            if left == part or not _is_running(left.name.split("-")[-1].removesuffix(".part")):
                shutil.rmtree(left, ignore_errors=True)
        part.mkdir(parents=True)
    return part


def finish_artifact(path: Path, owner: str, identity: Identity, facts: Mapping[str, Any] | None = None) -> None:
    """Write the manifest into the owner's temporary folder and rename it to `path`.

    Args:
        path: Final folder; an artifact that another process finished there meanwhile stays.
        owner: Name of the process that began it.
        identity: What determines the content.
        facts: Further figures worth keeping (seconds, rows, …); they take no part in the identity.

    Raises:
        OutputFolderError: The folder cannot be written.
    """
    part = temporary_path(path, owner)
    with writing_to(path.parent):
        files = {
            file.relative_to(part).as_posix(): {"bytes": file.stat().st_size, "blake2b": checksum(file)}
            for file in sorted(part.rglob("*"))
            if file.is_file()
        }
        manifest = {"identity": dict(identity), "facts": dict(facts or {}), "files": files}
        with (part / MANIFEST).open("w", encoding="utf-8") as stream:
            json.dump(manifest, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            part.rename(path)
        except OSError:
            if not (path / MANIFEST).is_file():
                raise
            shutil.rmtree(part)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def write_artifact(path: Path, identity: Identity, facts: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Build an artifact: yields a temporary folder that becomes `path` when the block ends well.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> with write_artifact(root / "demo", {"seed": 1}) as folder:
        ...     _ = (folder / "note.txt").write_text("whole")
        >>> (open_artifact(root / "demo", {"seed": 1}) / "note.txt").read_text()
        'whole'
        >>> open_artifact(root / "absent", {"seed": 1}) is None
        True
    """
    owner = this_process()
    part = begin_artifact(path, owner)
    try:
        with writing_to(path.parent):
            yield part
        finish_artifact(path, owner, identity, facts)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def open_artifact(path: Path, identity: Identity, *, verify: bool = True) -> Path | None:
    """Check the artifact at `path`.

    Args:
        path: Folder of the artifact.
        identity: What it must have been made from.
        verify: Recompute the checksums, not only the sizes.

    Returns:
        `path`, or None where there is no artifact.

    Raises:
        ManifestMismatchError: It was made from something else.
        CacheCorruptedError: A file is missing, cut short or altered.
    """
    if not path.exists():
        return None
    manifest = read_manifest(path)
    check_identity(path / MANIFEST, found=manifest["identity"], expected=identity)
    for name, entry in manifest["files"].items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != entry["bytes"]:
            raise _corrupted(file, f"{found} bytes", f"{entry['bytes']} bytes", path)
        if verify and (digest := checksum(file)) != entry["blake2b"]:
            raise _corrupted(file, f"checksum {digest}", f"checksum {entry['blake2b']}", path)
    return path


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the artifact at `path`: `identity`, `facts` and `files`.

    Raises:
        CacheCorruptedError: The manifest is missing or unreadable.
    """
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _corrupted(file, str(error), "a readable manifest", path) from error
    if not isinstance(manifest, dict) or {"identity", "files"} - manifest.keys():
        raise _corrupted(file, "no `identity` and `files`", "a manifest of this project", path)
    return manifest


def check_identity(file: Path, *, found: Identity, expected: Identity) -> None:
    """Compare a stored identity with the one asked for and name the entries that differ.

    Raises:
        ManifestMismatchError: They differ.
    """
    found, expected = json.loads(_canonical(found)), json.loads(_canonical(expected))
    differing = sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k))
    if differing:
        raise ManifestMismatchError(
            str(file),
            {key: found.get(key) for key in differing},
            expected=str({key: expected.get(key) for key in differing}),
            remedy="Name another folder, delete this one, or ask for what it was made from.",
        )


def checksum(file: Path) -> str:
    """BLAKE2b hex digest of a file's bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _canonical(identity: Identity) -> str:
    return json.dumps(identity, sort_keys=True, separators=(",", ":"))


def _corrupted(file: Path, found: str, expected: str, folder: Path) -> CacheCorruptedError:
    return CacheCorruptedError(
        str(file), found, expected=expected, remedy=f"Delete {folder} and run again to remake it."
    )

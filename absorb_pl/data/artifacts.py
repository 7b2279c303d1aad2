"""Artifacts: folders that are whole or absent, and say what they were made from.

An artifact is a folder with a `manifest.json` that holds its *identity* (everything that determines the content) and,
for every other file, its size and BLAKE2b checksum; what the manifest says has a checksum too. It is written as a draft
and renamed when whole, so a killed process leaves nothing that could be mistaken for a finished one.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absorb_pl.data.checksums import canonical, check_entries, file_entries
from absorb_pl.data.drafts import begin_draft, draft_of, end_draft, new_owner, writing_to
from absorb_pl.errors import CacheCorruptedError, ManifestMismatchError

MANIFEST = "manifest.json"
_FORMAT = 2
_SAID = ("identity", "facts", "files")
_READABLE = 100

Identity = Mapping[str, Any]


def identity_key(identity: Identity) -> str:
    """Short content hash of an identity; equal identities have equal keys whatever their order.

    Args:
        identity: Plain JSON types only.

    Example:
        >>> identity_key({"a": 1, "b": 2}) == identity_key({"b": 2, "a": 1})
        True
    """
    return hashlib.blake2b(canonical(identity).encode(), digest_size=8).hexdigest()


def artifact_path(root: Path, stage: str, name: str, identity: Identity) -> Path:
    """Where the artifact of this identity lives: `root/stage/name-key`; of a long name its end."""
    readable = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)[-_READABLE:]
    return root / stage / f"{readable}-{identity_key({'identity': identity, 'manifest': _FORMAT})}"


def finish_artifact(path: Path, owner: str, identity: Identity, facts: Mapping[str, Any] | None = None) -> None:
    """Write the manifest into the owner's draft and rename it to `path`.

    Args:
        path: Final folder; an artifact that another process finished there meanwhile stays.
        owner: Who began the draft.
        identity: What determines the content.
        facts: Further figures worth keeping (seconds, rows, …); they take no part in the identity.

    Raises:
        OutputFolderError: The folder cannot be written.
    """
    draft = draft_of(path, owner)
    with writing_to(path.parent):
        said = {"identity": dict(identity), "facts": dict(facts or {}), "files": file_entries(draft)}
        with (draft / MANIFEST).open("w", encoding="utf-8") as stream:
            json.dump({**said, "checksum": _checksum_of(said)}, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            draft.rename(path)
        except OSError:
            if not (path / MANIFEST).is_file():
                raise
        end_draft(draft)


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
    owner = new_owner()
    draft = begin_draft(path, owner)
    try:
        with writing_to(path.parent):
            yield draft
        finish_artifact(path, owner, identity, facts)
    finally:
        end_draft(draft)


def open_artifact(path: Path, identity: Identity, *, verify: bool = True) -> Path | None:
    """Check the artifact at `path`.

    Args:
        path: Folder of the artifact.
        identity: What it must have been made from.
        verify: Recompute the checksums, not only the sizes.

    Returns:
        `path`, or None if there is no artifact.

    Raises:
        ManifestMismatchError: It was made from something else.
        CacheCorruptedError: A file is missing, cut short or altered.
    """
    if not path.exists():
        return None
    manifest = read_manifest(path)
    check_identity(path / MANIFEST, found=manifest["identity"], expected=identity)
    check_entries(path, manifest["files"], verify=verify, remedy=_remake(path))
    return path


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the artifact at `path`: `identity`, `facts` and `files`.

    Raises:
        CacheCorruptedError: The manifest is missing, unreadable or altered.
    """
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CacheCorruptedError(
            str(file), str(error), expected="a readable manifest", remedy=_remake(path)
        ) from error
    said = {name: manifest.get(name) for name in _SAID} if isinstance(manifest, dict) else {}
    if not said or manifest.get("checksum") != _checksum_of(said):
        raise CacheCorruptedError(
            str(file),
            "altered, or not of this project",
            expected="a manifest that matches its own checksum",
            remedy=_remake(path),
        )
    return manifest


def check_identity(file: Path, *, found: Identity, expected: Identity) -> None:
    """Compare a stored identity with the one asked for and name the entries that differ.

    Raises:
        ManifestMismatchError: They differ.
    """
    found, expected = json.loads(canonical(found)), json.loads(canonical(expected))
    differing = sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k))
    if differing:
        raise ManifestMismatchError(
            str(file),
            {key: found.get(key) for key in differing},
            expected=str({key: expected.get(key) for key in differing}),
            remedy="Name another folder, delete this one, or ask for what it was made from.",
        )


def _checksum_of(said: Mapping[str, Any]) -> str:
    return hashlib.blake2b(canonical(said).encode(), digest_size=16).hexdigest()


def _remake(path: Path) -> str:
    return f"Delete {path} and run again to remake it."

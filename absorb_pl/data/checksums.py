"""Checksums of files and settings, and the check that files are still those that were written."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absorb_pl.errors import CacheCorruptedError

_CHUNK_BYTES = 1 << 22


def canonical(settings: Any) -> str:
    """Plain JSON types as one text, whatever the order of keys."""
    return json.dumps(settings, sort_keys=True, separators=(",", ":"))


def checksum(file: Path) -> str:
    """BLAKE2b hex digest of a file's bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def file_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and checksum of every file below a folder, by its path there."""
    return {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "blake2b": checksum(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def check_entries(folder: Path, entries: Mapping[str, Mapping[str, Any]], *, verify: bool, remedy: str) -> None:
    """Compare files with what was written down of them.

    Args:
        folder: Where the files lie.
        entries: From `file_entries`.
        verify: Recompute the checksums, not only the sizes.
        remedy: What to do if one differs.

    Raises:
        CacheCorruptedError: A file is missing, cut short or altered.
    """
    for name, entry in entries.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != entry["bytes"]:
            raise CacheCorruptedError(str(file), f"{found} bytes", expected=f"{entry['bytes']} bytes", remedy=remedy)
        if verify and (digest := checksum(file)) != entry["blake2b"]:
            raise CacheCorruptedError(
                str(file), f"checksum {digest}", expected=f"checksum {entry['blake2b']}", remedy=remedy
            )

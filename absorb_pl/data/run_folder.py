"""A run's folder: its resolved configuration, its manifest, and what each stage cost."""

import json
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from absorb_pl import __version__
from absorb_pl.data.artifacts import MANIFEST, Identity, check_identity
from absorb_pl.data.drafts import check_writable, whole_file
from absorb_pl.data.publication import RECORD
from absorb_pl.errors import CacheCorruptedError

SUMMARY_SO_FAR = "summary_so_far.parquet"
_PACKAGES = ("torch", "lightning", "transformers", "transformer-lens", "sae-lens", "torchmetrics", "pandas")


class RunFolder:
    """Writes `config.yaml` and `manifest.json` of a run, and measures its stages.

    Args:
        path: The folder; made once there is something to write.
        config: The resolved configuration, plain types only.
        writes: Whether this process writes; one of several does.

    Attributes:
        path: The folder.
        config: The resolved configuration.
        stages: Seconds, peak memory and counts of each finished stage.
        under_way: Name of the stage that runs; empty between stages.

    Raises:
        OutputFolderError: The folder cannot be written.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], *, writes: bool = True) -> None:
        self.path = path
        self.stages: dict[str, dict[str, Any]] = {}
        self.under_way = ""
        self.config = dict(config)
        self._writes = writes
        self._identity: dict[str, Any] = {}
        if writes:
            check_writable(path)

    def claim(self, identity: Identity, contents: Mapping[str, str]) -> None:
        """Say what the run is about, and refuse a folder in which the results of another run lie.

        A run that left no results, not even of its first SAEs, does not keep others out.

        Args:
            identity: What all tables of the folder have in common.
            contents: Content hashes of the parts, e.g. of each SAE; there may be more than in an earlier run, not
                fewer or others.

        Raises:
            ManifestMismatchError: The folder holds a run with another identity.
            CacheCorruptedError: Its manifest cannot be read.
        """
        self._identity = {"identity": dict(identity), "contents": dict(contents)}
        file = self.path / MANIFEST
        if file.exists():
            found, held = _claimed(file)
            if _holds_results(self.path):
                check_identity(file, found=found, expected=identity)
                kept = {name: contents.get(name) for name in held}
                check_identity(file, found=held, expected=kept)
        if self._writes:
            with whole_file(self.path / "config.yaml") as part:
                part.write_text(yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")
        self._write_manifest()

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Measure a stage; yields a dictionary for counts worth keeping, that of before if it has run before.

        Args:
            name: Name of the stage in the manifest.
        """
        facts: dict[str, Any] = dict(self.stages.get(name, {}))
        start, self.under_way = time.perf_counter(), name
        yield facts
        self.under_way = ""
        facts["seconds"] = round(facts.get("seconds", 0.0) + time.perf_counter() - start, 3)
        facts["peak_memory_mib"] = round(_peak_memory_bytes() / 2**20, 1)
        if torch.cuda.is_available():
            most = max(torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count()))
            facts["peak_gpu_memory_mib"] = round(most / 2**20, 1)
        self.stages[name] = facts
        if self._identity:
            self._write_manifest()

    def _write_manifest(self) -> None:
        if not self._writes:
            return
        manifest = {
            **self._identity,
            "versions": {
                "absorb_pl": __version__,
                "python": platform.python_version(),
                **{package: version(package) for package in _PACKAGES},
            },
            "threads": torch.get_num_threads(),
            "stages": self.stages,
        }
        with whole_file(self.path / MANIFEST) as part:
            part.write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _claimed(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Identity and contents that a run's manifest holds."""
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        found = manifest["identity"], manifest["contents"]
        if not all(isinstance(entry, dict) for entry in found):
            raise TypeError("`identity` and `contents` are no mappings")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheCorruptedError(
            str(file),
            f"{type(error).__name__}: {error}",
            expected="a readable manifest of a run",
            remedy="Delete the run folder, or name another.",
        ) from error
    return found


def _holds_results(path: Path) -> bool:
    """Whether a run left results, published or not, of all its SAEs or the first."""
    return any((path / name).exists() for name in (RECORD, "tables", SUMMARY_SO_FAR)) or any(path.glob("*/*.parquet"))


def _peak_memory_bytes() -> int:
    """Of this process, or of the largest of those that it has forked."""
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak if sys.platform == "darwin" else peak * 1024

"""What a run publishes: its folders of tables, probes and figures appear together, with a record that readers check."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absorb_pl.data.checksums import check_entries, file_entries
from absorb_pl.data.drafts import begin_draft, end_draft, new_owner, replace_folder, writing_to
from absorb_pl.errors import CacheCorruptedError, OutputFolderError
from absorb_pl.interruption import uninterrupted

RECORD = "published.json"
_REMEDY = "Run `absorb-pl study` with this `run_dir` (again, if it was cut short), or name that of another run."


@contextmanager
def publishing(run_dir: Path) -> Iterator[Path]:
    """Publish folders together: yields an empty folder, whose folders move to `run_dir` when the block ends well.

    A folder of the same name there is replaced whole. While folders are moved there is no record, so that readers
    refuse what a kill in between leaves.

    Args:
        run_dir: The run's folder.

    Raises:
        OutputFolderError: The folder cannot be written.

    Example:
        >>> import tempfile
        >>> run_dir = Path(tempfile.mkdtemp())
        >>> with publishing(run_dir) as folder:
        ...     (folder / "tables").mkdir()
        ...     _ = (folder / "tables" / "note.txt").write_text("whole")
        >>> check_published(run_dir, "tables")
        >>> (run_dir / "tables" / "note.txt").read_text()
        'whole'
    """
    draft = begin_draft(run_dir / RECORD, new_owner())
    new = draft / "new"
    try:
        with writing_to(run_dir):
            new.mkdir()
            yield new
            folders = sorted(new.iterdir())
            (draft / RECORD).write_text(json.dumps({"files": file_entries(new)}, indent=1), encoding="utf-8")
            with uninterrupted():
                (run_dir / RECORD).unlink(missing_ok=True)
                for folder in folders:
                    replace_folder(run_dir / folder.name, folder, aside=draft / folder.name)
                (draft / RECORD).replace(run_dir / RECORD)
    except OutputFolderError as error:
        # What writes below the draft names the draft; users know the folder it becomes.
        raise OutputFolderError(
            error.argument,
            str(error.value).replace(str(new), str(run_dir)),
            expected=error.expected,
            remedy=error.remedy,
        ) from error
    finally:
        end_draft(draft)


def check_published(run_dir: Path, *folders: str) -> None:
    """Refuse a run folder unless it holds these folders as one run published them.

    Args:
        run_dir: The run's folder.
        folders: Names of folders there, such as `tables`.

    Raises:
        CacheCorruptedError: The run is not finished, was cut short while it published, or a file has been altered.
    """
    entries = _entries(run_dir / RECORD, run_dir)
    for folder in folders:
        own = {name: entry for name, entry in entries.items() if name.startswith(f"{folder}/")}
        if not own:
            raise _unfinished(run_dir, f"no {folder} in {RECORD}")
        check_entries(run_dir, own, verify=True, remedy=_REMEDY)


def _entries(record: Path, run_dir: Path) -> dict[str, dict[str, Any]]:
    try:
        entries = json.loads(record.read_text(encoding="utf-8"))["files"]
        if all(isinstance(entry["bytes"], int) and isinstance(entry["blake2b"], str) for entry in entries.values()):
            return entries
    except OSError as error:
        raise _unfinished(run_dir, f"{RECORD}: {error.strerror}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unfinished(run_dir, f"{RECORD} cannot be read") from error
    raise _unfinished(run_dir, f"{RECORD} cannot be read")


def _unfinished(run_dir: Path, found: str) -> CacheCorruptedError:
    return CacheCorruptedError(
        "run_dir",
        f"{run_dir} ({found})",
        expected=f"the run folder of a finished study, with {RECORD} and what it lists",
        remedy=_REMEDY,
    )

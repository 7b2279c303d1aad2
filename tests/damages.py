"""Damages to files, whatever they hold, and what comes of loading them."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from absorb_pl.errors import AbsorbError


def cut(file: Path, keep: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])


def cut_last(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flipped(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 0xFF
    file.write_bytes(content)


def in_the_way(file: Path) -> None:
    file.unlink()
    file.mkdir()


def dangling(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def of_files(files: list[Path]) -> Iterator[tuple[str, str, Callable[[Path], object]]]:
    """Damages to any file: its name, what happened to it, and how."""
    contents = {
        "empty": "",
        "a list": "[]",
        "null": "null",
        "a number": "3",
        "a text": '"cfg"',
        "HTML": "<html>404</html>",
    }
    for file in (path.name for path in files):
        yield file, "missing", Path.unlink
        yield file, "a folder", in_the_way
        yield file, "a broken link", dangling
        for keep in (1, 7, 8, 9, 100, 0.25, 0.5, 0.99):
            yield file, f"cut to {keep}", partial(cut, keep=keep)
        yield file, "without its last byte", cut_last
        for name, text in contents.items():
            yield file, name, lambda path, text=text: path.write_text(text)
        yield file, "binary", lambda path: path.write_bytes(bytes(range(256)))
        if os.geteuid() != 0:
            yield file, "without permission", lambda path: path.chmod(0)


def outcome(load: Callable[[str], object], folder: Path) -> str:
    try:
        load(str(folder))
    except AbsorbError:
        return "refused by name"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "taken"

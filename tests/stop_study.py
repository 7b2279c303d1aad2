"""A study in two processes that is sent SIGTERM: `python tests/stop_study.py FOLDER PLACE NUMBER RANK study ...`.

The process of rank RANK sends the signal to the main one when PLACE, a function, is called for the NUMBERth time there.
Each process notes its number in `FOLDER/rank-<rank>.json`.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from absorb_pl.cli import main
from absorb_pl.data import collector
from absorb_pl.evaluators import writers
from absorb_pl.probes import fitting


def send_at(place: str, number: int, receiver: int) -> None:
    """Make a function send a signal when it is called for the nth time."""
    *owners, name = place.split(".")
    owner: Any = {"collector": collector, "fitting": fitting, "writers": writers}[owners[0]]
    for part in owners[1:]:
        owner = getattr(owner, part)
    function, calls = getattr(owner, name), []

    def called(*args: Any, **settings: Any) -> Any:
        calls.append(name)
        if len(calls) == number:
            os.kill(receiver, signal.SIGTERM)
        return function(*args, **settings)

    setattr(owner, name, called)


if __name__ == "__main__":
    folder, place, number, sender, *words = sys.argv[1:]
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    Path(folder, f"rank-{rank}.json").write_text(json.dumps({"pid": os.getpid()}))
    if rank == int(sender):
        send_at(place, int(number), os.getppid() if rank else os.getpid())
    main(words)

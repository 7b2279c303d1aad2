"""A training that dies by SIGKILL after a step: `python tests/kill_training.py STEP fit ...`."""

import os
import signal
import sys
from typing import Any

from absorb_pl.cli import main
from absorb_pl.training import SparseAutoencoderModule


def die_after(step: int) -> None:
    """Run the command line, and die when a step has been taken."""

    def on_train_batch_start(self: SparseAutoencoderModule, *_: Any) -> None:
        if self.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(SparseAutoencoderModule, "on_train_batch_start", on_train_batch_start)  # noqa: B010
    main(sys.argv[2:])


if __name__ == "__main__":
    die_after(int(sys.argv[1]))

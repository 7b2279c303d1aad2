"""Fixtures of what runs on GPUs."""

from collections.abc import Iterator

import pretended_gpu  # noqa: F401  torch counts devices in the first backward pass of a process
import pytest
import torch

collect_ignore = ["pretended_gpu.py"]  # which can be imported once


@pytest.fixture
def pretended_gpus() -> Iterator[None]:
    """Gradients on two pretended GPUs; torch has a thread for those on the first alone."""
    with torch.autograd.set_multithreading_enabled(False):
        yield

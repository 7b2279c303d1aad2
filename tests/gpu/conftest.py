"""Fixtures of what runs on GPUs."""

from collections.abc import Callable, Iterator

import pandas as pd
import pretended_gpu  # noqa: F401  torch counts devices in the first backward pass of a process
import pytest
import torch

collect_ignore = ["pretended_gpu.py"]  # which can be imported once


@pytest.fixture
def same_but_rounding() -> Callable[[pd.DataFrame, pd.DataFrame], None]:
    """Compares tables, columns of lists aside."""

    def compare(found: pd.DataFrame, expected: pd.DataFrame) -> None:
        single = [column for column in expected if not expected[column].map(pd.api.types.is_list_like).any()]
        pd.testing.assert_frame_equal(found[single], expected[single], rtol=1e-4, atol=1e-6)

    return compare


@pytest.fixture
def pretended_gpus() -> Iterator[None]:
    """Gradients on two pretended GPUs; torch has a thread for those on the first alone."""
    with torch.autograd.set_multithreading_enabled(False):
        yield

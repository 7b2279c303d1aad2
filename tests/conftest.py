"""Shared by all tests: where the recorded figures are, and quiet, offline libraries."""

import logging
import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Figures recorded from the published implementations, see its README."""
    return Path(__file__).parent / "golden"

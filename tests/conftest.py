"""What every test starts from: no network, no display, and the same random numbers."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give each test the same random numbers whichever tests ran before it."""
    torch.manual_seed(0)

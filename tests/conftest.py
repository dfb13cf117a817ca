"""Fixtures and rules that every test shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` on a machine without CUDA, and say so in the summary."""
    if torch.cuda.is_available():
        return
    without_gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(without_gpu)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed torch and numpy before each test, so that a test's result does not depend on its order."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  libraries under test may use the global generator
    return 0

"""Fixtures and rules that every test shares."""

from __future__ import annotations

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
    """Seed torch before each test: a result does not depend on the order of tests."""
    torch.manual_seed(0)
    return 0

"""Kernels whose sums have one order, so that a run on a card can be repeated bit for bit."""

from __future__ import annotations

import os

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def use_deterministic_algorithms() -> None:
    """Choose deterministic kernels for the whole process, before its first product on a card.

    An operation that has none ends the run with an error that names it. cuBLAS reads the size of
    its workspace when it is first used; one of the two that PyTorch's notes on reproducibility
    name keeps the order of its sums, and one that the user has set stays.
    """
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)

"""Activations that are computed again going backward instead of being kept.

`full` keeps each block's input only. `selective` also keeps the results of matrix products, which
are dear to compute again and cheap to hold beside what lies between them. Gradients are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import (
    SAC_IGNORED_OPS,
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from vl2.model.vl2 import VL2Model

Recompute = Literal["none", "selective", "full"]

KEPT = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten._grouped_mm.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops._c10d_functional.all_to_all_single.default,
    }
)
"""Results that `selective` keeps."""

# FSDP2 names its hooks for the profiler; it enters the root's once more when a block is repeated,
# which selective checkpointing would count as a result that is missing.
SAC_IGNORED_OPS.update(
    {
        torch.ops.profiler._record_function_enter_new.default,
        torch.ops.profiler._record_function_exit._RecordFunction,
    }
)


def recompute_activations(model: VL2Model, language: Recompute, vision: Recompute) -> None:
    """Let the blocks of the language model and of the vision towers recompute, each as asked."""
    _wrap(model.language.model.layers, language)
    _wrap(model.vision.blocks, vision)
    if model.vision_high is not None:
        _wrap(model.vision_high.blocks, vision)


def _wrap(blocks: Iterable[nn.Module], how: Recompute) -> None:
    if how == "none":
        return
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    for block in blocks:
        block.forward = _checkpointed(block.forward, contexts if how == "selective" else None)


def _checkpointed(
    forward: Callable[..., Any], contexts: Callable[[], Any] | None
) -> Callable[..., Any]:
    options = {} if contexts is None else {"context_fn": contexts}

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **options, **kwargs)

    return run


def _policy(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    kept = operation in KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

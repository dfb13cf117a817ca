"""`torch.compile`, block by block: one graph serves all layers of a kind."""

from __future__ import annotations

import torch

from vl2.model.attention import LatentAttention, MultiHeadAttention
from vl2.model.moe import Mlp, MoE
from vl2.model.vl2 import VL2Model


def compile_blocks(model: VL2Model, *, autocast: bool = False) -> None:
    """Compile the blocks of the tower and the layers of the language model, when they first run.

    The compiler's grouped matmul wants bfloat16. Around experts that multiply in float32 only
    attention and the shared experts are compiled.

    Args:
        model: changed in place.
        autocast: the run multiplies in bfloat16 whatever the weights are.
    """
    for block in model.vision.blocks:
        block.compile()
    for layer in model.language.model.layers:
        mlp = layer.mlp
        if not isinstance(mlp, MoE) or autocast or mlp.gate.weight.dtype == torch.bfloat16:
            layer.compile()
            continue
        for part in layer.modules():
            if isinstance(part, LatentAttention | MultiHeadAttention | Mlp):
                part.compile()

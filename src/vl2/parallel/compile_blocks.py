"""`torch.compile`, block by block: one graph serves all layers of a kind."""

from __future__ import annotations

import torch

from vl2.model.attention import LatentAttention, MultiHeadAttention
from vl2.model.moe import Mlp, MoE
from vl2.model.vl2 import VL2Model


def compile_blocks(model: VL2Model) -> None:
    """Compile the blocks of the tower and the layers of the language model, when they first run.

    The compiler's grouped matmul wants bfloat16. Around experts in float32 only attention and the
    shared experts are compiled.
    """
    for block in model.vision.blocks:
        block.compile()
    for layer in model.language.model.layers:
        if not isinstance(layer.mlp, MoE) or layer.mlp.gate.weight.dtype == torch.bfloat16:
            layer.compile()
            continue
        for part in layer.modules():
            if isinstance(part, LatentAttention | MultiHeadAttention | Mlp):
                part.compile()

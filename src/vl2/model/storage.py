"""A model that computes in one dtype and keeps its matrices in another, as its file holds them.

A checkpoint in bfloat16 that is loaded so computes in float32 from half the bytes: what a decoded
token costs on a CPU is the reading of its weights. Embeddings, norms, router, biases, convolutions
and MLA's `kv_b_proj`, which is read by its parts, are held as the model computes; names do not
change.
"""

from __future__ import annotations

from vl2.model.moe import matrix_layers
from vl2.model.quantized import KEPT_FLOAT
from vl2.model.vl2 import VL2Model


def store_matrices(model: VL2Model) -> frozenset[str]:
    """Let the matrices of a plain model on the meta device be of any dtype, and freeze them.

    Returns:
        Their keys in the state dict.
    """
    keys = set()
    for name, layer in matrix_layers(model):
        if name.rpartition(".")[2] in KEPT_FLOAT:
            continue
        layer.stored = True
        for key, parameter in layer.named_parameters():
            if key != "bias":
                parameter.requires_grad_(False)
                keys.add(f"{name}.{key}")
    return frozenset(keys)

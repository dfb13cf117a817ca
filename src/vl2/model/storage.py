"""A model that computes in one dtype and keeps its matrices in another, as its file holds them.

A checkpoint in bfloat16 that is loaded so computes in float32 from half the bytes: what a decoded
token costs on a CPU is the reading of its weights. Embeddings, norms, router, biases, convolutions
and MLA's `kv_b_proj`, which is read by its parts, are held as the model computes; names do not
change.
"""

from __future__ import annotations

import torch
from torch import nn

from vl2.model.moe import Experts
from vl2.model.quantized import KEPT_FLOAT
from vl2.model.stored_linear import StoredLinear
from vl2.model.vl2 import VL2Model


def store_matrices(model: VL2Model) -> frozenset[str]:
    """Let the matrices of a plain model on the meta device be of any dtype, and freeze them.

    Returns:
        Their keys in the state dict.
    """
    keys = set()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] not in KEPT_FLOAT:
            bias = module.bias is not None
            with torch.device("meta"):
                made = StoredLinear(module.in_features, module.out_features, bias=bias)
            model.set_submodule(name, made)
            keys.add(f"{name}.weight")
        elif isinstance(module, Experts):
            module.requires_grad_(False)
            keys |= {f"{name}.{key}" for key, _ in module.named_parameters()}
    return frozenset(keys)

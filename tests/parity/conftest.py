"""Weights for models under comparison: every term made visible, oracles' names made ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from vl2.model.siglip import SiglipTower


@pytest.fixture
def randomise() -> Callable[[nn.Module, float], None]:
    """Every parameter non-zero, biases, norms and position tables too, so that no term hides."""

    @torch.no_grad()
    def fill(module: nn.Module, deviation: float = 0.2) -> None:
        for name, parameter in module.named_parameters():
            scale = name.endswith("weight") and parameter.ndim == 1  # of a norm
            parameter.copy_(deviation * torch.randn_like(parameter) + float(scale))
        module.eval()

    return fill


@pytest.fixture
def take_siglip() -> Callable[[SiglipTower, Mapping[str, Tensor]], None]:
    """Load timm's names from transformers' SigLIP; the pool head stays as it is."""

    def take(tower: SiglipTower, weights: Mapping[str, Tensor]) -> None:
        mine = {
            "patch_embed.proj.weight": weights["embeddings.patch_embedding.weight"],
            "patch_embed.proj.bias": weights["embeddings.patch_embedding.bias"],
            "pos_embed": weights["embeddings.position_embedding.weight"][None],
        }
        for kind in ("weight", "bias"):
            mine[f"norm.{kind}"] = weights[f"post_layernorm.{kind}"]
            for layer in range(len(tower.blocks)):
                theirs, ours = f"encoder.layers.{layer}", f"blocks.{layer}"
                qkv = [weights[f"{theirs}.self_attn.{x}_proj.{kind}"] for x in "qkv"]
                mine[f"{ours}.attn.qkv.{kind}"] = torch.cat(qkv)
                for a, b in (
                    ("attn.proj", "self_attn.out_proj"),
                    ("norm1", "layer_norm1"),
                    ("norm2", "layer_norm2"),
                    ("mlp.fc1", "mlp.fc1"),
                    ("mlp.fc2", "mlp.fc2"),
                ):
                    mine[f"{ours}.{a}.{kind}"] = weights[f"{theirs}.{b}.{kind}"]
        head = {k: v for k, v in tower.state_dict().items() if k.startswith("attn_pool.")}
        tower.load_state_dict({**mine, **head})
        tower.eval()

    return take

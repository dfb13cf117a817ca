"""SigLIP vision tower in timm's layout (paper section 2; released: SO400M/14 at 384 pixels).

Pre-norm ViT blocks with learned absolute positions, tanh GELU, no class token. The attention-pool
head is part of every released checkpoint but no path runs it; it exists so that keys round-trip.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vl2.config import VisionConfig
from vl2.model.linear import Linear
from vl2.ops.activations import gelu
from vl2.ops.attention import patch_attention

NORM_EPS = 1e-6


class PatchEmbed(nn.Module):
    """Cut a tile into patches and embed them; pixels beyond the last whole patch are dropped."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.proj = nn.Conv2d(3, config.width, kernel_size=size, stride=size)

    def forward(self, tiles: Float[Tensor, "n 3 hh ww"]) -> Float[Tensor, "n p w"]:
        """Patches in row-major order."""
        return self.proj(tiles).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Bidirectional multi-head attention over the patches of one tile."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = Linear(config.width, 3 * config.width)
        self.proj = Linear(config.width, config.width)

    def forward(self, x: Float[Tensor, "n p w"]) -> Float[Tensor, "n p w"]:
        """Every patch attends to every patch of its tile."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = patch_attention(*qkv.unbind(0))  # (N, heads, P, head_dim)
        return self.proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a tanh-approximated GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Float[Tensor, "n p w"]) -> Float[Tensor, "n p w"]:
        """Per patch."""
        return self.fc2(gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = Mlp(config.width, config.mlp_hidden)

    def forward(self, x: Float[Tensor, "n p w"]) -> Float[Tensor, "n p w"]:
        """Attention, then MLP, each added to its input."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class AttentionPool(nn.Module):
    """Parameters of timm's attention-pool head; kept for the checkpoint's sake and never run."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.width
        self.latent = nn.Parameter(torch.empty(1, 1, width))
        self.q = Linear(width, width)
        self.kv = Linear(width, 2 * width)
        self.proj = Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, config.mlp_hidden)


class SiglipTower(nn.Module):
    """Tiles to patch features: the last block's output after the final norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        patches = config.patches_per_side**2
        self.pos_embed = nn.Parameter(torch.empty(1, patches, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attn_pool = AttentionPool(config) if config.global_pool == "map" else None

    def forward(self, tiles: Float[Tensor, "n 3 hh ww"]) -> Float[Tensor, "n p w"]:
        """Encode normalised tiles (mean = std = 0.5) of image_size x image_size pixels."""
        x = self.patch_embed(tiles) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

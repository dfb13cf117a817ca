"""Rotary position embedding with YaRN, always in float32 from integer positions.

The official code keeps `inv_freq` in a buffer that `.to(torch.bfloat16)` casts, after which only
769 distinct positions remain below 4096. Here frequencies are derived from the configuration, never
stored in a module, so no cast can reach them. Sources: arXiv 2104.09864 (RoPE), 2309.00071 (YaRN),
DeepSeek-V2's `modeling_deepseek.py` for the YaRN parameters.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vl2.config import LanguageConfig, RopeScaling
from vl2.ops.backend import in_c
from vl2.ops.native import small


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's attention temperature: 0.1 * mscale * ln(factor) + 1 for a factor above 1."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def softmax_scale(config: LanguageConfig) -> float:
    """Scale of attention scores: head_dim ** -0.5, times mscale squared where YaRN asks for it."""
    scale = config.head_dim**-0.5
    scaling = config.rope_scaling
    if scaling is not None and scaling.mscale_all_dim:
        scale *= yarn_mscale(scaling.factor, scaling.mscale_all_dim) ** 2
    return scale


def inverse_frequencies(
    dim: int, theta: float, scaling: RopeScaling | None = None
) -> Float[Tensor, " half"]:
    """Float32 angular frequencies of `dim` rotated channels, stretched by YaRN when given."""
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    plain = 1.0 / theta**exponent
    if scaling is None:
        return plain
    low, high = _correction_range(dim, theta, scaling)
    steps = torch.arange(dim // 2, dtype=torch.float32, device="cpu")
    kept = 1.0 - ((steps - low) / (high - low)).clamp(0, 1)
    interpolated = 1.0 / (scaling.factor * theta**exponent)
    return interpolated * (1.0 - kept) + plain * kept  # in the official order: bit for bit equal


def _correction_range(dim: int, theta: float, scaling: RopeScaling) -> tuple[float, float]:
    """Channels between which YaRN blends from extrapolation to interpolation."""

    def channel(rotations: float) -> float:
        turns = scaling.original_max_position_embeddings / (rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(theta))

    low = max(math.floor(channel(scaling.beta_fast)), 0)
    high = min(math.ceil(channel(scaling.beta_slow)), dim - 1)
    return low, high if high > low else high + 0.001


def rope_tables(
    positions: Int[Tensor, "b t"], config: LanguageConfig
) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b t d"]]:
    """Cosine and sine of integer positions, float32, the two halves of d alike."""
    scaling = config.rope_scaling
    frequencies = inverse_frequencies(config.rope_dim, config.rope_theta, scaling)
    angles = positions[..., None].float() * frequencies.to(positions.device)
    angles = torch.cat((angles, angles), dim=-1)
    factor = 1.0
    if scaling is not None:
        factor = yarn_mscale(scaling.factor, scaling.mscale)
        factor /= yarn_mscale(scaling.factor, scaling.mscale_all_dim)
    return angles.cos() * factor, angles.sin() * factor


def deinterleave(x: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead d"]:
    """Channel pairs (2i, 2i+1) to [evens, odds], the order in which MLA's rope part is stored."""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def apply_rope(
    x: Float[Tensor, "b t h d"], cos: Float[Tensor, "b t d"], sin: Float[Tensor, "b t d"]
) -> Float[Tensor, "b t h d"]:
    """Rotate channel i against channel i + d/2; computed in float32, returned in x's dtype."""
    if in_c("rotary positions", x):
        return small.rope(x, cos, sin)
    return apply_rope_ref(x, cos, sin)


def apply_rope_ref(
    x: Float[Tensor, "b t h d"], cos: Float[Tensor, "b t d"], sin: Float[Tensor, "b t d"]
) -> Float[Tensor, "b t h d"]:
    """The plain twin of `apply_rope`."""
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (wide * cos[:, :, None] + turned * sin[:, :, None]).to(x.dtype)

"""Hybrid vision of DeepSeek-VL v1 brought into tiling: SigLIP and SAM-B both see the global view.

Local tiles go through SigLIP and the ordinary adaptor. The global view goes through both towers,
and v1's split MLP fuses their features: the fine ones of SAM-B first, the coarse ones of SigLIP
second (`low_high_hybrid_split_mlp_gelu`, arXiv 2403.05525 section 2.1). The combination with tiling
is our choice; the reference systems have either one or the other.

Both maps must lie on one grid, and a tile must keep its number of tokens, so that the token layout
and the processor need not know which tower runs. The rule: SAM's map (24 x 24) is stretched
bilinearly onto the padded patch grid of a tile (28 x 28), SigLIP's (27 x 27) is padded onto it as
the adaptor does, and one 2x2 space-to-depth brings both to the token grid (14 x 14) with four times
the channels. Averaging instead would keep v1's input widths, but throw away three quarters of what
the ordinary adaptor sees and most of the detail that the second tower is there for; folding costs
only wider input matrices. The two grids drift apart by half a patch at the right and bottom edges
(28 cells for 384 pixels here, for 392 there).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vl2.config import VL2Config
from vl2.model.adaptor import space_to_depth
from vl2.model.linear import Linear
from vl2.model.sam import SamTower, output_width

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Pixel statistics that v1's high tower was trained with."""


def clip_normalised(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Pixels normalised as tiles are (mean = std = 0.5) to CLIP's mean and deviation.

    Computed in float32; the dtype is kept.
    """
    mean = torch.tensor(CLIP_MEAN, device=images.device)[:, None, None]
    std = torch.tensor(CLIP_STD, device=images.device)[:, None, None]
    return ((images.float() * 0.5 + 0.5 - mean) / std).to(images.dtype)


def resize(maps: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "n c {side} {side}"]:
    """Bilinear resampling in float32, averaging where it shrinks; the right size stays as it is."""
    if maps.shape[-2:] == (side, side):
        return maps
    resized = F.interpolate(maps.float(), (side, side), mode="bilinear", antialias=True)
    return resized.to(maps.dtype)


class HybridProjector(nn.Module):
    """v1's split MLP on the features of both towers, brought to one token grid.

    With `ratio = 1` and equal grids it is exactly v1's aligner.

    Args:
        high_width: channels of the SAM tower.
        low_width: channels of the SigLIP tower.
        hidden: width of the language model, even.
        ratio: patches folded along each side of a token, 2 in the released adaptor.
    """

    def __init__(self, *, high_width: int, low_width: int, hidden: int, ratio: int) -> None:
        super().__init__()
        if hidden % 2:
            raise ValueError(f"hidden_size is {hidden}: the hybrid projector needs an even width")
        self.ratio = ratio
        self.high_up_proj = Linear(high_width * ratio**2, hidden // 2)
        self.low_up_proj = Linear(low_width * ratio**2, hidden // 2)
        self.layers = nn.Sequential(nn.GELU(), Linear(hidden, hidden))

    @classmethod
    def from_config(cls, config: VL2Config) -> HybridProjector:
        """The projector of a whole model.

        Raises:
            ValueError: the config has no SAM section, or an odd hidden size.
        """
        sam = config.vision_config.sam
        if sam is None:
            raise ValueError("vision_config.sam is missing: the hybrid projector needs it")
        return cls(
            high_width=output_width(sam),
            low_width=config.vision_config.width,
            hidden=config.language_config.hidden_size,
            ratio=config.projector_config.downsample_ratio,
        )

    def forward(
        self, high: Float[Tensor, "n p c"], low: Float[Tensor, "n q w"]
    ) -> Float[Tensor, "n t h"]:
        """Tokens of global views from both towers' features, each a square map row by row."""
        folded_low = space_to_depth(low, self.ratio)
        grid_side = round(folded_low.shape[1] ** 0.5) * self.ratio
        high_side = round(high.shape[1] ** 0.5)
        high_map = high.transpose(1, 2).unflatten(2, (high_side, high_side))
        high = resize(high_map, grid_side).flatten(2).transpose(1, 2)
        folded_high = space_to_depth(high, self.ratio)
        split = (self.high_up_proj(folded_high), self.low_up_proj(folded_low))
        return self.layers(torch.cat(split, dim=-1))


def encode_high(
    tower: SamTower,
    global_tiles: Float[Tensor, "n 3 h w"],
    images_high: Float[Tensor, "n 3 s s"] | None = None,
) -> Float[Tensor, "n p c"]:
    """SAM features of global views.

    Args:
        tower: the high tower.
        global_tiles: the views as SigLIP sees them, normalised with mean = std = 0.5.
        images_high: the same pictures at high resolution, padded and normalised in the same way.
            When absent, the global tiles are enlarged to the tower's picture size: all shapes
            fit, but no detail comes back that the small tile has lost.
    """
    if images_high is None:
        images_high = resize(global_tiles, tower.config.image_size)
    return tower(clip_normalised(images_high.to(global_tiles.dtype)))

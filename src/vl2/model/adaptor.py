"""The adaptor: patch features to language tokens, and a picture's token layout (paper sec. 2)."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vl2.config import ProjectorConfig
from vl2.geometry import TileGrid
from vl2.model.linear import Linear


def space_to_depth(features: Float[Tensor, "n p w"], ratio: int) -> Float[Tensor, "n q v"]:
    """Fold each ratio x ratio square of patches into one token.

    The square map is padded with zeros on the right and at the bottom up to a multiple of `ratio`
    (27 -> 28). Feature order is channel * ratio**2 + dy * ratio + dx, that of `F.unfold`.
    """
    side = round(features.shape[1] ** 0.5)
    grid = features.unflatten(1, (side, side))
    pad = -side % ratio
    grid = F.pad(grid, (0, 0, 0, pad, 0, pad))
    grid = grid.unflatten(1, (-1, ratio)).unflatten(3, (-1, ratio))  # (N, Y, dy, X, dx, W)
    return grid.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)


class Adaptor(nn.Module):
    """2x2 space-to-depth and an MLP with exact GELU (`downsample_mlp_gelu`)."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.ratio = config.downsample_ratio
        inner = config.n_embed * config.mlp_ratio
        widths = [config.input_dim * self.ratio**2, *[inner] * (config.depth - 1), config.n_embed]
        layers: list[nn.Module] = [Linear(widths[0], widths[1])]
        for before, after in itertools.pairwise(widths[1:]):
            layers += [nn.GELU(), Linear(before, after)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Float[Tensor, "n p w"]) -> Float[Tensor, "n q h"]:
        """Patch features of tiles to row-major tokens, 729 -> 196 in the released models."""
        return self.layers(space_to_depth(features, self.ratio))


def arrange_tokens(
    tiles: Float[Tensor, "n q h"],
    grid: TileGrid,
    *,
    newline: Float[Tensor, " h"],
    separator: Float[Tensor, " h"],
    global_first: bool = True,
) -> Float[Tensor, "t h"]:
    """Lay one picture's tiles out as the token sequence that geometry.py counts.

    Args:
        tiles: adaptor output, the global view first, then `grid.high` rows of `grid.wide` tiles.
        grid: how the picture was cut.
        newline: closes every row of a view.
        separator: stands between the two views.
        global_first: `global_view_pos == "head"`; otherwise the mosaic comes first.
    """
    side = round(tiles.shape[1] ** 0.5)
    mosaic = tiles[1:].unflatten(0, (grid.high, grid.wide)).unflatten(2, (side, side))
    mosaic = mosaic.transpose(1, 2).flatten(2, 3).flatten(0, 1)  # (high*side, wide*side, H)
    overview = tiles[0].unflatten(0, (side, side))
    views = [_close_rows(view, newline) for view in (overview, mosaic)]
    first, second = views if global_first else reversed(views)
    return torch.cat((first, separator[None], second))


def _close_rows(view: Float[Tensor, "y x h"], newline: Float[Tensor, " h"]) -> Float[Tensor, "t h"]:
    return torch.cat((view, newline.expand(len(view), 1, -1)), dim=1).flatten(0, 1)

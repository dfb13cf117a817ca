"""SAM-B as DeepSeek-VL v1 uses it: the high-resolution half of the hybrid tower.

A ViT with windowed attention (a few blocks attend globally) and decomposed relative positions
(Segment Anything, arXiv 2304.02643; positions from MViTv2, arXiv 2112.01526), a convolutional neck,
and two stride-2 convolutions that bring a 1024-pixel picture to 24 x 24 features of width 1024
(DeepSeek-VL, arXiv 2403.05525, section 2.1). A second neck takes the output of the first global
block; its features are added with a learned weight that starts at 0. Parameter names are those of
the v1 checkpoints below `vision_tower_high.vision_tower.`.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vl2.config import SamConfig
from vl2.model.linear import Linear

EPS = 1e-6
"""Epsilon of every LayerNorm in the tower."""


def relative_rows(
    table: Float[Tensor, "distances d"], size: int
) -> Float[Tensor, "{size} {size} d"]:
    """Rows of a relative-position table for every pair of coordinates on one axis.

    Args:
        table: one row per distance from -(n-1) to n-1. Another length than `2 * size - 1` is
            resampled linearly in float32, as SAM does for a picture of another size.
        size: positions on the axis.

    Returns:
        Entry [q, k] is the row of distance q - k.
    """
    wanted = 2 * size - 1
    if table.shape[0] != wanted:
        resampled = F.interpolate(table.float().T[None], size=wanted, mode="linear")
        table = resampled[0].T.to(table.dtype)
    at = torch.arange(size, device=table.device)
    return table[at[:, None] - at + size - 1]


def position_attention(
    query: Float[Tensor, "n heads positions d"],
    key: Float[Tensor, "n heads positions d"],
    value: Float[Tensor, "n heads positions d"],
    rows_h: Float[Tensor, "side side d"],
    rows_w: Float[Tensor, "side side d"],
) -> Float[Tensor, "n heads positions d"]:
    """Softmax attention over a square map with decomposed relative positions.

    The bias of a pair is one number by row and one by column, so it is itself a dot product: the
    query carries its term for every row and column, the key marks its own row and column with ones.
    No [positions, positions] bias is ever stored: one 1024-pixel picture through SAM-B in float32
    takes 1.1 GB instead of 2.4 GB, with gradients 4.8 GB instead of 9.1 GB, at no loss of speed.
    """
    side, width = rows_h.shape[0], query.shape[-1]
    by_row, by_column = _position_terms(query, rows_h, rows_w)
    query = torch.cat((query * width**-0.5, by_row.flatten(2, 3), by_column.flatten(2, 3)), dim=-1)
    own = torch.eye(side, dtype=key.dtype, device=key.device)
    marks = torch.cat((own.repeat_interleave(side, dim=0), own.repeat(side, 1)), dim=-1)
    key = torch.cat((key, marks.expand(*key.shape[:2], -1, -1)), dim=-1)
    value = F.pad(value, (0, 2 * side))  # fused kernels want one width for all three
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :width]


def position_attention_ref(
    query: Float[Tensor, "n heads positions d"],
    key: Float[Tensor, "n heads positions d"],
    value: Float[Tensor, "n heads positions d"],
    rows_h: Float[Tensor, "side side d"],
    rows_w: Float[Tensor, "side side d"],
) -> Float[Tensor, "n heads positions d"]:
    """Plain twin of `position_attention`: the bias in full, everything in float32."""
    query, key = query.float(), key.float()
    by_row, by_column = _position_terms(query, rows_h.float(), rows_w.float())
    bias = (by_row[..., :, None] + by_column[..., None, :]).flatten(4, 5).flatten(2, 3)
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5 + bias
    return (scores.softmax(-1) @ value.float()).to(value.dtype)


def _position_terms(query: Tensor, rows_h: Tensor, rows_w: Tensor) -> tuple[Tensor, Tensor]:
    """[n, heads, y, x, k]: what the unscaled query at (y, x) adds to row k, and to column k."""
    side = rows_h.shape[0]
    grid = query.unflatten(2, (side, side))
    by_row = torch.einsum("nhyxd,ykd->nhyxk", grid, rows_h)
    return by_row, torch.einsum("nhyxd,xkd->nhyxk", grid, rows_w)


def split_windows(
    x: Float[Tensor, "n side side c"], window: int
) -> Float[Tensor, "windows {window} {window} c"]:
    """Cut a map into windows, padded right and bottom with zeros up to a multiple of `window`.

    SAM attends to the padding as to any other position: there is no mask.
    """
    side, width = x.shape[1], x.shape[3]
    pad = -side % window
    x = F.pad(x, (0, 0, 0, pad, 0, pad))
    per_side = (side + pad) // window
    x = x.reshape(-1, per_side, window, per_side, window, width).transpose(2, 3)
    return x.reshape(-1, window, window, width)


def join_windows(
    windows: Float[Tensor, "windows window window c"], side: int
) -> Float[Tensor, "n {side} {side} c"]:
    """Undo `split_windows` and drop its padding."""
    window, width = windows.shape[1], windows.shape[3]
    per_side = -(-side // window)
    x = windows.reshape(-1, per_side, per_side, window, window, width).transpose(2, 3)
    return x.reshape(-1, per_side * window, per_side * window, width)[:, :side, :side]


class PatchEmbed(nn.Module):
    """Pixels to a channels-last map of patches."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.proj = nn.Conv2d(3, config.width, kernel_size=patch, stride=patch)

    def forward(self, images: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n side side c"]:
        """Embed every patch."""
        return self.proj(images).permute(0, 2, 3, 1)


class Attention(nn.Module):
    """Self-attention over a square map; its position tables are made for `table_side` a side."""

    def __init__(self, config: SamConfig, table_side: int) -> None:
        super().__init__()
        self.heads = config.heads
        head_dim = config.width // config.heads
        self.qkv = Linear(config.width, 3 * config.width)
        self.proj = Linear(config.width, config.width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * table_side - 1, head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * table_side - 1, head_dim))

    def forward(self, x: Float[Tensor, "n side side c"]) -> Float[Tensor, "n side side c"]:
        """Attend within each map."""
        side = x.shape[1]
        qkv = self.qkv(x.flatten(1, 2)).unflatten(2, (3, self.heads, -1))  # (n, P, 3, heads, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        rows_h, rows_w = relative_rows(self.rel_pos_h, side), relative_rows(self.rel_pos_w, side)
        mixed = position_attention(query, key, value, rows_h, rows_w)
        return self.proj(mixed.transpose(1, 2).reshape(x.shape))


class Mlp(nn.Module):
    """Two linear layers with exact GELU."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.lin1 = Linear(config.width, hidden)
        self.lin2 = Linear(hidden, config.width)

    def forward(self, x: Float[Tensor, "n side side c"]) -> Float[Tensor, "n side side c"]:
        """Mix channels."""
        return self.lin2(F.gelu(self.lin1(x)))


class Block(nn.Module):
    """Pre-norm block. `window == 0` attends over the whole map."""

    def __init__(self, config: SamConfig, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(config.width, eps=EPS)
        self.attn = Attention(config, window or config.image_size // config.patch_size)
        self.norm2 = nn.LayerNorm(config.width, eps=EPS)
        self.mlp = Mlp(config)

    def forward(self, x: Float[Tensor, "n side side c"]) -> Float[Tensor, "n side side c"]:
        """Attention and MLP, each added to its input."""
        normed = self.norm1(x)
        if self.window:
            mixed = join_windows(self.attn(split_windows(normed, self.window)), x.shape[1])
        else:
            mixed = self.attn(normed)
        x = x + mixed
        return x + self.mlp(self.norm2(x))


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of a channels-first map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Normalise every position."""
        last = x.permute(0, 2, 3, 1)
        normed = F.layer_norm(last, self.weight.shape, self.weight, self.bias, EPS)
        return normed.permute(0, 3, 1, 2)


def make_neck(config: SamConfig) -> nn.Sequential:
    """SAM's neck: 1x1 and 3x3 convolution without bias, a LayerNorm after each."""
    channels = config.neck_channels
    return nn.Sequential(
        nn.Conv2d(config.width, channels, kernel_size=1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(channels),
    )


def make_downsamples(config: SamConfig) -> nn.Sequential:
    """One 3x3 convolution of stride 2 without bias per entry of `downsample_channels`."""
    widths = (config.neck_channels, *config.downsample_channels)
    return nn.Sequential(
        *(
            nn.Conv2d(inner, outer, kernel_size=3, stride=2, padding=1, bias=False)
            for inner, outer in itertools.pairwise(widths)
        )
    )


def output_width(config: SamConfig) -> int:
    """Channels of the tower's features: 1024 in v1."""
    return (config.neck_channels, *config.downsample_channels)[-1]


def output_side(config: SamConfig, image_size: int) -> int:
    """Features along one side: 24 for 1024 pixels.

    v1 stretches the 64 x 64 neck output to 96 x 96, that is by 1.5, before its two halvings.
    """
    side = image_size // config.patch_size * 3 // 2
    for _ in config.downsample_channels:
        side = (side + 1) // 2
    return side


class SamTower(nn.Module):
    """SAM-B with the v1 neck, downsampling and extra branch.

    `forward(images [n, 3, S, S])` takes pixels normalised with CLIP's mean and deviation and gives
    `[n, side * side, C]`, `side = output_side(config, S)` and `C = output_width(config)`: for v1 at
    1024 pixels [n, 576, 1024]. S may differ from `config.image_size` (position tables are
    resampled), but must be a multiple of the patch size.
    """

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        check_config(config)
        self.config = config
        side = config.image_size // config.patch_size
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, config.width))
        self.blocks = nn.ModuleList(
            Block(config, 0 if layer in config.global_attn_indexes else config.window_size)
            for layer in range(config.layers)
        )
        self.neck = make_neck(config)
        self.neck_hd = make_neck(config)
        self.downsamples = make_downsamples(config)
        self.hd_alpha_downsamples = nn.Parameter(torch.zeros(1))

    def forward(self, images: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n positions c"]:
        """Encode CLIP-normalised pictures.

        Raises:
            ValueError: the pictures are not square with a side of whole patches.
        """
        self._check_size(*images.shape[-2:])
        early, last = self._encode(images)
        features = self._downsample(self.neck(last))
        features = features + self._downsample(self.neck_hd(early)) * self.hd_alpha_downsamples
        return features.flatten(2).transpose(1, 2)

    def _check_size(self, height: int, width: int) -> None:
        patch, usual = self.config.patch_size, self.config.image_size
        if height != width or height % patch:
            raise ValueError(
                f"SAM picture of {height}x{width} pixels: expected a square of whole "
                f"{patch}-pixel patches; use {usual}x{usual}"
            )

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Channels-first maps after the first global block and after the last block."""
        x = self.patch_embed(images)
        x = x + self._positions(x.shape[1]).to(x.dtype)
        until = min(self.config.global_attn_indexes) + 1
        for block in self.blocks[:until]:
            x = block(x)
        early = x
        for block in self.blocks[until:]:
            x = block(x)
        return early.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2)

    def _positions(self, side: int) -> Tensor:
        """Absolute positions, resampled bicubically in float32 for another picture size."""
        if side == self.pos_embed.shape[1]:
            return self.pos_embed
        first = self.pos_embed.permute(0, 3, 1, 2).float()
        return F.interpolate(
            first, size=(side, side), mode="bicubic", antialias=True, align_corners=False
        ).permute(0, 2, 3, 1)

    def _downsample(self, x: Tensor) -> Tensor:
        """Stretch by 1.5 in float32, as v1 does, then the stride-2 convolutions."""
        side = x.shape[-1] * 3 // 2
        stretched = F.interpolate(
            x.float(), size=(side, side), mode="bilinear", align_corners=False
        )
        return self.downsamples(stretched.to(x.dtype))


def check_config(config: SamConfig) -> None:
    """Refuse a section the tower cannot be built from.

    Raises:
        ValueError: names the field, what was expected and the remedy.
    """
    if config.width % config.heads:
        raise ValueError(
            f"sam.width is {config.width}: expected a multiple of sam.heads = {config.heads}"
        )
    if config.image_size % config.patch_size:
        raise ValueError(
            f"sam.image_size is {config.image_size}: expected a multiple of sam.patch_size = "
            f"{config.patch_size}"
        )
    if config.window_size < 1:
        raise ValueError(f"sam.window_size is {config.window_size}: expected at least 1")
    layers = config.global_attn_indexes
    if not layers or not all(0 <= layer < config.layers for layer in layers):
        raise ValueError(
            f"sam.global_attn_indexes is {layers}: "
            f"give at least one layer of 0..{config.layers - 1}"
        )


def trainable_v1(name: str) -> bool:
    """Whether v1 trains this parameter of a high tower that is not frozen.

    v1 updates only the parts that SAM's pre-training did not fix: names with `neck` (both necks)
    or `downsamples` (the convolutions and `hd_alpha_downsamples`).
    """
    return "neck" in name or "downsamples" in name

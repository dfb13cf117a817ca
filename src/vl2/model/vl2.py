"""The whole model: vision tower, adaptor, language model, and how a picture enters the prompt."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vl2.config import VL2Config
from vl2.geometry import TileGrid
from vl2.model.adaptor import Adaptor, arrange_tokens
from vl2.model.hybrid import HybridProjector, encode_high
from vl2.model.init import init_weights
from vl2.model.language import Language, LanguageOutput
from vl2.model.sam import SamTower
from vl2.model.siglip import SiglipTower
from vl2.ops.loss import next_token_loss
from vl2.ops.moe import balance_loss
from vl2.ops.transfer import send

Positions = Literal["all", "last", "none"]
"""For which positions logits are computed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOutput:
    """Result of one forward pass."""

    logits: Tensor | None  # float32 [b, t or 1, vocab]
    loss: Tensor | None  # next-token loss when labels are given, without the balance loss
    balance_loss: Tensor | None  # sum over MoE layers, in training mode only
    language: LanguageOutput


class VL2Model(nn.Module):
    """DeepSeek-VL2. Parameter names are the released ones; routed experts are stacked."""

    def __init__(self, config: VL2Config) -> None:
        super().__init__()
        self.config = config
        hidden = config.language_config.hidden_size
        self.vision = SiglipTower(config.vision_config)
        self.projector = Adaptor(config.projector_config)
        self.language = Language(config.language_config)
        sam = config.vision_config.sam  # given with tower == "hybrid" only
        self.vision_high = SamTower(sam) if sam else None
        self.projector_high = HybridProjector.from_config(config) if sam else None
        self.image_newline = nn.Parameter(torch.empty(hidden))
        self.view_seperator = nn.Parameter(torch.empty(hidden))  # sic: the released name

    @property
    def device(self) -> torch.device:
        """Where the weights lie, and where a batch must be: `model(**batch.to(model.device))`."""
        return self.image_newline.device

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter and buffer by the table in model/init.py."""
        init_weights(self, self.config, generator)

    def encode_images(
        self,
        images: Float[Tensor, "b n 3 hh ww"],
        images_spatial_crop: Int[Tensor, "b i 2"],
        images_high: Float[Tensor, "m 3 s s"] | None = None,
    ) -> list[Tensor]:
        """Token sequence [t, h] of every real picture of the batch, in order.

        `images_high` are the same m pictures for the hybrid tower, see `hybrid.encode_high`.

        Raises:
            ValueError: `images_high` does not fit the pictures or the tower.
        """
        pictures = _split_pictures(images, images_spatial_crop)
        if images_high is not None:
            _check_high(images_high, len(pictures), self.config.vision_config.tower)
        if not pictures:
            return []
        return [
            arrange_tokens(
                views,
                grid,
                newline=self.image_newline,
                separator=self.view_seperator,
                global_first=self.config.global_view_pos == "head",
            )
            for views, (_, grid) in zip(
                self._encode_views(pictures, images_high), pictures, strict=True
            )
        ]

    def _encode_views(
        self, pictures: list[tuple[Tensor, TileGrid]], images_high: Tensor | None
    ) -> list[Tensor]:
        """Tokens [tiles, q, h] of each picture, the global view first.

        A picture of one tile has a local tile equal to its global view; such a pair is encoded once
        (the official code encodes it twice).
        """
        repeats = [grid.tiles == 2 and torch.equal(t[0], t[1]) for t, grid in pictures]
        needed = [t[:1] if same else t for (t, _), same in zip(pictures, repeats, strict=True)]
        counts = [len(t) for t in needed]
        flag = self.image_newline
        tiles = send(torch.cat(needed), flag.device).to(flag.dtype)
        features = self.vision(tiles)
        parts = self.projector(features).split(counts)
        views = [p.expand(g.tiles, -1, -1) for p, (_, g) in zip(parts, pictures, strict=True)]
        if self.vision_high is None or self.projector_high is None:
            return views
        first = list(itertools.accumulate(counts[:-1], initial=0))
        high = encode_high(self.vision_high, tiles[first], images_high)
        fused = self.projector_high(high, features[first])
        return [torch.cat((f[None], v[1:])) for f, v in zip(fused, views, strict=True)]

    def embed_inputs(
        self,
        input_ids: Int[Tensor, "b t"],
        images: Float[Tensor, "b n 3 hh ww"] | None = None,
        images_seq_mask: Bool[Tensor, "b t"] | None = None,
        images_spatial_crop: Int[Tensor, "b i 2"] | None = None,
        images_high: Float[Tensor, "m 3 s s"] | None = None,
    ) -> Float[Tensor, "b t h"]:
        """Token embeddings with picture features in place of the placeholders.

        What is about pictures may be on the host: a card that has it has to be asked for it.

        Raises:
            ValueError: the number of placeholders differs from the number of features.
        """
        embeds = self.language.embed(input_ids)
        if images is None or images_seq_mask is None or images_spatial_crop is None:
            return embeds
        features = self.encode_images(images, images_spatial_crop, images_high)
        count, places = sum(len(f) for f in features), int(images_seq_mask.sum())
        if count != places:
            raise ValueError(
                f"{places} image placeholders for {count} image features: "
                "build inputs with the processor of this model"
            )
        if not features:
            return embeds
        flat = torch.cat(features).to(embeds.dtype)
        return embeds.masked_scatter(send(images_seq_mask, embeds.device)[..., None], flat)

    def forward(  # noqa: PLR0913 - the one entry point; all but the official five are keywords
        self,
        input_ids: Int[Tensor, "b t"],
        images: Float[Tensor, "b n 3 hh ww"] | None = None,
        images_seq_mask: Bool[Tensor, "b t"] | None = None,
        images_spatial_crop: Int[Tensor, "b i 2"] | None = None,
        *,
        images_high: Float[Tensor, "m 3 s s"] | None = None,
        attention_mask: Int[Tensor, "b t"] | Bool[Tensor, "b t"] | None = None,
        labels: Int[Tensor, "b t"] | None = None,
        position_ids: Int[Tensor, "b t"] | None = None,
        segment_ids: Int[Tensor, "b t"] | None = None,
        logits: Positions = "all",
        keep_states: bool = False,
    ) -> ModelOutput:
        """Logits of a batch, and its loss when labels are given.

        Args:
            input_ids: with the id of `<image>` at every placeholder.
            images: tiles, global view first, zero-padded: [b, tiles, 3, image_size, image_size].
            images_seq_mask: True at placeholders.
            images_spatial_crop: (tiles wide, tiles high) per picture; zero rows are padding.
            images_high: every picture at high resolution, for the hybrid tower only.
            attention_mask: 1 where a token is real; padding may stand left or right.
            labels: next-token targets at their own positions, -100 where nothing is learnt.
            position_ids: rotary positions; by default real tokens are counted from 0.
            segment_ids: documents packed into one row, see `ops.attention.decoder_mask`.
            logits: "all" positions as float32 [b, t, vocab], the "last" one, or "none".
            keep_states: also return every hidden state of the language model.

        Raises:
            ValueError: the placeholders do not match the pictures.
        """
        embeds = self.embed_inputs(
            input_ids, images, images_seq_mask, images_spatial_crop, images_high
        )
        out = self.language(
            embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            segment_ids=segment_ids,
            keep_states=keep_states,
        )
        loss = None
        if labels is not None:
            matrix = self.language.lm_head.weight
            head = matrix if isinstance(matrix, Tensor) else self.language.lm_head
            loss = next_token_loss(out.hidden, head, labels)
        hidden = out.hidden[:, -1:] if logits == "last" else out.hidden
        return ModelOutput(
            logits=None if logits == "none" else self.language.logits(hidden),
            loss=loss,
            balance_loss=self._balance_loss(out, attention_mask) if self.training else None,
            language=out,
        )

    def _balance_loss(self, out: LanguageOutput, mask: Tensor | None) -> Float[Tensor, ""]:
        """Sum of the MoE layers' balance losses over real tokens."""
        real = out.hidden.new_ones(out.hidden.shape[:2], dtype=torch.bool)
        real = real if mask is None else mask.bool()
        parts = [balance_loss(r, real, self.config.language_config) for r in out.routing]
        return torch.stack(parts).sum() if parts else out.hidden.new_zeros((), dtype=torch.float32)


def _split_pictures(images: Tensor, crops: Tensor) -> list[tuple[Tensor, TileGrid]]:
    """The tiles [1 + wide * high, 3, h, w] and grid of each real picture of the batch, in order."""
    pictures = []
    for tiles, rows in zip(images, crops.tolist(), strict=True):
        start = 0
        for wide, high in rows:
            if wide < 1 or high < 1:
                continue
            grid = TileGrid(wide=wide, high=high)
            pictures.append((tiles[start : start + grid.tiles], grid))
            start += grid.tiles
    return pictures


def _check_high(images_high: Tensor, pictures: int, tower: str) -> None:
    if tower != "hybrid":
        raise ValueError(f"images_high given to a {tower!r} tower: only the hybrid tower takes it")
    if len(images_high) != pictures:
        raise ValueError(
            f"images_high has {len(images_high)} pictures, images_spatial_crop {pictures}: "
            "give one high-resolution picture per real row of images_spatial_crop, in order"
        )

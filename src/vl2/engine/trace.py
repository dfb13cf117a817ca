"""How an answer was made inside: experts of picture tiles and tokens, attention to the pictures.

Each answer token is told by the row from which it was chosen, that of the token before it. Nothing
here needs torch; recording.py reads what is kept out of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray

from vl2.config import VL2Config
from vl2.geometry import Resolution, TileGrid, global_tokens, local_tokens

LARGEST = 2**25
"""Bytes of attention in one trace, which passes between processes as one message of JSON."""

MOST = 255
"""Experts of a layer, and tokens of a tile, that bytes can number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceShape:
    """What all traces of a model share.

    Attributes:
        layers: numbers of the layers that have routed experts.
        experts: routed experts of each.
        per_token: those that a token uses.
        side: of a tile in tokens.
        global_first: whether the global view stands before the mosaic.
    """

    layers: tuple[int, ...]
    experts: int
    per_token: int
    side: int
    global_first: bool

    @classmethod
    def of(cls, config: VL2Config, side: int) -> TraceShape:
        """Of a model whose tiles have `side` x `side` tokens."""
        language = config.language_config
        every = range(language.num_hidden_layers)
        layers = tuple(layer for layer in every if language.is_moe_layer(layer))
        return cls(
            layers=layers,
            experts=language.n_routed_experts or 0 if layers else 0,
            per_token=language.num_experts_per_tok or 0 if layers else 0,
            side=side,
            global_first=config.global_view_pos == "head",
        )

    def check(self, tokens: int, places: int) -> None:
        """Refuse what a trace cannot tell of: so many tokens of an answer to so many of pictures.

        Raises:
            ValueError: the model has too many experts or tiles of too many tokens, or the trace
                would be too large.
        """
        if tokens * places > LARGEST:
            raise ValueError(
                f"trace is True: {tokens:,} tokens of an answer to {places:,} of pictures take "
                f"{tokens * places:,} bytes: expected at most {LARGEST:,}; give a smaller "
                "max_tokens"
            )
        if max(self.experts, self.side**2) > MOST:
            raise ValueError(
                f"trace is True: expected a model of at most {MOST} experts in a layer and as many "
                f"tokens in a tile, this one has {self.experts} and {self.side**2}; leave it out"
            )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PictureTrace:
    """One picture of a prompt.

    Attributes:
        grid: its tiles.
        sent: (width, height) as it was sent; None where the inputs do not tell.
        tile_experts: tokens of a tile that an expert of a layer got, the global view first.
        overview: attention of each answer token to the global view.
        mosaic: the same to the local tiles, as they lie side by side.
    """

    grid: TileGrid
    sent: Resolution | None
    tile_experts: Int[ndarray, "tiles layers experts"]
    overview: Float[ndarray, "tokens side side"]
    mosaic: Float[ndarray, "tokens high wide"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trace:
    """One answer.

    Attributes:
        shape: of the model.
        spans: where each token stands in `Completion.text`.
        token_experts: those that the row of each token used, layer by layer.
        pictures: in order. Attention is the softmax over everything that the row sees, mean over
            heads and layers.
    """

    shape: TraceShape
    spans: tuple[tuple[int, int], ...]
    token_experts: UInt8[ndarray, "tokens layers k"]
    pictures: tuple[PictureTrace, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Viewed:
    """A picture in its prompt: the positions of its tokens."""

    grid: TileGrid
    sent: Resolution | None
    places: Sequence[int]


@dataclass(kw_only=True, slots=True, eq=False)
class TraceRecord:
    """What is kept while an answer is made. A row that is computed again is the same again.

    Attributes:
        shape: of the model.
        pictures: of the prompt.
        places: of all their tokens.
        experts: first position and experts [rows, layers, k] of the rows of a step.
        attention: to `places`, by the number of the answer token.
    """

    shape: TraceShape
    pictures: tuple[Viewed, ...]
    places: Sequence[int]
    experts: list[tuple[int, ndarray]] = field(default_factory=list)
    attention: dict[int, ndarray] = field(default_factory=dict)

    def trace(self, prompt: int, spans: Sequence[tuple[int, int]]) -> Trace:
        """The trace of a finished answer of so many tokens behind a prompt."""
        tokens, shape = len(spans), self.shape
        experts = np.zeros((prompt + tokens, len(shape.layers), shape.per_token), dtype=np.uint8)
        for first, rows in self.experts:
            rows = rows[: len(experts) - first]
            experts[first : first + len(rows)] = rows
        attention = np.zeros((tokens, len(self.places)), dtype=np.float32)
        for token in range(tokens):
            attention[token] = self.attention[token]
        pictures, first = [], 0
        for picture in self.pictures:
            end = first + len(picture.places)
            seen = attention[:, first:end], experts[list(picture.places)]
            pictures.append(_picture(picture, shape, *seen))
            first = end
        return Trace(
            shape=shape,
            spans=tuple(spans),
            token_experts=experts[prompt - 1 : prompt - 1 + tokens],
            pictures=tuple(pictures),
        )


def view_tokens(
    side: int, grid: TileGrid, *, global_first: bool
) -> tuple[Int[ndarray, "side side"], Int[ndarray, "high wide"]]:
    """Numbers of a picture's tokens where they lie in its global view and in its mosaic.

    Newlines and the separator lie in neither.
    """
    overview = np.arange(global_tokens(side)).reshape(side, side + 1)
    mosaic = np.arange(local_tokens(side, grid)).reshape(side * grid.high, side * grid.wide + 1)
    if global_first:
        mosaic = mosaic + overview.size + 1
    else:
        overview = overview + mosaic.size + 1
    return overview[:, :-1], mosaic[:, :-1]


def _picture(
    picture: Viewed, shape: TraceShape, attention: ndarray, experts: ndarray
) -> PictureTrace:
    grid, side = picture.grid, shape.side
    overview, mosaic = view_tokens(side, grid, global_first=shape.global_first)
    local = mosaic.reshape(grid.high, side, grid.wide, side).swapaxes(1, 2).reshape(-1, side**2)
    tiles = np.concatenate((overview.reshape(1, -1), local))
    return PictureTrace(
        grid=grid,
        sent=picture.sent,
        tile_experts=_counts(experts[tiles], shape.experts),
        overview=attention[:, overview],
        mosaic=attention[:, mosaic],
    )


def _counts(
    chosen: UInt8[ndarray, "tiles tokens layers k"], experts: int
) -> Int[ndarray, "tiles layers experts"]:
    """How many tokens of each tile chose each expert of each layer."""
    tiles, _, layers, _ = chosen.shape
    places = np.arange(tiles * layers).reshape(tiles, 1, layers, 1) * experts + chosen
    counts = np.bincount(places.ravel(), minlength=tiles * layers * experts)
    return counts.reshape(tiles, layers, experts)

"""A trace as compact JSON: arrays of bytes in base64, their shapes beside them."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import numpy as np
from numpy import ndarray

from vl2.engine.trace import PictureTrace, Trace
from vl2.geometry import Resolution, padded_area, token_edges
from vl2.processing.processor import Processor

Json = dict[str, Any]


def trace_json(trace: Trace, processor: Processor) -> Json:
    """What `message.trace` holds, see docs/serving.md; `tokens` are spans of the text with marks.

    Attention to each picture token is a byte: 255 is the token's `scale`, the most of all pictures.
    """
    tokens = len(trace.spans)
    scale = np.zeros(tokens, dtype=np.float32)
    for picture in trace.pictures:
        for view in (picture.overview, picture.mosaic):
            scale = np.maximum(scale, view.reshape(tokens, -1).max(axis=1))
    return {
        "tokens": [list(span) for span in trace.spans],
        "layers": list(trace.shape.layers),
        "experts": trace.shape.experts,
        "experts_per_token": trace.shape.per_token,
        "token_experts": _bytes(trace.token_experts),
        "scale": [float(f"{value:.6g}") for value in scale],
        "pictures": [_picture(picture, scale, processor) for picture in trace.pictures],
    }


def _picture(picture: PictureTrace, scale: ndarray, processor: Processor) -> Json:
    grid, layout, config = picture.grid, processor.layout, processor.config
    size = layout.image_size
    edges = token_edges(size, config.patch_size, config.downsample_ratio)
    return {
        "tiles_wide": grid.wide,
        "tiles_high": grid.high,
        "side": layout.side,
        "edges": [round(edge / size, 5) for edge in edges],
        "tile_experts": _bytes(picture.tile_experts),
        "overview": _view(picture.overview, scale, picture.sent, layout.one_tile),
        "mosaic": _view(picture.mosaic, scale, picture.sent, (grid.wide * size, grid.high * size)),
    }


def _view(weights: ndarray, scale: ndarray, sent: Resolution | None, canvas: Resolution) -> Json:
    area = padded_area(sent, canvas) if sent else (0, 0, *canvas)
    whole = (*canvas, *canvas)
    shares = weights / np.maximum(scale, np.finfo(np.float32).tiny)[:, None, None]
    return {
        "area": [round(edge / side, 5) for edge, side in zip(area, whole, strict=True)],
        "attention": _bytes((shares * 255).round()),
    }


def _bytes(values: ndarray) -> str:
    return b64encode(values.astype(np.uint8).tobytes()).decode()

"""What a command says when memory ran out."""

from __future__ import annotations

OUT_OF_MEMORY = (
    "out of memory: use a smaller model, --quantization int4 or a shorter text; "
    "vl2 plan MODEL --memory SIZE shows what fits"
)

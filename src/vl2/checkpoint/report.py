"""The report on a model: its config, counts and files, as plain data for `vl2 inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vl2.checkpoint.container import StoredTensor
from vl2.checkpoint.count import (
    WEIGHT_FORMS,
    count_parameters,
    grid_tokens,
    kv_bytes_per_token,
    model_shapes,
    weight_bytes,
)
from vl2.checkpoint.folder import has_weights
from vl2.checkpoint.load import open_checkpoint
from vl2.config import VL2Config
from vl2.model_folder import EMBEDDED, has_embedded, resolve
from vl2.presets import preset_of


def find_config(model: str) -> tuple[VL2Config, Path | None]:
    """The config of a preset name (tiny, small, base, nano), folder or hub id, and its folder.

    A preset and the hub id of a released size need no files and have no folder, but for "nano"
    where the package carries it. Of another hub model only the description is fetched. A folder
    called like a preset is meant by "./tiny".

    Raises:
        ValueError: nothing is there, or config.json is wrong.
    """
    preset = preset_of(model)
    if preset is not None and not (model == EMBEDDED and has_embedded()):
        return VL2Config.preset(preset), None
    folder = resolve(model, weights=False)
    return VL2Config.from_pretrained(folder), folder


def describe(model: str) -> dict[str, Any]:
    """What `vl2 inspect` shows, as plain data; no weights are read.

    Raises:
        ValueError: there is no such model, or its files do not fit its config.
    """
    config, folder = find_config(model)
    shapes = model_shapes(config)
    count = count_parameters(config, shapes)
    return {
        "model": model,
        "config": _summary(config),
        "parameters": {
            "total": count.total,
            "active": count.active,
            "language_active": count.language_active,
            "vision": count.vision,
            "vision_pool_head_unused": count.vision_head,
            "projector": count.projector,
            "language": count.language,
        },
        "released_tensors": count.tensors,
        "weight_bytes": {scheme.name: weight_bytes(shapes, scheme) for scheme in WEIGHT_FORMS},
        "kv_bytes_per_token": {
            scheme.name: kv_bytes_per_token(config.language_config, scheme.rest)
            for scheme in WEIGHT_FORMS[:2]
        },
        "image_tokens": {f"{g.wide}x{g.high}": g.tokens for g in grid_tokens(config)},
        "files": _files(folder) if folder is not None and has_weights(folder) else None,
    }


def stored_bytes(tensors: Iterable[StoredTensor]) -> dict[str, int]:
    """Bytes on disk per dtype, most first."""
    count: Counter[str] = Counter()
    for tensor in tensors:
        count[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
    return dict(count.most_common())


def _files(folder: Path) -> dict[str, Any]:
    """Bytes per dtype and file of weights that are whole and fit the config."""
    stored = [tensor for tensor, _ in open_checkpoint(folder).places]
    return {
        "folder": str(folder),
        "weights": sorted({tensor.file.name for tensor in stored}),
        "tensors": len(stored),
        "bytes": stored_bytes(stored),
    }


def _summary(config: VL2Config) -> dict[str, Any]:
    language, vision = config.language_config, config.vision_config
    attention = f"MLA, rank {language.kv_lora_rank}" if language.use_mla else "multi-head"
    routed = language.n_routed_experts
    experts = (
        f"{routed} routed, {language.n_shared_experts or 0} shared, top "
        f"{language.num_experts_per_tok}, {language.scoring_func}, {language.topk_method}"
    )
    return {
        "vision": f"{vision.tower} tower, {vision.layers} layers of {vision.width}, "
        f"{vision.image_size}-pixel tiles of {vision.patch_size}-pixel patches",
        "language": f"{language.num_hidden_layers} layers of {language.hidden_size}, "
        f"vocabulary {language.vocab_size}",
        "attention": f"{attention}, {language.num_attention_heads} heads",
        "experts": experts if routed else "none",
        "context": language.max_position_embeddings,
        "dtype": config.torch_dtype,
    }

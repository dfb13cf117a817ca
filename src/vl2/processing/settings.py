"""`processor_config.json` with the released field names, and four settings of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from sys import float_info
from typing import Any

from vl2.config import VL2Config
from vl2.config_checks import check_resolutions
from vl2.geometry import Resolution
from vl2.logs import get_logger
from vl2.model_folder import no_model
from vl2.processing.image_gate import MAX_PIXELS, MOST_PIXELS
from vl2.processing.tokenizer import SPECIAL_TOKENS
from vl2.ranges import plain_number

FILE = "processor_config.json"

log = get_logger(__name__)

_RANGES = (
    ("patch_size", 1, 2**10),
    ("downsample_ratio", 1, 64),
    ("max_tiled_images", 0, 2**20),
    ("max_pixels", 1, MOST_PIXELS),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessorConfig:
    """Settings of a processor. Unknown fields of a file are kept in `extra` and written back."""

    candidate_resolutions: tuple[Resolution, ...]
    patch_size: int
    downsample_ratio: int
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    normalize: bool = True
    image_token: str = SPECIAL_TOKENS["image"]
    pad_token: str = SPECIAL_TOKENS["pad"]
    add_special_token: bool = False  # kept for the file; see Tokenizer(add_missing=...)
    sft_format: str = "deepseek"
    mask_prompt: bool = True  # the released files say false; training masks nevertheless
    ignore_id: int = -100
    processor_class: str = "DeepseekVLV2Processor"
    tiling: str = "released"  # ours: "content" spends fewer tiles where the picture allows it
    max_tiled_images: int = 2  # ours: a conversation of more pictures is not tiled; 2 as released
    max_pixels: int = MAX_PIXELS  # ours: most pixels of a picture that are decoded
    single_questions: bool = False  # ours: the model has learnt no conversations
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what a processor cannot be built from."""
        for name, allowed in (("sft_format", ("deepseek",)), ("tiling", ("released", "content"))):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r:.80}: expected {' or '.join(allowed)}"
                )
        for name, low, high in _RANGES:
            value = getattr(self, name)
            number = plain_number(value, whole=True)
            if number is None or not low <= number <= high:
                raise ValueError(f"{name} is {value!r:.80}: expected {low:,} to {high:,}")
            object.__setattr__(self, name, number)
        for name, low in (("image_mean", -1e6), ("image_std", 1e-6)):
            values = getattr(self, name)
            if len(values) != 3 or not all(low <= value <= 1e6 for value in values):
                raise ValueError(
                    f"{name} is {values!r:.80}: expected three numbers, one a channel, of at "
                    f"least {low}"
                )
        check_resolutions(self.candidate_resolutions)

    @classmethod
    def for_model(cls, model: VL2Config) -> ProcessorConfig:
        """The settings that follow from a model's configuration."""
        return cls(**_of_model(model))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ProcessorConfig:
        """Read the released JSON form; unknown fields are kept and reported.

        Raises:
            ValueError: a field is missing, of the wrong type or out of range.
        """
        kinds = {f.name: str(f.type) for f in fields(cls) if f.name != "extra"}
        known = {k: _checked(k, v, kinds[k]) for k, v in data.items() if k in kinds}
        missing = {"candidate_resolutions", "patch_size", "downsample_ratio"} - known.keys()
        if missing:
            raise ValueError(f"{FILE} lacks {', '.join(sorted(missing))}: copy it from config.json")
        extra = {k: v for k, v in data.items() if k not in kinds}
        if extra:
            log.info("%s: kept but not used: %s", FILE, ", ".join(sorted(extra)))
        return cls(**known, extra=extra)

    @classmethod
    def from_pretrained(cls, folder: Path, model: VL2Config | None) -> ProcessorConfig:
        """Read a folder's file, or derive the settings from the model's configuration.

        Raises:
            ValueError: the file cannot be used, contradicts the model, or both are missing.
        """
        try:
            data = json.loads((folder / FILE).read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            if model is None:
                raise ValueError(no_model(folder)) from None
            return cls.for_model(model)
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{folder / FILE} cannot be read as JSON: {error}") from None
        if not isinstance(data, dict):
            raise ValueError(f"{folder / FILE} holds {type(data).__name__}: expected a JSON object")
        config = cls.from_dict(data)
        for name, value in _of_model(model).items() if model else ():
            if getattr(config, name) != value:
                raise ValueError(
                    f"{name} is {getattr(config, name)!r:.80} in {FILE} but {value!r:.80} in "
                    "config.json: "
                    "the processor and the model must agree"
                )
        return config

    def to_dict(self) -> dict[str, Any]:
        """The released JSON form; our settings only where they differ from the release."""
        ours = {
            "tiling": "released",
            "max_tiled_images": 2,
            "max_pixels": MAX_PIXELS,
            "single_questions": False,
        }
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        kept = {k: v for k, v in named.items() if k not in ours or v != ours[k]}
        return {**kept, **self.extra}

    def save(self, folder: str | Path) -> None:
        """Write `processor_config.json` into `folder`."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        (Path(folder) / FILE).write_text(text, encoding="utf-8")


def _of_model(model: VL2Config) -> dict[str, Any]:
    return {
        "candidate_resolutions": model.candidate_resolutions,
        "patch_size": model.vision_config.patch_size,
        "downsample_ratio": model.projector_config.downsample_ratio,
    }


def _checked(name: str, value: Any, annotation: str) -> Any:
    """Lists as tuples; a JSON type that the field cannot hold is refused."""
    if annotation == "tuple[Resolution, ...]":
        fits = isinstance(value, list) and all(_is_pair(pair) for pair in value)
        wanted, value = "a list of [width, height]", tuple(map(tuple, value)) if fits else value
    elif annotation == "tuple[float, ...]":
        fits = isinstance(value, list) and all(_is_number(v) for v in value)
        wanted, value = "a list of numbers", tuple(map(float, value)) if fits else value
    else:
        wanted = annotation
        fits = type(value).__name__ == annotation
    if not fits:
        raise ValueError(f"{FILE}: {name} is {value!r:.80}: expected {wanted}")
    return value


def _is_number(value: Any) -> bool:
    """Whether it is a number that a float can be."""
    if isinstance(value, bool) or not isinstance(value, int):
        return isinstance(value, float)
    return abs(value) <= float_info.max


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value)

"""The processor: pictures and messages to model inputs, one class for asking and for training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vl2 import geometry
from vl2.config import VL2Config
from vl2.geometry import Resolution
from vl2.processing import conversation as talk
from vl2.processing.conversation import Prompt
from vl2.processing.image_gate import MESSAGES, REFERENCE, Admitted, ImagePolicy, Source, admit
from vl2.processing.inputs import Batch, ModelInputs, collate
from vl2.processing.tiling import TileLayout, Tiling, choose_canvas, cut_views, to_pixels
from vl2.processing.tokenizer import SPECIAL_TOKENS, Tokenizer

FILE = "processor_config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessorConfig:
    """`processor_config.json` with the released field names; unknown fields are kept in `extra`."""

    candidate_resolutions: tuple[Resolution, ...]
    patch_size: int
    downsample_ratio: int
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    normalize: bool = True
    image_token: str = SPECIAL_TOKENS["image"]
    pad_token: str = SPECIAL_TOKENS["pad"]
    add_special_token: bool = False
    sft_format: str = "deepseek"
    mask_prompt: bool = True
    ignore_id: int = -100
    processor_class: str = "DeepseekVLV2Processor"
    tiling: str = "released"  # ours: "content" spends fewer tiles where the picture allows it
    max_tiled_images: int = 2  # ours: with more pictures none is tiled; 2 as released
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ProcessorConfig:
        """Read the released JSON form."""
        names = {f.name for f in fields(cls)} - {"extra"}
        known = {k: _tuples(v) for k, v in data.items() if k in names}
        missing = {"candidate_resolutions", "patch_size", "downsample_ratio"} - known.keys()
        if missing:
            raise ValueError(f"{FILE} lacks {', '.join(sorted(missing))}: take them from config.json")
        return cls(**known, extra={k: v for k, v in data.items() if k not in names})

    def to_dict(self) -> dict[str, Any]:
        """The released JSON form."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {**named, **self.extra}


class Processor:
    """Images and messages to `ModelInputs`, by the released rules."""

    def __init__(self, tokenizer: Tokenizer, config: ProcessorConfig, *, image_size: int) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.layout = TileLayout(
            candidates=config.candidate_resolutions,
            image_size=image_size,
            side=geometry.tokens_per_side(image_size, config.patch_size, config.downsample_ratio),
            mean=config.image_mean,
            std=config.image_std,
            normalize=config.normalize,
        )

    @classmethod
    def from_pretrained(cls, path: str | Path, *, add_missing: bool = False) -> Processor:
        """Read processor_config.json (or, without it, config.json) and tokenizer.json of a folder."""
        folder = Path(str(resources.files("vl2") / "assets" / "nano")) if path == "nano" else Path(path)
        model = VL2Config.from_pretrained(folder) if (folder / "config.json").is_file() else None
        file = folder / FILE
        if file.is_file():
            config = ProcessorConfig.from_dict(json.loads(file.read_text(encoding="utf-8")))
        elif model is not None:
            config = config_for(model)
        else:
            raise ValueError(f"neither {FILE} nor config.json in {folder}: give a model folder")
        size = model.vision_config.image_size if model else config.candidate_resolutions[0][0]
        tokenizer = Tokenizer.from_pretrained(folder, add_missing=add_missing)
        return cls(tokenizer, config, image_size=size)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write processor_config.json and tokenizer.json into `folder`."""
        self.tokenizer.save(folder)
        text = json.dumps(self.config.to_dict(), indent=2, ensure_ascii=False) + "\n"
        (Path(folder) / FILE).write_text(text, encoding="utf-8")

    def __call__(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        *,
        mask_prompt: bool | None = True,
        allow_grounding_tokens: bool = False,
        policy: ImagePolicy = MESSAGES,
    ) -> ModelInputs:
        """Chat messages to inputs."""
        prompt = talk.from_messages(
            messages,
            self.tokenizer,
            add_generation_prompt=add_generation_prompt,
            allow_grounding_tokens=allow_grounding_tokens,
        )
        pictures = [admit(source, policy) for source in prompt.sources]
        return self._inputs(prompt, pictures, mask_prompt)

    def from_conversation(
        self,
        conversation: Sequence[Mapping[str, Any]],
        images: Sequence[Source],
        inference_mode: bool = True,
        *,
        mask_prompt: bool | None = True,
        policy: ImagePolicy = REFERENCE,
    ) -> ModelInputs:
        """The official format to inputs. Trusted: control strings in the text are obeyed."""
        prompt = talk.from_conversation(
            conversation, self.tokenizer, len(images), open_end=inference_mode
        )
        return self._inputs(prompt, [admit(source, policy) for source in images], mask_prompt)

    def collate(self, samples: Sequence[ModelInputs]) -> Batch:
        """Samples to one left-padded batch."""
        return collate(samples, pad_id=self.tokenizer.pad_id, ignore_id=self.config.ignore_id)

    def _inputs(
        self, prompt: Prompt, pictures: Sequence[Admitted], mask_prompt: bool | None
    ) -> ModelInputs:
        layout, config = self.layout, self.config
        images = [picture.image for picture in pictures]
        canvases = self._canvases(images)
        encoded = talk.encode(
            prompt,
            self.tokenizer,
            [layout.tokens(canvas) for canvas in canvases],
            mask_prompt=config.mask_prompt if mask_prompt is None else mask_prompt,
            ignore_id=config.ignore_id,
        )
        views = [v for i, c in zip(images, canvases, strict=True) for v in cut_views(i, c, layout)]
        grids = [layout.grid(canvas) for canvas in canvases]
        size = layout.image_size
        return ModelInputs(
            input_ids=torch.tensor(encoded.input_ids),
            labels=torch.tensor(encoded.labels),
            images=to_pixels(views, layout) if views else torch.zeros(1, 3, size, size),
            images_seq_mask=torch.tensor(encoded.image_mask),
            images_spatial_crop=torch.tensor([(g.wide, g.high) for g in grids] or [(0, 0)]),
            image_sizes=tuple(image.size for image in images),
            notes=tuple(note for picture in pictures for note in picture.notes),
        )

    def _canvases(self, images: Sequence[Image.Image]) -> list[Resolution]:
        size = self.layout.image_size
        if len(images) > self.config.max_tiled_images:
            return [(size, size)] * len(images)
        tiling: Tiling = "content" if self.config.tiling == "content" else "released"
        return [choose_canvas(image, self.layout, tiling) for image in images]


def config_for(model: VL2Config) -> ProcessorConfig:
    """The processor's settings that follow from a model's configuration."""
    return ProcessorConfig(
        candidate_resolutions=model.candidate_resolutions,
        patch_size=model.vision_config.patch_size,
        downsample_ratio=model.projector_config.downsample_ratio,
    )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value

"""The processor: pictures and messages to model inputs, the same for answering and for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vl2 import geometry
from vl2.config import VL2Config
from vl2.model_folder import resolve
from vl2.processing import conversation as talk
from vl2.processing.conversation import Message
from vl2.processing.image_gate import (
    MAX_PIXELS,
    MESSAGES,
    REFERENCE,
    ImagePolicy,
    PictureSource,
    admit,
)
from vl2.processing.inputs import Batch, ModelInputs, check_inputs, collate, to_pixels
from vl2.processing.layout import TileLayout
from vl2.processing.segments import Dialogue
from vl2.processing.settings import ProcessorConfig
from vl2.processing.tiling import Tiling, Views, draw_layout, views_of
from vl2.processing.tokenizer import Tokenizer

__all__ = ["Batch", "ModelInputs", "Processor", "ProcessorConfig"]


class Processor:
    """Pictures and messages to `ModelInputs` by the released rules.

    Attributes:
        tokenizer: text to ids and back.
        config: the settings; `with_settings` changes them.
        layout: tiles and token counts that follow from the settings.
    """

    def __init__(self, tokenizer: Tokenizer, config: ProcessorConfig, *, image_size: int) -> None:
        """Put the parts together.

        Args:
            tokenizer: of the model.
            config: of the model.
            image_size: side of a tile in pixels.
        """
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

    def __repr__(self) -> str:
        """Vocabulary, tiles and the rule that cuts pictures."""
        config = self.config
        return (
            f"Processor({self.tokenizer.vocab_size} tokens, "
            f"tiles of {self.layout.image_size} pixels, "
            f"tiling={config.tiling!r}, max_tiled_images={config.max_tiled_images})"
        )

    @classmethod
    def from_pretrained(cls, path: str | Path, *, add_missing: bool = False) -> Processor:
        """Read processor_config.json, config.json (one of them is enough) and tokenizer.json.

        Args:
            path: "nano" (the embedded model), a model folder, or a hub id.
            add_missing: give special tokens that the tokenizer lacks the next free ids.

        Raises:
            ValueError: a file is missing or cannot be used, or the two configurations disagree.
        """
        folder = resolve(path, weights=False)
        model = VL2Config.from_pretrained(folder) if (folder / "config.json").is_file() else None
        config = ProcessorConfig.from_pretrained(folder, model)
        names = {"image": config.image_token, "pad": config.pad_token}
        tokenizer = Tokenizer.from_pretrained(folder, add_missing=add_missing, names=names)
        size = model.vision_config.image_size if model else config.candidate_resolutions[0][0]
        return cls(tokenizer, config, image_size=size)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write processor_config.json and tokenizer.json into an existing folder."""
        self.config.save(folder)
        self.tokenizer.save(folder)

    def with_settings(
        self,
        *,
        tiling: Tiling | None = None,
        max_tiled_images: int | None = None,
        max_pixels: int | None = None,
    ) -> Processor:
        """The processor with another tiling rule or limit; None leaves a setting as it is.

        Args:
            tiling: "released" or "content".
            max_tiled_images: a conversation of more pictures is not tiled.
            max_pixels: most pixels of a picture that are decoded; a larger JPEG is decoded at
                reduced scale, any other picture is refused. A policy with its own limit goes first.
        """
        asked = {"tiling": tiling, "max_tiled_images": max_tiled_images, "max_pixels": max_pixels}
        config = replace(self.config, **{k: v for k, v in asked.items() if v is not None})
        return Processor(self.tokenizer, config, image_size=self.layout.image_size)

    def admission(self, policy: ImagePolicy) -> ImagePolicy:
        """The policy with this processor's limit of pixels, unless it has a limit of its own."""
        own = policy.max_pixels != MAX_PIXELS
        return policy if own else replace(policy, max_pixels=self.config.max_pixels)

    def __call__(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        mask_prompt: bool | None = True,
        allow_grounding_tokens: bool = False,
        policy: ImagePolicy = MESSAGES,
    ) -> ModelInputs:
        """Chat messages to inputs. Their text is not trusted: control strings in it stay text.

        Args:
            messages: {"role": "user" | "assistant" | "system", "content": str or parts}, with parts
                {"type": "text", "text"}, {"type": "image", "image": a `PictureSource` or `Views`},
                {"type": "image_url", "image_url": a data URL or {"url": it}} and
                {"type": "grounding", "query"}.
            add_generation_prompt: end where the model answers; False for training.
            mask_prompt: learn answers only; None takes the setting of processor_config.json.
            allow_grounding_tokens: let text use the five grounding tokens, and no others.
            policy: how pictures are admitted.

        Raises:
            ValueError: messages that do not follow the format.
            ImageError: (a ValueError) a picture is refused.
        """
        prompt = talk.from_messages(
            messages,
            self.tokenizer,
            add_generation_prompt=add_generation_prompt,
            allow_grounding_tokens=allow_grounding_tokens,
        )
        return self._inputs(prompt, policy, mask_prompt)

    def from_conversation(
        self,
        conversation: Sequence[Message],
        images: Sequence[PictureSource] | None = None,
        inference_mode: bool = True,
        *,
        mask_prompt: bool | None = True,
        policy: ImagePolicy = REFERENCE,
    ) -> ModelInputs:
        """The official repository's format to inputs. Trusted: control strings are obeyed.

        Args:
            conversation: {"role": "<|User|>" | "<|Assistant|>" | "system", "content": str}, with
                `<image>` in user text where a picture stands.
            images: the pictures in that order; None takes the ones that the messages name in
                "images", as the official examples do.
            inference_mode: end where the model answers; False for training.
            mask_prompt: learn answers only; None takes the setting of processor_config.json.
            policy: how pictures are admitted; as the official code does by default.

        Raises:
            ValueError: a conversation that does not follow the format, or whose `<image>` are not
                as many as the pictures.
            ImageError: (a ValueError) a picture is refused.
        """
        prompt = talk.from_conversation(
            conversation, self.tokenizer, images, open_end=inference_mode
        )
        return self._inputs(prompt, policy, mask_prompt)

    def from_document(
        self,
        text: str,
        images: Sequence[PictureSource] = (),
        inference_mode: bool = False,
        *,
        policy: ImagePolicy = REFERENCE,
    ) -> ModelInputs:
        """Plain or interleaved text for pretraining, all of it learnt. Trusted.

        Args:
            text: with `<image>` where a picture stands.
            images: the pictures in that order.
            inference_mode: leave the end open for the model.
            policy: how pictures are admitted.

        Raises:
            ValueError: `<image>` are not as many as the pictures.
            ImageError: (a ValueError) a picture is refused.
        """
        prompt = talk.from_document(text, self.tokenizer, images, open_end=inference_mode)
        return self._inputs(prompt, policy, True)

    def collate(self, samples: Sequence[ModelInputs]) -> Batch:
        """Samples to one batch, padded on the left.

        Raises:
            ValueError: no sample.
        """
        return collate(samples, pad_id=self.tokenizer.pad_id, ignore_id=self.config.ignore_id)

    def draw_layout(self, image: Image.Image, tiling: Tiling | None = None) -> Image.Image:
        """A drawing of how a single picture is cut, by this or another rule, with token counts."""
        return draw_layout(image.convert("RGB"), self.layout, tiling or self._tiling)

    @property
    def _tiling(self) -> Tiling:
        return "content" if self.config.tiling == "content" else "released"

    def _inputs(
        self, prompt: Dialogue, policy: ImagePolicy, mask_prompt: bool | None
    ) -> ModelInputs:
        layout, config = self.layout, self.config
        policy = self.admission(policy)
        whole = len(prompt.sources) > config.max_tiled_images
        views = [
            source
            if isinstance(source, Views)
            else views_of(admit(source, policy), layout, self._tiling, whole=whole)
            for source in prompt.sources
        ]
        encoded = talk.encode(
            prompt,
            self.tokenizer,
            [layout.tokens(view.canvas) for view in views],
            mask_prompt=config.mask_prompt if mask_prompt is None else mask_prompt,
            ignore_id=config.ignore_id,
        )
        tiles = np.concatenate([view.tiles for view in views]) if views else None
        grids = [layout.grid(view.canvas) for view in views]
        inputs = ModelInputs(
            input_ids=torch.tensor(encoded.input_ids),
            labels=torch.tensor(encoded.labels),
            images=torch.zeros(1, 3, *layout.one_tile)
            if tiles is None
            else to_pixels(tiles, layout),
            images_seq_mask=torch.tensor(encoded.image_mask),
            images_spatial_crop=torch.tensor([(g.wide, g.high) for g in grids] or [(0, 0)]),
            image_sizes=tuple(view.sent for view in views),
            notes=tuple(note for view in views for note in view.notes),
        )
        check_inputs(inputs, side=layout.side)
        return inputs

"""Records to model inputs, and their number of tokens from headers alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vl2 import geometry
from vl2.data.augment import Damage
from vl2.data.records import Record, RecordError
from vl2.data.source_pictures import TRAINING, picture_size
from vl2.data.source_record import Origin
from vl2.geometry import Resolution
from vl2.processing import conversation as talk
from vl2.processing.image_gate import ImagePolicy, open_image
from vl2.processing.inputs import ModelInputs
from vl2.processing.processor import Processor
from vl2.processing.tiling import choose_canvas


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordSize:
    """Tokens and tiles of a record."""

    tokens: int
    tiles: int  # of all pictures, global views included


def encode_record(
    record: Record,
    processor: Processor,
    *,
    mask_prompt: bool = True,
    damage: Damage | None = None,
) -> ModelInputs:
    """The inputs of a record. Its text is trusted: control strings in it are obeyed.

    Args:
        record: a conversation, of which answers are learnt, or a document, which is learnt whole.
        processor: of the model.
        mask_prompt: False learns questions, too.
        damage: spoils a share of the pictures.

    Raises:
        RecordError: a picture is refused or damaged, the text does not follow the format, or
            nothing of it would be learnt. The message names the record and its source.
    """
    policy = processor.admission(TRAINING)
    images = _decoded(record, policy)
    images = damage.of(images) if damage else images
    with _named(record):
        if record.document is not None:
            inputs = processor.from_document(record.document, images, policy=policy)
        else:
            inputs = processor.from_conversation(
                _messages(record),
                images,
                inference_mode=False,
                mask_prompt=mask_prompt,
                policy=policy,
            )
        _check_learnt(bool((inputs.labels[1:] != processor.config.ignore_id).any()))
    return inputs


def record_size(record: Record, processor: Processor, *, mask_prompt: bool = True) -> RecordSize:
    """Number of tokens and tiles that `encode_record` gives, from headers.

    Pictures are decoded only where the processor's tiling looks at their content.

    Raises:
        RecordError: as `encode_record`, as far as headers and text tell.
    """
    canvases = _canvases(record, processor)
    tokenizer, ignored = processor.tokenizer, processor.config.ignore_id
    with _named(record):
        if record.document is not None:
            prompt = talk.from_document(record.document, tokenizer, record.images, open_end=False)
        else:
            prompt = talk.from_conversation(
                _messages(record), tokenizer, record.images, open_end=False
            )
        encoded = talk.encode(
            prompt,
            tokenizer,
            [processor.layout.tokens(canvas) for canvas in canvases],
            mask_prompt=mask_prompt and record.document is None,
            ignore_id=ignored,
        )
        _check_learnt(any(label != ignored for label in encoded.labels[1:]))
    tiles = sum(processor.layout.grid(canvas).tiles for canvas in canvases)
    return RecordSize(tokens=len(encoded.input_ids), tiles=tiles)


def _messages(record: Record) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.text} for turn in record.turns]


def _check_learnt(learnt: bool) -> None:
    """The first label is left out: it is of BOS, which nothing comes before."""
    if not learnt:
        raise ValueError("it has no answers, so nothing would be learned from it")


def _decoded(record: Record, policy: ImagePolicy) -> list[Image.Image]:
    images = []
    for number, source in enumerate(record.images, start=1):
        with _named(record, picture=number):
            images.append(open_image(source, policy))
    return images


def _canvases(record: Record, processor: Processor) -> list[Resolution]:
    layout, config = processor.layout, processor.config
    policy = processor.admission(TRAINING)
    tiled = len(record.images) <= config.max_tiled_images
    canvases = []
    for number, source in enumerate(record.images, start=1):
        with _named(record, picture=number):
            if tiled and config.tiling == "content":
                canvas = choose_canvas(open_image(source, policy), layout, "content")
            else:
                size = picture_size(source, policy, decoded=True)
                canvas = geometry.select_resolution(size, layout.candidates)
        canvases.append(canvas if tiled else layout.one_tile)
    return canvases


@contextmanager
def _named(record: Record, *, picture: int = 0) -> Iterator[None]:
    """Turn an error into a `RecordError` that names the record, and the picture by its number."""
    try:
        yield
    except RecordError:
        raise
    except ValueError as error:
        told = f"picture {picture}" if picture else ""
        if picture and isinstance(source := record.images[picture - 1], Path):
            told += f": {source}"
        origin = Origin(source=record.source, id=record.id)
        raise origin.error(str(error), picture=told) from None

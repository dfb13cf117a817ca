"""Records to model inputs: what is learnt, how many tokens it takes, what is refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vl2
from vl2.data.augment import Damage, damaged
from vl2.data.encode import encode_record, record_size
from vl2.data.records import Record, RecordError, Turn
from vl2.data.source_pictures import TRAINING, picture_size
from vl2.processing.image_gate import open_image


@pytest.fixture(scope="module")
def processor() -> vl2.Processor:
    return vl2.Processor.from_pretrained("nano").with_settings(max_tiled_images=2)


def picture(size: tuple[int, int] = (90, 60), kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "orange").save(file, kind, **options)
    return file.getvalue()


def noise(size: tuple[int, int] = (200, 150)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def record(*texts: str, images: tuple[bytes | Path, ...] = ()) -> Record:
    roles = ("user", "assistant") * len(texts)
    turns = tuple(Turn(role=r, text=t) for r, t in zip(roles, texts, strict=False))
    return Record(id="7#3", source="mine", images=images, turns=turns)


def document(text: str, *images: bytes | Path) -> Record:
    return Record(id="7#3", source="mine", images=images, document=text)


def learnt(inputs: vl2.ModelInputs, processor: vl2.Processor) -> str:
    ids = inputs.labels[inputs.labels != processor.config.ignore_id]
    return processor.tokenizer.decode(ids.tolist(), skip_special=True)


def test_answers_are_learnt_and_questions_are_not(processor: vl2.Processor):
    sample = record("<image>\nWhat?", "A cat.", "And?", "A dog.", images=(picture(),))
    inputs = encode_record(sample, processor)
    assert learnt(inputs, processor) == "A cat.A dog."
    assert inputs.labels[-1] == processor.tokenizer.eos_id
    assert inputs.images_seq_mask.sum() == processor.layout.tokens((112, 112))
    everything = encode_record(sample, processor, mask_prompt=False)
    assert "What?" in learnt(everything, processor)
    assert torch.equal(everything.input_ids, inputs.input_ids)


def test_it_is_what_the_processor_gives_for_answering(processor: vl2.Processor):
    """Text and pixels of training are those of the chat path: EXIF turned, white under alpha."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGBA", (90, 60), (255, 0, 0, 100)).save(file, "PNG", exif=exif)
    said = [
        {"role": "user", "content": [{"type": "image", "image": file.getvalue()},
                                     {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "Red."},
    ]  # fmt: skip
    asked = processor(said, add_generation_prompt=False)
    trained = encode_record(record("<image>\nWhat?", "Red.", images=(file.getvalue(),)), processor)
    assert trained.image_sizes == ((60, 90),)
    for name in ("input_ids", "labels", "images", "images_spatial_crop"):
        assert torch.equal(getattr(trained, name), getattr(asked, name)), name


def test_documents_are_learnt_whole(processor: vl2.Processor):
    sample = document("One.\n<image>\nTwo.", picture())
    for mask_prompt in (True, False):
        inputs = encode_record(sample, processor, mask_prompt=mask_prompt)
        assert learnt(inputs, processor) == "One.\n\nTwo."
        assert record_size(sample, processor, mask_prompt=mask_prompt).tokens == len(
            inputs.input_ids
        )


def test_control_strings_of_training_text_are_obeyed(processor: vl2.Processor):
    answer = "<|ref|>cup<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>"
    inputs = encode_record(record("Where?", answer), processor)
    assert set(processor.tokenizer.grounding_ids) - set(inputs.labels.tolist()) == {
        processor.tokenizer.grounding_id
    }


def encoded_length(sample: Record, processor: vl2.Processor) -> int | None:
    """None for a picture of a hair's breadth, which cannot be tiled."""
    try:
        return len(encode_record(sample, processor).input_ids)
    except RecordError as error:
        if "thinner than one pixel" not in str(error):
            raise
        return None


sizes = st.tuples(st.integers(1, 400), st.integers(1, 400))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(sizes, st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF"]), st.integers(1, 8)),
             max_size=4),
    st.text(max_size=40), st.text(max_size=40), st.sampled_from(["talk", "document"]),
    st.booleans(),
)  # fmt: skip
def test_token_count_is_exact(processor, pictures, before, after, form, content):
    processor = processor.with_settings(tiling="content") if content else processor
    images = []
    for size, kind, orientation in pictures:
        exif = Image.Exif()
        exif[0x0112] = orientation
        images.append(picture(size, kind, exif=exif))
    text = before.join(["<image>"] * len(images)) + after
    if form == "talk":
        sample = record(text, after, "Next?", before, images=tuple(images))
    else:
        sample = document(text, *images)
    length = encoded_length(sample, processor)
    assert length is None or record_size(sample, processor).tokens == length


def late_chunk(name: bytes, body: bytes, size: tuple[int, int] = (90, 30)) -> bytes:
    """A PNG with a chunk behind its pixels."""
    data = picture(size)
    crc = struct.pack(">I", zlib.crc32(name + body))
    return data[:-12] + struct.pack(">I", len(body)) + name + body + crc + data[-12:]


def test_orientation_behind_the_pixels_of_a_png_counts(processor: vl2.Processor):
    exif = Image.Exif()
    exif[0x0112] = 6
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    xmp = b'<x:xmpmeta><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    hidden = [
        late_chunk(b"eXIf", body),
        late_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        late_chunk(b"tEXt", b"Software\0x"),
    ]
    for data, size in zip(hidden, [(30, 90), (30, 90), (90, 30)], strict=True):
        assert picture_size(data) == open_image(data, TRAINING).size == size
        sample = record("<image>", "A.", images=(data,))
        assert record_size(sample, processor).tokens == len(
            encode_record(sample, processor).input_ids
        )


def test_a_large_photograph_is_counted_as_it_is_decoded(processor: vl2.Processor):
    small = processor.with_settings(max_pixels=3000)
    file = io.BytesIO()
    Image.new("RGB", (101, 67), "red").save(file, "JPEG")
    data = file.getvalue()
    assert picture_size(data) == (101, 67)  # boxes refer to it
    assert picture_size(data, small.admission(TRAINING), decoded=True) == (51, 34)
    sample = record("<image>", "A.", images=(data,))
    assert record_size(sample, small).tokens == len(encode_record(sample, small).input_ids)
    sample = record("<image>", "A.", images=(picture((101, 67)),))
    assert record_size(sample, processor).tokens == len(encode_record(sample, processor).input_ids)
    for refused in (record_size, encode_record):
        with pytest.raises(RecordError, match=r"at most 3,000 are decoded: .* raise max_pixels"):
            refused(sample, small)


def test_odd_pictures_are_taken(tmp_path: Path, processor: vl2.Processor):
    ramp = np.linspace(0, 65535, 90 * 60).reshape(60, 90).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "sixteen.png")
    Image.new("CMYK", (90, 60), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    Image.new("L", (90, 60)).save(tmp_path / "grey.gif")
    for name in ("sixteen.png", "cmyk.jpg", "grey.gif"):
        sample = record("<image>", "A.", images=(tmp_path / name,))
        inputs = encode_record(sample, processor)
        assert len(inputs.input_ids) == record_size(sample, processor).tokens
        assert bool(inputs.images.isfinite().all())


TORTURE = {
    "missing": (None, "does not exist", True),
    "empty": (b"", "unsupported file type", True),
    "html": (b"<html>404</html>", "unsupported file type", True),
    "truncated": (picture((300, 300), "JPEG")[:-400], "damaged or incomplete", False),
    "bomb": (picture((60, 60)).replace(struct.pack(">II", 60, 60), struct.pack(">II", 9999, 9999)),
             "damaged or incomplete", True),
    "thin": (picture((4000, 1)), "thinner than one pixel", False),
}  # fmt: skip


@pytest.mark.parametrize("name", TORTURE)
def test_bad_pictures_are_refused(tmp_path: Path, processor: vl2.Processor, name: str):
    data, reason, in_header = TORTURE[name]
    path = tmp_path / f"{name}.jpg"
    if data is not None:
        path.write_bytes(data)
    sample = record("<image> <image>", "A.", images=(picture(), path))
    with pytest.raises(RecordError) as caught:
        encode_record(sample, processor)
    assert reason in str(caught.value)
    assert "(record 7#3 of mine" in str(caught.value)
    if name != "thin":  # the processor sees that, who knows no numbers
        assert f"picture 2: {path})" in str(caught.value)
    if in_header:
        with pytest.raises(RecordError, match="7#3 of mine, picture 2"):
            record_size(sample, processor)


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (record("Only a question"), "no answers, so nothing would be learned"),
        (record("<image>", "A."), "1 <image> in the text for 0 pictures"),
        (record("Q", "<image>", images=(picture(),)), "only users send pictures"),
        (record(), "the conversation is empty"),
        (record("half \ud83d", "A."), "lone surrogate"),
        (document("<image>"), "1 <image> in the text for 0 pictures"),
        (Record(id="7#3", source="mine", turns=(Turn(role="user", text="Q"),
                Turn(role="assistant", text="A"), Turn(role="system", text="S"))),
         "only come first"),
    ],
)  # fmt: skip
def test_bad_text_is_refused(processor: vl2.Processor, sample: Record, reason: str):
    for call in (encode_record, record_size):
        with pytest.raises(RecordError) as caught:
            call(sample, processor)
        assert reason in str(caught.value)
        assert str(caught.value).endswith("(record 7#3 of mine)")


def test_damage_follows_its_seed_and_keeps_the_tokens(processor: vl2.Processor):
    file = io.BytesIO()
    noise().save(file, "PNG")
    sample = record("<image> <image>", "A.", images=(file.getvalue(),) * 2)
    clean = encode_record(sample, processor)
    never = encode_record(sample, processor, damage=Damage(share=0, seed=(1, 2)))
    first, again = (
        encode_record(sample, processor, damage=Damage(share=1, seed=(0, 1, 2))) for _ in range(2)
    )
    other = encode_record(sample, processor, damage=Damage(share=1, seed=(0, 1, 3)))
    assert torch.equal(never.images, clean.images)
    assert torch.equal(first.images, again.images)
    for pair in ((first, clean), (first, other)):
        assert not torch.equal(pair[0].images, pair[1].images)
    half = len(first.images) // 2
    assert not torch.equal(first.images[:half], first.images[half:])
    assert torch.equal(first.input_ids, clean.input_ids)
    assert torch.equal(first.images_spatial_crop, clean.images_spatial_crop)


def test_the_share_of_damaged_pictures(processor: vl2.Processor):
    file = io.BytesIO()
    noise((56, 56)).save(file, "PNG")
    sample = record("<image>", "A.", images=(file.getvalue(),))
    clean = encode_record(sample, processor).images
    spoilt = sum(
        not torch.equal(
            encode_record(sample, processor, damage=Damage(share=0.5, seed=(0, n))).images, clean
        )
        for n in range(60)
    )
    assert 18 <= spoilt <= 42


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (200, 150), (3000, 40)])
def test_damage_keeps_mode_and_size_and_changes_something(size: tuple[int, int]):
    image = noise(size)
    for seed in range(12):
        spoilt = damaged(np.random.default_rng(seed), image)
        assert (spoilt.mode, spoilt.size) == ("RGB", size)
        assert np.asarray(image).any() or size == (1, 1)
        if min(size) > 1:
            assert not np.array_equal(np.asarray(spoilt), np.asarray(image))


def test_damage_of_pictures_too_long_for_jpeg():
    image = Image.new("RGB", (65_535, 1), "white")
    for seed in range(8):
        assert damaged(np.random.default_rng(seed), image).size == image.size

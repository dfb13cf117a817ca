"""The processor as a whole: files, settings, samples, batches, and what it refuses."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vl2 import geometry
from vl2.config import RELEASED_RESOLUTIONS, VL2Config
from vl2.model.adaptor import arrange_tokens
from vl2.processing import image_error, image_gate
from vl2.processing.image_error import ImageError
from vl2.processing.image_gate import REFERENCE, ImagePolicy
from vl2.processing.inputs import Batch, ModelInputs, check_inputs, collate
from vl2.processing.processor import Processor
from vl2.processing.settings import ProcessorConfig
from vl2.processing.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "processor"
RELEASED_JSON = {
    "add_special_token": False,
    "candidate_resolutions": [list(canvas) for canvas in RELEASED_RESOLUTIONS],
    "downsample_ratio": 2,
    "ignore_id": -100,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_token": "<image>",
    "mask_prompt": False,
    "normalize": True,
    "pad_token": "<｜▁pad▁｜>",  # noqa: RUF001
    "patch_size": 14,
    "processor_class": "DeepseekVLV2Processor",
    "sft_format": "deepseek",
}
TOKENIZER = Tokenizer.from_pretrained(GOLDEN / "tokenizer")
RELEASED = Processor(TOKENIZER, ProcessorConfig.from_dict(RELEASED_JSON), image_size=384)
SMALL = Processor(TOKENIZER, ProcessorConfig.for_model(VL2Config.nano()), image_size=112)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A released model's folder without its weights."""
    shutil.copy(GOLDEN / "tokenizer" / "tokenizer.json", tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps(RELEASED_JSON))
    VL2Config.tiny().save(tmp_path)
    return tmp_path


def picture(wide: int = 40, high: int = 30, colour="red") -> Image.Image:
    return Image.new("RGB", (wide, high), colour)


def ask(*images, text: str = "Read.", role: str = "user") -> list[dict]:
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": role, "content": [*parts, {"type": "text", "text": text}]}]


# One sample


def test_placeholders_are_features_for_real_pictures():
    rng = np.random.default_rng(0)
    for processor in (RELEASED, SMALL, SMALL.with_settings(tiling="content")):
        side = processor.layout.side
        line = torch.zeros(1)
        for count in (1, 1, 1, 2, 2, 3, 4):
            sizes = [tuple(int(2 ** rng.uniform(2, 9)) for _ in "wh") for _ in range(count)]
            got = processor(ask(*(picture(*size) for size in sizes)))
            made = 0
            for wide, high in got.images_spatial_crop.tolist():
                grid = geometry.TileGrid(wide=wide, high=high)
                tiles = torch.zeros(grid.tiles, side * side, 1)
                made += len(
                    arrange_tokens(tiles, grid, newline=line, separator=line, global_first=True)
                )
            assert int(got.images_seq_mask.sum()) == made
            assert (got.input_ids[got.images_seq_mask] == TOKENIZER.image_id).all()
            assert got.image_sizes == tuple(sizes)


def test_text_alone_carries_one_zero_tile():
    got = RELEASED([{"role": "user", "content": "hi"}])
    assert got.images.shape == (1, 3, 384, 384)
    assert not got.images.any()
    assert got.images_spatial_crop.tolist() == [[0, 0]]
    assert not got.images_seq_mask.any()
    assert got.image_sizes == ()


@pytest.mark.parametrize(("images", "crop"), [(1, [2, 2]), (2, [2, 2]), (3, [1, 1])])
def test_more_than_two_pictures_are_not_tiled(images: int, crop: list[int]):
    got = RELEASED(ask(*[picture(600, 600)] * images))
    assert got.images_spatial_crop.tolist() == [crop] * images
    assert len(got.images) == images * (1 + crop[0] * crop[1])


def test_the_limit_is_a_setting():
    many = RELEASED.with_settings(max_tiled_images=4)
    assert many(ask(*[picture(600, 600)] * 4)).images_spatial_crop.tolist() == [[2, 2]] * 4
    none = RELEASED.with_settings(max_tiled_images=0)
    assert none(ask(picture(600, 600))).images_spatial_crop.tolist() == [[1, 1]]
    cheap = RELEASED.with_settings(tiling="content")
    assert cheap(ask(picture(600, 600))).images_spatial_crop.tolist() == [[1, 1]]
    assert RELEASED.config.max_tiled_images == 2
    with pytest.raises(ValueError, match="tiling is 'other': expected released or content"):
        dataclasses.replace(RELEASED.config, tiling="other")


def test_the_limit_of_pixels_is_a_setting_and_boxes_refer_to_what_was_sent():
    file = io.BytesIO()
    picture(2000, 1000).save(file, "JPEG")
    less = SMALL.with_settings(max_pixels=500_000)
    got = less(ask(file.getvalue()))
    assert got.image_sizes == ((2000, 1000),)
    assert got.images_spatial_crop.tolist() == [[2, 1]]
    assert "decoded at reduced scale" in got.notes[0]
    assert less(ask(file.getvalue()), policy=ImagePolicy(max_pixels=2_000_000)).notes == ()
    for processor, policy in ((less, ImagePolicy()), (SMALL, ImagePolicy(max_pixels=500_000))):
        with pytest.raises(ImageError, match="at most 500,000 are decoded"):
            processor(ask(picture(2000, 1000)), policy=policy)
    with pytest.raises(ImageError, match="at most 500,000 are decoded"):
        less.from_conversation([{"role": "user", "content": "<image>"}], [picture(2000, 1000)])
    for wrong in (0, -1, 10**12):
        with pytest.raises(ValueError, match=r"max_pixels is .* expected 1 to 2,147,483,648"):
            SMALL.with_settings(max_pixels=wrong)


def test_both_ways_agree():
    image = picture(100, 300)
    conversation = [
        {"role": "<|User|>", "content": "<image>\nRead."},
        {"role": "<|Assistant|>", "content": "red"},
    ]
    messages = [*ask(image), {"role": "assistant", "content": "red"}]
    for open_end in (False, True):
        ours = RELEASED(messages, add_generation_prompt=open_end)
        official = RELEASED.from_conversation(conversation, [image], inference_mode=open_end)
        for name in ("input_ids", "labels", "images", "images_seq_mask", "images_spatial_crop"):
            assert torch.equal(getattr(ours, name), getattr(official, name)), name


def test_pictures_that_the_messages_name(tmp_path: Path):
    file = str(tmp_path / "a.png")
    picture().save(file)
    named = [{"role": "<|User|>", "content": "<image>", "images": [file]}]
    got = SMALL.from_conversation(named)
    assert torch.equal(got.images, SMALL.from_conversation(named, [file]).images)
    with pytest.raises(ValueError, match="1 <image> in the text for 0 pictures"):
        SMALL.from_conversation(named, [])


def test_prompt_is_masked_unless_the_file_is_asked():
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    masked = RELEASED(messages, add_generation_prompt=False)
    assert masked.labels[1] == -100
    assert RELEASED(messages, False, mask_prompt=None).labels[1] == TOKENIZER.user_id
    assert torch.equal(SMALL(messages, False, mask_prompt=None).labels, masked.labels)


def test_documents():
    got = RELEASED.from_document("a <image> b", [picture()])
    assert got.input_ids[-1] == TOKENIZER.eos_id
    assert (got.labels != -100).sum() == len(got.input_ids) - 421


def test_sources_of_every_kind(tmp_path: Path):
    file = tmp_path / "a.png"
    picture().save(file)
    sources = [picture(), file, str(file), file.read_bytes()]
    tiles = [SMALL(ask(source)).images for source in sources]
    assert all(torch.equal(tiles[0], other) for other in tiles)


def test_messages_turn_and_whiten_and_the_official_path_does_not():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGBA", (40, 20)).save(file, "PNG", exif=exif)
    data = file.getvalue()
    ours = SMALL(ask(data))
    assert ours.image_sizes == ((20, 40),)
    assert ours.images[0, 0, 56, 56] == 1
    official = SMALL.from_conversation([{"role": "user", "content": "<image>"}], [data])
    assert official.image_sizes == ((40, 20),)
    assert official.images[0, 0, 56, 56] == -1
    assert SMALL(ask(data), policy=REFERENCE).image_sizes == ((40, 20),)


def test_frames_left_out_are_noted():
    file = io.BytesIO()
    picture().save(file, "GIF", save_all=True, append_images=[picture(colour="blue")])
    got = SMALL(ask(file.getvalue()))
    assert len(got.notes) == 1
    with pytest.raises(ImageError):
        SMALL(ask(file.getvalue()), policy=ImagePolicy(strict=True))


@pytest.mark.parametrize(
    ("source", "code"),
    [(b"junk", "unsupported"), ("/none.png", "missing"), (picture(1, 30000), "too_thin")],
)
def test_refused_pictures(source, code: str):
    with pytest.raises(ImageError) as caught:
        RELEASED(ask(source))
    assert caught.value.code == code
    assert str(caught.value) == image_error.REFUSALS[code]  # these have no values


def test_the_invariant_names_both_numbers():
    got = RELEASED(ask(picture()))
    fewer = dataclasses.replace(got, images_seq_mask=torch.zeros_like(got.images_seq_mask))
    with pytest.raises(ValueError, match="0 image placeholders for 421 image features"):
        check_inputs(fewer, side=14)
    other = dataclasses.replace(got, images_spatial_crop=torch.tensor([[1, 2]]))
    with pytest.raises(ValueError, match="421 image placeholders for 631 image features"):
        check_inputs(other, side=14)
    cut = dataclasses.replace(got, images=got.images[:1])
    with pytest.raises(ValueError, match=r"1 tiles for crops \[\[1, 1\]\]: expected 2"):
        check_inputs(cut, side=14)


# Batches


def test_batch_is_padded_on_the_left():
    samples = [
        SMALL(ask(picture(300, 300), picture(10, 10))),
        SMALL([{"role": "user", "content": "hi"}]),
        SMALL(ask(picture(200, 100), text="What is written here?")),
    ]
    batch = SMALL.collate(samples)
    assert isinstance(batch, Mapping)
    longest = max(len(sample.input_ids) for sample in samples)
    assert batch.input_ids.shape == (3, longest)
    assert batch.images.shape == (3, 7, 3, 112, 112)
    assert batch.images_spatial_crop.tolist() == [[[2, 2], [1, 1]], [[0, 0]] * 2, [[2, 1], [0, 0]]]
    assert batch.images_seq_mask.dtype == torch.bool
    assert batch.image_sizes == tuple(sample.image_sizes for sample in samples)
    fills = {"input_ids": TOKENIZER.pad_id, "labels": -100, "images_seq_mask": False}
    for row, sample in enumerate(samples):
        start = longest - len(sample.input_ids)
        for name, fill in fills.items():
            assert torch.equal(batch[name][row, start:], getattr(sample, name))
            assert (batch[name][row, :start] == fill).all()
        assert batch.attention_mask[row].tolist() == [0] * start + [1] * (longest - start)
        count = len(sample.images)
        assert torch.equal(batch.images[row, :count], sample.images)
        assert not batch.images[row, count:].any()


def test_batch_is_what_a_model_takes():
    batch = SMALL.collate([SMALL(ask(picture()))])
    names = {field.name for field in dataclasses.fields(Batch)} - {"image_sizes"}
    assert set(batch) == names
    assert set({**batch}) == names
    assert len(batch) == 6
    moved = batch.to("meta")
    assert {name: moved[name].device.type for name in moved} == dict.fromkeys(names, "meta")
    assert batch.to("meta").image_sizes == batch.image_sizes
    with pytest.raises(KeyError):
        batch["image_sizes"]


def test_everything_travels_to_worker_processes():
    processor = pickle.loads(pickle.dumps(SMALL))
    sample = pickle.loads(pickle.dumps(processor(ask(picture()))))
    batch = pickle.loads(pickle.dumps(processor.collate([sample])))
    assert torch.equal(batch.input_ids, SMALL.collate([SMALL(ask(picture()))]).input_ids)
    error = pickle.loads(pickle.dumps(ImageError("too_thin")))
    assert (error.code, str(error)) == ("too_thin", image_error.REFUSALS["too_thin"])


def test_batch_of_nothing():
    with pytest.raises(ValueError, match="a batch of no samples"):
        collate([], pad_id=0)


# Files


def test_released_files(folder: Path):
    processor = Processor.from_pretrained(folder)
    assert processor.config == RELEASED.config
    assert processor.layout == RELEASED.layout
    assert processor.layout.side == 14
    (folder / "config.json").unlink()
    assert Processor.from_pretrained(folder).layout == RELEASED.layout


def test_config_alone_is_enough(folder: Path):
    (folder / "processor_config.json").unlink()
    processor = Processor.from_pretrained(str(folder))
    assert processor.layout == RELEASED.layout
    assert processor.config.mask_prompt


def test_saved_is_loaded(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    target = tmp_path_factory.mktemp("saved")
    data = {**RELEASED_JSON, "something_new": [1]}
    (folder / "processor_config.json").write_text(json.dumps(data))
    processor = Processor.from_pretrained(folder)
    processor.save_pretrained(target)
    assert json.loads((target / "processor_config.json").read_text()) == data
    ours = processor.with_settings(tiling="content", max_tiled_images=5, max_pixels=300_000)
    ours.save_pretrained(target)
    again = Processor.from_pretrained(target)
    assert again.config == ours.config
    assert (again.config.tiling, again.config.max_tiled_images) == ("content", 5)
    assert again.config.max_pixels == 300_000
    messages = ask(picture(500, 400))
    for name in ("input_ids", "images"):
        assert torch.equal(getattr(again(messages), name), getattr(ours(messages), name))


def test_embedded_model():
    if not Path(image_gate.__file__).parents[1].joinpath("assets/nano/tokenizer.json").exists():
        pytest.skip("the embedded model is not in this tree")
    processor = Processor.from_pretrained("nano")
    assert isinstance(processor(ask(picture())), ModelInputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 16}, "patch_size is 16 in processor_config.json but 14 in config.json"),
        ({"candidate_resolutions": [[384, 384]]}, "candidate_resolutions is .* must agree"),
        ({"candidate_resolutions": [[384]]}, r"expected a list of \[width, height\]"),
        ({"candidate_resolutions": []}, "candidate_resolutions is empty"),
        ({"patch_size": 0}, "patch_size is 0: expected 1 to 1,024"),
        ({"downsample_ratio": -2}, "downsample_ratio is -2: expected 1 to 64"),
        ({"max_tiled_images": -1}, "max_tiled_images is -1"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std is .* expected three numbers"),
        ({"image_mean": [0.5, float("nan"), 0.5]}, "image_mean is .* expected three numbers"),
        ({"downsample_ratio": "2"}, "downsample_ratio is '2': expected int"),
        ({"normalize": 1}, "normalize is 1: expected bool"),
        ({"single_questions": "yes"}, "single_questions is 'yes': expected bool"),
        ({"image_mean": [0.5]}, "image_mean is .* expected three numbers"),
        ({"image_mean": 0.5}, "image_mean is 0.5: expected a list of numbers"),
        ({"sft_format": "plain"}, "sft_format is 'plain': expected deepseek"),
        ({"image_token": "<picture>"}, "lacks 1 special tokens: <picture>"),
    ],
)
def test_settings_that_cannot_be(folder: Path, change: dict, message: str):
    (folder / "processor_config.json").write_text(json.dumps({**RELEASED_JSON, **change}))
    with pytest.raises(ValueError, match=message):
        Processor.from_pretrained(folder)


def test_files_that_cannot_be_read(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    with pytest.raises(ValueError, match="give a model folder"):
        Processor.from_pretrained(tmp_path_factory.mktemp("empty"))
    for content, message in (
        ("{", "cannot be read as JSON"),
        ("[]", "holds list"),
        ("{}", "lacks"),
    ):
        (folder / "processor_config.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            Processor.from_pretrained(folder)


def test_missing_specials_can_be_added(folder: Path):
    data = {**RELEASED_JSON, "image_token": "<picture>"}
    (folder / "processor_config.json").write_text(json.dumps(data))
    processor = Processor.from_pretrained(folder, add_missing=True)
    assert processor.tokenizer.image_id == 501


def test_layout_of_one_picture_is_drawn():
    small = SMALL.draw_layout(Image.new("L", (300, 100)))
    assert small.mode == "RGB"
    assert SMALL.draw_layout(picture(300, 100), "content").size != small.size


def test_the_gate_needs_no_torch():
    code = "import sys, vl2.processing.image_gate; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

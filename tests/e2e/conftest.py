"""A small random model in a folder and pictures, for commands and examples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import vl2
from vl2.checkpoint.hf import save_model
from vl2.cli import main
from vl2.cli.loading import load_engine
from vl2.config import VL2Config
from vl2.model.vl2 import VL2Model
from vl2.processing.processor import Processor
from vl2.processing.settings import ProcessorConfig
from vl2.processing.tokenizer import Tokenizer

TOKENIZER = Path(__file__).parents[1] / "golden" / "processor" / "tokenizer"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer, nano = Tokenizer.from_pretrained(TOKENIZER), VL2Config.nano()
    language = replace(nano.language_config, vocab_size=tokenizer.vocab_size, num_hidden_layers=2)
    vision = replace(nano.vision_config, layers=1)
    config = replace(nano, language_config=language, vision_config=vision, torch_dtype="float32")
    model = VL2Model(config)
    model.init_weights(torch.Generator().manual_seed(0))
    save_model(model, folder)
    settings = ProcessorConfig.for_model(config)
    size = vision.image_size
    Processor(tokenizer, settings, image_size=size).save_pretrained(folder)
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A grey picture of 200 x 100 pixels with a white square."""
    file = tmp_path / "a picture.png"
    image = Image.new("RGB", (200, 100), (90, 90, 90))
    image.paste((255, 255, 255), (20, 20, 60, 60))
    image.save(file)
    return file


@pytest.fixture
def vl2_command(capfd: pytest.CaptureFixture[str]):
    """Run a command in this process: its exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def engine(model_folder: Path) -> vl2.Engine:
    return load_engine(str(model_folder), dtype="auto", device="cpu")

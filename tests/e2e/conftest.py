"""A small random model in a folder and pictures, for commands and examples."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tests.e2e.small_model import save_small_model

import vl2
from vl2.cli import main
from vl2.cli.loading import load_engine


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_small_model(folder)
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

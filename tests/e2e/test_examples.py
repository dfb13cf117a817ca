"""The examples run as their first line says, and stay short."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run():
    """Run an example with arguments as a program of its own; what it printed."""

    def start(name: str, *arguments: object) -> str:
        command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return start


def test_chat(run, picture: Path, model_folder: Path):
    out = run("chat.py", picture, model_folder)
    assert out.count("> ") >= 2
    assert out.count("prompt tokens") == 2


def test_grounding(run, picture: Path, model_folder: Path):
    assert run("grounding.py", picture, "the square", model_folder)


@pytest.mark.slow
def test_finetune_teaches_the_embedded_model_a_new_object(run):
    scores = json.loads(run("finetune.py").splitlines()[-1])
    assert scores["after"] >= max(0.6, scores["before"] + 0.2)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_fit_a_screen(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40

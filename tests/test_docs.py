"""The documentation is executed: commands parse, the Python example runs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from tests.e2e.serving import serving
from tests.unit.pdf_files import PdfPage, pdf_of, show
from typer.core import TyperGroup

from vl2.cli import app
from vl2.cli.examples import EXAMPLES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Every `vl2 ...` line of a shell block, every complete one in a sentence, and of the helps."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
        found += [line for line in lines if line.startswith("vl2 ")]
        found += re.findall(r"`(vl2 [a-z]+ [^`]+)`", text)
    found += [line for lines in EXAMPLES.values() for line in lines]
    return sorted(set(found))


@pytest.mark.parametrize("line", commands())
def test_commands_exist_with_their_options(line: str):
    _, *arguments = shlex.split(line, comments=True)
    command, name = typer.main.get_command(app), "vl2"
    while isinstance(command, TyperGroup):
        context = command.make_context(name, arguments)
        name, command, arguments = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        assert command is not None
    command.make_context(name, arguments)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(
            r"(?:^    |`)make ([a-z0-9-]+)", page.read_text(encoding="utf-8"), re.M
        ):
            assert f"\n{target}:" in makefile, f"{page.name}: make {target}"


def run_readme() -> dict[str, object]:
    """Run the Python of README, one block after the other; the names that it leaves."""
    names: dict[str, object] = {}
    for block in blocks(README, "python"):
        exec(compile(block, "README.md", "exec"), names)
    return names


def test_the_python_examples_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(ROOT)
    names = run_readme()
    assert capsys.readouterr().out.strip()
    assert torch.isfinite(names["out"].logits).all()


def test_the_server_examples_run():
    [start] = [block for block in blocks(README, "sh") if block == "vl2 serve\n"]
    [curl], [client] = blocks(README, "bash"), blocks(README, "py")
    with serving(*start.split()[2:]) as server, server.client() as http:
        page, asked = http.get("/").text, ["bash", "-euo", "pipefail", "-c", curl]
        output(asked, server.url)  # a prompt out of the cache rounds otherwise
        by_curl = json.loads(output(asked, server.url))
        by_client = output([sys.executable, "-c", client], server.url)
    message = by_curl["choices"][0]["message"]
    assert by_client == f"{message['content']} {message['boxes']}\n"
    assert [box["label"] for box in message["boxes"]] == ["red circle"]
    assert page.startswith("<!doctype html>")


def test_the_examples_of_serving_run(tmp_path: Path):
    [client] = blocks((ROOT / "docs" / "serving.md").read_text(encoding="utf-8"), "py")
    shutil.copy(ROOT / "examples" / "sample.png", tmp_path / "photo.png")
    pages = [PdfPage(content=show(text, 90, 80, 90)) for text in ("K7", "B2")]
    (tmp_path / "report.pdf").write_bytes(pdf_of(pages))
    with serving("nano") as server:
        told = output([sys.executable, "-c", client], server.url, tmp_path)
    streamed, page = told.splitlines()
    assert re.fullmatch(r"(.+? \[[\d.]+ [\d.]+ [\d.]+ [\d.]+\])+.*", streamed), streamed
    assert set(json.loads(page)) == {"text"}


def output(command: list[str], address: str, folder: Path = ROOT) -> str:
    """What an example prints in a folder when it asks the server at another address."""
    command = [word.replace("http://127.0.0.1:8000", address) for word in command]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


@pytest.mark.gpu
def test_the_python_examples_run_where_auto_is_a_card(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    names = run_readme()
    assert names["model"].device.type == names["batch"].images.device.type == "cuda"
    assert torch.isfinite(names["out"].logits).all()

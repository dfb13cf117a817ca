"""Memory that runs out and devices that are not there: one line and the right code."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from vl2.checkpoint.errors import CheckpointError, SaveError
from vl2.cli import main
from vl2.cli.answering import answer_one
from vl2.data.substitute import DataError, DataWorkError
from vl2.failure import WorkError
from vl2.model_folder import embedded_folder

SAMPLE = Path(__file__).parents[2] / "examples" / "sample.png"
ASK = ["ask", str(SAMPLE), "x", "--max-tokens", "1", "--device"]


@pytest.mark.parametrize("device", ["mps", "xpu", "hip", "vulkan", "meta", "mtia", "cuda:99"])
def test_a_device_that_is_not_there_is_wrong_use(device: str, capsys: pytest.CaptureFixture[str]):
    for command in (
        [*ASK, device],
        ["chat", "--device", device],
        ["doctor", "nano", *ASK[-1:], device],
    ):
        assert main(command) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: device is '{device}' but PyTorch sees ")
        assert line.endswith(": use cpu or auto")


def allocate(size: int) -> torch.Tensor:
    return torch.empty(size)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
        RuntimeError("can't start new thread"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        pytest.param(lambda: allocate(10**15), id="a petabyte"),
        pytest.param(lambda: allocate(2**62), id="more than there can be"),
    ],
    ids=str,
)
def test_memory_that_ran_out_is_one_line(
    error: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: object, **__: object) -> None:
        if isinstance(error, Exception):
            raise error
        error()  # pyright: ignore[reportCallIssue]

    monkeypatch.setattr("vl2.checkpoint.report.describe", fail)
    assert main(["inspect", "tiny"]) == 1
    assert capsys.readouterr().err.startswith("error: out of memory: use a smaller model")


def test_other_failures_are_not_called_memory(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("vl2.checkpoint.report.describe", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        main(["inspect", "tiny"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WorkError("3 times bad steps"), 1),
        (SaveError("cannot save into x: No space left on device"), 1),
        (DataWorkError("a data worker died"), 1),
        (OverflowError("int too large"), 1),
        (OSError(28, "No space left on device"), 1),
        (CheckpointError("no *.safetensors in x"), 2),
        (DataError("source 'a': 8 of 20 rows cannot be used"), 2),
    ],
    ids=repr,
)
def test_failed_work_is_1_and_wrong_use_is_2(
    error: Exception,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("vl2.checkpoint.report.describe", fail)
    assert main(["inspect", "tiny"]) == code
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded model with a weight that is not a number."""
    folder = tmp_path_factory.mktemp("damaged") / "nano"
    shutil.copytree(embedded_folder(), folder)
    [file] = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors["language.lm_head.weight"][3] = float("nan")
    save_file(tensors, file)
    return str(folder)


@pytest.mark.parametrize(
    "words",
    [
        ["ask", str(SAMPLE), "x", "--max-tokens", "2", "-m"],
        ["ask", str(SAMPLE), "x", "--max-tokens", "2", "--json", "-m"],
        ["ask", str(SAMPLE), "x", "--each", "-m"],
        ["doctor", "--prompts", "1"],
        ["bench", "decode", "--quick", "--tokens", "2", "--model"],
        ["chat", "-m"],
    ],
    ids=" ".join,
)
def test_a_model_that_is_not_numbers_is_failed_work(
    words: list[str],
    damaged: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr("sys.stdin", StringIO("hello\n"))
    assert main([*words, damaged]) == 1
    assert "the model's scores are not numbers" in capsys.readouterr().err


def test_a_request_that_the_engine_refuses_is_wrong_use(capsys: pytest.CaptureFixture[str]):
    assert main(["ask", str(SAMPLE), "word " * 5000]) == 2
    assert "leaves no room for an answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ask", str(SAMPLE), "x", "-m", ""], "the model's name is empty: give a folder"),
        (["data"], "Missing command: see vl2 data --help"),
        (["train", "{}"], "{} is a folder without config.yaml: give a recipe"),
        (
            ["ask", str(SAMPLE), "x", "--seed", str(2**63)],
            f"expected a whole number from 0 to {2**63 - 1}",
        ),
        (["ask", str(SAMPLE), "x", "--seed", "-1"], "expected a whole number from 0 up"),
        (["ask", str(SAMPLE), "x", "--max-tokens", "0"], "expected a whole number from 1 up"),
    ],
)
def test_a_slip_of_the_hand_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([word.format(tmp_path) for word in words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message.format(tmp_path) in line


@pytest.mark.parametrize("below", ["", "/deeper", "/deeper/still"])
@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["train", "debug_align", "out={}"], "out"),
        (["train", "debug_align", "out={}", "--dry-run"], "out"),
        (["convert", "nano", "{}"], "the target"),
        (["convert", "nano", "{}", "--force"], "the target"),
        (["data", "make", "words", "-n", "1", "-o", "{}"], "--out"),
    ],
)
def test_a_file_where_a_folder_is_to_be_written_is_wrong_use(
    words: list[str], what: str, below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "file"
    file.write_text("mine")
    place = f"{file}{below}"
    assert main([word.format(place) for word in words]) == 2
    [*_, line] = capsys.readouterr().err.splitlines()
    told = f"{what} is {place}: {file} is a file: give a folder to write into"
    assert line == f"error: {told}"
    assert file.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "debug_align", "--profile", "{}"], "--profile is {}: this is a folder"),
        (["train", "debug_align", "--profile", "{}/file/x"], "is a file: give a folder"),
        (["data", "make", "words", "-o", "{}/o", "--sheet", "{}/x"], "--sheet {}/x: only PNG"),
        (["ask", str(SAMPLE), "x", "--save", "{}/none/x.png"], "--save {}/none/x.png: no folder"),
    ],
)
def test_a_place_where_no_file_can_be_written_is_wrong_use(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    assert main([word.format(tmp_path) for word in words]) == 2
    assert message.format(tmp_path) in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_the_kind_of_a_failed_answer_is_its_code_s():
    for code, kind in (
        ("out_of_memory", MemoryError),
        ("engine_error", WorkError),
        ("invalid_request", ValueError),
        ("invalid_form", ValueError),
        ("context_length_exceeded", ValueError),
    ):
        failed = SimpleNamespace(error="what went wrong", error_code=code)
        engine = SimpleNamespace(generate=lambda *_, answer=failed, **__: [answer])
        with pytest.raises(kind, match="what went wrong"):
            answer_one(engine, None, None)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux alone")
def test_a_process_with_little_memory_says_so():
    bench = ["bench", "decode", "--model", "tiny", "--random-weights", "--layers", "2", "--quick"]
    done = subprocess.run(
        [sys.executable, "-m", "vl2", *bench],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2_500_000 * 1024,) * 2),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: out of memory")
    assert "Traceback" not in done.stderr

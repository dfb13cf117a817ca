"""Commands as a user types them: what comes out, and one line for everything that goes wrong."""

import io
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from typer.core import TyperGroup
from typer.main import get_command

import vl2
from vl2.cli import app
from vl2.cli.chat import Talk
from vl2.cli.examples import EXAMPLES
from vl2.cli.terminal import printable
from vl2.ops.native import kernels

BOX_TEXT = "<|ref|>the square<|/ref|><|det|>[[100, 200, 300, 600]]<|/det|>"


def test_tiles_prints_and_draws_both_layouts(vl2_command, picture, model_folder, tmp_path):
    target = tmp_path / "tiles.png"
    code, out, err = vl2_command("tiles", picture, "--model", model_folder, "--save", target)
    assert code == 0
    assert out.startswith(f"{picture} (200 x 100 pixels): released 2 x 1 tiles, ")
    assert err == f"wrote {target}\n"
    with Image.open(target) as drawn:
        assert drawn.width > drawn.height
    rows = json.loads(vl2_command("tiles", picture, "--model", model_folder, "--json")[1])
    assert rows[0]["content"]["tokens"] <= rows[0]["released"]["tokens"]


@pytest.mark.parametrize(
    "words", [("tiny", "--memory", "24GiB"), ("--memory", "24GiB", "tiny"), ("model", "tiny")]
)
def test_plan_takes_a_model_in_the_place_of_a_command(vl2_command, words):
    words = words if "--memory" in words else (*words, "--memory", "24GiB")
    code, out, err = vl2_command("plan", *words)
    assert (code, err) == (0, "")
    assert "most precise that fits: bfloat16\nnext: vl2 ask" in out


def test_plan_train_lists_the_layouts_that_fit(vl2_command):
    words = ("plan", "train", "tiny_sft", "data.batch_size=32", "--gpus", 4, "--gpu", "h100")
    code, out, err = vl2_command(*words)
    assert (code, err) == (0, "")
    assert out.startswith("tiny_sft on 4 x h100: planned, not measured\n")
    assert "a step: 131,072 tokens, 8 tiles in a sequence" in out
    assert "assumed: H100 SXM 80 GB, DGX H100, 8 in a node, each with 989 TFLOP/s" in out
    found = json.loads(vl2_command(*words, "--json", "--tiles", 0)[1])
    assert found["flops_by_part"]["vision"] == found["assumptions"]["tiles_per_sequence"] == 0
    assert found["layouts_that_fit"] >= len(found["layouts"]) == 5
    asked = json.loads(vl2_command(*words, "--json", "--layout", "expert=2, pipeline=2")[1])
    [layout] = asked["layouts"]
    assert layout["layout"] == {"pipeline": 2, "replicate": 1, "shard": 1, "expert": 2}
    rows = [line.split() for line in out.splitlines()[6:11]]
    assert all(math.prod(map(int, row[:4])) == 4 for row in rows)


def test_doctor_reports(vl2_command):
    code, out, _ = vl2_command("doctor", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["vl2"] == vl2.__version__
    assert report["torch"] == torch.__version__
    plain = vl2_command("doctor")[1]
    assert all(name in plain for name in report)


def test_doctor_checks_a_model(vl2_command):
    code, out, _ = vl2_command(
        "doctor", "nano", "--prompts", "6", "--max-tokens", "8", "--no-compiled", "--json"
    )
    _, *checks = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    prompts = [6] * 5 + [6 if kernels.functions() else 0]  # the last compares C with PyTorch
    assert [(check["differing"], check["prompts"]) for check in checks] == [(0, n) for n in prompts]


def test_doctor_names_a_folder_without_golden_models(vl2_command, tmp_path):
    code, _, err = vl2_command("doctor", "--golden", str(tmp_path))
    assert code != 0
    assert "holds no expected.safetensors" in err


def test_chat_remembers_and_forgets(engine, picture, capfd):
    talk = Talk(engine, vl2.SamplingParams(max_tokens=4), [])
    talk.take(f"/image {picture}")
    talk.take("What is it?")
    talk.take("And its colour?")
    assert [m["role"] for m in talk.messages] == ["user", "assistant", "user", "assistant"]
    assert [part["type"] for part in talk.messages[0]["content"]] == ["image", "text"]
    assert talk.waiting == []
    talk.take("/clear")
    assert talk.messages == []
    out, err = capfd.readouterr()
    assert out.count("\n") >= 2
    assert "200 x 100 pixels" in err


def test_chat_gives_back_boxes_as_control_tokens(engine, monkeypatch):
    seen = []
    monkeypatch.setattr(engine, "generate", lambda talks, *_, **__: seen.append(talks) or [])
    talk = Talk(engine, vl2.SamplingParams(), [])
    talk.messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": BOX_TEXT}]
    with pytest.raises(ValueError, match="unpack"):
        talk.take("and now?")
    assert engine.processor.tokenizer.det_id in seen[0][0].input_ids.tolist()


def test_a_failed_question_leaves_no_trace(engine, picture):
    talk = Talk(engine, vl2.SamplingParams(max_tokens=2), [])
    talk.take(f"/image {picture}")
    with pytest.raises(ValueError, match="the context of 4096 leaves no room"):
        talk.take("long " * 5000)
    assert talk.messages == []
    assert len(talk.waiting) == 1


def test_chat_as_json_is_one_line_an_answer(vl2_command, model_folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is it?\nAnd now?\n"))
    code, out, _ = vl2_command("chat", "--model", model_folder, "--max-tokens", 2, "--json")
    assert code == 0
    assert [json.loads(line)["finish_reason"] for line in out.splitlines()] == ["length"] * 2


@pytest.mark.parametrize(
    ("lines", "code", "message"),
    [
        ("What is it?\n\n/help\n/quit\nnever asked\n", 0, "/clear"),
        ("", 0, ""),
        ("/image nowhere.png\nWhat?\n", 2, "nowhere.png: no such file"),
        ("/image\n", 2, "/image needs a file"),
        ("/dance\n", 2, "/dance: no such command"),
    ],
)
def test_chat_reads_a_pipe(vl2_command, model_folder, monkeypatch, lines, code, message):
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    status, out, err = vl2_command("chat", "--model", model_folder, "--max-tokens", 3)
    assert status == code
    assert message in err
    assert out.count("\n") >= lines.count("What is it?")


PLAN, H100 = ("plan", "train", "tiny_sft"), ("--gpus", 8, "--gpu", "h100")
WRONG = {
    "missing file": (("ask", "nowhere.png", "What?"), "nowhere.png: no such file"),
    "folder": (("ask", "FOLDER", "What?"), "this is a folder"),
    "text file": (("ask", "TEXT", "What?"), "unsupported file type: use PNG"),
    "truncated": (("ask", "CUT", "What?"), "damaged or incomplete"),
    "no question": (("ask", "PICTURE"), "no question"),
    "no question but a name": (("ask", "nowhere.png"), "no question"),
    "empty question": (("ask", "PICTURE", " "), "the question is empty"),
    "no quotes": (("ask", "PICTURE", "What", "is", "it?"), "the whole question in quotes"),
    "nothing": (("ask",), "see vl2 ask --help"),
    "unknown option": (("ask", "PICTURE", "x", "--colour"), "No such option: --colour"),
    "unknown command": (("dance",), "No such command 'dance'"),
    "no stub": (("read",), "No such command 'read'"),
    "no model": (("ask", "PICTURE", "x", "--model", "/nowhere"), "no model at /nowhere"),
    "model without files": (("ask", "PICTURE", "x", "--model", "FOLDER"), "give a model folder"),
    "model is a file": (("ask", "PICTURE", "x", "--model", "TEXT"), "is a file"),
    "damaged model": (("ask", "PICTURE", "x", "--model", "DAMAGED"), "config.json"),
    "temperature": (("ask", "PICTURE", "x", "--temperature", "-1"), "temperature is -1.0"),
    "top_p": (("ask", "PICTURE", "x", "--top-p", "nan"), "top_p is nan"),
    "max_tokens": (("ask", "PICTURE", "x", "--max-tokens", "0"), "max_tokens is 0"),
    "seed": (("ask", "PICTURE", "x", "--seed", "one"), "--seed is 'one': expected a whole"),
    "not png": (("ask", "PICTURE", "x", "--save", "out.jpg"), "only PNG"),
    "no place": (("ask", "PICTURE", "x", "--save", "nowhere/out.png"), "no folder nowhere"),
    "nothing to draw on": (("ask", "x", "--save", "out.png"), "--save needs a picture"),
    "dtype": (("ask", "PICTURE", "x", "--model", "MODEL", "--dtype", "int3"), "dtype is int3"),
    "tiles, missing": (("tiles", "nowhere.png"), "nowhere.png: no such file"),
    "tiles, nothing": (("tiles",), "see vl2 tiles --help"),
    "plan, nothing": (("plan",), "see vl2 plan --help"),
    "plan, no memory": (("plan", "tiny"), "see vl2 plan model --help"),
    "plan, no such model": (("plan", "huge", "--memory", "24GiB"), "no model at huge"),
    "plan, no GPUs": (("plan", "train", "tiny_sft"), "see vl2 plan train --help"),
    "plan, GPU": ((*PLAN, "--gpus", 8, "--gpu", "v100"), "gpu is 'v100': expected one of a100"),
    "plan, recipe": (("plan", "train", "sft", *H100), "no recipe and no file 'sft': recipes are"),
    "plan, count": ((*PLAN, "--gpu", "h100", "--gpus", 0), "gpus is 0: expected at least 1"),
    "plan, odd count": ((*PLAN, *H100, "--layout", "expert=3"), "8 ranks do not divide"),
    "plan, axis": ((*PLAN, *H100, "--layout", "tensor=2"), "there is no setting 'tensor'"),
    "plan, too large": (
        ("plan", "train", "base_sft", *H100, "--layout", "replicate=2"),
        "too small",
    ),
    "plan, setting": ((*PLAN, "batch=1", *H100), "there is no setting 'batch'"),
    "plan, tiles": ((*PLAN, *H100, "--tiles", -1), "tiles is -1: expected 0 to 19"),
    "thin": (
        ("ask", "PICTURE", "THIN", "x", "--model", "MODEL"),
        "thin.png: the picture is thinner",
    ),
    "tiles, thin": (
        ("tiles", "PICTURE", "THIN", "--save", "TARGET"),
        "thin.png: the picture is thin",
    ),
    "schema": (("ask", "PICTURE", "x", "--schema", "TEXT"), "text: no JSON in UTF-8 or UTF-16"),
    "chat, missing": (("chat", "nowhere.png"), "nowhere.png: no such file"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line_and_code_2(
    vl2_command, picture, model_folder, tmp_path, words, message
):
    places = {name: tmp_path / name.lower() for name in ("FOLDER", "TEXT", "CUT", "DAMAGED")}
    places["FOLDER"].mkdir()
    places["DAMAGED"].mkdir()
    (places["DAMAGED"] / "config.json").write_text("{")
    places["TEXT"].write_text("no picture")
    places["CUT"].write_bytes(picture.read_bytes()[:120])
    places["THIN"], places["TARGET"] = tmp_path / "thin.png", tmp_path / "target.png"
    Image.new("RGB", (6000, 1)).save(places["THIN"])
    places |= {"PICTURE": picture, "MODEL": model_folder}
    code, out, err = vl2_command(*(places.get(word, word) for word in words))
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", EXAMPLES)
def test_every_help_ends_with_examples(vl2_command, command):
    code, out, err = vl2_command(*command.split(), "-h")
    assert (code, err) == (0, "")
    assert out == vl2_command(*command.split(), "--help")[1]
    lines = [f"    {line}" for line in EXAMPLES[command]]
    assert out.splitlines()[-len(lines) - 1 :] == ["  Examples:", *lines]
    assert len(lines) in (2, 3)


def test_every_command_has_examples():
    names = set()
    for name, command in get_command(app).commands.items():
        below = command.commands if isinstance(command, TyperGroup) else None
        names |= {name} if below is None else {f"{name} {inner}" for inner in below}
    assert names == set(EXAMPLES)


@pytest.mark.parametrize(
    ("words", "shown"),
    [("vl2 t", "tiles\ntrain"), ("vl2 plan t", "train"), ("vl2 ask --se", "--seed")],
)
def test_a_shell_completes_commands_and_options(words, shown):
    last = str(len(words.split()) - 1)
    asked = {"_VL2_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": last}
    run = [sys.executable, "-m", "vl2"]
    done = subprocess.run(run, capture_output=True, text=True, env=os.environ | asked)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, shown, "")


def test_version_and_help(vl2_command):
    assert vl2_command("--version") == (0, f"vl2 {vl2.__version__}\n", "")
    code, out, _ = vl2_command("--help")
    assert code == 0
    assert vl2_command() == (0, out, "")
    for command in ("ask", "chat", "tiles", "inspect", "plan", "train", "convert", "doctor"):
        assert f"\n  {command} " in out
        assert vl2_command(command, "--help")[0] == 0
    for command in ("model", "train"):
        assert f"\n  {command} " in vl2_command("plan", "--help")[1]
        assert "--memory" in vl2_command("plan", "tiny", "--help")[1]
        assert vl2_command("plan", command, "--help")[0] == 0


def test_help_does_not_wait_for_torch():
    script = (
        "import sys; from vl2.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_python_m_is_the_command():
    run = subprocess.run([sys.executable, "-m", "vl2", "dance"], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr == "error: No such command 'dance': see vl2 --help\n"


def test_a_reader_that_leaves_is_no_error_message():
    command = f"{sys.executable} -m vl2 --help | true"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert run.stderr == ""


def test_terminals_get_no_control_characters():
    assert printable("a\x1b[31mb\tc\nd\x9b") == "a\ufffd[31mb\tc\nd\ufffd"

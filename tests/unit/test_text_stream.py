"""Text deltas: whole characters, no part of a stop string, and together exactly the text."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vl2.engine.text_stream import TextStream
from vl2.processing.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "processor" / "tokenizer"
TOKENIZER = Tokenizer.from_pretrained(GOLDEN)
BYTES = {TOKENIZER.token_bytes(token): token for token in range(TOKENIZER.vocab_size)}


def feed(data: bytes, *stop: str, min_tokens: int = 0) -> tuple[list[str], TextStream]:
    """Push one token per byte, the worst that a byte-level tokenizer can do, until it stops."""
    stream, deltas = TextStream(TOKENIZER, stop, min_tokens), []
    for byte in data:
        deltas.append(stream.push(BYTES[bytes([byte])]))
        if stream.stopped:
            return deltas, stream
    deltas.append(stream.finish())
    return deltas, stream


@settings(deadline=None, max_examples=50)
@given(st.text(), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_deltas_join_to_the_text_before_the_first_stop(text, stop):
    deltas, stream = feed(text.encode(), *stop)
    assert stream.text == "".join(deltas)
    assert stream.stopped == any(s in text for s in stop)
    assert stream.text == text or stream.stopped
    assert not any(s in stream.text for s in stop)
    assert any(text.startswith(stream.text + s) for s in stop) or not stream.stopped


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet="abST", max_size=30))
def test_no_stop_string_leaks_where_parts_of_it_abound(text):
    deltas, stream = feed(text.encode(), "STS", "TT")
    assert "".join(deltas) == stream.text
    assert text.startswith(stream.text)
    assert not {"STS", "TT"} & {stream.text[i : i + n] for i in range(30) for n in (2, 3)}


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet="abST", max_size=30), st.integers(0, 32))
def test_a_stop_string_within_the_first_tokens_is_text(text, min_tokens):
    stops = ("STS", "TT", "a")
    deltas, stream = feed(text.encode(), *stops, min_tokens=min_tokens)
    ends = [
        (place + len(stop), place)
        for stop in stops
        for place in range(len(text))
        if text.startswith(stop, place) and place + len(stop) > min_tokens
    ]
    first = min(end for end, _ in ends) if ends else None
    cut = min(place for end, place in ends if end == first) if ends else len(text)
    assert "".join(deltas) == stream.text == text[:cut]
    assert stream.stopped == bool(ends)


@settings(deadline=None, max_examples=50)
@given(st.binary())
def test_any_bytes_give_the_same_text_as_decoding_at_once(data):
    deltas, stream = feed(data)
    assert "".join(deltas) == stream.text == data.decode("utf-8", errors="replace")


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet="价é𝄞a"))
def test_no_delta_holds_part_of_a_character(text):
    assert "\ufffd" not in "".join(feed(text.encode())[0])


def test_the_beginning_of_a_stop_string_waits_until_it_is_refuted():
    deltas, stream = feed(b"aSTaSTOP", "STOP")
    assert deltas == ["a", "", "", "STa", "", "", "", ""]
    assert stream.stopped
    assert stream.text == "aSTa"


def test_held_text_is_released_at_the_end():
    assert feed(b"well ST", "STOP")[0][-1] == "ST"


def test_control_tokens_are_text_and_can_stop():
    stream = TextStream(TOKENIZER, ["<|User|>"])
    assert stream.push(TOKENIZER.ref_id) == "<|ref|>"
    assert stream.push(TOKENIZER.user_id) == ""
    assert stream.stopped


@pytest.mark.parametrize(("text", "ends"), [("abc", [1, 2, 3]), ("价a", [0, 0, 1, 2])])
def test_ends_say_where_each_token_s_text_ends(text, ends):
    stream = feed(text.encode())[1]
    assert stream.ends == ends
    assert "".join(stream.piece(token) for token in range(len(ends))) == text

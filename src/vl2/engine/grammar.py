"""Structured outputs: which tokens keep an answer in its form, by llguidance (docs/adr/0015).

This is the only file that imports llguidance; without structured outputs it is not needed.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from functools import cache, cached_property
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from vl2.engine.config import StructuredOutputsParams
from vl2.engine.schema import checked_schema, checked_size
from vl2.processing.grounding import GRID
from vl2.processing.tokenizer import Tokenizer

LIMITS = {
    "max_lexer_states": 50_000,  # up to 2 kB each
    "max_grammar_size": 100_000,
    "step_lexer_fuel": 200_000,  # some 15 ms for a token
    "verbose_errors": False,
}
"""What one grammar may take; beyond it the answer fails, and only it."""

SPACING = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""JSON has at most one space, and that behind `,` and `:`, so no answer is endless white space."""

KEPT = 32
"""Grammars that are kept compiled."""

_SLASH = re.compile(r"\\?/|(?P<kept>\\.)", re.DOTALL)


class Matcher:
    """How far an answer has come in its grammar.

    Attributes:
        error: why the answer cannot go on, in one line; None while it can.
    """

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self.error: str | None = None
        self._matcher = matcher
        self._vocab_size = vocab_size

    def copy(self) -> Matcher:
        """The same state, to go its own way."""
        twin = Matcher(self._matcher.deep_copy(), self._vocab_size)
        twin.error = self.error
        return twin

    @property
    def accepting(self) -> bool:
        """Whether the answer may end here."""
        return self.error is None and self._matcher.is_accepting()

    @property
    def finished(self) -> bool:
        """Whether the answer can only end here."""
        return self.error is None and self._matcher.is_stopped()

    def allowed(self) -> Bool[Tensor, " v"]:
        """Tokens that may come next, on the CPU: the end-of-sentence token where it may end."""
        bits = bytearray(self._matcher.compute_bitmask())
        self._check()
        if self.error is not None:
            return torch.zeros(self._vocab_size, dtype=torch.bool)
        places = torch.arange(8, dtype=torch.uint8)
        table = torch.frombuffer(bits, dtype=torch.uint8)[:, None] >> places & 1
        return table.flatten()[: self._vocab_size].bool()

    def accept(self, token: int) -> None:
        """Go on with a token; one that is not allowed sets `error`."""
        if self.error is None:
            self._matcher.consume_token(token)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            told = _one_line(self._matcher.get_error())
            self.error = f"structured output: {told}; ask for a simpler form"


class GrammarCompiler:
    """Makes matchers for one tokenizer; the last `KEPT` forms are kept.

    Attributes:
        vocab_size: of the model: ids beyond the tokenizer's are never allowed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Matcher] = OrderedDict()

    def compile(self, params: StructuredOutputsParams) -> Matcher:
        """A matcher at the beginning of its answer; threads may call this together.

        Raises:
            ValueError: llguidance is not installed, or the form is none, too large, too complex,
                or nothing can ever match it.
        """
        source = self._source(params)
        with self._lock:
            known = self._kept.get(source)
        # Compiled outside the lock: a slow form must not hold up the others.
        matcher = known or self._start(source, _name_of(params))
        with self._lock:
            self._kept[source] = matcher
            self._kept.move_to_end(source)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return matcher.copy()

    def _source(self, params: StructuredOutputsParams) -> str:
        """The form in llguidance's notation."""
        if params.json is not None:
            return json.dumps({"grammars": [{"json_schema": _spaced(checked_schema(params.json))}]})
        if params.regex is not None:
            return f"start: /{_unslashed(checked_size('regex', params.regex))}/"
        if params.choice is not None:
            choices = " | ".join(map(json.dumps, params.choice))
            return checked_size("choice", f"start: CHOICE\nCHOICE: {choices}")
        tokens = self._tokenizer
        return grounding_grammar(tokens.ref_id, tokens.ref_end_id, tokens.det_id, tokens.det_end_id)

    def _start(self, source: str, name: str) -> Matcher:
        library, trie = self._parts
        limits = library.LLParserLimits(**LIMITS)
        built = library.LLMatcher(trie, source, log_level=0, limits=limits)
        # Some mistakes, an endless reference for one, only show when the first token is asked for.
        if not built.is_error():
            built.compute_bitmask()
        if built.is_error():
            form = "the JSON schema" if name == "json" else name
            raise ValueError(f"{form} cannot be used: {_one_line(built.get_error())}")
        return Matcher(built, self.vocab_size)

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        """The library, and its form of the vocabulary."""
        try:
            library = import_module("llguidance")
        except ImportError:
            raise ValueError(
                'structured outputs need a package: pip install "vl2[serve]"'
            ) from None
        wrapper = library.TokenizerWrapper(_Vocabulary(self._tokenizer, self.vocab_size))
        return library, library.LLTokenizer(
            wrapper, n_vocab=self.vocab_size, eos_token=self._tokenizer.eos_id
        )


@cache
def grounding_grammar(ref: int, ref_end: int, det: int, det_end: int) -> str:
    """Labels with their boxes and text behind them, in llguidance's notation.

    Every box passes `parse_grounding`: numbers are 0..999, x1 <= x2 and y1 <= y2. A parameter of
    the rules carries x1 and y1 to their partners, as three digits each (`_code`). Text cannot spell
    `<|`, the beginning of a control token. The arguments are the ids of those that it needs.
    """
    lines = [
        "start: (group TEXT?)+",
        f'group: <[{ref}]> LABEL <[{ref_end}]> <[{det}]> "[" box (COMMA box)* "]" <[{det_end}]>',
        'box: "[" x1::0x0',
        *_number_rules("x1", shift=0, following="COMMA y1"),
        *_number_rules("y1", shift=12, following="COMMA x2"),
        _partner_rule("x2", shift=0, following="COMMA y2::_"),
        _partner_rule("y2", shift=12, following='"]"'),
        "COMMA: /, ?/",
        r"TEXT: /([^<]|<+[^<|])+<*|<+/",
        r"LABEL: /[^<\x00-\x1f]*[^<\s\x00-\x1f][^<\x00-\x1f]*/",
        *(f"N{n}: /{_at_least(n)}/" for n in range(GRID + 1)),
    ]
    return "\n".join(lines)


def _number_rules(name: str, *, shift: int, following: str) -> Iterator[str]:
    """Rules for a number of one to three digits, which they put into the parameter."""
    stop = f"{following}::_"
    first = [f'"{d}" {name}_1::bit_or({d << shift})' for d in range(1, 10)]
    yield f"{name}::_: " + " | ".join([f'"0" {stop}', *first])
    for place in (1, 2):
        more = [
            f'"{d}" {name}_{place + 1}::bit_or({(d + 1) << (shift + 4 * place)})' for d in range(10)
        ]
        yield f"{name}_{place}::_: " + " | ".join([stop, *more])
    yield f"{name}_3::_: {stop}"


def _partner_rule(name: str, *, shift: int, following: str) -> str:
    """A number that is at least the one in the parameter."""
    cases = (
        f"N{n} {following} %if eq([{shift}:{shift + 12}], {_code(n)})" for n in range(GRID + 1)
    )
    return f"{name}::_: " + " | ".join(cases)


def _code(number: int) -> int:
    """A number as `_number_rules` spell it: its first digit, then each digit plus one."""
    first, *rest = map(int, str(number))
    return first + sum((digit + 1) << (4 * place) for place, digit in enumerate(rest, start=1))


def _at_least(number: int) -> str:
    """A regular expression for number..999."""
    digits = str(number)
    cases = [digits]
    for place, digit in enumerate(digits):
        if digit != "9":
            rest = len(digits) - place - 1
            cases.append(f"{digits[:place]}[{int(digit) + 1}-9][0-9]{{{rest}}}")
    cases += [f"[1-9][0-9]{{{length - 1}}}" for length in range(len(digits) + 1, 4)]
    return "|".join(cases)


def _spaced(schema: Any) -> Any:
    """The schema with our spacing."""
    return {**schema, "x-guidance": SPACING} if isinstance(schema, dict) else schema


def _unslashed(pattern: str) -> str:
    """A regular expression without slashes, which would end it in the notation."""
    return _SLASH.sub(lambda found: found[0] if found["kept"] else r"\x2f", pattern)


def _name_of(params: StructuredOutputsParams) -> str:
    given = (name for name in ("json", "regex", "choice") if getattr(params, name) is not None)
    return next(given, "grounding")


def _one_line(message: str) -> str:
    """The library's message, which shows the place in further lines."""
    line = " ".join(message.replace("<non-verbose/>", "").split())
    return "nothing matches it" if line.startswith("NoExtension") else line[:300]


class _Vocabulary:
    """A tokenizer as llguidance wants to see it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocab_size)]
        self.special_token_ids = sorted(tokenizer.control_ids)
        self._encode = tokenizer.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.decode(errors="replace") if isinstance(text, bytes) else text)

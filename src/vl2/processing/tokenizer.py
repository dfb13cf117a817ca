"""Text to ids and back, and the line between control tokens and text.

The encoder that sees text holds no control token at all, so no text can ever become one; control
strings are recognised only by `split_controls`, which the trusted path alone calls.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vl2.processing.tokenizer_file import (
    check_is_bpe,
    is_control,
    text_encoder,
    with_special_tokens,
)

FILE = "tokenizer.json"

SPECIAL_TOKENS: dict[str, str] = {
    "bos": "<｜begin▁of▁sentence｜>",  # noqa: RUF001
    "eos": "<｜end▁of▁sentence｜>",  # noqa: RUF001
    "pad": "<｜▁pad▁｜>",  # noqa: RUF001
    "image": "<image>",
    "ref": "<|ref|>",
    "ref_end": "<|/ref|>",
    "det": "<|det|>",
    "det_end": "<|/det|>",
    "grounding": "<|grounding|>",
    "user": "<|User|>",
    "assistant": "<|Assistant|>",
}
"""Short name to the released string; the bars are full-width in the first three, else ASCII."""

_COMPANION: dict[str, Any] = {
    "tokenizer_class": "LlamaTokenizerFast",
    "add_bos_token": True,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
}
"""What the released tokenizer_config.json say that is not a token's name."""

GROUNDING_TOKENS = ("ref", "ref_end", "det", "det_end", "grounding")
"""The tokens that `allow_grounding_tokens` lets text from outside use."""


class Tokenizer:
    """A byte-level tokenizer.json with the special tokens of DeepSeek-VL2, resolved by name.

    Attributes:
        bos_id, eos_id, pad_id, image_id, ref_id, ref_end_id, det_id, det_end_id, grounding_id,
            user_id, assistant_id: ids of `SPECIAL_TOKENS`.
        control_ids: ids that only our own code, or the trusted path, may put into a prompt.
        vocab_size: number of ids, added tokens included.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        *,
        add_missing: bool = False,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Build from the content of a tokenizer.json.

        Args:
            data: the parsed file.
            add_missing: give missing special tokens the next free ids instead of refusing.
            names: replaces strings of `SPECIAL_TOKENS`, for instance {"pad": "<pad>"}.

        Raises:
            ValueError: not a byte-level tokenizer, or special tokens are missing (all are listed).
        """
        check_is_bpe(data)
        strings = {**SPECIAL_TOKENS, **(names or {})}
        self._data = with_special_tokens(data, strings.values(), add_missing=add_missing)
        added: dict[str, int] = {t["content"]: t["id"] for t in self._data["added_tokens"]}
        self._controls = {
            token["content"]: token["id"]
            for token in self._data["added_tokens"]
            if is_control(token)
        }
        self.control_ids = frozenset(self._controls.values())
        self._tokens: dict[int, str] = {i: t for t, i in self._data["model"]["vocab"].items()}
        self._tokens.update((i, t) for t, i in added.items())
        self._added_ids = frozenset(added.values())
        self.vocab_size = max(self._tokens) + 1
        self._encoder = text_encoder(self._data, self._controls)
        # Without the control tokens the library numbers the other added tokens anew.
        plain = self._encoder.get_added_tokens_decoder().items()
        self._renumbered = {i: added[t.content] for i, t in plain if i != added[t.content]}
        self._pattern = _any_of(self._controls)
        self._ids = {name: self._controls[string] for name, string in strings.items()}
        self.bos_id, self.eos_id, self.pad_id = (self._ids[n] for n in ("bos", "eos", "pad"))
        self.image_id, self.grounding_id = self._ids["image"], self._ids["grounding"]
        self.ref_id, self.ref_end_id = self._ids["ref"], self._ids["ref_end"]
        self.det_id, self.det_end_id = self._ids["det"], self._ids["det_end"]
        self.user_id, self.assistant_id = self._ids["user"], self._ids["assistant"]
        self.grounding_ids = frozenset(self._ids[name] for name in GROUNDING_TOKENS)
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        add_missing: bool = False,
        names: Mapping[str, str] | None = None,
    ) -> Tokenizer:
        """Read `tokenizer.json` from a folder, or the file itself.

        Raises:
            ValueError: no such file, not JSON, not byte-level, or special tokens are missing.
        """
        file = Path(path)
        file = file / FILE if file.is_dir() else file
        try:
            data = json.loads(file.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            raise ValueError(f"no {FILE} at {file}: give a model folder") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{file} cannot be read as JSON: {error}") from None
        if not isinstance(data, dict):
            raise ValueError(f"{file} holds {type(data).__name__}: expected a JSON object")
        return cls(data, add_missing=add_missing, names=names)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` into `folder`, and its companion unless there is one.

        `tokenizer_config.json` tells other engines which tokens begin, end and pad.
        """
        file = Path(folder) / FILE
        text = json.dumps(self._data, ensure_ascii=False, indent=2) + "\n"
        file.write_text(text, encoding="utf-8")
        companion = file.with_name("tokenizer_config.json")
        if not companion.exists():
            ids = {"bos_token": self.bos_id, "eos_token": self.eos_id, "pad_token": self.pad_id}
            told = {**_COMPANION, **{name: self._tokens[i] for name, i in ids.items()}}
            text = json.dumps(told, ensure_ascii=False, indent=2) + "\n"
            companion.write_text(text, encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Ids of text from outside. A control string in it stays text.

        Raises:
            ValueError: half a surrogate pair, which is no text.
        """
        if not text:
            return []
        try:
            ids = self._encoder.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):
            raise ValueError(
                "text holds a lone surrogate, which is not a character: "
                "decode with errors='replace'"
            ) from None
        if self._renumbered:
            ids = [self._renumbered.get(number, number) for number in ids]
        if not self.control_ids.isdisjoint(ids):
            raise ValueError(
                "this tokenizer.json makes control tokens out of plain text by its merges: "
                "use the tokenizer of a DeepSeek-VL2 checkpoint"
            )
        return ids

    def encode_trusted(self, text: str) -> list[int]:
        """Ids of our own text: control strings in it become control ids."""
        ids: list[int] = []
        for piece in self.split_controls(text):
            ids += [piece] if isinstance(piece, int) else self.encode(piece)
        return ids

    def split_controls(self, text: str, only: Iterable[int] | None = None) -> list[str | int]:
        """Cut trusted text at control strings: text pieces and control ids in order.

        Args:
            text: what to cut.
            only: recognise no other ids than these; the rest stays text.
        """
        allowed = self.control_ids if only is None else frozenset(only)
        pattern = self._pattern if only is None else _any_of(self._strings_of(allowed))
        pieces: list[str | int] = []
        at = 0
        for found in pattern.finditer(text):
            pieces += [text[at : found.start()], self._controls[found[0]]]
            at = found.end()
        return [piece for piece in [*pieces, text[at:]] if piece != ""]

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of ids; broken characters become U+FFFD, ids beyond the vocabulary nothing."""
        return b"".join(self._visible(ids, skip_special)).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes one id stands for; empty for an id beyond the vocabulary."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._spell(token)
        return known

    def _visible(self, ids: Sequence[int], skip_special: bool) -> Iterable[bytes]:
        hidden = self.control_ids if skip_special else ()
        return (self.token_bytes(i) for i in ids if i not in hidden)

    def _spell(self, token: int) -> bytes:
        text = self._tokens.get(token, "")
        if token in self._added_ids or not _BYTES.keys() >= set(text):
            return text.encode()
        return bytes(_BYTES[char] for char in text)

    def _strings_of(self, ids: Iterable[int]) -> list[str]:
        wanted = frozenset(ids)
        return [string for string, number in self._controls.items() if number in wanted]


class TextDecoder:
    """Ids to text while they arrive; a character is handed out once it is whole.

    The joined pieces equal `tokenizer.decode(all_ids, skip_special)`.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._hidden = tokenizer.control_ids if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Take one id; returns the characters that it completes, often none."""
        if token in self._hidden:
            return ""
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """The ids have ended: an incomplete character comes out as U+FFFD."""
        return self._utf8.decode(b"", final=True)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's table of printable stand-ins for bytes, as ByteLevel vocabularies are written in."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update((chr(256 + n), byte) for n, byte in enumerate(others))
    return table


_BYTES = _byte_alphabet()


def _any_of(strings: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the strings, the longest first as the tokenizers library does."""
    ordered = sorted(strings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")

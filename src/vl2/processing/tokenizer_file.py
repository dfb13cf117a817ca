"""What a tokenizer.json must hold, and the encoder of it that knows no control token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers

_CONTROL_SHAPE = re.compile(r"<.+>", re.DOTALL)


def check_kind(data: Mapping[str, Any]) -> None:
    """Refuse what is not a byte-level BPE."""
    kind = (data.get("model") or {}).get("type"), (data.get("decoder") or {}).get("type")
    if kind != ("BPE", "ByteLevel"):
        raise ValueError(
            f"tokenizer.json is model {kind[0]!r} with decoder {kind[1]!r}: "
            "expected a byte-level BPE ('BPE' with 'ByteLevel') as DeepSeek's are"
        )


def with_special_tokens(
    data: Mapping[str, Any], strings: Iterable[str], *, add_missing: bool
) -> dict[str, Any]:
    """The file's content with every special token among its added tokens."""
    added = list(data.get("added_tokens") or ())
    known = {token["content"] for token in added}
    missing = [string for string in strings if string not in known]
    if missing and not add_missing:
        raise ValueError(
            f"tokenizer.json lacks {len(missing)} special tokens: {' '.join(missing)}; "
            "use the tokenizer of a DeepSeek-VL2 checkpoint or pass add_missing=True"
        )
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added += [{"id": None, "content": string, **flags, "special": True} for string in missing]
    return {**data, "added_tokens": _numbered(data, added)}


def _numbered(data: Mapping[str, Any], added: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Added tokens with the ids that the tokenizers library gives, counting on from the vocabulary.

    It ignores what the file says; a file that says otherwise is refused.
    """
    vocab = data["model"]["vocab"]
    result: list[dict[str, Any]] = []
    following = len(vocab)
    for token in added:
        number = vocab.get(token["content"], following)
        following += number == following
        if token["id"] not in (None, number):
            raise ValueError(
                f"tokenizer.json numbers {token['content']!r} as {token['id']} where the "
                f"tokenizers library counts {number}: renumber its added tokens without gaps"
            )
        result.append({**token, "id": number})
    return result


def is_control(token: Mapping[str, Any]) -> bool:
    """Special, or shaped like `<...>`: DeepSeek's chat and tool tokens are not marked special."""
    return bool(token.get("special")) or bool(_CONTROL_SHAPE.fullmatch(token["content"]))


def text_encoder(data: Mapping[str, Any], controls: Mapping[str, int]) -> tokenizers.Tokenizer:
    """The tokenizer without its control tokens; other added tokens (runs of spaces, say) stay."""
    for token in data["added_tokens"]:
        greedy = [flag for flag in ("lstrip", "rstrip", "single_word") if token.get(flag)]
        if token["content"] in controls and greedy:
            raise ValueError(
                f"tokenizer.json: special token {token['content']!r} has {greedy[0]} set: "
                "expected none of lstrip, rstrip, single_word, as in DeepSeek's files"
            )
    plain = [token for token in data["added_tokens"] if token["content"] not in controls]
    text = json.dumps({**data, "added_tokens": plain, "post_processor": None}, ensure_ascii=False)
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"tokenizer.json cannot be used: {error}") from None

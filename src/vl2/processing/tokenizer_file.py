"""What a tokenizer.json must hold, and the encoder of it that knows no control token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers

_CONTROL_SHAPE = re.compile(r"<.+>", re.DOTALL)


def check_is_bpe(data: Mapping[str, Any]) -> None:
    """Refuse what is not a byte-level BPE, and a list of tokens that holds something else."""
    model = data.get("model")
    kind = _kind(model), _kind(data.get("decoder"))
    if not isinstance(model, dict) or kind != ("BPE", "ByteLevel"):
        raise ValueError(
            f"tokenizer.json is model {kind[0]!r:.80} with decoder {kind[1]!r:.80}: "
            "expected a byte-level BPE ('BPE' with 'ByteLevel') as DeepSeek's are"
        )
    _check_vocabulary(model.get("vocab"))
    _check_added(data.get("added_tokens"))


def _kind(part: object) -> object:
    return part.get("type") if isinstance(part, dict) else part


def _check_vocabulary(vocab: object) -> None:
    if not isinstance(vocab, dict):
        raise _bad("model.vocab", vocab, "an object of ids by token")
    for token, number in vocab.items():
        if not _is_id(number):
            raise _bad(f"the id of {token!r:.80}", number, "0 or more")
    if len(set(vocab.values())) < len(vocab):
        raise ValueError("tokenizer.json: model.vocab has an id twice: give each token its own")


def _check_added(added: object) -> None:
    if not isinstance(added, list | None):
        raise _bad("added_tokens", added, "a list")
    seen: set[str] = set()
    for number, token in enumerate(added or ()):
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str) or not content or content in seen:
            raise _bad(f"added_tokens[{number}]", token, 'an object with a "content" of its own')
        if token.get("id") is not None and not _is_id(token["id"]):
            raise _bad(f"the id of {content!r:.80}", token["id"], "0 or more")
        seen.add(content)


def _is_id(number: object) -> bool:
    return type(number) is int and number >= 0


def _bad(what: str, value: object, wanted: str) -> ValueError:
    return ValueError(f"tokenizer.json: {what} is {value!r:.80}: expected {wanted}")


def with_special_tokens(
    data: Mapping[str, Any], strings: Iterable[str], *, add_missing: bool
) -> dict[str, Any]:
    """The file's content with every special token among its added tokens."""
    added = list(data.get("added_tokens") or ())
    known = {token["content"] for token in added}
    missing = [string for string in strings if string not in known]
    if missing and not add_missing:
        raise ValueError(
            f"tokenizer.json lacks {len(missing)} special tokens: {' '.join(missing):.300}; "
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
        if token.get("id") not in (None, number):
            raise ValueError(
                f"tokenizer.json numbers {token['content']!r:.80} as {token['id']} where the "
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
                f"tokenizer.json: special token {token['content']!r:.80} has {greedy[0]} set: "
                "expected none of lstrip, rstrip, single_word, as in DeepSeek's files"
            )
    plain = [token for token in data["added_tokens"] if token["content"] not in controls]
    text = json.dumps({**data, "added_tokens": plain, "post_processor": None}, ensure_ascii=False)
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        told = " ".join(str(error).split())
        raise ValueError(f"tokenizer.json cannot be used: {told:.300}") from None

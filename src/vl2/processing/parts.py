"""Message content as people and programs send it: a string, or a list of parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vl2.processing.image_source import WRAPPED
from vl2.processing.segments import Control, PicturePlace, Segment, Text, joined
from vl2.processing.tokenizer import Tokenizer


class PartReader:
    """Turns contents into segments and collects their pictures in order.

    Parts are
    {"type": "text", "text": str},
    {"type": "image", "image": anything of `image_source.PictureSource`} (users only),
    {"type": "image_url", "image_url": a data URL or {"url": it}} of OpenAI (users only),
    {"type": "grounding", "query": str} (users only): `<|ref|>query<|/ref|>`; when a message has no
    text beside it, a full stop follows as in the official examples. Without a query it is the mark
    `<|grounding|>`, which asks for an answer with boxes in its text.

    Pictures and texts stand on lines of their own, unless white space already parts them; a
    grounding part stands in its sentence, so that text around it decides about spaces.
    """

    def __init__(self, tokenizer: Tokenizer, *, allow_grounding_tokens: bool = False) -> None:
        self.sources: list[Any] = []
        self._ids = tokenizer
        self._allowed = tokenizer.grounding_ids if allow_grounding_tokens else frozenset[int]()

    def read(self, content: Any, role: str, index: int) -> list[Segment]:
        """Segments of the content of message `index`, stripped of outer white space.

        Raises:
            ValueError: content or a part of an unknown kind, or a part that the role may not send.
        """
        if isinstance(content, str):
            return self._text(content.strip())
        if not isinstance(content, list | tuple):
            raise ValueError(
                f"message {index} has content of type {type(content).__name__}: "
                "expected a string or a list of parts"
            )
        kinds = [_kind(part, role, index) for part in content]
        segments: list[Segment] = []
        for part, kind, before in zip(content, kinds, ["", *kinds], strict=False):
            new = self._part(part, kind, index)
            if _stand_apart(before, kind) and _no_space_between(segments, new):
                segments.append(Text("\n"))
            segments += new
        if "text" not in kinds and Control(self._ids.ref_end_id) in segments:
            segments.append(Text("."))
        return _stripped(segments)

    def _part(self, part: Mapping[str, Any], kind: str, index: int) -> list[Segment]:
        if kind == "image":
            self.sources.append(_picture(part, index))
            return [PicturePlace(len(self.sources) - 1)]
        if kind == "text":
            return self._text(_string(part, "text", index))
        if part.get("query") is None:
            return [Control(self._ids.grounding_id)]
        query = _string(part, "query", index).strip()
        if not query:
            raise ValueError(f"message {index} has an empty query: name what to locate")
        return [Control(self._ids.ref_id), Text(query), Control(self._ids.ref_end_id)]

    def _text(self, text: str) -> list[Segment]:
        if not self._allowed:
            return [Text(text)]
        pieces = self._ids.split_controls(text, only=self._allowed)
        return [Control(piece) if isinstance(piece, int) else Text(piece) for piece in pieces]


def _kind(part: Any, role: str, index: int) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("text", "image", "image_url", "grounding"):
        raise ValueError(
            f"message {index} has a part of type {kind!r}: expected 'text', 'image', 'image_url' "
            "or 'grounding'"
        )
    kind = "image" if kind == "image_url" else kind
    if kind != "text" and role != "user":
        raise ValueError(f"message {index} has a part {kind!r} but role {role}: only users send it")
    return kind


def _picture(part: Mapping[str, Any], index: int) -> Any:
    """The picture of a part: under "image" or "image_url", or beside the type as a source is."""
    if part["type"] == "image_url":
        return _value(part, "image_url", index)
    if part.get("image") is None and any(part.get(key) is not None for key in WRAPPED):
        return part
    return _value(part, "image", index)


def _value(part: Mapping[str, Any], name: str, index: int) -> Any:
    if part.get(name) is None:
        raise ValueError(f"message {index} has a part {part['type']!r} without {name!r}: give it")
    return part[name]


def _string(part: Mapping[str, Any], name: str, index: int) -> str:
    value = _value(part, name, index)
    if not isinstance(value, str):
        raise ValueError(
            f"message {index} has {name!r} of type {type(value).__name__}: expected a string"
        )
    return value


def _stand_apart(before: str, kind: str) -> bool:
    """Whether a line break belongs between parts of these kinds."""
    return before != "" and ("grounding" not in (before, kind) or "image" in (before, kind))


def _no_space_between(before: Sequence[Segment], after: Sequence[Segment]) -> bool:
    ended = before and isinstance(before[-1], Text) and before[-1].text[-1:].isspace()
    begun = after and isinstance(after[0], Text) and after[0].text[:1].isspace()
    return not (ended or begun)


def _stripped(segments: Sequence[Segment]) -> list[Segment]:
    result = joined(segments)
    if result and isinstance(result[0], Text):
        result[0] = Text(result[0].text.lstrip())
    if result and isinstance(result[-1], Text):
        result[-1] = Text(result[-1].text.rstrip())
    return joined(result)

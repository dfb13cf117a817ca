"""A conversation as turns of segments: control ids, text and pictures, never one rendered string.

The stream (released `format_messages_v2`): BOS; a user turn is `<|User|>: {text}\\n\\n<|Assistant|>:`; an
assistant turn is its text and EOS; a system text may only come first and stands alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vl2.processing.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Control:
    """One control token. Only our own code, or the trusted path, makes one."""

    id: int


@dataclass(frozen=True, slots=True)
class Text:
    """Text whose control strings, if any, stay text."""

    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """The place of the `index`-th picture."""

    index: int


Segment = Control | Text | Picture


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """Segments that are learnt, or not, as a whole."""

    segments: tuple[Segment, ...]
    supervised: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A whole conversation, and its pictures in order."""

    turns: tuple[Turn, ...]
    sources: tuple[Any, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPrompt:
    """Ids of one sample, one label and one picture mark per id."""

    input_ids: list[int]
    labels: list[int]
    image_mask: list[bool]


_ROLES = {
    "user": "user",
    "<|User|>": "user",
    "assistant": "assistant",
    "<|Assistant|>": "assistant",
    "system": "system",
    "deepseekapi-sys": "system",
}


def from_conversation(
    conversation: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    images: int,
    *,
    open_end: bool,
) -> Prompt:
    """The official format: control strings and `<image>` inside the text are obeyed. Trusted only.

    Args:
        conversation: messages {"role", "content"} with string content.
        tokenizer: resolves control strings.
        images: number of pictures that belong to the conversation.
        open_end: leave out the EOS of the last assistant turn, so that the model goes on.

    Raises:
        ValueError: unknown role, misplaced system text or `<image>`, or another number of `<image>`
            than of pictures.
    """
    turns = [_opening(tokenizer)]
    seen = 0
    for index, message in enumerate(_checked(conversation)):
        role, content = _role(message, index), message["content"]
        if not isinstance(content, str):
            raise ValueError(
                f"message {index} has content of type {type(content).__name__}: expected a string in "
                "the official format; content parts go through processor(messages)"
            )
        segments: list[Segment] = []
        for piece in tokenizer.split_controls(content.strip()):
            if piece == tokenizer.image_id:
                segments.append(Picture(seen))
                seen += 1
            else:
                segments.append(Control(piece) if isinstance(piece, int) else Text(piece))
        if role != "user" and any(isinstance(s, Picture) for s in segments):
            raise ValueError(f"message {index} has <image> in {role} text: only user text may hold it")
        last = index == len(conversation) - 1
        turns.append(_turn(role, segments, tokenizer, open_end=open_end and last))
    if seen != images:
        raise ValueError(f"{seen} <image> in the conversation for {images} pictures: they must agree")
    return Prompt(turns=tuple(turns))


def from_messages(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    add_generation_prompt: bool,
    allow_grounding_tokens: bool = False,
) -> Prompt:
    """Chat messages with content parts; nothing in their text can become a control token.

    Args:
        messages: {"role", "content"}; content is a string or a list of parts
            {"type": "text", "text"}, {"type": "image", "image"}, {"type": "grounding", "query"}.
        tokenizer: gives the control ids.
        add_generation_prompt: end where the model answers: after `<|Assistant|>:`, or inside a last
            assistant message, which is then continued. Otherwise end with what was said.
        allow_grounding_tokens: let text use the five grounding tokens, and no other.

    Raises:
        ValueError: unknown role or part, or a part where it may not stand.
    """
    reader = _PartReader(tokenizer, allow_grounding_tokens)
    turns = [_opening(tokenizer)]
    for index, message in enumerate(_checked(messages)):
        role = _role(message, index)
        segments = reader.read(message["content"], role, index)
        open_end = add_generation_prompt and index == len(messages) - 1
        turns.append(_turn(role, segments, tokenizer, open_end=open_end))
    if not add_generation_prompt and _role(messages[-1], 0) == "user":
        unasked = turns[-1].segments[:-2]  # without `<|Assistant|>` and `:`
        turns[-1] = Turn(segments=unasked)
    return Prompt(turns=tuple(turns), sources=tuple(reader.sources))


def encode(
    prompt: Prompt,
    tokenizer: Tokenizer,
    image_tokens: Sequence[int],
    *,
    mask_prompt: bool = True,
    ignore_id: int = -100,
) -> EncodedPrompt:
    """Ids, labels and picture marks of a prompt.

    Args:
        prompt: the turns.
        tokenizer: encodes text.
        image_tokens: placeholders of each picture.
        mask_prompt: learn only answers (and BOS, harmless after the shift) instead of all text.
        ignore_id: label of what is not learnt; placeholders always carry it.
    """
    ids: list[int] = []
    labels: list[int] = []
    mask: list[bool] = []
    for turn in prompt.turns:
        learnt = turn.supervised or not mask_prompt
        for segment in _joined(turn.segments):
            match segment:
                case Picture(index=index):
                    new, target = [tokenizer.image_id] * image_tokens[index], False
                case Control(id=number):
                    new, target = [number], learnt
                case Text(text=text):
                    new, target = tokenizer.encode(text), learnt
            ids += new
            labels += new if target else [ignore_id] * len(new)
            mask += [isinstance(segment, Picture)] * len(new)
    return EncodedPrompt(input_ids=ids, labels=labels, image_mask=mask)


class _PartReader:
    """Turns message content into segments and collects the pictures on the way."""

    def __init__(self, tokenizer: Tokenizer, allow_grounding_tokens: bool) -> None:
        self.sources: list[Any] = []
        self._tokenizer = tokenizer
        self._allowed = tokenizer.grounding_ids if allow_grounding_tokens else frozenset[int]()

    def read(self, content: Any, role: str, index: int) -> list[Segment]:
        """Segments of one message, its outer white space stripped as the released code does."""
        if isinstance(content, str):
            return self._text(content.strip())
        if not isinstance(content, list | tuple):
            raise ValueError(
                f"message {index} has content of type {type(content).__name__}: "
                "expected a string or a list of parts"
            )
        segments: list[Segment] = []
        kinds = [self._kind(part, role, index) for part in content]
        for part, kind, before in zip(content, kinds, ["", *kinds], strict=False):
            new = self._part(part, kind, index)
            if new and segments and _needs_newline(segments[-1], new[0], before, kind):
                segments.append(Text("\n"))
            segments += new
        if "grounding" in kinds and "text" not in kinds and part_has_query(content):
            segments.append(Text("."))  # as in the official examples
        return _stripped(segments)

    def _kind(self, part: Any, role: str, index: int) -> str:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "image", "grounding"):
            raise ValueError(
                f"message {index} has a part of type {kind!r}: expected 'text', 'image' or 'grounding'"
            )
        if kind != "text" and role != "user":
            raise ValueError(f"message {index} has a part {kind!r} in {role} content: only a user may send it")
        return kind

    def _part(self, part: Mapping[str, Any], kind: str, index: int) -> list[Segment]:
        if kind == "image":
            if part.get("image") is None:
                raise ValueError(f"message {index} has an image part without 'image': give a path, bytes or a PIL image")
            self.sources.append(part["image"])
            return [Picture(len(self.sources) - 1)]
        name = "text" if kind == "text" else "query"
        text = part.get(name)
        if kind == "grounding" and text is None:
            return [Control(self._tokenizer.grounding_id)]
        if not isinstance(text, str):
            raise ValueError(f"message {index} has a {kind} part whose {name!r} is {type(text).__name__}: expected a string")
        if kind == "text":
            return self._text(text)
        ids = self._tokenizer
        return [Control(ids.ref_id), Text(text.strip()), Control(ids.ref_end_id)]

    def _text(self, text: str) -> list[Segment]:
        if not self._allowed:
            return [Text(text)] if text else []
        pieces = self._tokenizer.split_controls(text, only=self._allowed)
        return [Control(p) if isinstance(p, int) else Text(p) for p in pieces]


def part_has_query(content: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a grounding part names something to find."""
    return any(part["type"] == "grounding" and part.get("query") is not None for part in content)


def _checked(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    if not messages:
        raise ValueError("the conversation is empty: give at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(f"message {index} is no object with 'role' and 'content'")
    return messages


def _role(message: Mapping[str, Any], index: int) -> str:
    role = _ROLES.get(message["role"]) if isinstance(message["role"], str) else None
    if role is None:
        raise ValueError(f"message {index} has role {message['role']!r}: expected user, assistant or system")
    if role == "system" and index > 0:
        raise ValueError(f"message {index} has role 'system': a system message may only come first")
    return role


def _opening(tokenizer: Tokenizer) -> Turn:
    return Turn(segments=(Control(tokenizer.bos_id),), supervised=True)


def _turn(role: str, content: Sequence[Segment], tokenizer: Tokenizer, *, open_end: bool) -> Turn:
    if role == "system":
        return Turn(segments=tuple(content))
    if role == "assistant":
        end = () if open_end else (Control(tokenizer.eos_id),)
        return Turn(segments=(*content, *end), supervised=True)
    before = (Control(tokenizer.user_id), Text(": "))
    after = (Text("\n\n"), Control(tokenizer.assistant_id), Text(":"))
    return Turn(segments=(*before, *content, *after))


def _joined(segments: Iterable[Segment]) -> list[Segment]:
    """Neighbouring texts become one, because the tokenizer merges across them."""
    joined: list[Segment] = []
    for segment in segments:
        if isinstance(segment, Text) and joined and isinstance(joined[-1], Text):
            joined[-1] = Text(joined[-1].text + segment.text)
        else:
            joined.append(segment)
    return joined


def _needs_newline(last: Segment, first: Segment, before: str, kind: str) -> bool:
    """Parts stand on lines of their own unless white space is there; a query stands in its sentence."""
    if "grounding" in (before, kind) and "image" not in (before, kind):
        return False
    ends = isinstance(last, Text) and last.text[-1:].isspace()
    begins = isinstance(first, Text) and first.text[:1].isspace()
    return not (ends or begins)


def _stripped(segments: Sequence[Segment]) -> list[Segment]:
    found = _joined(segments)
    if found and isinstance(found[0], Text):
        found[0] = Text(found[0].text.lstrip())
    if found and isinstance(found[-1], Text):
        found[-1] = Text(found[-1].text.rstrip())
    return [s for s in found if not (isinstance(s, Text) and not s.text)]

r"""A conversation as turns of segments: control ids, text, pictures; never one rendered string.

The stream of the released `format_messages_v2`: BOS once; a user turn is
`<|User|>: {text}\n\n<|Assistant|>:`; an assistant turn is its text and EOS; a system text may only
come first and stands alone. Contents are stripped of outer white space.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vl2.processing.parts import PartReader
from vl2.processing.segments import Control, Dialogue, Passage, PicturePlace, Segment, Text, joined
from vl2.processing.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""{"role", "content"}."""

_ROLES = {
    "user": "user",
    "<|User|>": "user",
    "assistant": "assistant",
    "<|Assistant|>": "assistant",
    "system": "system",
    "deepseekapi-sys": "system",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPrompt:
    """Ids of one sample, with a label and a picture mark for each."""

    input_ids: list[int]
    labels: list[int]
    image_mask: list[bool]


def from_messages(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    add_generation_prompt: bool,
    allow_grounding_tokens: bool = False,
) -> Dialogue:
    """Chat messages with content parts. Nothing in their text can become a control token.

    Args:
        messages: content is a string or a list of parts, see `PartReader`.
        tokenizer: gives the control ids.
        add_generation_prompt: end where the model answers: after `<|Assistant|>:`, or inside a last
            assistant message, which the model then continues. Otherwise end with what was said.
        allow_grounding_tokens: let text use the five grounding tokens, and no others.

    Raises:
        ValueError: an unknown role or part, or one where it may not stand.
    """
    roles = _roles(messages, answer_next=add_generation_prompt)
    reader = PartReader(tokenizer, allow_grounding_tokens=allow_grounding_tokens)
    turns = [_opening(tokenizer)]
    for index, (role, message) in enumerate(zip(roles, messages, strict=True)):
        segments = reader.read(message["content"], role, index)
        open_end = add_generation_prompt and index == len(messages) - 1
        turns.append(_turn(role, segments, tokenizer, open_end=open_end))
    if roles[-1] == "user" and not add_generation_prompt:
        turns[-1] = Passage(segments=turns[-1].segments[:-2])  # without `<|Assistant|>` and `:`
    return Dialogue(turns=tuple(turns), sources=tuple(reader.sources))


def from_conversation(
    conversation: Sequence[Message],
    tokenizer: Tokenizer,
    images: Sequence[Any] | None,
    *,
    open_end: bool,
) -> Dialogue:
    """The official format: control strings and `<image>` inside text are obeyed. Trusted text only.

    Args:
        conversation: messages with string content.
        tokenizer: recognises control strings.
        images: the pictures in the order of their `<image>`; None takes the ones that the messages
            name in "images".
        open_end: leave out the EOS of a last assistant turn, so that the model continues it.

    Raises:
        ValueError: an unknown role, a system text or `<image>` in the wrong place, or another
            number of `<image>` than of pictures.
    """
    roles = _roles(conversation, answer_next=open_end)
    if images is None:
        images = [source for n, m in enumerate(conversation) for source in _named_images(m, n)]
    turns = [_opening(tokenizer)]
    seen = 0
    for index, (role, message) in enumerate(zip(roles, conversation, strict=True)):
        text = message["content"]
        if not isinstance(text, str):
            raise ValueError(
                f"message {index} has content of type {type(text).__name__}: the official format "
                "has strings; give content parts to processor(messages)"
            )
        segments = trusted_segments(text.strip(), tokenizer, first_picture=seen)
        found = sum(isinstance(segment, PicturePlace) for segment in segments)
        if found and role != "user":
            raise ValueError(
                f"message {index} has <image> in {role} text: only users send pictures"
            )
        seen += found
        last = index == len(conversation) - 1
        turns.append(_turn(role, segments, tokenizer, open_end=open_end and last))
    _check_count(seen, images)
    return Dialogue(turns=tuple(turns), sources=tuple(images))


def from_document(
    text: str, tokenizer: Tokenizer, images: Sequence[Any], *, open_end: bool
) -> Dialogue:
    """Plain or interleaved text without turns, all of it learnt (the official `prompt=`). Trusted.

    Args:
        text: with `<image>` where the pictures stand.
        tokenizer: recognises control strings.
        images: the pictures in the order of their `<image>`.
        open_end: leave out the EOS, so that the model continues the text.

    Raises:
        ValueError: another number of `<image>` than of pictures.
    """
    segments = trusted_segments(text, tokenizer)
    _check_count(sum(isinstance(segment, PicturePlace) for segment in segments), images)
    end = () if open_end else (Control(tokenizer.eos_id),)
    body = Passage(segments=(*segments, *end), supervised=True)
    return Dialogue(turns=(_opening(tokenizer), body), sources=tuple(images))


def trusted_segments(text: str, tokenizer: Tokenizer, *, first_picture: int = 0) -> list[Segment]:
    """Our own text cut at its control strings; its `<image>` are numbered from `first_picture`."""
    segments: list[Segment] = []
    for piece in tokenizer.split_controls(text):
        if piece == tokenizer.image_id:
            segments.append(PicturePlace(first_picture))
            first_picture += 1
        else:
            segments.append(Control(piece) if isinstance(piece, int) else Text(piece))
    return segments


def encode(
    prompt: Dialogue,
    tokenizer: Tokenizer,
    image_tokens: Sequence[int],
    *,
    mask_prompt: bool = True,
    ignore_id: int = -100,
) -> EncodedPrompt:
    """Ids, labels and picture marks of a prompt.

    Args:
        prompt: the turns.
        tokenizer: encodes the text.
        image_tokens: number of placeholders of each picture.
        mask_prompt: learn answers only (and BOS, which the shift drops), else all text.
        ignore_id: label of what is not learnt; placeholders always have it.
    """
    ids: list[int] = []
    labels: list[int] = []
    mask: list[bool] = []
    for turn in prompt.turns:
        for segment in joined(turn.segments):
            learnt = turn.supervised or not mask_prompt
            match segment:
                case Control(id=number):
                    new = [number]
                case Text(text=text):
                    new = tokenizer.encode(text)
                case PicturePlace(index=index):
                    new, learnt = [tokenizer.image_id] * image_tokens[index], False
            ids += new
            labels += new if learnt else [ignore_id] * len(new)
            mask += [isinstance(segment, PicturePlace)] * len(new)
    return EncodedPrompt(input_ids=ids, labels=labels, image_mask=mask)


def _roles(messages: Sequence[Message], *, answer_next: bool) -> list[str]:
    """The role of each message under its short name; the order is checked."""
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise ValueError(
            f"the conversation is of type {type(messages).__name__}: expected a list of messages, "
            '[{"role": "user", "content": ...}]'
        )
    if not messages:
        raise ValueError("the conversation is empty: give at least one message")
    roles = [_role(message, index) for index, message in enumerate(messages)]
    if "system" in roles[1:]:
        index = roles.index("system", 1)
        raise ValueError(f"message {index} has role 'system': a system message may only come first")
    if answer_next and roles[-1] == "system":
        raise ValueError("the conversation is a system message alone: add a user message to answer")
    return roles


def _role(message: Message, index: int) -> str:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise ValueError(
            f"message {index} is not an object with 'role' and 'content', but of type "
            f"{type(message).__name__}: a conversation is a list of messages, "
            '[{"role": "user", "content": ...}]'
        )
    name = message["role"]
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise ValueError(f"message {index} has role {name!r}: expected user, assistant or system")
    return role


def _named_images(message: Message, index: int) -> Sequence[Any]:
    images = message.get("images", ())
    if not isinstance(images, list | tuple):
        raise ValueError(
            f"message {index} has 'images' of type {type(images).__name__}: expected a list"
        )
    return images


def _check_count(seen: int, images: Sequence[Any]) -> None:
    if not isinstance(images, list | tuple):
        raise ValueError(f"images is of type {type(images).__name__}: expected a list of pictures")
    if seen != len(images):
        raise ValueError(
            f"{seen} <image> in the text for {len(images)} pictures: write one for each picture"
        )


def _opening(tokenizer: Tokenizer) -> Passage:
    return Passage(segments=(Control(tokenizer.bos_id),), supervised=True)


def _turn(
    role: str, content: Iterable[Segment], tokenizer: Tokenizer, *, open_end: bool
) -> Passage:
    if role == "system":
        return Passage(segments=tuple(content))
    if role == "assistant":
        end = () if open_end else (Control(tokenizer.eos_id),)
        return Passage(segments=(*content, *end), supervised=True)
    before = (Control(tokenizer.user_id), Text(": "))
    after = (Text("\n\n"), Control(tokenizer.assistant_id), Text(":"))
    return Passage(segments=(*before, *content, *after))

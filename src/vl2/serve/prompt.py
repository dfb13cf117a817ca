"""From a request to what the engine gets: messages, pictures in order, sampling parameters.

This is the only place where a request's words become an engine's.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any

from vl2.engine.config import RepetitionGuard, SamplingParams, StructuredOutputsParams
from vl2.engine.schema import checked_schema, checked_size
from vl2.processing.grounding_request import grounding_parts
from vl2.serve import schema
from vl2.serve.config import Limits
from vl2.serve.errors import ApiError, refused, shown

MAX_TOKENS = 512
"""Of an answer whose request names no number."""
BYTES_PER_TOKEN = 8
"""Text that is longer than so many times the context cannot fit; it is refused unread."""

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.IGNORECASE)
_ADDRESS = re.compile(r"https://", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Attachment:
    """A picture or PDF of a request."""

    param: str
    data: bytes | None = None  # of the file
    url: str | None = None  # where to fetch it
    pdf: schema.FileData | None = None  # how its pages are chosen, if it is a PDF


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A chat request that can be answered as far as its fields tell.

    `messages` hold an `Attachment` in place of each part that is a picture or PDF.
    """

    messages: list[dict[str, Any]]
    params: SamplingParams
    tiling: schema.Tiling | None
    max_tiles: int | None

    @property
    def sources(self) -> list[Attachment]:
        """Pictures and PDFs in order."""
        contents = (m["content"] for m in self.messages if isinstance(m["content"], list))
        return [part for content in contents for part in content if isinstance(part, Attachment)]


def plan_chat(request: schema.ChatRequest, limits: Limits, context: int) -> Plan:
    """What a chat request asks for.

    Raises:
        ApiError: a field is not supported, contradicts another, or is above a limit.
    """
    for name in ("tools", "functions", "audio", "logit_bias"):
        if getattr(request, name):
            raise _unsupported(name)
    for name in ("tool_choice", "function_call"):
        if getattr(request, name) not in (None, "none", "auto"):
            raise _unsupported(name)
    if request.modalities not in (None, ["text"]):
        raise _unsupported("modalities")
    messages = [_message(m, f"messages[{n}]", limits) for n, m in enumerate(request.messages)]
    check_length(_texts(messages), context, "messages")
    if request.grounding:
        _ask_to_locate(messages)
    return Plan(
        messages=messages,
        params=params_of(request, limits, form=_form(request.response_format)),
        tiling=request.tiling,
        max_tiles=request.max_tiles,
    )


def params_of(
    request: schema.ChatRequest | schema.CompletionRequest,
    limits: Limits,
    form: StructuredOutputsParams | None = None,
) -> SamplingParams:
    """The sampling parameters of a request; the model's own where it names none.

    Raises:
        ApiError: a value is above a limit, or contradicts another.
    """
    n = request.n or 1
    if n > limits.max_n:
        raise refused("n", f"n is {n}: expected at most {limits.max_n}")
    logprobs, trace = request.logprobs, False
    if isinstance(request, schema.ChatRequest):
        trace = request.trace
        if request.top_logprobs is not None and not request.logprobs:
            raise refused("top_logprobs", "top_logprobs is given without logprobs: set it to true")
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
    most = _max_tokens(request)
    if request.min_tokens > most:
        told = f"min_tokens is {request.min_tokens}: expected at most max_tokens, {most}"
        raise refused("min_tokens", told)
    return SamplingParams(
        max_tokens=most,
        min_tokens=request.min_tokens,
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_guard=RepetitionGuard() if request.repetition_guard else None,
        stop=request.stop or (),
        seed=request.seed,
        n=n,
        logprobs=logprobs,
        structured_outputs=form,
        trace=trace,
    )


def source_of(
    url: str, param: str, limits: Limits, pdf: schema.FileData | None = None
) -> Attachment:
    """The bytes of a data URL, or an address to fetch.

    Raises:
        ApiError: it is neither, or too large.
    """
    if _ADDRESS.match(url):
        if pdf is None:
            return Attachment(param=param, url=url)
        raise refused(param, f"{param} is an address: send the PDF as a data URL", "invalid_pdf")
    code, kind = ("invalid_pdf", "PDF") if pdf else ("invalid_image", "picture")
    head = _DATA_URL.match(url[:256])
    if head is None:
        wanted = "data:application/pdf;base64,..."
        if pdf is None:
            wanted = "data:image/png;base64,... or an https address of an allowed host"
        raise refused(param, f"{param} is {shown(url)}: expected {wanted}", code)
    if (len(url) - head.end()) * 3 // 4 > limits.max_image + 2:
        raise ApiError(
            413,
            "file_too_large",
            f"the {kind} has more than {limits.max_image:,} bytes: send a smaller one",
            param=param,
        )
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise refused(
            param,
            f"the base64 text of the {kind} is not valid: give the standard alphabet with its "
            "padding, without spaces or line breaks",
            code,
        ) from None
    return Attachment(param=param, data=data, pdf=pdf)


def _message(message: schema.Message, param: str, limits: Limits) -> dict[str, Any]:
    if message.tool_calls:
        raise _unsupported(f"{param}.tool_calls")
    role = "system" if message.role == "developer" else message.role
    content = message.content
    if content is None:
        if role != "assistant":
            raise refused(f"{param}.content", f"{param}.content is missing: give it")
        content = ""
    if isinstance(content, str):
        return {"role": role, "content": content}
    parts = [_part(part, f"{param}.content[{n}]", limits) for n, part in enumerate(content)]
    return {"role": role, "content": parts}


def _part(part: schema.Part, param: str, limits: Limits) -> dict[str, Any] | Attachment:
    match part:
        case schema.ImagePart(image_url=image):
            return source_of(image.url, f"{param}.image_url.url", limits)
        case schema.FilePart(file=file):
            if file.dpi > limits.max_dpi:
                where = f"{param}.file.dpi"
                raise refused(where, f"{where} is {file.dpi}: expected at most {limits.max_dpi:g}")
            return source_of(file.file_data, f"{param}.file.file_data", limits, file)
        case _:
            return part.model_dump()


def check_length(texts: list[str], context: int, param: str) -> None:
    """Refuse texts that are too long for any tokenizer to make them fit.

    Raises:
        ApiError: they are; it names `param`.
    """
    size, limit = sum(len(text.encode()) for text in texts), BYTES_PER_TOKEN * context
    if size > limit:
        raise ApiError(
            400,
            "context_length_exceeded",
            f"{param}: {size:,} bytes of text, and the context of {context:,} tokens takes at most "
            f"{limit:,}; send less",
            param=param,
        )


def _texts(messages: list[dict[str, Any]]) -> list[str]:
    return [
        text
        for message in messages
        for part in _parts(message)
        if isinstance(part, dict)
        for text in (part.get("text"), part.get("query"))
        if text
    ]


def _parts(message: dict[str, Any]) -> list[Any]:
    content = message["content"]
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _ask_to_locate(messages: list[dict[str, Any]]) -> None:
    """Write the last text of the last user message in the form that asks for boxes."""
    last = messages[-1]
    parts = _parts(last)
    places = [n for n, part in enumerate(parts) if isinstance(part, dict) and part.get("text")]
    if last["role"] != "user" or not places:
        raise refused(
            "grounding", "grounding needs a last user message that names what to locate: add text"
        )
    place = places[-1]
    parts[place : place + 1] = grounding_parts(parts[place]["text"])
    last["content"] = parts


def _form(asked: schema.Format | None) -> StructuredOutputsParams | None:
    try:
        match asked:
            case None | schema.TextFormat():
                return None
            case schema.JsonFormat():
                return StructuredOutputsParams(json={"type": "object"})
            case schema.SchemaFormat(json_schema=found):
                checked_schema(found.schema_)
                return StructuredOutputsParams(json=found.schema_)
            case schema.GroundingFormat():
                return StructuredOutputsParams(grounding=True)
            case schema.RegexFormat(regex=pattern):
                return StructuredOutputsParams(regex=checked_size("regex", pattern))
            case schema.ChoiceFormat(choice=texts):
                checked_size("choice", "".join(texts))
                return StructuredOutputsParams(choice=texts)
    except ValueError as error:
        raise refused("response_format", str(error), "invalid_schema") from None


def _max_tokens(request: schema.ChatRequest | schema.CompletionRequest) -> int:
    named = [request.max_tokens]
    if isinstance(request, schema.ChatRequest):
        named.append(request.max_completion_tokens)
    numbers = {number for number in named if number is not None}
    if len(numbers) > 1:
        raise refused("max_tokens", "max_tokens and max_completion_tokens differ: give one of them")
    return next(iter(numbers), MAX_TOKENS)


def _unsupported(param: str) -> ApiError:
    return refused(
        param, f"{param} is not supported by this model: leave it out", "unsupported_parameter"
    )

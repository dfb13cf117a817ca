"""Requests as they may come: OpenAI's fields, ours beside them, and nothing else.

A field that is not listed is refused, since one that is silently dropped changes the answer without
a word. What OpenAI's clients send and what changes nothing here is listed and ignored.
"""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr
from pydantic import ValidationError as Invalid

from vl2.serve.errors import ApiError, refused, shown

MAX_STOPS, MAX_STOP_CHARACTERS = 4, 128

_LEAD = re.compile(r"^(Input should be|\w+ should have) | after validation, not \d+$")
_WORDS = (
    (r"a valid dictionary or (instance of \w+|object to extract fields from)", "an object"),
    ("a valid integer", "a whole number"),
    ("a valid boolean", "true or false"),
    ("a valid (string|number|list)", r"a \1"),
    ("greater than or equal to", "at least"),
    ("less than or equal to", "at most"),
)
"""Pydantic's words, and ours, which have no name of a class."""

T = TypeVar("T", bound="Strict")

Number = StrictFloat | StrictInt
Text = Annotated[StrictStr, Field(min_length=1)]
Pages = Annotated[StrictStr, Field(max_length=200, description="Such as 1-3,5; from 1.")]
Stop = Annotated[StrictStr, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Tiling = Literal["released", "content"]
MaxTiles = Annotated[StrictInt, Field(ge=1, le=64)]


class Strict(BaseModel):
    """A request or a part of it: fields of exact types, and no others."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Strict):
    """Text; control strings in it stay text."""

    type: Literal["text"]
    text: StrictStr


class ImageUrl(Strict):
    """A picture as a data URL; as an https address where the server allows its host."""

    url: Text
    detail: Any = Field(default=None, description="Ignored: the picture is read whole.")


class ImagePart(Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


class FileData(Strict):
    """A PDF as a data URL; each chosen page is a picture."""

    file_data: Text
    filename: StrictStr | None = None
    pages: Pages | None = None
    dpi: Number = Field(default=144, gt=0)


class FilePart(Strict):
    """A PDF."""

    type: Literal["file"]
    file: FileData


class GroundingPart(Strict):
    """What to locate; without a query an answer with boxes in its text is asked for."""

    type: Literal["grounding"]
    query: Text | None = None


Part = Annotated[TextPart | ImagePart | FilePart | GroundingPart, Field(discriminator="type")]


class Message(Strict):
    """One turn. Answers can be sent back as they came."""

    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | Annotated[list[Part], Field(fail_fast=True)] | None = None
    name: Any = Field(default=None, description="Ignored.")
    refusal: Any = Field(default=None, description="Ignored.")
    boxes: Any = Field(default=None, description="Ignored: of an answer that is sent back.")
    trace: Any = Field(default=None, description="Ignored: of an answer that is sent back.")
    tool_calls: Any = Field(default=None, description="Not supported.")


Messages = Annotated[list[Message], Field(min_length=1, max_length=256, fail_fast=True)]


class JsonSchema(Strict):
    """A schema under a name, as OpenAI's clients send it."""

    name: StrictStr | None = None
    description: StrictStr | None = None
    strict: StrictBool | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class JsonFormat(Strict):
    """A JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Strict):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class GroundingFormat(Strict):
    """Labels and boxes alone."""

    type: Literal["grounding"]


class RegexFormat(Strict):
    """Text that a regular expression matches."""

    type: Literal["regex"]
    regex: Text


class ChoiceFormat(Strict):
    """One of some texts."""

    type: Literal["choice"]
    choice: Annotated[list[Text], Field(min_length=1, max_length=1000)]


Format = Annotated[
    TextFormat | JsonFormat | SchemaFormat | GroundingFormat | RegexFormat | ChoiceFormat,
    Field(discriminator="type"),
]


class StreamOptions(Strict):
    """Of a stream."""

    include_usage: StrictBool = False
    include_obfuscation: Any = Field(default=None, description="Ignored.")


class Sampling(Strict):
    """How an answer is decoded; `vl2.SamplingParams` says what each field means."""

    model: StrictStr
    stream: StrictBool | None = False
    stream_options: StreamOptions | None = None
    n: StrictInt | None = Field(default=None, ge=1)
    seed: StrictInt | None = Field(default=None, ge=0, lt=2**63)
    temperature: Number | None = Field(default=None, ge=0, le=2)
    top_p: Number | None = Field(default=None, gt=0, le=1)
    top_k: StrictInt = Field(default=0, ge=0, lt=2**31)
    min_p: Number = Field(default=0, ge=0, le=1)
    presence_penalty: Number | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: Number | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: Number = Field(default=1, ge=0.01, le=100)
    repetition_guard: StrictBool = True
    max_tokens: StrictInt | None = Field(default=None, ge=1, lt=2**63)
    min_tokens: StrictInt = Field(default=0, ge=0, lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    timeout: Number | None = Field(default=None, gt=0)
    logit_bias: dict[str, Any] | None = Field(default=None, description="Not supported.")
    user: Any = Field(default=None, description="Ignored.")


class ChatRequest(Sampling):
    """`POST /v1/chat/completions`."""

    messages: Messages
    max_completion_tokens: StrictInt | None = Field(default=None, ge=1, lt=2**63)
    logprobs: StrictBool | None = False
    top_logprobs: StrictInt | None = Field(default=None, ge=0, le=20)
    response_format: Format | None = None
    grounding: StrictBool = False
    tiling: Tiling | None = None
    max_tiles: MaxTiles | None = None
    trace: StrictBool = False
    tools: list[Any] | None = Field(default=None, description="Not supported.")
    tool_choice: Any = Field(default=None, description="Not supported.")
    functions: list[Any] | None = Field(default=None, description="Not supported.")
    function_call: Any = Field(default=None, description="Not supported.")
    modalities: list[Any] | None = Field(default=None, description="Text alone.")
    audio: Any = Field(default=None, description="Not supported.")
    parallel_tool_calls: Any = Field(default=None, description="Ignored.")
    metadata: Any = Field(default=None, description="Ignored.")
    store: Any = Field(default=None, description="Ignored.")
    service_tier: Any = Field(default=None, description="Ignored.")
    safety_identifier: Any = Field(default=None, description="Ignored.")
    prompt_cache_key: Any = Field(default=None, description="Ignored.")


class CompletionRequest(Sampling):
    """`POST /v1/completions`: a raw prompt whose control strings are obeyed."""

    prompt: Text
    logprobs: StrictInt | None = Field(default=None, ge=0, le=20)
    echo: Literal[False] | None = None
    suffix: None = None
    best_of: None = None


class TokenizeRequest(Strict):
    """`POST /tokenize`: of a text, or of a conversation as the model gets it."""

    model: StrictStr | None = None
    prompt: StrictStr | None = None
    messages: Messages | None = None


class LayoutRequest(Strict):
    """`POST /v1/layout`: how a picture would be cut, by both rules."""

    image_url: ImageUrl
    pictures: Annotated[
        StrictInt, Field(ge=1, le=1024, description="Of the request that it is part of.")
    ] = 1


class PagesRequest(Strict):
    """`POST /v1/pages`: pages of a PDF as PNG."""

    file: FileData


def validated(kind: type[T], body: dict[str, Any]) -> T:
    """The request that a body holds.

    Raises:
        ApiError: a field that is wrong, with its path.
    """
    try:
        return kind.model_validate(body)
    except Invalid as error:
        raise _refusal(kind, body, error) from None


def _refusal(kind: type[Strict], body: dict[str, Any], error: Invalid) -> ApiError:
    """One error of possibly many, which a client can make: the deepest, as others tell less."""
    errors = error.errors(include_url=False)
    found = max(errors, key=lambda one: len(one["loc"]))
    path, value = _path(found["loc"], body), shown(found["input"])
    match found["type"]:
        case "extra_forbidden":
            named = str(found["loc"][-1])[:80]
            near = difflib.get_close_matches(named, kind.model_fields, 1, cutoff=0.7)
            hint = f"; did you mean {near[0]}?" if near else ""
            return refused(
                path, f"{path} is no field of this request: leave it out{hint}", "unknown_parameter"
            )
        case "missing":
            return refused(path, f"{path} is missing: give it")
        case "union_tag_invalid":
            told = found.get("ctx", {})
            kinds, value = told.get("expected_tags"), shown(told.get("tag"))
            return refused(f"{path}.type", f"{path}.type is {value}: expected one of {kinds}")
        case "union_tag_not_found":
            return refused(f"{path}.type", f"{path}.type is missing: give it")
        case _:
            same = (_wanted(one["msg"]) for one in errors if _path(one["loc"], body) == path)
            return refused(path, f"{path} is {value}: expected {', or '.join(dict.fromkeys(same))}")


def _wanted(message: str) -> str:
    """Pydantic's message as what follows "expected"."""
    told = _LEAD.sub("", message)
    for words, ours in _WORDS:
        told = re.sub(words, ours, told)
    return told[:1].lower() + told[1:]


def _path(places: tuple[int | str, ...], body: Any) -> str:
    """`("messages", 0, "content", "str")` as "messages[0].content": types are no places."""
    path, here, tagged = "", body, False
    for number, place in enumerate(places):
        # Where the type of a part decides, it stands before the field: ("text", "text").
        if number and not tagged and isinstance(here, dict) and here.get("type") == place:
            tagged = True
            continue
        if _holds(here, place):
            here, tagged = here[place], False
        elif number < len(places) - 1 or not isinstance(here, dict):
            continue
        path += f"[{place}]" if isinstance(place, int) else f".{place}"
    return path.removeprefix(".")[:200]


def _holds(here: Any, place: int | str) -> bool:
    if isinstance(here, dict):
        return place in here
    return isinstance(here, list) and isinstance(place, int)

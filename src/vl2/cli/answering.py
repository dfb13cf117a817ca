"""One question and its answer; what went wrong is an error of the command."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vl2.cli.terminal import show, show_remarks, streaming
from vl2.failure import WorkError
from vl2.processing.grounding_request import grounding_parts

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    from vl2.engine.config import Completion, SamplingParams
    from vl2.engine.engine import Engine, OnToken
    from vl2.processing.image_gate import ImagePolicy
    from vl2.processing.inputs import ModelInputs

_MARK = re.compile(r"<\|(?:ref|grounding)\|>")


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is asked about pictures, and how it is answered."""

    text: str
    ground: bool  # locate what the text names
    params: SamplingParams
    policy: ImagePolicy

    def inputs(
        self, engine: Engine, pictures: Sequence[Image.Image], files: Sequence[Path]
    ) -> ModelInputs:
        """The question about these pictures as the model takes it.

        Raises:
            ValueError: a picture cannot be fitted into the model's view, with its file's name.
        """
        from vl2.processing.image_gate import ImageError

        content = content_of(pictures, self.text, ground=self.ground)
        try:
            return engine.processor(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                allow_grounding_tokens=self.ground,
                policy=self.policy,
            )
        except ImageError as error:
            if len(pictures) == 1:
                raise ValueError(f"{files[0]}: {error}") from None
            for picture, file in zip(pictures, files, strict=True):
                self.inputs(engine, [picture], [file])
            raise


def content_of(
    pictures: Sequence[Image.Image], question: str, *, ground: bool = False
) -> list[dict[str, Any]]:
    """Content parts of one user message; `ground` asks in the official form to locate it."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
    if not ground or _MARK.search(question):
        return [*parts, {"type": "text", "text": question}]
    return [*parts, *grounding_parts(question)]


def answer_one(
    engine: Engine, inputs: ModelInputs, params: SamplingParams, on_token: OnToken | None = None
) -> Completion:
    """The engine's answer.

    Raises:
        MemoryError: memory ran out on the way.
        ValueError: the engine refused the request; the message is the engine's.
        WorkError: it was taken and failed.
    """
    [answer] = engine.generate([inputs], params, on_token=on_token)
    if answer.error is not None:
        if answer.error_code == "out_of_memory":
            raise MemoryError(answer.error)
        raise (WorkError if answer.error_code == "engine_error" else ValueError)(answer.error)
    return answer


def show_answer(
    engine: Engine,
    inputs: ModelInputs,
    params: SamplingParams,
    names: dict[str, Any] | None,
) -> Completion:
    """Ask once and show the answer; with `names` it is JSON that begins with them.

    Raises:
        MemoryError, ValueError, WorkError: see `answer_one`.
    """
    if names is not None:
        answer = answer_one(engine, inputs, params)
        show(json.dumps({**names, **answer_fields(answer)}, ensure_ascii=False) + "\n")
        return answer
    stream = streaming()
    answer = answer_one(engine, inputs, params, stream)
    if stream is None:
        show(answer.text + "\n")
    else:
        stream.end()
    show_remarks(answer)
    return answer


def answer_fields(answer: Completion) -> dict[str, Any]:
    """What `--json` shows of an answer; the file names are the caller's."""
    return {
        "text": answer.text,
        "boxes": [asdict(box) for box in answer.boxes],
        "finish_reason": answer.finish_reason,
        "guard_fired": answer.guard_fired,
        "usage": asdict(answer.usage),
    }

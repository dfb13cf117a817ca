"""`vl2 chat`: a conversation about pictures, typed or piped in line by line."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vl2.cli import options
from vl2.cli.answering import content_of, show_answer
from vl2.cli.loading import load_engine
from vl2.cli.pictures import open_picture, policy_of
from vl2.cli.terminal import note
from vl2.failure import WorkError
from vl2.folders import expand

if TYPE_CHECKING:
    from PIL import Image

    from vl2.engine.config import SamplingParams
    from vl2.engine.engine import Engine
    from vl2.processing.image_gate import ImagePolicy

HELP = """\
/image PATH  add a picture to the next question
/clear       forget the conversation and its pictures
/help        this list
/quit        end (so does the end of the input)
Anything else is a question."""


def chat(  # noqa: PLR0913 - each parameter is an option of the command
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[IMAGE]...", help="Pictures for the first question."),
    ] = None,
    model: options.Model = "nano",
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    seed: options.Seed = None,
    no_repetition_guard: options.Unguarded = False,
    max_pixels: options.MaxPixels = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each answer as one line of JSON.")
    ] = False,
    quantization: options.Quantization = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> None:
    """Talk about pictures; the conversation is remembered.

    /image PATH adds a picture to the next question, /clear starts again, /help lists the
    commands, /quit ends. Questions may also be piped in, one per line; then the first error
    ends the chat.
    """
    from vl2.engine.config import RepetitionGuard, SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        repetition_guard=None if no_repetition_guard else RepetitionGuard(),
    )
    policy = policy_of(max_pixels)
    pictures = [open_picture(path, policy) for path in images or ()]
    engine = load_engine(model, dtype=dtype, device=device, quantization=quantization)
    talk = Talk(engine, params, pictures, policy, as_json=as_json)
    typed = sys.stdin.isatty()
    if typed:
        note(f"vl2 chat with {model}\n{HELP}")
    while (line := _read(typed)) is not None and line != "/quit":
        try:
            talk.take(line)
        except (ValueError, WorkError) as error:
            if not typed:
                raise
            note(f"error: {error}")
        except KeyboardInterrupt:
            if not typed:
                raise
            note("\nstopped; the question is forgotten")


class Talk:
    """One conversation: what was said, and the pictures that wait for the next question."""

    def __init__(
        self,
        engine: Engine,
        params: SamplingParams,
        pictures: list[Image.Image],
        policy: ImagePolicy | None = None,
        *,
        as_json: bool = False,
    ) -> None:
        self.messages: list[dict[str, Any]] = []
        self.waiting = pictures
        self._engine = engine
        self._params = params
        self._policy = policy or policy_of(None)
        self._as_json = as_json

    def take(self, line: str) -> None:
        """Obey a command or answer a question; an empty line is nothing.

        Raises:
            ValueError: an unknown command, a bad picture, or a conversation beyond the context.
        """
        word, _, rest = line.partition(" ")
        if word == "/image":
            self._add_picture(rest.strip())
        elif word == "/clear":
            self.messages, self.waiting = [], []
            note("a new conversation")
        elif word == "/help":
            note(HELP)
        elif word.startswith("/"):
            raise ValueError(f"{word}: no such command: /help lists them")
        elif line:
            self._answer(line)

    def _add_picture(self, name: str) -> None:
        if not name:
            raise ValueError("/image needs a file: /image PATH")
        picture = open_picture(expand(name), self._policy)
        self.waiting.append(picture)
        note(f"{name}: {picture.width} x {picture.height} pixels, goes with the next question")

    def _answer(self, question: str) -> None:
        """Ask with all that was said before; a failed question leaves no trace."""
        asked = {"role": "user", "content": content_of(self.waiting, question)}
        # Boxes of earlier answers must read as the control tokens that they were.
        inputs = self._engine.processor(
            [*self.messages, asked],
            add_generation_prompt=True,
            allow_grounding_tokens=True,
            policy=self._policy,
        )
        answer = show_answer(self._engine, inputs, self._params, {} if self._as_json else None)
        self.messages += [asked, {"role": "assistant", "content": answer.text}]
        self.waiting = []


def _read(typed: bool) -> str | None:
    """The next line without its end, None at the end of the input."""
    if typed and sys.stdout.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401 - gives `input` its line editing
        with suppress(EOFError):
            return input("> ").strip()
        return None
    line = sys.stdin.readline()
    return line.strip() if line else None

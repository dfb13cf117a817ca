"""One conversation, one answer; what went wrong is an error of the command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vl2.cli.memory import is_out_of_memory

if TYPE_CHECKING:
    from vl2.engine.config import Completion, SamplingParams
    from vl2.engine.engine import Engine, OnToken
    from vl2.processing.inputs import ModelInputs


def answer_one(
    engine: Engine, inputs: ModelInputs, params: SamplingParams, on_token: OnToken | None = None
) -> Completion:
    """The engine's answer.

    Raises:
        MemoryError: memory ran out on the way.
        ValueError: the request failed otherwise; the message is the engine's.
    """
    [answer] = engine.generate([inputs], params, on_token=on_token)
    if answer.error is not None:
        if is_out_of_memory(answer.error):
            raise MemoryError(answer.error)
        raise ValueError(answer.error)
    return answer

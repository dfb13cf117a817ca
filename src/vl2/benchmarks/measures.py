"""Timers of one engine: a decoded token, a prompt, tiles, a first token, a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from vl2.benchmarks.config import BenchConfig
from vl2.benchmarks.official import OfficialLanguage
from vl2.benchmarks.prompts import picture_messages, text_prompt
from vl2.benchmarks.timing import Timer, seconds
from vl2.engine.config import SamplingParams
from vl2.engine.engine import Conversation, Engine
from vl2.failure import WorkError

TILES = 2
"""Tiles that the tower encodes at once: an overview and one tile."""
FIRST_SEED = 1000
"""Prompts of decoding stay the same in all rounds, those of prefill are new in each."""


def decode_timer(engine: Engine, bench: BenchConfig, batch: int = 1) -> Timer:
    """Seconds of one decoding step of `batch` answers after different prompts.

    The difference of two runs that differ in the number of tokens alone. A run before both brings
    the prompts back into the prefix cache, so that neither of the two pays for them.
    """
    prompts = [
        text_prompt(engine.processor, bench.prompt_tokens, FIRST_SEED + n) for n in range(batch)
    ]

    def timer(turn: int) -> float:
        answer(engine, prompts, 1)
        one = seconds(lambda: answer(engine, prompts, 1))
        return (seconds(lambda: answer(engine, prompts, 1 + bench.decoded)) - one) / bench.decoded

    return timer


def prefill_timer(engine: Engine, bench: BenchConfig) -> Timer:
    """Seconds of a text prompt that was never seen before, up to its first token."""

    def timer(turn: int) -> float:
        prompt = text_prompt(engine.processor, bench.prompt_tokens, turn)
        return seconds(lambda: answer(engine, [prompt], 1))

    return timer


def first_token_timer(engine: Engine) -> Timer:
    """Seconds from a picture in memory to the first token of an answer about it."""

    def timer(turn: int) -> float:
        messages = picture_messages(engine.processor, turn)
        return seconds(lambda: answer(engine, [messages], 1))

    return timer


def vision_timer(engine: Engine) -> Timer:
    """Seconds of two tiles through the tower and the adaptor."""
    model, size = engine.model, engine.processor.layout.image_size
    tiles = torch.randn(TILES, 3, size, size).to(model.image_newline.dtype)

    def timer(turn: int) -> float:
        return seconds(lambda: model.projector(model.vision(tiles)))

    return _without_gradients(timer)


def official_prefill_timer(engine: Engine, bench: BenchConfig) -> Timer:
    """As `prefill_timer`, by the official algorithm and without any engine around it."""
    official = OfficialLanguage(engine.model)

    def timer(turn: int) -> float:
        ids = text_prompt(engine.processor, bench.prompt_tokens, turn).input_ids[None]
        return seconds(lambda: official.run(official.language.embed(ids))[0][:, -1].argmax())

    return _without_gradients(timer)


def official_decode_timer(engine: Engine, bench: BenchConfig) -> Timer:
    """As `decode_timer`, by the official algorithm and without any engine around it."""
    official = OfficialLanguage(engine.model)
    embed = official.language.embed
    prompt = text_prompt(engine.processor, bench.prompt_tokens, FIRST_SEED).input_ids[None]
    kept: list = []

    def timer(turn: int) -> float:
        if not kept:
            kept.append(official.run(embed(prompt)))
        logits, cache = kept[0]
        start_token = logits[:, -1:].argmax(dim=-1)

        def steps() -> None:
            token, grown = start_token, cache
            for _ in range(bench.decoded):
                logits, grown = official.run(embed(token), grown)
                token = logits[:, -1:].argmax(dim=-1)

        return seconds(steps) / bench.decoded

    return _without_gradients(timer)


def answer(engine: Engine, conversations: Sequence[Conversation], tokens: int) -> None:
    """Let the engine make exactly so many greedy tokens for each conversation.

    Raises:
        WorkError: the engine cannot answer one.
    """
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    for completion in engine.generate(conversations, params):
        if completion.error:
            raise WorkError(completion.error)
        made = completion.usage.completion_tokens
        assert made == tokens, f"{made} tokens instead of {tokens}"


def _without_gradients(timer: Timer) -> Timer:
    run: Callable[[int], float] = torch.inference_mode()(timer)
    return run

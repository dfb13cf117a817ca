"""The engine against itself on one machine and checkpoint: every way of running, the same tokens.

Each prompt is answered alone, in one piece and with nothing cached; every other way of running must
choose the same tokens. The first difference is shown with the margin between the two tokens under
the reference's logits: a margin of rounding size is a near tie, a large one is a defect.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from vl2.checkpoint.load import load_model
from vl2.engine.compiling import compiled, why_not_compiled
from vl2.engine.config import EngineConfig, SamplingParams
from vl2.engine.engine import Engine
from vl2.failure import WorkError
from vl2.model.vl2 import VL2Model
from vl2.ops.backend import in_c
from vl2.ops.native import kernels
from vl2.processing.inputs import ModelInputs
from vl2.processing.processor import Processor

APART = {"enable_prefix_caching": False, "vision_cache_gib": 0.0}
TOGETHER = 16
"""Prompts that share a step where many do."""
GOLDEN_LOGITS = 2e-4
"""Greatest distance of a logit from the official code's in float32; measured: 7e-6."""
ENDED = -1
"""Stands for a token behind the end of an answer."""
PIECE = 37
"""Tokens of a step where prompts run in pieces: no divisor of a block or a picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Divergence:
    """The first token at which two ways differ; `margin` is the reference's logit difference.

    A token is `ENDED`, and `margin` None, where one answer had ended.
    """

    prompt: int
    place: int
    expected: int
    found: int
    margin: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One comparison over some prompts; it passed if it ran and nothing diverged."""

    name: str
    prompts: int
    tokens: int
    seconds: float
    differing: int = 0  # prompts
    divergence: Divergence | None = None
    worst_logit: float | None = None  # greatest distance to the official code's
    skipped: str | None = None  # why it did not run

    @property
    def passed(self) -> bool:
        """Whether it ran and all tokens are the same."""
        return self.skipped is None and self.differing == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfCheck:
    """A model, its processor and the prompts that every way of running answers greedily."""

    model: VL2Model
    processor: Processor
    prompts: Sequence[ModelInputs]
    max_tokens: int

    def run(self, *, compiling: bool = True) -> Iterator[Check]:
        """One check after the other; the compiler's, which takes a minute, is the last."""
        wanted = [self._answer([prompt], **APART)[0] for prompt in self.prompts]
        yield self._compare("batch = single", wanted, lambda: self._together(**APART))
        yield self._compare("cached = full", wanted, lambda: self._full(wanted))
        pieces = {**APART, "max_num_batched_tokens": PIECE}
        yield self._compare("chunked = one-shot", wanted, lambda: self._together(**pieces))
        yield self._compare("reused = computed", wanted, self._reused)
        guesses = {**APART, "speculative_tokens": 4, "prompt_lookup": 2}
        yield self._compare("guessed = stepped", wanted, lambda: self._together(**guesses))
        yield self._plain(wanted)
        if compiling:
            yield self._compiled(wanted)

    def _answer(self, prompts: Sequence[ModelInputs], **sizes) -> list[list[int]]:
        engine = Engine(self.model, self.processor, EngineConfig(**sizes))
        return self._ask(engine, prompts)

    def _ask(self, engine: Engine, prompts: Sequence[ModelInputs]) -> list[list[int]]:
        answers = engine.generate(list(prompts), SamplingParams(max_tokens=self.max_tokens))
        for number, answer in enumerate(answers):
            if answer.error is not None:
                raise WorkError(f"prompt {number} of the check failed: {answer.error}")
        return [answer.token_ids for answer in answers]

    def _together(self, **sizes) -> list[list[int]]:
        return self._answer(self.prompts, max_num_seqs=TOGETHER, **sizes)

    def _reused(self) -> list[list[int]]:
        """All prompts a second time, from cached blocks and pictures."""
        engine = Engine(self.model, self.processor, EngineConfig(max_num_seqs=TOGETHER))
        self._ask(engine, self.prompts)
        return self._ask(engine, self.prompts)

    def _full(self, wanted: Sequence[list[int]]) -> list[list[int]]:
        """The likeliest token at every place of each answer, from one pass over the whole text."""
        answers = zip(self.prompts, wanted, strict=True)
        return [self._logits(prompt, a).argmax(-1).tolist() for prompt, a in answers]

    @torch.inference_mode()
    def _logits(self, prompt: ModelInputs, answer: list[int]) -> torch.Tensor:
        """Float32 [tokens, vocab] for the places of an answer, without any cache."""
        device = self.model.image_newline.device
        ids = torch.cat((prompt.input_ids, torch.tensor(answer[:-1], dtype=torch.int64)))
        places = torch.nn.functional.pad(prompt.images_seq_mask, (0, len(answer) - 1))
        out = self.model(
            ids[None].to(device),
            prompt.images[None].to(device),
            places[None].to(device),
            prompt.images_spatial_crop[None].to(device),
        )
        return out.logits[0, -len(answer) :]

    def _plain(self, wanted: list[list[int]]) -> Check:
        held, reason = self.model.config.quantization_config, None
        if not in_c("norm", self.model.image_newline.detach()):
            reason = "nothing runs in C: " + kernels.describe()
        elif held is not None and held.scheme == "int4":
            reason = "PyTorch's product with int4 weights rounds to bfloat16, ours does not"
        if reason is not None:
            return Check(name="C = PyTorch", prompts=0, tokens=0, seconds=0.0, skipped=reason)
        with kernels.left_out():
            return self._compare("C = PyTorch", wanted, lambda: self._together(**APART))

    def _compiled(self, wanted: list[list[int]]) -> Check:
        reason = why_not_compiled(self.model)
        if reason:
            return Check(name="compiled = eager", prompts=0, tokens=0, seconds=0.0, skipped=reason)
        with compiled(self.model):
            return self._compare("compiled = eager", wanted, lambda: self._together(**APART))

    def _compare(
        self, name: str, wanted: list[list[int]], run: Callable[[], list[list[int]]]
    ) -> Check:
        start = time.perf_counter()
        found = run()
        seconds = time.perf_counter() - start
        differing = [
            n for n, pair in enumerate(zip(wanted, found, strict=True)) if pair[0] != pair[1]
        ]
        return Check(
            name=name,
            prompts=len(wanted),
            tokens=sum(map(len, wanted)),
            seconds=round(seconds, 3),
            differing=len(differing),
            divergence=self._first(differing[0], wanted, found) if differing else None,
        )

    def _first(self, prompt: int, wanted: list[list[int]], found: list[list[int]]) -> Divergence:
        left = wanted[prompt]
        divergence = first_difference(left, found[prompt])
        assert divergence is not None
        divergence = replace(divergence, prompt=prompt)
        if ENDED in (divergence.expected, divergence.found):
            return divergence
        scores = self._logits(self.prompts[prompt], left)[divergence.place]
        margin = float(scores[divergence.expected] - scores[divergence.found])
        return replace(divergence, margin=margin)


def first_difference(wanted: Sequence[int], found: Sequence[int]) -> Divergence | None:
    """Where two answers part; None if they are the same."""
    pairs = itertools.zip_longest(wanted, found, fillvalue=ENDED)
    for place, (left, right) in enumerate(pairs):
        if left != right:
            return Divergence(prompt=0, place=place, expected=left, found=right)
    return None


def golden_folders(folder: Path) -> list[Path]:
    """The golden models in a folder, or the folder itself if it is one.

    Raises:
        ValueError: there is none.
    """
    found = sorted(path.parent for path in folder.glob("**/expected.safetensors"))
    if not found:
        raise ValueError(
            f"{folder} holds no expected.safetensors: give a folder of golden models, "
            "such as tests/golden/model of the repository"
        )
    return found


@torch.inference_mode()
def check_golden(folder: Path, *, device: str) -> Check:
    """A folder's model against the logits and greedy tokens that the official code gave for it.

    Args:
        folder: holds config.json, model.safetensors and expected.safetensors.
        device: where it runs.
    """
    start = time.perf_counter()
    expected = load_file(folder / "expected.safetensors", device=device)
    model = load_model(folder, dtype="float32", device=device).eval()
    names = ("input_ids", "images", "images_seq_mask", "images_spatial_crop")
    ids, images, places, crops = (expected[name] for name in names)
    logits = model(ids, images, places.bool(), crops).logits
    worst = float((logits - expected["logits"]).abs().max())
    wanted, found = expected["greedy_tokens"].tolist(), []
    for _ in wanted:
        last = model(ids, images, places.bool(), crops, logits="last").logits
        found.append(int(last[0, -1].argmax()))
        ids = torch.cat((ids, ids.new_tensor([[found[-1]]])), dim=1)
        places = torch.nn.functional.pad(places, (0, 1))
    divergence = first_difference(wanted, found)
    return Check(
        name=f"official code: {folder.name}",
        prompts=1,
        tokens=len(wanted),
        seconds=round(time.perf_counter() - start, 3),
        differing=int(divergence is not None or not worst <= GOLDEN_LOGITS),
        divergence=divergence,
        worst_logit=worst,
    )

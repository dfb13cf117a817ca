"""The engine: conversations go in, a scheduler decides what each step works on, answers come out.

The life of a request is told in docs/engine.md. One request that fails ends alone, with its error
in its own completion; the others' tokens are those of a run without it.
"""

from __future__ import annotations

import math
from collections import abc, deque
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

import torch

from vl2.engine.adapters import chosen, load_adapters
from vl2.engine.admission import (
    Admission,
    Conversation,
    check_pair,
    checked_params,
    context_of,
    paired,
    reason_of,
    spread,
    unbegun,
)
from vl2.engine.block_manager import BlockManager
from vl2.engine.compiling import compile_parts
from vl2.engine.config import Completion, EngineConfig, FinishReason, Refusal, SamplingParams
from vl2.engine.model_runner import Known, ModelRunner, split_known
from vl2.engine.pictures import VisionEncoder
from vl2.engine.pool_size import pool_size
from vl2.engine.progress import EngineStats, Progress
from vl2.engine.prompt_lookup import PromptLookup
from vl2.engine.sampler import Choice, sample
from vl2.engine.scheduler import Scheduled, Scheduler
from vl2.engine.sequence import Sequence
from vl2.logs import get_logger
from vl2.model.vl2 import VL2Model
from vl2.processing.processor import Processor

log = get_logger(__name__)

OnToken = abc.Callable[[int, str], None]
"""Hears the index of an answer and the new piece of its text."""


class Engine:
    """Answers conversations with a model and its processor."""

    def __init__(
        self,
        model: VL2Model,
        processor: Processor,
        config: EngineConfig | None = None,
        *,
        adapters: abc.Mapping[str, str | Path] | None = None,
    ) -> None:
        """Put the parts together, and the model in evaluation mode.

        Args:
            model: the base.
            processor: of the same model.
            config: sizes.
            adapters: folders of LoRA adapters, by the names by which requests ask for them.

        Raises:
            ValueError: the processor or an adapter is of another model, the context is longer than
                the model's, the cache is smaller than one context, or there is nothing to compile
                with.
        """
        check_pair(model, processor)
        self.model = model.eval()
        self.processor = processor
        self.config = config = config or EngineConfig()
        context = context_of(model, config)
        num_blocks, self.max_num_seqs = pool_size(model, config, context)
        self.adapters = load_adapters(model, adapters or {})
        if config.compile:
            compile_parts(model, adapted=bool(adapters))
        self._barred = frozenset(processor.tokenizer.control_ids)
        self._admission = Admission.of(model, processor, context)
        vision = VisionEncoder(
            model=model,
            capacity=int(config.vision_cache_gib * 2**30),
            tiles_per_batch=config.max_tiles_per_batch,
        )
        self._runner = ModelRunner(
            model,
            vision,
            num_blocks=num_blocks,
            block_size=config.block_size,
            compiled=config.compile,
        )
        self.blocks = BlockManager(
            num_blocks, config.block_size, sharing=config.enable_prefix_caching
        )
        self._scheduler = Scheduler(
            blocks=self.blocks,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
        )
        self._stats = EngineStats()

    def __repr__(self) -> str:
        """Where the model is, and the sizes that bound what is answered together."""
        place = self.model.image_newline
        return (
            f"Engine({place.dtype} on {place.device}, context of {self.context} tokens, "
            f"{self.max_num_seqs} answers at a time, {self.blocks.num_blocks} blocks of "
            f"{self.config.block_size} tokens)"
        )

    def generate(
        self,
        conversations: abc.Sequence[Conversation],
        params: SamplingParams | abc.Sequence[SamplingParams] | None = None,
        on_token: OnToken | None = None,
        *,
        adapter: str | abc.Sequence[str | None] | None = None,
    ) -> list[Completion]:
        """Answer every conversation.

        A conversation that cannot be answered gets a completion with `finish_reason` "error".

        Args:
            conversations: messages or `ModelInputs`.
            params: for all conversations, or one per conversation; None decodes greedily.
            on_token: hears text while it is made; its pieces join to `Completion.text`.
            adapter: name for all conversations, or one per conversation; None is the base.

        Returns:
            `params.n` completions per conversation, in order.

        Raises:
            ValueError: a single conversation, which is written generate([messages]), another thing
                than a list, params or adapters that fit neither rule, or an unknown adapter.
        """
        pairs = paired(conversations, params)
        names = spread(adapter, len(pairs), "adapters")
        for name in names:
            chosen(self.adapters, name)
        queue = deque(enumerate(zip(pairs, names, strict=True)))
        answers: list[Completion | None] = []
        places: dict[Sequence, int] = {}
        try:
            while queue or places:
                while queue and len(self._scheduler.waiting) < self.max_num_seqs:
                    index, ((conversation, one), name) = queue.popleft()
                    added = self.prepare(index, conversation, one, index=index, adapter=name)
                    if isinstance(added, Completion):
                        answers += [added] * one.n
                        continue
                    self.submit(added)
                    places |= {s: len(answers) + i for i, s in enumerate(added)}
                    answers += [None] * one.n
                for progress in self.step():
                    place = places[progress.sequence]
                    if progress.delta and on_token:
                        on_token(place, progress.delta)
                    if progress.completion:
                        answers[place] = progress.completion
                        del places[progress.sequence]
        finally:
            for sequence in places:
                if sequence.finish_reason is None:
                    self._drop(sequence, "abort")
        return [answer for answer in answers if answer is not None]

    def add_request(
        self,
        request_id: Hashable,
        conversation: Conversation,
        params: SamplingParams | None = None,
        *,
        index: int = 0,
        deadline: float | None = None,
        adapter: str | None = None,
    ) -> list[Sequence]:
        """`prepare` and `submit`.

        Raises:
            ValueError: it can never be answered; nothing is queued then.
        """
        added = self.prepare(
            request_id, conversation, params, index=index, deadline=deadline, adapter=adapter
        )
        if isinstance(added, Completion):
            raise ValueError(added.error)
        self.submit(added)
        return added

    def prepare(
        self,
        request_id: Hashable,
        conversation: Conversation,
        params: SamplingParams | None = None,
        *,
        index: int = 0,
        deadline: float | None = None,
        begin_by: float | None = None,
        adapter: str | None = None,
    ) -> list[Sequence] | Completion:
        """Read pictures and text of a conversation; any thread may do it.

        Args:
            request_id: what `abort` knows it by.
            conversation: messages or `ModelInputs`.
            params: None decodes greedily.
            index: what its completions carry.
            deadline: value of `time.monotonic()` at which it is aborted.
            begin_by: the same while it waits.
            adapter: name of the adapter that answers; None is the base.

        Returns:
            One sequence per answer for `submit`; or, if the conversation can never be answered, the
            completion that says why.

        Raises:
            ValueError: `params` are none, or there is no such adapter.
        """
        params, adapted = checked_params(params), chosen(self.adapters, adapter)
        try:
            sequences = self._admission.sequences(
                request_id, conversation, params, adapted, index=index, deadline=deadline
            )
            for sequence in sequences:
                sequence.begin_by = begin_by
                sequence.name_blocks(self.blocks.block_size)
            return sequences
        except ValueError as error:
            refusal = (
                error if isinstance(error, Refusal) else Refusal("invalid_request", str(error))
            )
            code, reason = reason_of(refusal)
        except Exception as error:  # whatever is wrong with a request ends it alone
            log.warning("conversation %d cannot be read", index, exc_info=True)
            code, reason = reason_of(error)
        log.info("conversation %d is refused: %s", index, reason)
        return unbegun(index, "error", code, reason)

    def submit(self, sequences: abc.Iterable[Sequence]) -> None:
        """Queue what `prepare` made; `step` works on it from now on."""
        for sequence in sequences:
            self._scheduler.add(sequence)

    def abort(self, request_id: Hashable) -> list[Completion]:
        """Take a request back; its blocks are free at once. Unknown ones are ignored."""
        mine = [s for s in self._sequences() if s.request_id == request_id]
        return [self._drop(sequence, "abort") for sequence in mine]

    @property
    def has_unfinished_requests(self) -> bool:
        """Whether `step` has work."""
        return bool(self._scheduler.waiting or self._scheduler.running)

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._admission.context

    @property
    def load(self) -> dict[str, int]:
        """Answers that run and wait, and cache blocks that are free."""
        return {
            "running": len(self._scheduler.running),
            "waiting": len(self._scheduler.waiting),
            "blocks_free": self.blocks.free,
        }

    @property
    def stats(self) -> EngineStats:
        """Counters so far."""
        vision = self._runner.vision.stats
        return replace(
            self._stats,
            preemptions=self._scheduler.preempted,
            tiles_encoded=vision.tiles,
            pictures_reused=vision.hits,
        )

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """One forward pass for all who run; what came of it, sequence by sequence."""
        done = [
            Progress(sequence=s, delta="", completion=self._drop(s, late))
            for s in self._sequences()
            if (late := s.overdue)
        ]
        plan = self._scheduler.schedule()
        if not plan:
            return done
        self._stats.steps += 1
        known, failed = self._runner.run_apart(plan)
        ended = {item.sequence for item in known.items} | failed.keys()
        for item in plan:
            if item.sequence not in ended:
                self._count(item)
                self._scheduler.advance(item.sequence, item.tokens)
        done += [self._fail(sequence, error) for sequence, error in failed.items()]
        return done + self._choose(known)

    def _choose(self, known: Known) -> list[Progress]:
        """Sample all rows together and hand out the tokens; who fails ends alone."""
        if not known.items:
            return []
        states, indices = [], []
        for item in known.items:
            first = len(item.sequence.token_ids)
            states += [item.sequence.sampling] * item.rows
            indices += range(first, first + item.rows)
        try:
            choices = iter(sample(known.logits, states, indices))
        except Exception as error:
            if len(known.items) == 1:
                return [self._fail(known.items[0].sequence, error)]
            return [progress for one in split_known(known) for progress in self._choose(one)]
        return [self._take(item, [next(choices) for _ in range(item.rows)]) for item in known.items]

    def _take(self, item: Scheduled, choices: list[Choice]) -> Progress:
        try:
            return self._accept(item, choices)
        except Exception as error:
            return self._fail(item.sequence, error)

    def _accept(self, item: Scheduled, choices: list[Choice]) -> Progress:
        """Accept the first choice and as many more as the drafts before them were right."""
        sequence, drafts = item.sequence, item.sequence.drafts
        self._count(item)
        delta, accepted = "", 0
        for place, choice in enumerate(choices):
            if math.isnan(choice.logprob):
                return self._fail(sequence, _no_numbers(sequence), delta)
            delta += sequence.accept(choice)
            accepted = place
            guessed = place < len(drafts) and drafts[place] == choice.token
            # A guard that bans something now knew nothing of it when the next row was chosen.
            if sequence.finish_reason or not (guessed and sequence.sampling.plain):
                break
        self._stats.generated_tokens += accepted + 1
        self._stats.drafted_tokens += len(drafts)
        self._stats.accepted_drafts += accepted
        sequence.drafts = []
        sequence.features = {}
        self._scheduler.advance(sequence, item.tokens - len(drafts) + accepted)
        if sequence.finish_reason:
            return Progress(sequence=sequence, delta=delta, completion=self._finish(sequence))
        self._draft(sequence)
        return Progress(sequence=sequence, delta=delta, completion=None)

    def _draft(self, sequence: Sequence) -> None:
        """Guess at the tokens behind the next one."""
        room = sequence.max_tokens - len(sequence.token_ids) - 1
        count = min(self.config.speculative_tokens, room)
        if count < 1 or not sequence.sampling.plain or sequence.record:
            return
        if sequence.lookup is None:
            sequence.lookup = PromptLookup(self.config.prompt_lookup, self._barred)
        known = sequence.lookup.length
        sequence.lookup.extend(sequence.tokens_between(known, sequence.length))
        sequence.drafts = sequence.lookup.guess(count)

    def _count(self, item: Scheduled) -> None:
        """Note the tokens of a prompt that ran."""
        sequence = item.sequence
        if sequence.token_ids:
            return
        self._stats.prompt_tokens += item.tokens
        if sequence.computed == sequence.cached_tokens:
            self._stats.cached_tokens += sequence.cached_tokens

    def _fail(self, sequence: Sequence, error: Exception, delta: str = "") -> Progress:
        """End a sequence with its own error; nobody finds the rows that it computed."""
        sequence.error_code, sequence.error = reason_of(error)
        log.info("request %s failed: %s", sequence.request_id, sequence.error)
        completion = self._drop(sequence, "error")
        return Progress(sequence=sequence, delta=delta, completion=completion)

    def _drop(self, sequence: Sequence, reason: FinishReason) -> Completion:
        sequence.finish_reason = reason
        return self._finish(sequence)

    def _finish(self, sequence: Sequence) -> Completion:
        completion = sequence.completion()
        self._scheduler.remove(sequence, wrong=sequence.finish_reason == "error")
        return completion

    def _sequences(self) -> list[Sequence]:
        return [*self._scheduler.running, *self._scheduler.waiting]


def _no_numbers(sequence: Sequence) -> Refusal:
    return sequence.dead_end or Refusal(
        "engine_error",
        f"the model's scores are not numbers after {len(sequence.token_ids)} tokens; the weights "
        "are damaged, or too large for float16: load them as bfloat16 or float32",
    )

"""From scheduled tokens to logits: embeddings with picture features, one step over the pools."""

from __future__ import annotations

from collections.abc import Sequence as Items
from contextlib import nullcontext
from itertools import chain
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vl2.engine.adapters import Adapter
from vl2.engine.block_manager import slot_runs
from vl2.engine.decode_batch import SPARE_SLOTS, DecodeBatch, decodes
from vl2.engine.pictures import Picture, VisionEncoder
from vl2.engine.recording import note, watch
from vl2.engine.scheduler import Scheduled
from vl2.engine.sequence import Sequence
from vl2.logs import get_logger
from vl2.model.language import ABSORB_UP_TO
from vl2.model.vl2 import VL2Model
from vl2.ops.paged import PagedStep, Singles, Span, empty_pools, singles_run

log = get_logger(__name__)


class Known(NamedTuple):
    """Items whose next token is known, with float32 logits of their rows, one item's after another.

    An item has `Scheduled.rows`: for its last token, and for those before it that drafts follow.
    """

    items: Items[Scheduled]
    logits: Tensor  # [rows, v]


NOTHING = Known((), torch.empty(0))
"""What is known when no sequence has come to its next token."""


def decodes_together(device: torch.device) -> bool:
    """Whether sequences that decode share their kernels: a CPU reads each in place instead."""
    return device.type != "cpu"


class ModelRunner:
    """The model with its cache pools."""

    def __init__(
        self,
        model: VL2Model,
        vision: VisionEncoder,
        *,
        num_blocks: int,
        block_size: int,
        compiled: bool = False,
    ) -> None:
        """Make empty pools; `compiled` is about steps that only decode, see `DecodeBatch`."""
        self.model, self.vision, self.block_size = model, vision, block_size
        self.device = model.image_newline.device
        together = decodes_together(self.device)
        slots = num_blocks * block_size + SPARE_SLOTS * together
        language, dtype = model.config.language_config, model.image_newline.dtype
        try:
            self.pools = empty_pools(language, slots, device=self.device, dtype=dtype)
        except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
            row = language.cache_width * language.num_hidden_layers * dtype.itemsize
            gib = slots * row / 2**30
            raise ValueError(
                f"the cache of {num_blocks} blocks of {block_size} tokens needs {gib:,.1f} GiB, "
                "which cannot be allocated: give a smaller EngineConfig.num_blocks, block_size, "
                f"max_num_seqs or max_model_len ({type(error).__name__})"
            ) from None
        self._singly = singles_run(model.config.language_config, self.pools[0])
        self.decoding = None
        if together:
            self.decoding = DecodeBatch(
                model,
                self.pools,
                num_blocks=num_blocks,
                block_size=block_size,
                compiled=compiled,
            )

    def run_apart(self, plan: Items[Scheduled]) -> tuple[Known, dict[Sequence, Exception]]:
        """What is known now, and who cannot run, which is found by running each alone."""
        try:
            return self.run(plan), {}
        except Exception as error:
            if len(plan) == 1:
                return NOTHING, {plan[0].sequence: error}
            log.warning("a step of %d requests failed, each runs alone: %s", len(plan), error)
        parts, failed = [], {}
        for item in plan:
            known, alone = self.run_apart([item])
            parts.append(Known(known.items, known.logits.clone()))  # the next run may reuse them
            failed |= alone
        return join_known(parts), failed

    def run(self, plan: Items[Scheduled]) -> Known:
        """Run one step, those of each adapter together.

        A second run of the same plan writes the same rows again. The logits hold until the next
        step.
        """
        groups: dict[Adapter | None, list[Scheduled]] = {}
        for item in plan:
            groups.setdefault(item.sequence.adapter, []).append(item)
        parts = []
        for adapter, items in groups.items():
            with adapter.in_place() if adapter else nullcontext():
                parts.append(self._run(items))
        return parts[0] if len(parts) == 1 else join_known(parts)

    def _run(self, plan: Items[Scheduled]) -> Known:
        if self.decoding is None:
            return self._run_spans(plan)
        single = [item for item in plan if decodes(item)]
        others = [item for item in plan if not decodes(item)]
        if not single:
            return self._run_spans(others)
        known = Known(single, self.decoding.run(single))
        return join_known([self._run_spans(others), known]) if others else known

    def _run_spans(self, plan: Items[Scheduled]) -> Known:
        """Run items of any number of tokens, attention from one to the next."""
        self._see([item for item in plan if not item.sequence.drafts])
        items = sorted(plan, key=lambda item: item.tokens > ABSORB_UP_TO)
        pages = self._pages(items)
        record = watch(items, pages.spans)
        hidden = self.model.language.step(self._embed(items), self._positions(items), pages, record)
        if record is not None:
            note(items, record)
        known, rows, first = [], [], 0
        for item in items:
            end = first + item.tokens
            if item.complete:
                known.append(item)
                rows.append(range(end - item.rows, end))
            first = end
        if not known:
            return NOTHING
        places = torch.tensor(list(chain(*rows)), device=self.device)
        return Known(known, self.model.language.logits(hidden[:, places])[0])

    def _see(self, plan: Items[Scheduled]) -> None:
        """Give every sequence the features of the pictures that its tokens touch."""
        wanted = {item.sequence: _pictures(item) for item in plan}
        missing = [
            picture
            for sequence, pictures in wanted.items()
            for picture in pictures
            if picture.digest not in sequence.features
        ]
        if not missing:
            return
        features = self.vision.encode(missing)
        for sequence, pictures in wanted.items():
            held = sequence.features
            held |= {p.digest: features[p.digest] for p in pictures if p.digest not in held}

    def _embed(self, items: Items[Scheduled]) -> Float[Tensor, "1 n h"]:
        """Embeddings of all tokens, picture features in place of placeholders."""
        ids = list(chain.from_iterable(_token_ids(item) for item in items))
        embeds = self.model.language.embed(torch.tensor([ids], device=self.device))
        places: list[int] = []
        features: list[Tensor] = []
        offset = 0
        for item in items:
            prompt, first = item.sequence.prompt, item.sequence.computed
            low, high = prompt.placeholders_between(first, first + item.tokens)
            places += [place - first + offset for place in prompt.places[low:high]]
            features += [
                item.sequence.features[p.digest][max(low - p.first, 0) : high - p.first]
                for p in _pictures(item)
            ]
            offset += item.tokens
        if not places:
            return embeds
        rows = torch.cat(features).to(embeds.dtype)
        embeds[0].index_copy_(0, torch.tensor(places, device=self.device), rows)
        return embeds

    def _positions(self, items: Items[Scheduled]) -> Tensor:
        starts = [(item.sequence.computed, item.tokens) for item in items]
        positions = chain.from_iterable(range(first, first + tokens) for first, tokens in starts)
        return torch.tensor([list(positions)], device=self.device)

    def _pages(self, items: Items[Scheduled]) -> PagedStep:
        """Where the new rows go and what each sequence reads."""
        latent = self.model.config.language_config.use_mla
        spans, slots, absorbed = [], [], 0
        for item in items:
            sequence, short = item.sequence, latent and item.tokens <= ABSORB_UP_TO
            absorbed += short
            length = sequence.computed + item.tokens
            runs = slot_runs(sequence.blocks, self.block_size, length)
            spans.append(Span.over(item.tokens, runs, device=self.device, absorbed=short))
            size = self.block_size
            slots += [
                sequence.blocks[place // size] * size + place % size
                for place in range(sequence.computed, length)
            ]
        return PagedStep(
            pools=self.pools,
            slots=torch.tensor(slots, device=self.device),
            spans=tuple(spans),
            absorbed=absorbed,
            singles=Singles.of(spans) if self._singly else None,
        )


def join_known(parts: Items[Known]) -> Known:
    """All items of some steps, in order."""
    parts = [part for part in parts if part.items]
    if not parts:
        return NOTHING
    items = [item for part in parts for item in part.items]
    return Known(items, torch.cat([part.logits for part in parts]))


def split_known(known: Known) -> list[Known]:
    """Each item with its own rows."""
    rows = known.logits.split([item.rows for item in known.items])
    return [Known([item], logits) for item, logits in zip(known.items, rows, strict=True)]


def _pictures(item: Scheduled) -> list[Picture]:
    first = item.sequence.computed
    return item.sequence.prompt.pictures_between(first, first + item.tokens)


def _token_ids(item: Scheduled) -> list[int]:
    first = item.sequence.computed
    return item.sequence.tokens_between(first, first + item.tokens)

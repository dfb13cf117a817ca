"""How many blocks the paged cache gets, and how many answers a step works on.

On a CPU a pool of a fixed size is enough, and its memory is taken as slots are written. A card's
memory lies idle unless the pool takes it: after a profiling run the pool and the steps of the
answers that it holds share 90 % of what is free (vLLM's `gpu_memory_utilization`, of free memory).
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vl2.engine.config import EngineConfig
from vl2.logs import get_logger
from vl2.model.language import ABSORB_UP_TO
from vl2.model.vl2 import VL2Model
from vl2.ops.paged import BlockTables, PagedStep, Span, empty_pools

log = get_logger(__name__)

DEFAULT_POOL_BYTES = 2**31
"""Most memory of a CPU's cache when `num_blocks` is not given, unless one context needs more."""
DEFAULT_SEQS = 8
"""Answers of a step on a CPU when `max_num_seqs` is not given, and the fewest on a card."""
MOST_SEQS = 256
"""Answers of a step on a card when `max_num_seqs` is not given, at most."""
MOST_CONTEXTS = 1024
"""Full contexts that the pool of a card has room for, at most: what is beyond keeps prefixes."""
SHARE = 0.9
"""Of a card's free memory. The rest is for sampling, recorded steps and gaps between tensors."""
PROFILED_SEQS = 4
"""Answers of the profiled decoding step; its memory grows evenly with them."""
GIB = 2**30


class PoolSize(NamedTuple):
    """What `EngineConfig` leaves open."""

    num_blocks: int
    max_num_seqs: int


class StepMemory(NamedTuple):
    """Bytes that steps take beside weights and pool."""

    prompts: int  # of a step of `max_num_batched_tokens`, or of `max_tiles_per_batch` tiles
    answer: int  # of a decoding step, for each answer with a full context


def pool_size(model: VL2Model, config: EngineConfig, context: int) -> PoolSize:
    """Sizes for a model where it lies; one sequence alone always fits.

    Raises:
        ValueError: `num_blocks` is too small for that, or a card's free memory is.
    """
    least = -(-context // config.block_size)
    if config.num_blocks is not None and config.num_blocks < least:
        raise ValueError(
            f"num_blocks is {config.num_blocks}: one context of {context} tokens needs {least} "
            f"blocks of {config.block_size}; give more blocks or a smaller max_model_len"
        )
    language = model.config.language_config
    row = language.cache_width * language.num_hidden_layers * model.image_newline.element_size()
    on_card = model.device.type == "cuda"
    if config.num_blocks is not None:
        held = min(MOST_SEQS, config.num_blocks // least) if on_card else 0
        return PoolSize(config.num_blocks, config.max_num_seqs or max(DEFAULT_SEQS, held))
    if on_card:
        steps = profile_steps(model, config, context, _card_peak)
        free = torch.cuda.mem_get_info(model.device)[0]
        size = share_memory(free, steps, config, row=row, context=context)
        pool = size.num_blocks * config.block_size * row
        log.info(
            "%.1f GiB are free: %d blocks in %.1f GiB, %d answers at a time, steps of %.1f GiB",
            *(free / GIB, size.num_blocks, pool / GIB, size.max_num_seqs, steps.prompts / GIB),
        )
        return size
    seqs = config.max_num_seqs or DEFAULT_SEQS
    affordable = DEFAULT_POOL_BYTES // (row * config.block_size)
    return PoolSize(max(least, min(least * seqs, affordable)), seqs)


def share_memory(
    free: int, steps: StepMemory, config: EngineConfig, *, row: int, context: int
) -> PoolSize:
    """Share free bytes between the pool and the steps of the answers that it holds.

    Args:
        free: bytes without weights, pool and steps.
        steps: what steps need beside the pool.
        config: what the caller chose; `num_blocks` is open.
        row: bytes of a token in the cache.
        context: tokens of a full context.

    Raises:
        ValueError: not even one context fits.
    """
    block, least = row * config.block_size, -(-context // config.block_size)
    usable = int(free * SHARE) - steps.prompts  # recorded steps keep their memory beside prompts
    whole = usable // (least * block + steps.answer)
    seqs = config.max_num_seqs or min(MOST_SEQS, max(DEFAULT_SEQS, whole))
    if config.max_num_seqs is None and usable - seqs * steps.answer < least * block:
        seqs = max(1, whole)
    pool = usable - seqs * steps.answer
    if pool < least * block:
        raise ValueError(
            f"{free / GIB:.1f} GiB of the card are free: steps of {seqs} answers take "
            f"{(steps.prompts + seqs * steps.answer) / GIB:.1f} GiB and a context of {context} "
            f"tokens {least * block / GIB:.1f} GiB; give a smaller max_model_len, "
            "max_num_batched_tokens or max_num_seqs, or a quantised model"
        )
    return PoolSize(min(pool // block, least * MOST_CONTEXTS), seqs)


Peak = Callable[[Callable[[], object], torch.device], int]
"""Runs something and says how many bytes it took at most."""


@torch.inference_mode()
def profile_steps(model: VL2Model, config: EngineConfig, context: int, peak: Peak) -> StepMemory:
    """Run the largest steps on a small pool of zeros, which is gone afterwards."""
    device, dtype = model.device, model.image_newline.dtype
    least = -(-context // config.block_size)
    pools = empty_pools(
        model.config.language_config, least * config.block_size + 1, device=device, dtype=dtype
    )
    for pool in pools:
        pool.zero_()
    prompts = max(
        peak(lambda: _encode_tiles(model, config.max_tiles_per_batch), device),
        peak(lambda: _read_prompts(model, pools, config.max_num_batched_tokens, context), device),
    )
    decoding = peak(lambda: _decode(model, pools, config.block_size, context), device)
    return StepMemory(prompts, decoding // PROFILED_SEQS)


def _card_peak(run: Callable[[], object], device: torch.device) -> int:
    """Bytes of a card; what earlier engines left in cycles and caches is given back first."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    taken = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    return taken


def _encode_tiles(model: VL2Model, tiles: int) -> None:
    """One picture of so many tiles, at least the global view and a local one."""
    side, wide = model.config.vision_config.image_size, max(1, tiles - 1)
    images = torch.rand(1, 1 + wide, 3, side, side, device=model.device)
    model.encode_images(images, torch.tensor([[[wide, 1]]], device=model.device))


def _read_prompts(model: VL2Model, pools: list[Tensor], tokens: int, context: int) -> None:
    """The last tokens of one full context, or of several where a step has more."""
    language, device = model.language, model.device
    absorb = model.config.language_config.use_mla
    spans: list[Span] = []
    slots: list[int] = []
    while len(slots) < tokens:
        count = min(context, tokens - len(slots))
        short = absorb and count <= ABSORB_UP_TO
        spans.append(Span.over(count, ((0, context),), device=device, absorbed=short))
        slots += range(context - count, context)
    spans.sort(key=lambda span: span.tokens > ABSORB_UP_TO)
    pages = PagedStep(
        pools=pools,
        slots=torch.tensor(slots, device=device),
        spans=tuple(spans),
        absorbed=sum(absorb and span.tokens <= ABSORB_UP_TO for span in spans),
    )
    ids = torch.zeros(1, tokens, dtype=torch.int64, device=device)
    hidden = language.step(language.embed(ids), pages.slots[None], pages)
    language.logits(hidden[:, :MOST_SEQS])


def _decode(model: VL2Model, pools: list[Tensor], block_size: int, context: int) -> None:
    """One token of each of `PROFILED_SEQS` answers, all with the same full context."""
    language, device = model.language, model.device
    blocks = torch.arange(-(-context // block_size), device=device)
    lengths = torch.full((PROFILED_SEQS,), context, device=device)
    pages = PagedStep(
        pools=pools,
        slots=lengths - 1,
        tables=BlockTables.over(
            blocks.expand(PROFILED_SEQS, -1), lengths, size=block_size, unused=len(pools[0]) - 1
        ),
    )
    ids = torch.zeros(1, PROFILED_SEQS, dtype=torch.int64, device=device)
    language.logits(language.step(language.embed(ids), lengths[None] - 1, pages))

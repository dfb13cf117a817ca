"""One new token of many sequences in one set of kernels, which suits a GPU.

The step is a function of one integer table, a row per sequence: token, length with that token, then
the sequence's blocks. Everything else (slots, positions, what is read) follows on the device.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vl2.engine.graphs import StepGraphs, call_again, cuda_graph_capture, why_not_captured
from vl2.engine.scheduler import Scheduled
from vl2.logs import get_logger
from vl2.model.attention import AttentionContext
from vl2.model.vl2 import VL2Model
from vl2.ops.paged import BlockTables, PagedStep
from vl2.ops.rope import rope_tables

log = get_logger(__name__)

SPARE_SLOTS = 2
"""Rows of a pool behind its blocks: what dead rows write, and a zero row that nobody writes."""


def decodes(item: Scheduled) -> bool:
    """Whether an item is one token of an answer of the base, and nothing is recorded."""
    sequence = item.sequence
    answered = sequence.computed >= len(sequence.prompt.token_ids)
    plain = sequence.record is None and sequence.adapter is None
    return item.tokens == 1 and item.complete and answered and plain


class DecodeBatch:
    """The model's decoding step over pools that have `SPARE_SLOTS` more than their blocks."""

    def __init__(
        self,
        model: VL2Model,
        pools: list[Tensor],
        *,
        num_blocks: int,
        block_size: int,
        compiled: bool = False,
    ) -> None:
        """Nothing runs yet; `compiled` joins small kernels when the step first runs.

        Raises:
            ValueError: the compiler cannot take the model's experts.
        """
        self.model, self.pools, self.block_size = model, pools, block_size
        config, device = model.config.language_config, model.image_newline.device
        dtype = model.image_newline.dtype
        if compiled and config.n_routed_experts is not None and dtype != torch.bfloat16:
            raise ValueError(
                f"the model is {dtype}: PyTorch compiles products of experts in bfloat16 only; "
                "load it as bfloat16, or leave EngineConfig.compile off"
            )
        self.unused = num_blocks * block_size + 1
        for pool in pools:
            pool[self.unused].zero_()
        # Frequencies come from the host, which a recorded step must not need.
        positions = torch.arange(config.max_position_embeddings, device=device)
        self.cos, self.sin = (x[0] for x in rope_tables(positions[None], config))
        reason = why_not_captured(model)
        if reason and device.type == "cuda":
            log.warning("decoding runs without CUDA graphs: %s", reason)
        step = torch.compile(self.step, fullgraph=True, dynamic=True) if compiled else self.step
        self.graphs = StepGraphs(
            step,
            (0, 1, num_blocks),  # token 0, alone, in the first spare slot
            device=device,
            capture=call_again if reason else cuda_graph_capture(device),
        )

    def run(self, items: Items[Scheduled]) -> Float[Tensor, "n v"]:
        """Float32 logits of each item's token; they hold until the next run."""
        return self.graphs.run([row_of(item) for item in items])

    def step(self, table: Int[Tensor, "b c"]) -> Float[Tensor, "b v"]:
        """Float32 logits of each row's token; reads nothing from the device."""
        tokens, lengths, blocks = table[:, 0], table[:, 1], table[:, 2:]
        positions, size = lengths - 1, self.block_size
        block = blocks.gather(1, (positions // size)[:, None])[:, 0]
        pages = PagedStep(
            pools=self.pools,
            slots=block * size + positions % size,
            tables=BlockTables.over(blocks, lengths, size=size, unused=self.unused),
        )
        cos, sin = self.cos[positions][None], self.sin[positions][None]
        language = self.model.language
        context = AttentionContext(cos=cos, sin=sin, pages=pages)
        hidden = language.model(language.embed(tokens[None]), context).hidden
        return language.logits(hidden)[0]


def row_of(item: Scheduled) -> list[int]:
    """The table's row of an item."""
    sequence = item.sequence
    [token] = sequence.tokens_between(sequence.computed, sequence.computed + 1)
    return [token, sequence.computed + 1, *sequence.blocks]

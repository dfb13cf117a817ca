"""CUDA graphs: a step whose shapes are few is recorded once per shape and then only replayed.

A decoding step of a released model is a thousand small kernels, which the host launches more slowly
than a GPU runs them. A graph launches them at once. It reads and writes the same memory each time,
so a step is a function of one integer table that is copied in. The table is padded to powers of
two, which bounds the number of graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vl2.model.moe import Experts, expert_stacks
from vl2.model.quantized import held_weights
from vl2.model.vl2 import VL2Model
from vl2.ops.float8 import has_float8_experts

Program = Callable[[], Tensor]
"""A step on memory of its own; what it returns holds until any program runs again."""
Capture = Callable[[Program], Program]
"""Makes of a program one that does the same faster."""

WARM_UP = 2
"""Runs before a recording: the first ones of a kernel may allocate and choose an algorithm."""
LEAST_WIDTH = 16
"""Filled columns of a narrow table, so that short answers share their graphs."""


def call_again(program: Program) -> Program:
    """No graph: the plain twin of what `cuda_graph_capture` makes."""
    return program


def cuda_graph_capture(device: torch.device) -> Capture:
    """Recordings that share one pool of memory, because only one of them runs at a time."""
    pool = torch.cuda.graph_pool_handle()

    def capture(program: Program) -> Program:
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    program()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads prepare requests meanwhile, and may allocate.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                out = program()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay

    return capture


def why_not_captured(model: VL2Model) -> str | None:
    """Why a decoding step of the model cannot be recorded, or None: it must never ask the host.

    Experts in int8 and int4 go from one to the next on the host everywhere, those in float8 except
    on Hopper; floats never ask it (ops/batched_experts.py), nor do quantised linear layers.
    """
    flag = model.image_newline
    if flag.device.type != "cuda":
        return f"{flag.device.type} has no CUDA graphs"
    if not all(map(_stays_on_device, expert_stacks(model))):
        return "its weights are quantised, and the host chooses experts"
    return None


def _stays_on_device(experts: Experts) -> bool:
    """Whether the card chooses and multiplies these without the host."""
    if experts.kind != "float8":
        return experts.kind is None
    weights: list[Any] = [weight.data for weight in held_weights(experts).values()]
    return has_float8_experts(weights[0].values, *weights)


class StepGraphs:
    """A step of integer rows, one per sequence, recorded for each padded shape when it first runs.

    What the step reads beside the table must stay where it is as long as this lives: weights, pools
    and tables of positions. A model whose layers are replaced needs a new engine.
    """

    def __init__(
        self,
        step: Callable[[Int[Tensor, "b c"]], Float[Tensor, "b v"]],
        padding: Sequence[int],
        *,
        device: torch.device,
        capture: Capture = call_again,
    ) -> None:
        """Nothing is recorded yet.

        Args:
            step: reads a table and gives a row of floats for each of its rows.
            padding: a row that stands for no sequence; its last number fills all rows up.
            device: where the table lies.
            capture: makes recordings.
        """
        self.step, self.padding, self.device = step, padding, device
        self.capture = capture
        self.programs: dict[tuple[int, int], tuple[Tensor, Program]] = {}

    def run(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "n v"]:
        """The step's rows for these; they hold until the next run."""
        host = pad_rows(rows, self.padding, pinned=self.device.type == "cuda")
        table, program = self._program(host)
        table.copy_(host, non_blocking=True)
        return program()[: len(rows)]

    def _program(self, host: Int[Tensor, "b c"]) -> tuple[Tensor, Program]:
        """The table and program of a shape."""
        shape = (host.shape[0], host.shape[1])
        if shape not in self.programs:
            table = host.to(self.device, copy=True)
            self.programs[shape] = table, self.capture(lambda: self.step(table))
        return self.programs[shape]


def pad_rows(
    rows: Sequence[Sequence[int]], padding: Sequence[int], *, pinned: bool = False
) -> Int[Tensor, "b c"]:
    """The rows, filled up, and rows of `padding` behind them.

    Powers of two are the number of rows, and that of columns from the last one of `padding` on.
    """
    *head, fill = padding
    width = len(head) + max(LEAST_WIDTH, power_of_two(max(map(len, rows)) - len(head)))
    table = torch.full((power_of_two(len(rows)), width), fill, pin_memory=pinned)
    cells = table.numpy()  # lists become numbers many times faster than through torch.tensor
    cells[:, : len(head)] = head
    for number, row in enumerate(rows):
        cells[number, : len(row)] = row
    return table


def power_of_two(count: int) -> int:
    """The least one that is not below `count`."""
    return 1 << (count - 1).bit_length()

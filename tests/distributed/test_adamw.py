"""bfloat16 moments of parameters that lie on two ranks: steps, names, and a state kept by both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.distributed.launch import run_ranks
from torch import Tensor
from torch.distributed.tensor import DTensor

from vl2.checkpoint.dcp import CheckpointStore, load_step
from vl2.config import VL2Config
from vl2.model.vl2 import VL2Model
from vl2.parallel.config import ParallelConfig
from vl2.parallel.mesh import ALONE, Ranks, join, leave
from vl2.parallel.parallelize import Blocks, parallelize_vl2
from vl2.train.adamw import Bfloat16AdamW
from vl2.train.config import OptimConfig
from vl2.train.optim import Optimizers

pytestmark = pytest.mark.slow

LAYOUTS = {"fsdp": ParallelConfig(), "experts": ParallelConfig(expert=2)}
MOMENTS = ("exp_avg", "exp_avg_sq")


def trained(ranks: Ranks, steps: int) -> tuple[VL2Model, Optimizers]:
    """A model after steps along gradients that are functions of each number alone."""
    model = VL2Model(VL2Config.preset("debug_base"))
    model.init_weights(torch.Generator().manual_seed(0))
    parallelize_vl2(model, ranks, Blocks())
    config = OptimConfig(learning_rate=0.01, moments="bfloat16")
    optimizers = Optimizers(model, config, 10, ranks)
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.grad = parameter * parameter + parameter * 0.3
        optimizers.step()
    return model, optimizers


def full(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def spread(folder: str) -> dict[str, list[str]]:
    """What differs from one process, by layout; the state stays in a folder for each."""
    found = {}
    alone, whole = trained(ALONE, 3)
    wanted = {**dict(alone.named_parameters()), **whole.state()}
    for name, layout in LAYOUTS.items():
        ranks = join(layout, "cpu")
        model, optimizers = trained(ranks, 3)
        assert isinstance(optimizers.parts[0], Bfloat16AdamW)
        state = optimizers.state()
        ours = {**dict(model.named_parameters()), **state}
        assert ours.keys() == wanted.keys()
        moments = [state[key] for key in state if key.endswith(MOMENTS)]
        assert all(isinstance(m, DTensor) and m.dtype == torch.bfloat16 for m in moments)
        found[name] = [key for key in ours if not torch.equal(full(ours[key]), wanted[key])]
        with CheckpointStore(Path(folder, name), peers=ranks.apart()) as store:
            store.save(3, state, {})
        leave()
    return found


def test_two_ranks_move_as_one_and_keep_a_state_that_one_reads(tmp_path: Path):
    assert run_ranks(2, spread, str(tmp_path), group=False) == [{"fsdp": [], "experts": []}] * 2
    _, whole = trained(ALONE, 3)
    wanted = whole.state()
    for name in LAYOUTS:
        _, fresh = trained(ALONE, 0)
        template = fresh.template()
        load_step(tmp_path / name / "step-00000003", template)
        assert template.keys() == wanted.keys()
        assert all(torch.equal(template[key], value) for key, value in wanted.items())
        assert any(value.any() for key, value in template.items() if key.endswith("exp_avg_sq"))

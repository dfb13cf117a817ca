"""Compiled blocks compute what they compute eagerly, gradients too."""

import pytest
import torch

from vl2.config import VL2Config
from vl2.model.vl2 import VL2Model
from vl2.parallel.compile_blocks import compile_blocks


def gradients(preset: str, *, compiled: bool) -> dict[str, torch.Tensor]:
    model = VL2Model(VL2Config.preset(preset))
    model.init_weights(torch.Generator().manual_seed(0))
    model.train()
    if compiled:
        compile_blocks(model)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 2048, (2, 24), generator=generator)
    tiles = torch.randn(2, 3, 56, 56, generator=generator)
    out = model(ids, labels=ids, logits="none")
    assert out.loss is not None
    (out.loss + model.vision(tiles).square().mean()).backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {**found, "loss": out.loss.detach()}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # both from the compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.compiled
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("preset", ["debug_tiny", "debug_base"])
def test_compiled_equals_eager(preset: str):
    eager, compiled = gradients(preset, compiled=False), gradients(preset, compiled=True)
    assert eager.keys() == compiled.keys()
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5, msg=name)

import pytest
import torch
from torch import nn

from vl2.config import VL2Config
from vl2.model.vl2 import VL2Model
from vl2.presets import DEBUG_BASE
from vl2.train.working_copy import WorkingCopy


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)
        self.first.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def test_gradients_are_those_of_the_rounded_module_summed_in_float32() -> None:
    torch.manual_seed(0)
    master = Small()
    rounded = Small()
    rounded.load_state_dict(master.state_dict())
    rounded.to(torch.bfloat16)
    copy = WorkingCopy(master)
    total: dict[str, torch.Tensor] = {}
    for x in torch.randn(3, 5, 8).to(torch.bfloat16):
        copy.module(x).float().square().sum().backward()
        copy.collect()
        rounded(x).float().square().sum().backward()
        for name, parameter in rounded.named_parameters():
            if parameter.grad is not None:
                total[name] = total.get(name, 0) + parameter.grad.float()
                parameter.grad = None
    grads = {n: p.grad for n, p in master.named_parameters() if p.grad is not None}
    assert grads.keys() == total.keys() == {"first.weight", "second.weight", "second.bias"}
    for name, gradient in grads.items():
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient, total[name])


def test_the_twin_follows_its_master() -> None:
    master = Small()
    copy = WorkingCopy(master)
    with torch.no_grad():
        master.first.weight.add_(1.0)
        master.first.bias.add_(1.0)  # frozen parameters may be replaced, too
    copy.refresh()
    assert torch.equal(copy.module.first.weight, master.first.weight.to(torch.bfloat16))
    assert torch.equal(copy.module.first.bias, master.first.bias.to(torch.bfloat16))


def test_routers_stay_float32_and_buffers_are_shared() -> None:
    model = VL2Model(VL2Config.from_dict(DEBUG_BASE))
    model.init_weights(torch.Generator().manual_seed(0))
    copy = WorkingCopy(model)
    kinds = {n: p.dtype for n, p in copy.module.named_parameters()}
    routers = {n for n in kinds if n.endswith("mlp.gate.weight")}
    assert routers
    assert {n for n, dtype in kinds.items() if dtype == torch.float32} == routers
    buffers = dict(copy.module.named_buffers())
    for name, buffer in model.named_buffers():
        assert buffers[name] is buffer


def test_loss_is_that_of_float32_within_rounding() -> None:
    model = VL2Model(VL2Config.from_dict(DEBUG_BASE))
    model.init_weights(torch.Generator().manual_seed(0))
    ids = torch.randint(10, 2000, (2, 24), generator=torch.Generator().manual_seed(1))
    copy = WorkingCopy(model)
    losses = [m(ids, labels=ids, logits="none").loss for m in (model, copy.module)]
    assert losses[0] is not None
    assert losses[1] is not None
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-3)  # measured: 5e-5
    losses[1].backward()
    copy.collect()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(g).all() for g in gradients)

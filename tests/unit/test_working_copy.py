import pytest
import torch
from torch import nn

from vl2.config import VL2Config
from vl2.model.vl2 import VL2Model
from vl2.presets import DEBUG_BASE
from vl2.train.working_copy import WorkingCopy, _shares


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)
        self.first.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def squares(module: nn.Module, x: torch.Tensor) -> float:
    loss = module(x).float().square().sum()
    loss.backward()
    return loss.item()


@pytest.mark.parametrize("twins", [1, 2, 3])
def test_gradients_are_those_of_the_rounded_module_summed_in_float32(twins: int) -> None:
    torch.manual_seed(0)
    master = Small()
    rounded = Small()
    rounded.load_state_dict(master.state_dict())
    rounded.to(torch.bfloat16)
    copy = WorkingCopy(master, twins)
    threads = torch.get_num_threads()
    jobs = list(torch.randn(5, 5, 8).to(torch.bfloat16))
    shares: list[dict[str, torch.Tensor]] = [{} for _ in range(twins)]
    losses = []
    for number, x in enumerate(jobs):
        total = shares[number % twins]
        losses.append(squares(rounded, x))
        for name, parameter in rounded.named_parameters():
            if parameter.grad is not None:
                total[name] = total.get(name, 0) + parameter.grad.float()
                parameter.grad = None
    first, *others = shares
    for _ in range(2):
        assert copy.run(jobs, squares) == losses
        grads = {n: p.grad for n, p in master.named_parameters() if p.grad is not None}
        assert grads.keys() == first.keys() == {"first.weight", "second.weight", "second.bias"}
        for name, found in grads.items():
            assert found.dtype == torch.float32
            assert torch.equal(found, sum((own[name] for own in others), first[name]))
        master.zero_grad()
    assert torch.get_num_threads() == threads


def gradient(module: Small) -> torch.Tensor:
    assert module.first.weight.grad is not None
    return module.first.weight.grad.clone()


def test_gradients_are_added_to_those_that_are_there() -> None:
    torch.manual_seed(0)
    master = Small()
    copy = WorkingCopy(master, 2)
    jobs = list(torch.randn(3, 5, 8).to(torch.bfloat16))
    copy.run(jobs, squares)
    once = gradient(master)
    copy.run(jobs, squares)
    torch.testing.assert_close(gradient(master), 2 * once)


def test_the_dearest_jobs_are_shared_out_first_and_results_keep_their_order() -> None:
    assert _shares([1, 9, 2, 8], 2) == [[1, 0], [3, 2]]
    assert _shares([1, 1, 1, 1, 1], 2) == [[0, 2, 4], [1, 3]]
    assert _shares([1, 9], 1) == [[0, 1]]
    jobs = [3, 14, 1, 5, 9, 2, 6]
    for twins in (1, 2, 3):
        copy = WorkingCopy(Small(), twins)
        assert copy.run(jobs, lambda _, job: 10 * job, float) == [10 * job for job in jobs]


def test_a_job_that_fails_leaves_no_gradient() -> None:
    master = Small()
    copy = WorkingCopy(master, 2)
    jobs = list(torch.randn(4, 5, 8).to(torch.bfloat16))

    def fails(module: nn.Module, x: torch.Tensor) -> None:
        squares(module, x)
        if x is jobs[2]:
            raise MemoryError("full")

    with pytest.raises(MemoryError, match="full"):
        copy.run(jobs, fails)
    copy.run(jobs[:1], squares)
    clean = WorkingCopy(master, 1)
    found = gradient(master)
    master.zero_grad()
    clean.run(jobs[:1], squares)
    assert torch.equal(gradient(master), found)


def test_twins_follow_their_master() -> None:
    master = Small()
    copy = WorkingCopy(master, 2)
    with torch.no_grad():
        master.first.weight.add_(1.0)
        master.first.bias.add_(1.0)  # frozen parameters may be replaced, too
    copy.refresh()

    def weights(module: Small, _: int) -> tuple[torch.Tensor, torch.Tensor]:
        return module.first.weight, module.first.bias

    for weight, bias in copy.run([0, 1], weights):
        assert torch.equal(weight, master.first.weight.to(torch.bfloat16))
        assert torch.equal(bias, master.first.bias.to(torch.bfloat16))


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

    def trained(module: VL2Model, tokens: torch.Tensor) -> float:
        loss = module(tokens, labels=tokens, logits="none").loss
        assert loss is not None
        loss.backward()
        return loss.item()

    exact = model(ids, labels=ids, logits="none").loss
    assert exact is not None
    [loss] = WorkingCopy(model).run([ids], trained)
    assert loss == pytest.approx(exact.item(), rel=1e-3)  # measured: 5e-5
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(g).all() for g in gradients)

"""What is chosen on cards that are not there, by their compute capability."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from tests.unit.host_waits import WAITING, HostWaits, NeverWait, absent_card
from tests.unit.quant_samples import matrix, relative
from tests.unit.small_models import small_model
from tests.unit.test_task import batch_of, mixed_rows
from torch import Tensor

from vl2.checkpoint import load
from vl2.config import VL2Config
from vl2.engine.graphs import why_not_captured
from vl2.model.attention import AttentionContext
from vl2.model.language import Language
from vl2.model.vl2 import VL2Model
from vl2.ops import batched_experts, cards, float8, moe
from vl2.ops.batched_experts import COPY, batched_expert_mlp
from vl2.ops.float8 import Float8Weight, float8_linear_ref
from vl2.ops.linear import linear
from vl2.ops.moe import ExpertChange, LowRank, Routing, expert_mlp_ref, expert_swiglu
from vl2.ops.paged import BlockTables, PagedStep, empty_pools
from vl2.ops.transfer import send
from vl2.train.config import BalanceConfig
from vl2.train.optim import freeze
from vl2.train.task import LanguageTask

TURING, AMPERE, ADA, HOPPER, BLACKWELL, B300, GEFORCE = (
    *((7, 5), (8, 0), (8, 9), (9, 0)),
    *((10, 0), (10, 3), (12, 0)),
)
CARDS = (TURING, AMPERE, ADA, HOPPER, BLACKWELL, B300, GEFORCE)
ON_CARD = (HOPPER, BLACKWELL, B300)
AMD = (9, 4)
"""What PyTorch says of an MI300."""


CUDA = torch.device("cuda", 0)


def pretend(monkeypatch: pytest.MonkeyPatch, card: tuple[int, int]) -> None:
    """Let a card that is not there be one of these, where the choices ask."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: card)
    monkeypatch.setattr(torch.version, "hip", "7.0" if card == AMD else None)
    held = cards.compute_capability(CUDA)
    for module in (cards, float8):
        monkeypatch.setattr(
            module, "compute_capability", lambda device: None if device.type == "cpu" else held
        )


def test_a_capability_is_nvidia_s(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: AMD)
    assert cards.compute_capability(CUDA) == AMD
    assert cards.compute_capability(torch.device("cpu")) is None
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert cards.compute_capability(CUDA) is None


def grouped(rows: int, *, grad: bool) -> bool:
    with absent_card(), torch.set_grad_enabled(grad):
        x = torch.empty(rows, 64, dtype=torch.bfloat16)
        return cards.has_grouped_matmul(x, torch.empty(4, 32, 64, dtype=torch.bfloat16))


@pytest.mark.parametrize("card", [*CARDS, AMD])
def test_grouped_products_are_used_where_they_exist_and_are_right(card, monkeypatch):
    pretend(monkeypatch, card)
    exist = card not in (TURING, AMD)
    assert grouped(8, grad=False) is exist
    assert grouped(8, grad=True) is (exist and card not in (BLACKWELL, B300))
    assert not grouped(0, grad=False)
    assert cards.has_bfloat16(CUDA) is (card != TURING)
    assert cards.groups_on_card(CUDA, torch.bfloat16) is (card in ON_CARD)
    assert not cards.groups_on_card(CUDA, torch.float16)


@pytest.mark.parametrize("counts", [(3, 0, 4, 1), (0, 5, 0, 0), (0, 0, 0, 0)])
@pytest.mark.parametrize("changed", [False, True])
def test_one_product_per_expert_gives_experts_without_tokens_no_gradient(
    counts, changed, monkeypatch
):
    """What a card of 10.x runs going backward, and a rank that no token came to."""
    rows = torch.randn(sum(counts), 16)
    weights = (torch.randn(4, 8, 16), torch.randn(4, 8, 16), torch.randn(4, 16, 8))
    factors = [
        torch.randn(4, *size) for w in weights for size in ((8, w.shape[2]), (w.shape[1], 8))
    ]
    results = []
    for grouped in (True, False):
        monkeypatch.setattr(moe, "has_grouped_matmul", lambda *_, grouped=grouped: grouped)
        leaves = [tensor.clone().requires_grad_() for tensor in (rows, *weights, *factors)]
        x, gate, up, down, *rest = leaves
        pairs = [LowRank(*rest[place : place + 2]) for place in (0, 2, 4)]
        change = ExpertChange(*pairs) if changed else None
        out = expert_swiglu(x, torch.tensor(counts), gate, up, down, change)
        out.square().sum().backward()
        used = leaves if changed else leaves[:4]
        assert all(leaf.grad is not None for leaf in used)
        results.append([out, *(leaf.grad for leaf in used)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-4)
    for expert, count in enumerate(counts):
        assert all(bool(grad[expert].any()) == (count > 0) for grad in results[1][2:])


def random_experts(tokens: int, dtype: torch.dtype) -> tuple[Tensor, Routing, list[Tensor]]:
    weights = [torch.randn(24, 16, 12), torch.randn(24, 16, 12), torch.randn(24, 12, 16)]
    scores = torch.rand(tokens, 24)
    experts = scores.topk(2).indices
    routing = Routing(experts, scores.gather(1, experts), scores)
    return torch.randn(tokens, 12).to(dtype), routing, [w.to(dtype) * 0.3 for w in weights]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 4, 5, 40])
def test_batched_experts_equal_the_loop(tokens: int, dtype: torch.dtype):
    x, routing, weights = random_experts(tokens, dtype)
    copied = COPY * tokens * 2 <= 24
    assert copied is (tokens < 5)  # both ways are run
    exact = expert_mlp_ref(x.double(), routing, *(weight.double() for weight in weights))
    found = batched_expert_mlp(x, routing, *weights)
    assert found.dtype == dtype
    assert relative(found, exact) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("tokens", [2, 40])
def test_batched_experts_take_low_rank_changes(tokens: int):
    x, routing, weights = random_experts(tokens, torch.float32)
    sizes = [(weight.shape[2], weight.shape[1]) for weight in weights]
    change = ExpertChange(
        *(LowRank(torch.randn(24, 8, i) * 0.2, torch.randn(24, o, 8) * 0.2) for i, o in sizes)
    )
    found = batched_expert_mlp(x, routing, *weights, change)
    assert relative(found, expert_mlp_ref(x, routing, *weights, change)) < 1e-5
    assert relative(found, expert_mlp_ref(x, routing, *weights)) > 0.1


# --- a decoding step never waits


@contextmanager
def without_autocast() -> Iterator[None]:
    """It knows no meta device."""
    with patch("torch.autocast"), patch("torch.is_autocast_enabled", return_value=False):
        yield


def decode(preset: str, dtype: torch.dtype, tokens: int) -> list[str]:
    """Names of the operations of a step of one token of each sequence; weights have no data."""
    config = VL2Config.preset(preset).language_config
    with absent_card() as mode, torch.no_grad(), without_autocast():
        language = Language(config).to(dtype)
        lengths = torch.empty(tokens, dtype=torch.int64)
        pools = empty_pools(config, 64, device=lengths.device, dtype=dtype)
        blocks = torch.empty(tokens, 3, dtype=torch.int64)
        tables = BlockTables.over(blocks, lengths, size=4, unused=63)
        pages = PagedStep(pools=pools, slots=lengths, tables=tables)
        cos = torch.empty(1, tokens, config.rope_dim)  # the engine's tables, indexed
        mode.names.clear()
        context = AttentionContext(cos=cos, sin=cos, pages=pages)
        hidden = language.model(language.embed(lengths[None]), context).hidden
        assert language.logits(hidden)[0].shape == (tokens, config.vocab_size)
    return mode.names


@pytest.mark.parametrize("preset", ["debug_base", "debug_tiny"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_decoding_step_reads_nothing_from_any_card(preset, dtype, monkeypatch):
    for card in (*CARDS, AMD):
        with monkeypatch.context() as context:
            pretend(context, card)
            for tokens in (1, 64):
                names = decode(preset, dtype, tokens)
                on_card = dtype == torch.bfloat16 and card in ON_CARD
                assert ("_grouped_mm" in names) is on_card, (card, tokens)


def test_what_waits_is_noticed(monkeypatch):
    pretend(monkeypatch, AMPERE)
    waits = [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: torch.bincount(x.long()),
        lambda x: bool((x > 0).any()),
    ]
    for wait in waits:
        with absent_card(), pytest.raises(WAITING):
            wait(torch.empty(8))
    # By PyTorch's own loop a step would wait.
    monkeypatch.setattr(batched_experts, "FEW_TOKENS", 0)
    with pytest.raises(HostWaits, match="_grouped_mm"):
        decode("debug_base", torch.bfloat16, 2)


@pytest.mark.parametrize("preset", ["debug_base", "debug_tiny"])
def test_a_micro_batch_of_training_reads_nothing_from_the_card(preset, monkeypatch):
    """Losses, loads, pictures in one tile and in more, forward and backward."""
    pretend(monkeypatch, HOPPER)
    batch = batch_of(*mixed_rows())
    assert all(tensor.device.type == "cpu" for tensor in batch.tensors.values())
    with torch.device("meta"):
        model = VL2Model(VL2Config.preset(preset)).to(torch.bfloat16).train()
        freeze(model, ("",))
        task = LanguageTask(model, BalanceConfig())
    with NeverWait() as mode, without_autocast():
        losses, penalty, *_ = task._forward(model, batch)
        assert losses.device.type == penalty.device.type == "meta"
        (losses.sum() + penalty).backward()
    assert len(losses) == 41  # of all rows: known without asking
    assert {"_grouped_mm", "masked_scatter", "index_add_"} <= set(mode.names)


def test_loads_are_counts_of_real_tokens():
    experts = torch.randint(0, 8, (30, 3))
    mask = torch.rand(2, 15) > 0.4
    routing = Routing(experts, torch.rand(30, 3), torch.rand(30, 8))
    counted = torch.bincount(experts[mask.flatten()].flatten(), minlength=8).float()
    assert torch.equal(moe.expert_load(routing, mask, 8), counted)


def test_cudnn_plans_no_attention():
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.gpu
def test_what_is_sent_goes_by_pinned_memory():
    x, card = torch.randn(1000), torch.device("cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = send(x, card)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(there.cpu(), x)


class Flag:
    """All that is asked of a model's weights."""

    device = CUDA


def test_floats_are_recorded_on_every_card(monkeypatch):
    model = small_model()
    del model.image_newline
    model.image_newline = Flag()
    for card in (*CARDS, AMD):
        with monkeypatch.context() as context:
            pretend(context, card)
            assert why_not_captured(model) is None


# --- dtypes


@pytest.mark.parametrize("card", [*CARDS, AMD])
def test_auto_is_float16_where_a_card_has_no_bfloat16(card, monkeypatch):
    pretend(monkeypatch, card)
    checkpoint = load.open_checkpoint(load.resolve("nano"))
    found = load._dtype("auto", checkpoint, CUDA)
    assert found == (torch.float16 if card == TURING else torch.bfloat16)
    assert load._dtype("bfloat16", checkpoint, CUDA) == torch.bfloat16
    assert load._dtype("auto", checkpoint, torch.device("cpu")) == torch.bfloat16


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Products of float8 on a card that refuses them; holds how often they were tried."""
    tried = []

    def refuse(rows: object, weight: object) -> Tensor:
        tried.append(1)
        raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling\nmore lines")

    monkeypatch.setattr(float8, "scaled_product", refuse)
    monkeypatch.setattr(float8, "compute_capability", lambda device: GEFORCE)
    monkeypatch.setattr(float8, "_TRIED", {})
    return tried


def test_refused_products_of_float8_are_tried_once_and_told_once(refused, caplog):
    weight, x = Float8Weight.pack(matrix(48, 64)), torch.randn(3, 64)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            found = linear(x, weight)
            assert relative(found, float8_linear_ref(x, weight)) < 1e-5
    assert len(refused) == 1
    assert len(caplog.messages) == 1
    assert "multiplies float8 as floats, which is slower: CUDA error: CUBLAS" in caplog.text
    assert "more lines" not in caplog.text


@pytest.mark.parametrize("card", [*CARDS, AMD])
def test_cards_that_multiply_float8(card, monkeypatch):
    pretend(monkeypatch, card)
    monkeypatch.setattr(float8, "_multiplies", lambda device: True)
    weight, x = (
        Float8Weight.pack(torch.empty(64, 64, device="meta")),
        torch.empty(2, 64, device="meta"),
    )
    has = float8.has_float8_products(x, weight)
    assert has is (card not in (TURING, AMPERE, AMD))
    assert float8.has_float8_experts(x, weight, weight) is (card == HOPPER)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tokens", [1, 40])
def test_batched_experts_of_a_card_are_the_cpu_s(tokens: int, dtype: torch.dtype):
    x, routing, weights = random_experts(tokens, dtype)
    there = Routing(*(tensor.cuda() for tensor in routing))
    found = batched_expert_mlp(x.cuda(), there, *(weight.cuda() for weight in weights))
    exact = expert_mlp_ref(x.double(), routing, *(weight.double() for weight in weights))
    assert relative(found.cpu(), exact) < max(8 * torch.finfo(dtype).eps, 2e-3)


@pytest.mark.gpu
def test_experts_without_tokens_get_no_gradient_on_a_card():
    counts = torch.tensor([30, 0, 70, 0, 28], device="cuda")
    rows = torch.randn(128, 64, device="cuda", dtype=torch.bfloat16)
    sizes = ((5, 32, 64), (5, 32, 64), (5, 64, 32))
    weights = [torch.randn(size, device="cuda", dtype=torch.bfloat16) for size in sizes]
    leaves = [weight.requires_grad_() for weight in weights]
    for _ in range(3):  # memory that was used before is not zero
        expert_swiglu(rows, counts, *leaves).square().sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert not leaf.grad[counts == 0].any()

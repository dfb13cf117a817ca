"""Recomputing activations changes memory and time, never a gradient."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vl2.config import SamConfig, VL2Config
from vl2.model.vl2 import VL2Model
from vl2.parallel.activation_checkpoint import Recompute, recompute_activations

WAYS: tuple[Recompute, ...] = get_args(Recompute)
PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "aten._grouped_mm")


SAM = SamConfig(
    image_size=64,
    width=24,
    layers=3,
    heads=2,
    window_size=3,
    global_attn_indexes=(1,),
    neck_channels=8,
    downsample_channels=(16,),
)


def config_of(preset: str) -> VL2Config:
    """A preset, or Base's with a second tower."""
    if preset != "hybrid":
        return VL2Config.preset(preset)
    config = VL2Config.preset("debug_base")
    return replace(config, vision_config=replace(config.vision_config, tower="hybrid", sam=SAM))


def model_of(preset: str, language: Recompute, vision: Recompute) -> VL2Model:
    model = VL2Model(config_of(preset))
    model.init_weights(torch.Generator().manual_seed(0))
    recompute_activations(model, language, vision)
    return model.train()


def inputs_of(model: VL2Model) -> dict[str, Tensor]:
    """One row with a picture of one tile and global view, packed with a second document."""
    generator = torch.Generator().manual_seed(1)
    size, side = model.config.vision_config.image_size, model.config.tokens_per_side
    places = 2 * side * (side + 1) + 1
    ids = torch.randint(10, 2000, (1, places + 20), generator=generator)
    places_mask = (torch.arange(ids.shape[1]) < places)[None]
    return {
        "input_ids": ids,
        "labels": ids.masked_fill(places_mask, -100),
        "images": torch.randn(1, 2, 3, size, size, generator=generator),
        "images_seq_mask": places_mask,
        "images_spatial_crop": torch.tensor([[[1, 1]]]),
        "segment_ids": torch.where(torch.arange(ids.shape[1]) < places + 8, 1, 2)[None],
    }


def loss_of(model: VL2Model) -> Tensor:
    out = model(**inputs_of(model), logits="none")
    return out.loss + 100 * out.balance_loss


def gradients(model: VL2Model) -> dict[str, Tensor]:
    loss_of(model).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("preset", ["debug_tiny", "debug_base", "hybrid"])
def test_gradients_are_the_same_bit_for_bit(preset: str):
    kept = gradients(model_of(preset, "none", "none"))
    for tower in ("vision", "vision_high") if preset == "hybrid" else ("vision",):
        assert any(n.startswith(f"{tower}.blocks.0.") and g.any() for n, g in kept.items())
    for language, vision in itertools.product(WAYS, WAYS):
        found = gradients(model_of(preset, language, vision))
        assert found.keys() == kept.keys()
        different = [n for n, g in kept.items() if not torch.equal(g, found[n])]
        assert not different, f"{language} and {vision} change {different}"


def calls_of_parts(preset: str, language: Recompute, vision: Recompute) -> Counter[str]:
    """How often the MLPs inside the blocks run in one forward and backward pass."""
    model = model_of(preset, language, vision)
    calls: Counter[str] = Counter()

    def count(module: object, name: str) -> None:
        assert isinstance(module, nn.Module)
        module.register_forward_pre_hook(lambda *_: calls.update([name]))

    for layer in model.language.model.layers:
        count(layer.mlp, "language")
    for block in model.vision.blocks:
        count(block.mlp, "vision")
    for block in model.vision_high.blocks if model.vision_high else ():
        count(block.mlp, "vision_high")
    loss_of(model).backward()
    return calls


@pytest.mark.parametrize("preset", ["debug_tiny", "debug_base"])
def test_full_runs_each_block_twice_and_only_where_it_is_asked(preset: str):
    once = {"language": 3, "vision": 2}
    assert calls_of_parts(preset, "none", "none") == once
    assert calls_of_parts(preset, "full", "none") == {**once, "language": 6}
    assert calls_of_parts(preset, "none", "full") == {**once, "vision": 4}
    assert calls_of_parts(preset, "full", "full") == {"language": 6, "vision": 4}


def test_the_second_tower_of_a_hybrid_model_recomputes_with_the_first():
    once = {"language": 3, "vision": 2, "vision_high": 3}
    assert calls_of_parts("hybrid", "full", "none") == {**once, "language": 6}
    assert calls_of_parts("hybrid", "none", "full") == {**once, "vision": 4, "vision_high": 6}


class Operations(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removesuffix(".default")
        if name in PRODUCTS:
            self.products[name] += 1
        return func(*args, **(kwargs or {}))


def products(language: Recompute) -> Counter[str]:
    model = model_of("debug_base", language, "none")
    with Operations() as operations:
        loss_of(model).backward()
    return operations.products


def test_selective_computes_no_matrix_product_again_and_full_does():
    kept = products("none")
    assert kept["aten._grouped_mm"]
    assert products("selective") == kept
    again = products("full")
    assert again["aten._grouped_mm"] > kept["aten._grouped_mm"]
    assert again["aten.mm"] > kept["aten.mm"]


def saved_bytes(language: Recompute) -> int:
    """Bytes that a forward pass keeps for the backward pass, checkpoints' own store aside."""
    model = model_of("debug_base", language, "none")
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(model)
    return sum(sizes)


def test_full_keeps_less():
    assert saved_bytes("full") < saved_bytes("none") / 2


def test_answering_recomputes_nothing():
    model = model_of("debug_base", "full", "full").eval()
    plain = model_of("debug_base", "none", "none").eval()
    with torch.no_grad():
        ours, theirs = (m(**inputs_of(m)).logits for m in (model, plain))
    assert torch.equal(ours, theirs)

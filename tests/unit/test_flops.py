"""Counted operations against those that PyTorch counts while a step runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from vl2 import geometry
from vl2.checkpoint.skeleton import build_skeleton
from vl2.config import VL2Config
from vl2.data.collate import Sample, TrainBatch, collate_rows
from vl2.geometry import TileGrid
from vl2.model import attention
from vl2.model.vl2 import VL2Model
from vl2.ops.attention import attention_ref
from vl2.ops.loss import IGNORE_ID
from vl2.parallel.activation_checkpoint import Recompute, recompute_activations
from vl2.parallel.pipeline_stage import unit_costs
from vl2.processing.inputs import ModelInputs
from vl2.train.config import TRAINED, BalanceConfig, ComputeConfig
from vl2.train.flops import (
    PARTS,
    document_pairs,
    flops_by_part,
    model_work,
    planned_sizes,
    recomputed_flops,
    step_flops,
)
from vl2.train.lora import LoraConfig, apply_lora
from vl2.train.metrics import batch_size
from vl2.train.optim import freeze
from vl2.train.task import LanguageTask

PRESETS = ("debug_tiny", "debug_small", "debug_base")
TOLERANCE = 1e-9  # worst seen: 0
WITHIN_A_LAYER = 0.03  # worst seen: 2.7 %, by gradients inside the first layer that has adapters


def sample(number: int, text: int, grid: TileGrid | None = None) -> Sample:
    config = VL2Config.preset("debug_base")
    size = config.vision_config.image_size
    generator = torch.Generator().manual_seed(number)
    places = geometry.image_tokens(config.tokens_per_side, grid) if grid else 0
    ids = torch.randint(10, 2000, (places + text,), generator=generator)
    labels = ids.clone()
    labels[:places] = IGNORE_ID
    tiles = torch.randn(grid.tiles if grid else 1, 3, size, size, generator=generator)
    if grid and grid.tiles == 2:
        tiles[1] = tiles[0]  # the one local tile is the whole picture again
    inputs = ModelInputs(
        input_ids=ids,
        labels=labels,
        images=tiles,
        images_seq_mask=torch.arange(len(ids)) < places,
        images_spatial_crop=torch.tensor([[grid.wide, grid.high] if grid else [0, 0]]),
    )
    return Sample(source=0, position=0, row=0, inputs=inputs)


def mixed_batch() -> TrainBatch:
    """Two rows: a picture of two tiles and a text behind it, a picture of one tile and padding."""
    rows = [
        [sample(0, 12, TileGrid(wide=2, high=1)), sample(1, 9)],
        [sample(2, 5, TileGrid(wide=1, high=1))],
    ]
    return collate_rows(rows, pad_id=2, source_names=("web",))


def model_of(preset: str, stage: str = "sft", lora: LoraConfig | None = None) -> VL2Model:
    model = VL2Model(VL2Config.preset(preset))
    model.init_weights(torch.Generator().manual_seed(0))
    if lora is None:
        freeze(model, TRAINED[stage])
    else:
        apply_lora(model, lora)
    return model.train()


def grouped(a: Any, b: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Rows times their expert's matrix, or the gradient of the matrices: [m, k] with [., k, n]."""
    return 2 * a[0] * a[1] * b[-1]


@contextmanager
def plain_attention(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Attention as plain products, which are counted on a CPU; masked pairs are computed too."""
    with monkeypatch.context() as patch, sdpa_kernel(SDPBackend.MATH):
        patch.setattr(attention, "attention", attention_ref)
        yield


def counted(model: VL2Model, batch: TrainBatch, monkeypatch: pytest.MonkeyPatch) -> int:
    """What PyTorch counts in a forward and a backward pass."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: grouped})
    task = LanguageTask(model, BalanceConfig())
    with plain_attention(monkeypatch), set_checkpoint_early_stop(False), counter:
        task.accumulate([batch])
    return counter.get_total_flops()


def computed_sizes(batch: TrainBatch) -> dict[str, float]:
    """What plain attention computes on: padding too, and pairs that the mask takes out."""
    rows, length = batch.tensors["input_ids"].shape
    return {**batch_size([batch]), "tokens": rows * length, "pairs": rows * length**2}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("stage", ["align", "sft"])
def test_a_stage_takes_what_is_counted(preset: str, stage: str, monkeypatch: pytest.MonkeyPatch):
    model, batch = model_of(preset, stage), mixed_batch()
    work = model_work(model, ComputeConfig())
    ours = step_flops(work, computed_sizes(batch)) + recomputed_flops(work, computed_sizes(batch))
    assert ours == pytest.approx(counted(model, batch, monkeypatch), rel=TOLERANCE)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("targets", "tolerance"),
    [
        (("attention", "dense", "experts"), TOLERANCE),
        (("vision",), TOLERANCE),
        (("dense",), WITHIN_A_LAYER),
        (("experts",), WITHIN_A_LAYER),
    ],
)
def test_adapters_take_what_is_counted(
    preset: str, targets: tuple[str, ...], tolerance: float, monkeypatch: pytest.MonkeyPatch
):
    model, batch = model_of(preset, lora=LoraConfig(targets=targets)), mixed_batch()
    work = model_work(model, ComputeConfig())
    ours = step_flops(work, computed_sizes(batch)) + recomputed_flops(work, computed_sizes(batch))
    assert ours == pytest.approx(counted(model, batch, monkeypatch), rel=tolerance)


@pytest.mark.parametrize(("language", "vision"), [("full", "none"), ("none", "full")])
def test_recomputing_takes_what_is_counted(
    language: Recompute, vision: Recompute, monkeypatch: pytest.MonkeyPatch
):
    model, batch = model_of("debug_base"), mixed_batch()
    compute = ComputeConfig(recompute=language, recompute_vision=vision)
    work, sizes = model_work(model, compute), computed_sizes(batch)
    before = counted(model, batch, monkeypatch)
    recompute_activations(model, compute.recompute, compute.recompute_vision)
    more = counted(model, batch, monkeypatch) - before
    head = recomputed_flops([item for item in work if item.part == "head"], sizes)
    assert more > 0
    assert recomputed_flops(work, sizes) - head == pytest.approx(more, rel=TOLERANCE)


def test_text_alone_leaves_out_the_tower(monkeypatch: pytest.MonkeyPatch):
    model, batch = model_of("debug_base"), collate_rows([[sample(3, 20)]], pad_id=2)
    work, sizes = model_work(model, ComputeConfig()), computed_sizes(batch)
    assert flops_by_part(work, sizes)["vision"] == 0
    ours = step_flops(work, sizes) + recomputed_flops(work, sizes)
    assert ours == pytest.approx(counted(model, batch, monkeypatch), rel=TOLERANCE)


def test_sizes_of_a_step_are_those_of_its_documents():
    batch = mixed_batch()
    sizes = batch_size([batch, batch])
    side = VL2Config.preset("debug_base").tokens_per_side
    places = [geometry.image_tokens(side, TileGrid(wide=w, high=1)) for w in (2, 1)]
    lengths = (places[0] + 12, 9, places[1] + 5)
    assert sizes["tokens"] == 2 * sum(lengths)
    assert sizes["supervised"] == 2 * (12 + 8 + 5)  # the first token of a document is no target
    assert (sizes["images"], sizes["tiles"], sizes["encoded_tiles"]) == (4, 10, 8)
    assert sizes["pairs"] == 2 * sum(n * (n + 1) // 2 for n in lengths)


def test_without_isolation_a_row_is_one_document():
    rows = [[sample(0, 12), sample(1, 9)]]
    batch = collate_rows(rows, pad_id=2, isolate_documents=False)
    assert batch_size([batch])["pairs"] == document_pairs([21])
    ids = torch.zeros(2, 21, dtype=torch.int64)
    assert batch_size([TrainBatch(tensors={"input_ids": ids})])["pairs"] == document_pairs([21, 21])
    assert batch_size([TrainBatch(tensors={"x": torch.zeros(1)})])["pairs"] == 0


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_released_sizes_by_hand(size: str):
    config = VL2Config.preset(size)
    model = build_skeleton(config)
    sizes = planned_sizes(config, rows=2, length=4096, tiles=8)
    freeze(model, TRAINED["sft"])
    parts = flops_by_part(model_work(model, ComputeConfig()), sizes)
    freeze(model, TRAINED["align"])
    align = flops_by_part(model_work(model, ComputeConfig()), sizes)
    c = config.language_config
    layers = c.num_hidden_layers - 1
    routed = layers * 6 * 3 * c.hidden_size * c.moe_intermediate_size
    assert parts["experts"] == 6 * routed * 2 * 4096
    assert align["experts"] == 4 * routed * 2 * 4096
    head = c.hidden_size * c.vocab_size * 2 * (4096 - 8 * 210)
    assert (parts["head"], align["head"]) == (6 * head, 4 * head)
    value = c.v_head_dim if c.use_mla else c.head_dim
    pairs = 2 * 4096 * 4097 // 2
    scores = c.num_hidden_layers * c.num_attention_heads * (c.head_dim + value) * pairs
    assert parts["attention"] == align["attention"] == 6 * scores
    # 27 blocks of 12 w^2-like matrices on 729 patches, and attention within a tile
    block = 4 * 1152**2 + 2 * 1152 * 4304
    tile = 27 * (729 * block + 2 * 729**2 * 1152) + 729 * 1152 * 3 * 14**2
    first = 2 * 729 * 1152 * 3 * 14**2  # pixels get no gradient
    assert parts["vision"] == align["vision"] == (6 * tile - first) * 16
    assert set(parts) == set(PARTS)


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_forward_is_what_the_pipeline_is_cut_by(size: str):
    config = VL2Config.preset(size)
    work = model_work(build_skeleton(config), ComputeConfig())
    sizes = planned_sizes(config, rows=1, length=4096, tiles=8)
    sizes["supervised"] = sizes["tokens"]
    costs = unit_costs(config, tokens=4096, tiles=8)
    for unit, cost in enumerate(costs):
        own = sum(item.forward * sizes[item.per] for item in work if item.unit == unit)
        assert own == pytest.approx(cost, rel=2e-4)  # a token sees itself: T (T + 1) / 2


def test_what_needs_no_gradient_takes_none():
    model = model_of("debug_base", lora=LoraConfig(targets=("experts",)))
    work = model_work(model, ComputeConfig(recompute="full", recompute_vision="full"))
    frozen = [item for item in work if item.part in ("vision", "projector")]
    assert all(item.backward == item.again == 0 < item.forward for item in frozen)
    first = min(item.unit for item in work if item.part == "experts")
    dense = [item for item in work if item.part == "language" and item.unit < first]
    assert dense
    assert all(item.backward == item.again == 0 for item in dense)


def test_documents_shorter_than_the_sequence_see_less():
    config = VL2Config.tiny()
    whole = planned_sizes(config, rows=3, length=4096, tiles=0)
    assert whole["pairs"] == 3 * document_pairs([4096])
    assert 3 * document_pairs([1024] * 4) / whole["pairs"] == pytest.approx(0.25, rel=1e-3)


def test_nothing_that_trains_means_forward_alone():
    model = build_skeleton(VL2Config.preset("debug_tiny"))
    model.requires_grad_(False)
    work = model_work(model, ComputeConfig(recompute="full"))
    sizes: dict[str, float] = {"encoded_tiles": 1, "tokens": 1, "pairs": 1, "supervised": 1}
    assert step_flops(work, sizes) == sum(item.forward for item in work)
    assert recomputed_flops(work, sizes) == 0

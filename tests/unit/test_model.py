"""The model as a whole: counts, caches, chunks, padding, batches, packing."""

from dataclasses import replace

import pytest
import torch

from vl2.config import RopeScaling, VL2Config
from vl2.geometry import TileGrid, image_tokens
from vl2.model.adaptor import arrange_tokens, space_to_depth
from vl2.model.vl2 import VL2Model
from vl2.ops.kv_cache import KVCache

COUNTS = {  # parameters, released tensors (spec of the released checkpoints)
    "tiny": (3_370_501_440, 2_582),
    "small": (16_148_349_504, 5_639),
    "base": (27_480_134_248, 6_973),
}


@pytest.mark.parametrize("name", COUNTS)
def test_released_sizes_on_the_meta_device(name):
    config = getattr(VL2Config, name)()
    with torch.device("meta"):
        model = VL2Model(config)
    state = model.state_dict()
    experts = config.language_config.n_routed_experts
    tensors = sum(experts if ".mlp.experts." in key else 1 for key in state)
    assert (sum(t.numel() for t in state.values()), tensors) == COUNTS[name]


def small_config(**language) -> VL2Config:
    nano = VL2Config.nano()
    changes = {"num_hidden_layers": 2, "vocab_size": 64, **language}
    return replace(nano, language_config=replace(nano.language_config, **changes))


VARIANTS = {
    "mla": {},
    "q_lora": {"q_lora_rank": 24},
    "yarn": {
        "rope_scaling": RopeScaling(
            factor=4.0, original_max_position_embeddings=64, mscale_all_dim=0.7
        )
    },
    "mha": {"use_mla": False, "kv_lora_rank": None},
    "gqa": {"use_mla": False, "kv_lora_rank": None, "num_key_value_heads": 2},
}


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> VL2Model:
    return build(small_config(**VARIANTS[request.param]))


def build(config: VL2Config) -> VL2Model:
    model = VL2Model(config)
    model.init_weights(torch.Generator().manual_seed(3))
    return model.eval()


def run(model: VL2Model, embeds: torch.Tensor, chunks: list[int], mask=None, **options):
    """Hidden states of the whole row, computed in chunks over a cache."""
    config = model.config.language_config
    cache = KVCache.empty(config, len(embeds), embeds.shape[1])
    parts, start = [], 0
    for size in chunks:
        end = start + size
        part = None if mask is None else mask[:, :end]
        out = model.language(embeds[:, start:end], attention_mask=part, cache=cache, **options)
        parts.append(out.hidden)
        start = end
    return torch.cat(parts, dim=1)


# fp32 noise of another order of summation; worst measured 2e-6
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.mark.parametrize("absorbed", [False, True, None])
@pytest.mark.parametrize("chunks", [[24], [10, 14], [1] * 24, [20, 1, 1, 1, 1]])
@torch.no_grad()
def test_cached_and_chunked_equal_one_shot(model, chunks, absorbed):
    embeds = torch.randn(2, 24, 128)
    whole = model.language(embeds, absorbed=False).hidden
    torch.testing.assert_close(run(model, embeds, chunks, absorbed=absorbed), whole, **CLOSE)


@pytest.mark.parametrize("chunks", [[24], [7, 17], [20, 1, 1, 1, 1]])
@torch.no_grad()
def test_left_padding_changes_nothing(model, chunks):
    row = torch.randn(1, 19, 128)
    alone = model.language(row).hidden
    padded = torch.cat((torch.randn(1, 5, 128), row), dim=1)
    other = torch.randn(1, 24, 128)
    mask = torch.ones(2, 24, dtype=torch.bool)
    mask[0, :5] = False
    got = run(model, torch.cat((padded, other)), chunks, mask)
    torch.testing.assert_close(got[:1, 5:], alone, **CLOSE)
    torch.testing.assert_close(got[1:], model.language(other).hidden, **CLOSE)


@torch.no_grad()
def test_the_cache_holds_the_latent_only():
    """576 numbers per token and layer at the released widths; 64 + 16 in nano."""
    config = VL2Config.base().language_config
    assert KVCache.empty(config, 1, 1).layers[0].shape[-1] == 576
    assert VL2Config.nano().language_config.cache_width == 80


def test_a_mask_that_forgets_the_cache_is_refused():
    model = build(small_config())
    cache = KVCache.empty(model.config.language_config, 1, 8)
    with torch.no_grad():
        model.language(torch.randn(1, 4, 128), cache=cache)
    with pytest.raises(ValueError, match=r"\[1, 2\]: expected \[1, 6\].*4 cached and 2 new"):
        model.language(
            torch.randn(1, 2, 128), cache=cache, attention_mask=torch.ones(1, 2, dtype=torch.bool)
        )


def inputs(config: VL2Config, grids: list[TileGrid], text: int = 6) -> dict[str, torch.Tensor]:
    size = config.vision_config.image_size
    count = sum(image_tokens(config.tokens_per_side, grid) for grid in grids)
    ids = torch.randint(12, 60, (1, count + text))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, 2 : 2 + count] = True
    return {
        "input_ids": ids,
        "images": torch.randn(1, sum(grid.tiles for grid in grids), 3, size, size),
        "images_seq_mask": mask,
        "images_spatial_crop": torch.tensor([[(grid.wide, grid.high) for grid in grids]]),
    }


@torch.no_grad()
def test_logits_where_asked_and_only_there():
    model = build(small_config())
    batch = inputs(model.config, [TileGrid(wide=2, high=1)])
    every = model(**batch).logits
    assert every.dtype == torch.float32
    torch.testing.assert_close(model(**batch, logits="last").logits, every[:, -1:])
    assert model(**batch, logits="none").logits is None


@torch.no_grad()
def test_placeholders_must_match_features():
    model = build(small_config())
    batch = inputs(model.config, [TileGrid(wide=1, high=1)])
    batch["images_seq_mask"][0, -1] = True
    with pytest.raises(ValueError, match="42 image placeholders for 41 image features"):
        model(**batch)


@torch.no_grad()
def test_a_picture_of_one_tile_is_encoded_once_with_the_same_result():
    model = build(small_config())
    batch = inputs(model.config, [TileGrid(wide=1, high=1)])
    batch["images"][:, 1] = batch["images"][:, 0]
    seen = []
    hook = model.vision.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    once = model(**batch).logits
    hook.remove()
    assert seen == [1]
    tokens = model.projector(model.vision(batch["images"][0]))
    arranged = arrange_tokens(
        tokens,
        TileGrid(wide=1, high=1),
        newline=model.image_newline,
        separator=model.view_seperator,
    )
    embeds = model.language.embed(batch["input_ids"])
    embeds = embeds.masked_scatter(batch["images_seq_mask"][..., None], arranged)
    twice = model.language.logits(model.language(embeds).hidden)
    torch.testing.assert_close(once, twice, **CLOSE)


def test_text_without_pictures_never_runs_the_tower():
    model = build(small_config())
    model.vision = None
    ids = torch.randint(0, 60, (2, 5))
    empty = torch.zeros(2, 1, 2, dtype=torch.int64)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    with torch.no_grad():
        with_zero_crops = model(ids, torch.zeros(2, 1, 3, 112, 112), mask, empty).logits
        assert torch.equal(with_zero_crops, model(ids).logits)


def test_space_to_depth_has_the_order_of_unfold_after_padding_right_and_below():
    features = torch.randn(2, 49, 5)
    grid = torch.nn.functional.pad(features.transpose(1, 2).unflatten(2, (7, 7)), (0, 1, 0, 1))
    wanted = torch.nn.functional.unfold(grid, kernel_size=2, stride=2).transpose(1, 2)
    assert torch.equal(space_to_depth(features, 2), wanted)


@pytest.mark.parametrize("global_first", [True, False])
def test_layout_of_views_rows_newlines_and_separator(global_first):
    grid, side = TileGrid(wide=2, high=1), 2
    tiles = torch.arange(12.0).view(3, 4, 1)
    newline, separator = torch.tensor([-1.0]), torch.tensor([-2.0])
    tokens = arrange_tokens(
        tiles, grid, newline=newline, separator=separator, global_first=global_first
    )[:, 0].tolist()
    overview = [0, 1, -1, 2, 3, -1]
    mosaic = [4, 5, 8, 9, -1, 6, 7, 10, 11, -1]
    wanted = [*overview, -2, *mosaic] if global_first else [*mosaic, -2, *overview]
    assert tokens == wanted
    assert len(tokens) == image_tokens(side, grid)


def test_training_mode_reports_a_balance_loss_and_reaches_every_used_parameter():
    model = build(small_config()).train()
    batch = inputs(model.config, [TileGrid(wide=2, high=1)], text=40)
    labels = batch["input_ids"].masked_fill(batch["images_seq_mask"], -100)
    out = model(**batch, labels=labels, attention_mask=torch.ones_like(labels))
    (out.loss + out.balance_loss).backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None and "attn_pool" not in name
    ]
    assert without == []
    assert model.eval()(**batch).balance_loss is None


def test_the_correction_bias_stays_float32_through_casts():
    model = build(small_config())
    gate = model.language.model.layers[1].mlp.gate
    gate.e_score_correction_bias.fill_(0.123456789)
    model.to(torch.bfloat16)
    assert gate.e_score_correction_bias.dtype == torch.float32
    assert gate.e_score_correction_bias[0].item() == pytest.approx(0.123456789, abs=1e-8)
    assert gate.weight.dtype == torch.bfloat16


@torch.no_grad()
def test_bfloat16_follows_float32():
    """Weights and activations rounded, without experts, whose near ties a rounding may flip."""
    model = build(small_config(first_k_dense_replace=2))
    batch = inputs(model.config, [TileGrid(wide=2, high=2)])
    exact = model(**batch).logits
    rounded = model.to(torch.bfloat16)(**batch).logits
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()  # worst measured 0.01

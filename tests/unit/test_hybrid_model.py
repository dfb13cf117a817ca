"""The hybrid tower inside the whole model: what changes, and what must not.

Tiles of 5 x 5 patches give 3 x 3 tokens; SAM's map is 3 x 3 as well.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vl2.checkpoint.load import load_model
from vl2.checkpoint.save import save_model
from vl2.config import LanguageConfig, ProjectorConfig, SamConfig, VisionConfig, VL2Config
from vl2.geometry import TileGrid, image_tokens
from vl2.model import hybrid, sam
from vl2.model.vl2 import VL2Model

SAM = SamConfig(
    image_size=128,
    width=48,
    layers=4,
    heads=3,
    window_size=3,  # 8 patches a side: padded to 9
    global_attn_indexes=(1, 3),
    neck_channels=16,
    downsample_channels=(32, 64),  # output: 3 x 3
)
SIDE, SIZE = 3, 70
GRIDS = ((1, 1), (2, 1), (1, 2))


def make_config(tower: str = "hybrid", position: str = "head") -> VL2Config:
    return VL2Config(
        vision_config=VisionConfig(
            tower=tower,
            sam=SAM if tower == "hybrid" else None,
            image_size=SIZE,
            width=24,
            layers=2,
            heads=2,
            mlp_ratio=2.0,
        ),
        projector_config=ProjectorConfig(input_dim=24, n_embed=32),
        language_config=LanguageConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            use_mla=False,
            kv_lora_rank=None,
        ),
        candidate_resolutions=tuple((wide * SIZE, high * SIZE) for wide, high in GRIDS),
        global_view_pos=position,
    )


def make_model(tower: str = "hybrid", position: str = "head") -> VL2Model:
    model = VL2Model(make_config(tower, position))
    model.init_weights(torch.Generator().manual_seed(1))
    if model.vision_high is not None:
        with torch.no_grad():
            model.vision_high.hd_alpha_downsamples.fill_(0.5)
    return model.eval()


def make_inputs(grids: tuple[tuple[int, int], ...]) -> dict[str, Tensor]:
    """One sample whose pictures have these grids; a picture of one tile repeats its global view."""
    tiles, length = [], 0
    for wide, high in grids:
        grid = TileGrid(wide=wide, high=high)
        picture = torch.randn(grid.tiles, 3, SIZE, SIZE)
        tiles.append(picture[:1].expand(2, -1, -1, -1) if grid.tiles == 2 else picture)
        length += image_tokens(SIDE, grid)
    input_ids = torch.randint(0, 50, (1, length + 4))
    mask = torch.zeros(1, length + 4, dtype=torch.bool)
    mask[:, 2:-2] = True
    return {
        "input_ids": input_ids,
        "images": torch.cat(tiles)[None],
        "images_seq_mask": mask,
        "images_spatial_crop": torch.tensor([grids]),
    }


@torch.no_grad()
@pytest.mark.parametrize("position", ["head", "tail"])
@pytest.mark.parametrize("grids", [((1, 1),), ((2, 1),), ((1, 2), (1, 1), (2, 1))])
def test_only_the_global_views_change(grids: tuple[tuple[int, int], ...], position: str) -> None:
    plain, model = make_model("siglip", position), make_model("hybrid", position)
    shared = plain.state_dict()
    missing, unexpected = model.load_state_dict(shared, strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} == {"vision_high", "projector_high"}
    inputs = make_inputs(grids)
    before, after = plain.embed_inputs(**inputs), model.embed_inputs(**inputs)
    same = (before == after).all(dim=-1)[0, 2:-2]
    start = 0
    for wide, high in grids:
        count = image_tokens(SIDE, TileGrid(wide=wide, high=high))
        overview = torch.zeros(count, dtype=torch.bool)
        rows = slice(0, 12) if position == "head" else slice(count - 12, None)
        overview[rows] = (torch.arange(12) + 1) % 4 > 0  # every fourth token is a newline
        assert torch.equal(~same[start : start + count], overview)
        start += count


@torch.no_grad()
def test_logits_are_finite_and_single_equals_batch() -> None:
    model = make_model()
    one, two = make_inputs(((2, 1),)), make_inputs(((1, 2),))
    assert one["input_ids"].shape != two["input_ids"].shape
    batch = {name: pad_sequence([x[name][0] for x in (one, two)], batch_first=True) for name in one}
    together = model(**batch).logits
    assert together.isfinite().all()
    for row, inputs in enumerate((one, two)):
        alone = model(**inputs).logits[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_high_resolution_pictures_replace_the_enlarged_tile() -> None:
    model, inputs = make_model(), make_inputs(((2, 1), (1, 1)))
    tiles = inputs["images"][0, [0, 3]]
    enlarged = hybrid.resize(tiles, SAM.image_size)
    usual = model(**inputs).logits
    assert torch.equal(model(**inputs, images_high=enlarged).logits, usual)
    sharp = torch.randn(2, 3, 128, 128)
    assert not torch.equal(model(**inputs, images_high=sharp).logits, usual)
    assert model(**inputs, images_high=torch.randn(2, 3, 64, 64)).logits.shape == usual.shape


def test_gradients_reach_every_part_of_the_hybrid() -> None:
    model, inputs = make_model(), make_inputs(((2, 1),))
    output = model(**inputs, labels=inputs["input_ids"])
    output.loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith(("vision_high.", "projector_high.", "projector.", "vision.blocks")):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_the_v1_rule_trains_only_necks_and_downsamples() -> None:
    model, inputs = make_model(), make_inputs(((2, 1),))
    assert model.vision_high is not None
    for name, parameter in model.vision_high.named_parameters():
        parameter.requires_grad_(sam.trainable_v1(name))
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    moved = {n.split(".")[0] for n, p in model.vision_high.named_parameters() if p.grad is not None}
    assert moved == {"neck", "neck_hd", "downsamples", "hd_alpha_downsamples"}


def test_a_siglip_model_knows_no_hybrid_names() -> None:
    with torch.device("meta"):
        plain, model = VL2Model(make_config("siglip")), VL2Model(make_config())
        high = {f"vision_high.{name}" for name in sam.SamTower(SAM).state_dict()}
    fusion = {
        f"projector_high.{part}.{kind}"
        for part in ("high_up_proj", "low_up_proj", "layers.1")
        for kind in ("weight", "bias")
    }
    assert set(model.state_dict()) == set(plain.state_dict()) | high | fusion


def test_base_with_sam_counts() -> None:
    config = dataclasses.replace(
        VL2Config.base(), vision_config=VisionConfig(tower="hybrid", sam=SamConfig())
    )
    with torch.device("meta"):
        model = VL2Model(config)
    assert model.projector_high is not None
    fusion = sum(parameter.numel() for parameter in model.projector_high.parameters())
    total = sum(value.numel() for value in model.state_dict().values())
    assert fusion == 17_699_840
    assert total == 27_480_134_248 + 96_356_609 + fusion


def test_config_round_trips() -> None:
    config = make_config()
    assert VL2Config.from_dict(config.to_dict()) == config


def test_checkpoint_round_trips(tmp_path: Path) -> None:
    model = make_model()
    save_model(model, tmp_path)
    again = load_model(tmp_path, dtype="float32", device="cpu").state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


def test_refuses_pictures_that_do_not_fit() -> None:
    inputs = make_inputs(((2, 1), (1, 1)))
    with pytest.raises(ValueError, match="only the hybrid tower takes it"):
        make_model("siglip")(**inputs, images_high=torch.zeros(2, 3, 128, 128))
    with pytest.raises(ValueError, match="images_high has 1 pictures, images_spatial_crop 2"):
        make_model()(**inputs, images_high=torch.zeros(1, 3, 128, 128))
    with pytest.raises(ValueError, match="even width"):
        hybrid.HybridProjector(high_width=4, low_width=4, hidden=5, ratio=1)
    with pytest.raises(ValueError, match=r"vision_config\.sam is missing"):
        hybrid.HybridProjector.from_config(make_config("siglip"))

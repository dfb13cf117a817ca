"""SAM-B tower against transformers' `sam`, on small random weights."""

from __future__ import annotations

import re

import pytest
import torch
from jaxtyping import TypeCheckError
from transformers.models.sam.configuration_sam import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionAttention, SamVisionModel

from vl2.config import SamConfig
from vl2.model import sam

SMALL = SamConfig(
    image_size=128,
    width=48,
    layers=4,
    heads=3,
    window_size=3,  # 8 patches a side: padded to 9
    global_attn_indexes=(1, 3),
    neck_channels=16,
    downsample_channels=(32, 64),
)

KEYS = {
    r"patch_embed\.proj": "patch_embed.projection",
    r"blocks\.(\d+)\.norm1": r"layers.\1.layer_norm1",
    r"blocks\.(\d+)\.norm2": r"layers.\1.layer_norm2",
    r"blocks\.(\d+)\.(attn|mlp)": r"layers.\1.\2",
    r"neck\.0": "neck.conv1",
    r"neck\.1": "neck.layer_norm1",
    r"neck\.2": "neck.conv2",
    r"neck\.3": "neck.layer_norm2",
}
"""Our (v1's) names -> names of transformers below `vision_encoder.`."""


def oracle_key(name: str) -> str:
    for ours, theirs in KEYS.items():
        if re.match(ours + r"\b", name):
            return re.sub("^" + ours, theirs, name)
    return name


def make_oracle(config: SamConfig) -> SamVisionModel:
    return SamVisionModel(
        SamVisionConfig(
            hidden_size=config.width,
            output_channels=config.neck_channels,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            window_size=config.window_size,
            global_attn_indexes=config.global_attn_indexes,
            attn_implementation="eager",
        )
    ).eval()


def randomised(tower: sam.SamTower) -> sam.SamTower:
    """Every parameter non-zero, the position tables too, so that no term hides."""
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return tower.eval()


@pytest.mark.parametrize("window", [3, 5, 8])
def test_encoder_matches_oracle(window: int, against) -> None:
    config = SamConfig(
        image_size=SMALL.image_size,
        width=SMALL.width,
        layers=SMALL.layers,
        heads=SMALL.heads,
        window_size=window,
        global_attn_indexes=SMALL.global_attn_indexes,
        neck_channels=SMALL.neck_channels,
        downsample_channels=SMALL.downsample_channels,
    )
    tower, oracle = randomised(sam.SamTower(config)), make_oracle(config)
    weights = {
        "vision_encoder." + oracle_key(name): value
        for name, value in tower.state_dict().items()
        if not name.startswith(("neck_hd", "downsamples", "hd_alpha"))
    }
    oracle.load_state_dict(weights)
    images = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        _, last = tower._encode(images)
        features, expected = tower.neck(last), oracle(images).last_hidden_state
    # Measured: 2.1e-6.
    against("transformers sam").close("encoder and first neck", features, expected, within=1e-5)


def test_weights_round_trip_through_the_oracle() -> None:
    tower, oracle = randomised(sam.SamTower(SMALL)), make_oracle(SMALL)
    ours = {
        name: value
        for name, value in tower.state_dict().items()
        if not name.startswith(("neck_hd", "downsamples", "hd_alpha"))
    }
    table = {name: "vision_encoder." + oracle_key(name) for name in ours}
    assert sorted(table.values()) == sorted(oracle.state_dict())
    oracle.load_state_dict({table[name]: value for name, value in ours.items()})
    theirs = oracle.state_dict()
    assert all(torch.equal(theirs[table[name]], value) for name, value in ours.items())


@pytest.mark.parametrize("size", [4, 7, 9])
def test_relative_rows_match_oracle(size: int, against) -> None:
    table = torch.randn(13, 5)
    expected = SamVisionAttention.get_rel_pos(None, size, size, table)  # type: ignore[arg-type]
    rows = sam.relative_rows(table, size)
    # Equal when measured.
    against("transformers sam").close("relative position rows", rows, expected, within=1e-6)


# Measured: 1.2e-6, 1.6e-2.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-6), (torch.bfloat16, 4e-2)])
def test_attention_equals_its_plain_twin(dtype: torch.dtype, bound: float, against) -> None:
    side, heads, width = 7, 3, 16
    query, key, value = torch.randn(3, 2, heads, side * side, width).to(dtype).unbind(0)
    rows_h, rows_w = (0.5 * torch.randn(2, side, side, width)).to(dtype).unbind(0)
    fast = sam.position_attention(query, key, value, rows_h, rows_w)
    plain = sam.position_attention_ref(query, key, value, rows_h, rows_w)
    assert fast.dtype == plain.dtype == dtype
    what = f"SAM attention in {str(dtype).removeprefix('torch.')}"
    against("plain twin").close(what, fast, plain, within=bound)


def test_plain_attention_is_the_definition() -> None:
    side, width = 3, 4
    query, key, value = torch.randn(3, 1, 1, side * side, width).unbind(0)
    rows_h, rows_w = torch.randn(2, side, side, width).unbind(0)
    out = sam.position_attention_ref(query, key, value, rows_h, rows_w)[0, 0]
    q, k, v = query[0, 0], key[0, 0], value[0, 0]
    for i in range(side * side):
        scores = torch.stack(
            [
                q[i] @ k[j] / 2
                + q[i] @ rows_h[i // side, j // side]
                + q[i] @ rows_w[i % side, j % side]
                for j in range(side * side)
            ]
        )
        torch.testing.assert_close(out[i], scores.softmax(0) @ v)


@pytest.mark.parametrize("window", [3, 4, 7])
def test_windows_round_trip(window: int) -> None:
    x = torch.randn(2, 7, 7, 5)
    windows = sam.split_windows(x, window)
    assert windows.shape == (2 * (-(-7 // window)) ** 2, window, window, 5)
    assert torch.equal(sam.join_windows(windows, 7), x)


def test_parameter_counts_of_v1() -> None:
    with torch.device("meta"):
        tower = sam.SamTower(SamConfig())
    sizes = {name: parameter.numel() for name, parameter in tower.named_parameters()}

    def count(prefix: str) -> int:
        return sum(size for name, size in sizes.items() if name.startswith(prefix))

    assert count("patch_embed.") + count("pos_embed") + count("blocks.") == 88_883_456
    assert count("neck.") == count("neck_hd.") == 787_456
    assert count("downsamples.") == 5_898_240
    assert sum(sizes.values()) == 96_356_609
    assert sam.output_side(SamConfig(), 1024) == 24
    assert sam.output_width(SamConfig()) == 1024


def test_names_are_those_of_v1() -> None:
    with torch.device("meta"):
        names = set(sam.SamTower(SMALL).state_dict())
    block = {
        f"blocks.{layer}.{part}"
        for layer in range(4)
        for part in (
            *(f"norm{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")),
            *(f"attn.{name}.{kind}" for name in ("qkv", "proj") for kind in ("weight", "bias")),
            *(f"mlp.{name}.{kind}" for name in ("lin1", "lin2") for kind in ("weight", "bias")),
            "attn.rel_pos_h",
            "attn.rel_pos_w",
        )
    }
    necks = {
        f"{neck}.{part}"
        for neck in ("neck", "neck_hd")
        for part in ("0.weight", "1.weight", "1.bias", "2.weight", "3.weight", "3.bias")
    }
    rest = {"patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed"}
    ends = {"downsamples.0.weight", "downsamples.1.weight", "hd_alpha_downsamples"}
    assert names == block | necks | rest | ends


def test_only_necks_and_downsamples_train_in_v1() -> None:
    with torch.device("meta"):
        names = list(sam.SamTower(SMALL).state_dict())
    trained = {name.split(".")[0] for name in names if sam.trainable_v1(name)}
    assert trained == {"neck", "neck_hd", "downsamples", "hd_alpha_downsamples"}


@pytest.mark.parametrize("size", [64, 112, 128, 160])
def test_other_picture_sizes(size: int) -> None:
    tower = randomised(sam.SamTower(SMALL))
    with torch.no_grad():
        features = tower(torch.randn(1, 3, size, size))
    assert features.shape == (1, sam.output_side(SMALL, size) ** 2, 64)
    assert features.isfinite().all()


def test_every_parameter_gets_a_gradient() -> None:
    tower = randomised(sam.SamTower(SMALL))
    tower(torch.randn(1, 3, 128, 128)).square().mean().backward()
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_bfloat16_stays_near_float32(against) -> None:
    tower, images = randomised(sam.SamTower(SMALL)), torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        exact = tower(images)
        rough = tower.to(torch.bfloat16)(images.to(torch.bfloat16))
    assert rough.dtype == torch.bfloat16
    error = ((rough.float() - exact).norm() / exact.norm()).item()
    # Measured: 0.011.
    against("itself in float32").at_most("SAM tower in bfloat16, relative", error, 0.03)


def test_refuses_what_it_cannot_encode() -> None:
    tower = sam.SamTower(SMALL)
    with pytest.raises(ValueError, match=r"SAM picture of 120x120 pixels: .* use 128x128"):
        tower(torch.zeros(1, 3, 120, 120))
    with pytest.raises((ValueError, TypeCheckError)):
        tower(torch.zeros(1, 3, 128, 112))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"heads": 5}, "sam.width is 768"),
        ({"image_size": 1000}, "sam.image_size is 1000"),
        ({"window_size": 0}, "sam.window_size is 0"),
        ({"global_attn_indexes": ()}, "sam.global_attn_indexes is"),
        ({"global_attn_indexes": (2, 12)}, "sam.global_attn_indexes is"),
    ],
)
def test_refuses_a_bad_section(section: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        sam.SamTower(SamConfig(**section))  # type: ignore[arg-type]

"""Hybrid tower against transformers' `deepseek_vl_hybrid`, on small random weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, SiglipVisionConfig
from transformers.models.deepseek_vl_hybrid.configuration_deepseek_vl_hybrid import (
    DeepseekVLHybridConfig,
)
from transformers.models.deepseek_vl_hybrid.modeling_deepseek_vl_hybrid import (
    DeepseekVLHybridModel,
)
from transformers.models.sam.configuration_sam import SamVisionConfig

from vl2.config import SamConfig, VisionConfig, VL2Config
from vl2.model import hybrid, sam
from vl2.model.siglip import SiglipTower

ORACLE = "transformers deepseek_vl_hybrid"

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
V1_LOW = VisionConfig(image_size=48, patch_size=16, width=32, layers=2, heads=2, mlp_ratio=2.0)
"""3 x 3 patches, the same grid as SAM's output, as in v1."""

SAM_KEYS = (
    ("patch_embed.proj", "high_res_vision_model.vision_encoder.patch_embed.projection"),
    ("pos_embed", "high_res_vision_model.vision_encoder.pos_embed"),
    ("blocks", "high_res_vision_model.vision_encoder.layers"),
    ("neck.0", "high_res_vision_model.vision_encoder.neck.conv1"),
    ("neck.1", "high_res_vision_model.vision_encoder.neck.layer_norm1"),
    ("neck.2", "high_res_vision_model.vision_encoder.neck.conv2"),
    ("neck.3", "high_res_vision_model.vision_encoder.neck.layer_norm2"),
    ("neck_hd.0", "high_res_vision_neck.conv1"),
    ("neck_hd.1", "high_res_vision_neck.layer_norm1"),
    ("neck_hd.2", "high_res_vision_neck.conv2"),
    ("neck_hd.3", "high_res_vision_neck.layer_norm2"),
    ("downsamples.0", "high_res_vision_proj.conv1"),
    ("downsamples.1", "high_res_vision_proj.conv2"),
    ("hd_alpha_downsamples", "high_res_vision_alpha"),
)
FUSION_KEYS = (
    ("high_up_proj", "aligner.high_res_vision_proj"),
    ("low_up_proj", "aligner.vision_proj"),
    ("layers.1", "aligner.proj"),
)


@pytest.fixture
def oracle(randomise) -> DeepseekVLHybridModel:
    model = DeepseekVLHybridModel(
        DeepseekVLHybridConfig(
            text_config=LlamaConfig(
                hidden_size=40,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                vocab_size=16,
            ),
            vision_config=SiglipVisionConfig(
                image_size=V1_LOW.image_size,
                patch_size=V1_LOW.patch_size,
                hidden_size=V1_LOW.width,
                num_hidden_layers=V1_LOW.layers,
                num_attention_heads=V1_LOW.heads,
                intermediate_size=V1_LOW.mlp_hidden,
            ),
            high_res_vision_config=SamVisionConfig(
                image_size=SAM.image_size,
                hidden_size=SAM.width,
                num_hidden_layers=SAM.layers,
                num_attention_heads=SAM.heads,
                window_size=SAM.window_size,
                global_attn_indexes=SAM.global_attn_indexes,
                output_channels=SAM.neck_channels,
            ),
        )
    )
    randomise(model)
    return model


def take(module: nn.Module, weights: dict[str, Tensor], keys: tuple[tuple[str, str], ...]) -> None:
    """Load `module` from the oracle's weights through a key table of name beginnings."""

    def theirs(name: str) -> str:
        start, full = next(k for k in keys if name == k[0] or name.startswith(k[0] + "."))
        rest = name.removeprefix(start)
        if start == "blocks":
            rest = rest.replace(".norm1.", ".layer_norm1.").replace(".norm2.", ".layer_norm2.")
        return full + rest

    module.load_state_dict({name: weights[theirs(name)] for name in module.state_dict()})
    module.eval()


@torch.no_grad()
def test_sam_features_match_oracle(oracle: DeepseekVLHybridModel, against) -> None:
    tower = sam.SamTower(SAM)
    take(tower, oracle.state_dict(), SAM_KEYS)
    images = torch.randn(2, 3, 128, 128)
    expected = oracle.get_high_res_image_features(images).last_hidden_state
    # measured: 1.6e-5, values to 21
    against(ORACLE).close("SAM features with both branches", tower(images), expected, within=5e-5)
    tower.hd_alpha_downsamples.zero_()
    assert (tower(images) - expected).abs().max() > 0.1, "the extra branch does not show"


@torch.no_grad()
def test_aligner_matches_oracle(oracle: DeepseekVLHybridModel, against) -> None:
    projector = hybrid.HybridProjector(high_width=64, low_width=32, hidden=40, ratio=1)
    take(projector, oracle.state_dict(), FUSION_KEYS)
    high, low = torch.randn(2, 9, 64), torch.randn(2, 9, 32)
    tokens, expected = projector(high, low), oracle.aligner(low, high)
    against(ORACLE).close("fusion alone", tokens, expected, within=1e-6)  # measured: 0


@torch.no_grad()
def test_both_towers_and_aligner_match_oracle(
    oracle: DeepseekVLHybridModel, take_siglip, against
) -> None:
    weights = oracle.state_dict()
    high, low = sam.SamTower(SAM), SiglipTower(V1_LOW)
    projector = hybrid.HybridProjector(high_width=64, low_width=32, hidden=40, ratio=1)
    take(high, weights, SAM_KEYS)
    take(projector, weights, FUSION_KEYS)
    start = "vision_model."
    take_siglip(low, {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)})
    images_high, images_low = torch.randn(2, 3, 128, 128), torch.randn(2, 3, 48, 48)
    expected = oracle.get_image_features(images_low, images_high).pooler_output
    tokens = projector(high(images_high), low(images_low))
    # measured: 1.3e-5, values to 17
    against(ORACLE).close("both towers, fused", tokens, expected, within=5e-5)


@pytest.mark.parametrize(("hidden", "count"), [(1280, 2951680), (2048, 6295552), (2560, 9180160)])
def test_parameter_counts_of_the_v1_fusion(hidden: int, count: int) -> None:
    with torch.device("meta"):
        fusion = hybrid.HybridProjector(high_width=1024, low_width=1024, hidden=hidden, ratio=1)
    assert sum(p.numel() for p in fusion.parameters()) == count


def test_parameter_count_of_the_v1_low_tower() -> None:
    config = VisionConfig(
        image_size=384, patch_size=16, width=1024, layers=24, heads=16, mlp_ratio=4.0
    )
    with torch.device("meta"):
        tower = SiglipTower(config)
    counted = {n: p.numel() for n, p in tower.named_parameters() if not n.startswith("attn_pool")}
    assert sum(counted.values()) == 303_688_704


def test_released_shapes_keep_196_tokens_per_tile() -> None:
    config = dataclasses.replace(
        VL2Config.base(), vision_config=VisionConfig(tower="hybrid", sam=SamConfig())
    )
    with torch.device("meta"):
        projector = hybrid.HybridProjector.from_config(config)
        tokens = projector(torch.empty(2, 576, 1024), torch.empty(2, 729, 1152))
    assert tokens.shape == (2, 196, 2560)


@torch.no_grad()
def test_both_maps_are_folded_on_the_padded_patch_grid(randomise) -> None:
    projector = hybrid.HybridProjector(high_width=5, low_width=7, hidden=8, ratio=2)
    randomise(projector)
    high, low = torch.randn(2, 5, 3, 3), torch.randn(2, 7, 5, 5)
    wide = F.interpolate(high, size=(6, 6), mode="bilinear", align_corners=False)
    folded = [
        F.unfold(x, kernel_size=2, stride=2).transpose(1, 2)
        for x in (wide, F.pad(low, (0, 1, 0, 1)))
    ]
    split = [projector.high_up_proj(folded[0]), projector.low_up_proj(folded[1])]
    expected = projector.layers(torch.cat(split, dim=-1))
    tokens = projector(high.flatten(2).transpose(1, 2), low.flatten(2).transpose(1, 2))
    torch.testing.assert_close(tokens, expected, atol=1e-6, rtol=0)


def test_pixels_are_renormalised_for_sam(against) -> None:
    pixels = torch.rand(2, 3, 4, 4)
    mean, std = torch.tensor([hybrid.CLIP_MEAN, hybrid.CLIP_STD])[:, :, None, None]
    expected = (pixels - mean) / std
    ours = hybrid.clip_normalised((pixels - 0.5) / 0.5)
    against("definition").close("pixels renormalised for SAM", ours, expected, within=1e-6)

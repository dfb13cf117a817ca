"""SigLIP tower against transformers' `siglip`, on small random weights.

transformers keeps q, k and v apart where timm, and so every released checkpoint, has one `qkv`.
Its `hidden_states` are the embeddings and each block's output, before the final norm. Its attention
pooling head is not run here, as it is not in DeepSeek-VL2.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers.models.siglip.configuration_siglip import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipVisionModel

from vl2.config import VisionConfig
from vl2.model.siglip import SiglipTower

CASES = {
    "whole patches": VisionConfig(image_size=48, patch_size=16, width=32, layers=3, heads=2),
    "pixels left over": VisionConfig(image_size=39, patch_size=8, width=48, layers=3, heads=4),
    "released geometry": VisionConfig(  # 384/14: 27 x 27 patches, 6 pixels dropped; heads of 72
        image_size=384, patch_size=14, width=144, layers=2, heads=2
    ),
}


def make_oracle(config: VisionConfig) -> SiglipVisionModel:
    return SiglipVisionModel(
        SiglipVisionConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_size=config.width,
            intermediate_size=config.mlp_hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            vision_use_head=False,
            attn_implementation="eager",
        )
    )


def states_of(tower: SiglipTower, tiles: Tensor) -> tuple[list[Tensor], Tensor]:
    """Every block's input, then the last block's output; and the features."""
    states: list[Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        for block in (*tower.blocks, tower.norm)
    ]
    features = tower(tiles)
    for hook in hooks:
        hook.remove()
    return states, features


@pytest.fixture(params=CASES)
def pair(request, randomise, take_siglip) -> tuple[SiglipTower, SiglipVisionModel]:
    config = CASES[request.param]
    tower, oracle = SiglipTower(config), make_oracle(config)
    randomise(oracle, deviation=1 / math.sqrt(config.width))
    take_siglip(tower, oracle.state_dict())
    return tower, oracle


# Measured: states 4.1e-6 (values to 15), features 2.1e-6, gradients 3.1e-6.
BOUND = 2e-5


@torch.no_grad()
def test_every_block_and_the_features_match(pair, against):
    tower, oracle = pair
    size = oracle.config.image_size
    tiles = torch.rand(2, 3, size, size) * 2 - 1
    states, features = states_of(tower, tiles)
    expected = oracle(tiles, output_hidden_states=True)
    assert len(states) == len(expected.hidden_states) == oracle.config.num_hidden_layers + 1
    for ours, theirs in zip(states, expected.hidden_states, strict=True):
        against("transformers siglip").close("every hidden state", ours, theirs, within=BOUND)
    against("transformers siglip").close(
        "features", features, expected.last_hidden_state, within=BOUND
    )


@torch.no_grad()
def test_the_pool_head_never_runs(pair):
    tower, oracle = pair
    size = oracle.config.image_size
    for parameter in tower.attn_pool.parameters():
        parameter.fill_(float("nan"))
    assert tower(torch.randn(1, 3, size, size)).isfinite().all()


@torch.no_grad()
def test_gradients_match(pair, against):
    """The tower is trained too: the gradient of the pixels passes through every term."""
    tower, oracle = pair
    size = oracle.config.image_size
    tiles = torch.rand(1, 3, size, size) * 2 - 1
    probe = torch.randn(1, tower.pos_embed.shape[1], tower.pos_embed.shape[2])
    gradients = []
    with torch.enable_grad():
        for run in (tower, lambda pixels: oracle(pixels).last_hidden_state):
            pixels = tiles.clone().requires_grad_()
            (run(pixels) * probe).sum().backward()
            gradients.append(pixels.grad)
    against("transformers siglip").close("gradient of the pixels", *gradients, within=BOUND)

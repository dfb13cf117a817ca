"""Language model against transformers' `llama`, `deepseek_v2` and `deepseek_v3`, small and random.

Tiny's layout (plain attention, experts from layer 1) has no model of its own in transformers: it is
`llama` with the feed-forward layers of `deepseek_v2` put in.

Where transformers leaves the official code, the recordings of tests/golden decide:

* `deepseek_v2` rotates the rope part as complex pairs and keeps them interleaved; the official
  code, `deepseek_v3` and ours put evens before odds first. Queries and keys are permuted alike, so
  scores, and with them every hidden state, are the same; only cached rope keys differ in order.
* `deepseek_v2` reads `norm_topk_prob` and ignores it; the official code normalises, and then
  multiplies with `routed_scaling_factor` as well. Normalising is compared with `deepseek_v3`.
* `deepseek_v2` and `deepseek_v3` know one scoring function each (softmax, sigmoid).
* A group that `deepseek_v3` drops scores -infinity, as ours; the official code writes 0.0, which
  matters only for negative biased scores (compared here: some choices are negative).
  `deepseek_v2` writes 0.0 too, but no softmax score is below it.
* YaRN's factor on cosines and sines is that of the official code only when `mscale` and
  `mscale_all_dim` are both set or `mscale` is 1; otherwise transformers takes `mscale` as 1.
* Without `position_ids`, a forward pass of transformers counts left padding as positions.
  Generation counts real tokens, as the official code and ours do; here the positions are given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deepseek_v2.configuration_deepseek_v2 import DeepseekV2Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import (
    DeepseekV2ForCausalLM,
    DeepseekV2Moe,
    DeepseekV2TopkRouter,
)
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3ForCausalLM,
    DeepseekV3TopkRouter,
)
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from vl2.config import LanguageConfig, RopeScaling
from vl2.model.language import Language
from vl2.model.moe import Router
from vl2.ops.kv_cache import KVCache
from vl2.ops.moe import Routing
from vl2.ops.rope import inverse_frequencies, rope_tables, softmax_scale, yarn_mscale

BASIS = LanguageConfig(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    moe_intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    n_shared_experts=2,
    n_routed_experts=8,
    num_experts_per_tok=3,
    first_k_dense_replace=1,
    n_group=1,
    topk_group=1,
    kv_lora_rank=20,
    q_lora_rank=None,
    qk_nope_head_dim=12,
    qk_rope_head_dim=8,
    v_head_dim=10,
    max_position_embeddings=4096,
)
MHA: dict[str, Any] = {"use_mla": False, "kv_lora_rank": None}
SIGMOID: dict[str, Any] = {
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.0,
}
YARN = RopeScaling(
    factor=4.0, original_max_position_embeddings=1024, mscale=0.707, mscale_all_dim=0.707
)


@dataclass(frozen=True)
class Case:
    oracle: str
    config: LanguageConfig
    stride: int = 1  # between positions; a large one reaches where YaRN bends the frequencies


CASES = {
    "dense": Case("llama", replace(BASIS, **MHA, n_routed_experts=None)),
    "dense, grouped queries": Case(
        "llama", replace(BASIS, **MHA, n_routed_experts=None, num_key_value_heads=2)
    ),
    "tiny": Case("llama with deepseek_v2 experts", replace(BASIS, **MHA)),
    "greedy": Case("deepseek_v2", BASIS),
    "query compression": Case("deepseek_v2", replace(BASIS, q_lora_rank=28)),
    "limited groups": Case(
        "deepseek_v2",
        replace(
            BASIS,
            topk_method="group_limited_greedy",
            n_group=4,
            topk_group=2,
            routed_scaling_factor=1.5,
        ),
    ),
    "softmax, yarn": Case("deepseek_v2", replace(BASIS, rope_scaling=YARN), stride=173),
    "base": Case("deepseek_v3", replace(BASIS, **SIGMOID)),
    "sigmoid, groups": Case("deepseek_v3", replace(BASIS, **SIGMOID, n_group=4, topk_group=2)),
    "sigmoid, not normalised": Case(
        "deepseek_v3", replace(BASIS, **{**SIGMOID, "norm_topk_prob": False})
    ),
    "sigmoid, query compression, yarn": Case(
        "deepseek_v3", replace(BASIS, **SIGMOID, q_lora_rank=28, rope_scaling=YARN), stride=173
    ),
}


def shared_options(c: LanguageConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": c.rope_theta}
    if (s := c.rope_scaling) is not None:
        names = ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
        rope |= {name: float(getattr(s, name)) for name in names}
        rope |= {
            "rope_type": "yarn",
            "original_max_position_embeddings": s.original_max_position_embeddings,
        }
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps")
    names += ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    same = {name: getattr(c, name) for name in names}
    return {**same, "rope_parameters": rope, "attn_implementation": "eager"}


def expert_options(c: LanguageConfig) -> dict[str, Any]:
    names = ("n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size")
    names += ("first_k_dense_replace", "n_group", "topk_group", "routed_scaling_factor")
    names += ("norm_topk_prob", "kv_lora_rank", "q_lora_rank", "v_head_dim")
    names += ("qk_nope_head_dim", "qk_rope_head_dim")
    return {name: getattr(c, name) for name in names if getattr(c, name) is not None}


def v2_config(c: LanguageConfig) -> DeepseekV2Config:
    method = {"topk_method": c.topk_method, "q_lora_rank": c.q_lora_rank}
    return DeepseekV2Config(**{**shared_options(c), **expert_options(c), **method})


def v3_config(c: LanguageConfig) -> DeepseekV3Config:
    rank = {"q_lora_rank": c.q_lora_rank}
    return DeepseekV3Config(**{**shared_options(c), **expert_options(c), **rank})


def make_oracle(case: Case) -> PreTrainedModel:
    c = case.config
    if case.oracle == "deepseek_v2":
        return DeepseekV2ForCausalLM(v2_config(c))
    if case.oracle == "deepseek_v3":
        return DeepseekV3ForCausalLM(v3_config(c))
    model = LlamaForCausalLM(LlamaConfig(**shared_options(c)))
    for number, layer in enumerate(model.model.layers):
        if c.is_moe_layer(number):
            layer.mlp = DeepseekV2Moe(v2_config(c))
    return model


@torch.no_grad()
def widen(oracle: nn.Module) -> None:
    """Weights that keep activations near 1 and move every choice: norms, biases, routers too."""
    for name, parameter in oracle.named_parameters():
        if parameter.ndim == 1:
            parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
        else:
            fan_in = 1 if "embed" in name else parameter.shape[-1]
            parameter.copy_(torch.randn_like(parameter) / math.sqrt(fan_in))
    for name, buffer in oracle.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.empty_like(buffer).uniform_(-0.9, 0.3))  # some choices below 0
    oracle.eval()


def take(model: Language, theirs: dict[str, Tensor]) -> None:
    """Load ours from the oracle: names are alike, but it fuses each expert's gate and up."""
    fused = ".mlp.experts.gate_up_proj"
    weights = {name: value for name, value in theirs.items() if not name.endswith(fused)}
    for name in theirs.keys() - weights.keys():
        start = name.removesuffix("gate_up_proj")
        weights[start + "gate_proj"], weights[start + "up_proj"] = theirs[name].chunk(2, dim=1)
    model.load_state_dict(weights)
    model.eval()


@dataclass(frozen=True)
class Pair:
    case: Case
    ours: Language
    oracle: PreTrainedModel

    @property
    def label(self) -> str:
        return f"transformers {self.case.oracle}"


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest) -> Pair:
    case = CASES[request.param]
    ours, oracle = Language(case.config), make_oracle(case)
    widen(oracle)
    take(ours, oracle.state_dict())
    return Pair(case, ours, oracle)


BATCH, TOKENS, PREFILL = 3, 20, 15

# Measured: states 4.3e-6 (values to 7.6), logits 3.2e-6 (to 5.1), expert weights 6e-7 (to 1.9).
STATES = 2e-5
LOGITS = 2e-5
WEIGHTS = 3e-6


def sample(pair: Pair, padding: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and positions of rows with `padding` padded places on the left."""
    ids = torch.randint(pair.case.config.vocab_size, (len(padding), TOKENS))
    mask = torch.arange(TOKENS) >= torch.tensor(padding)[:, None]
    positions = (mask.cumsum(1) - 1).clamp(min=0) * pair.case.stride
    return ids, mask, positions


def dense(experts: Tensor, weights: Tensor, count: int) -> Tensor:
    """Each token's weight of every expert, 0 for those not chosen."""
    return torch.zeros(len(experts), count).scatter(1, experts, weights)


def watch_routers(oracle: nn.Module) -> list[tuple[Tensor, Tensor, Tensor]]:
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    for module in oracle.modules():
        if isinstance(module, DeepseekV2TopkRouter | DeepseekV3TopkRouter):
            module.register_forward_hook(lambda _, __, out: seen.append(out))
    return seen


@pytest.mark.parametrize("padding", [(0, 0, 0), (0, 5, 13)], ids=["whole rows", "left padding"])
@torch.no_grad()
def test_states_logits_and_routing_match(pair, padding, against):
    ids, mask, positions = sample(pair, padding)
    routed = watch_routers(pair.oracle)
    theirs = pair.oracle(
        ids, attention_mask=mask.long(), position_ids=positions, output_hidden_states=True
    )
    ours = pair.ours(
        pair.ours.embed(ids),
        attention_mask=mask if any(padding) else None,
        position_ids=positions if any(padding) or pair.case.stride > 1 else None,
        keep_states=True,
    )
    compared, real = against(pair.label), mask.flatten()
    assert len(ours.hidden_states) == len(theirs.hidden_states)
    for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        compared.close("every hidden state", a[mask], b[mask], within=STATES)
    logits = pair.ours.logits(ours.hidden)
    compared.close("logits", logits[mask], theirs.logits[mask], within=LOGITS)
    assert len(ours.routing) == len(routed)
    for a, (_, weights, experts) in zip(ours.routing, routed, strict=True):
        check_routing(compared, a, experts, weights, real)


def check_routing(compared, ours: Routing, experts: Tensor, weights: Tensor, real: Tensor) -> None:
    chosen, wanted = ours.experts[real].sort().values, experts[real].sort().values
    compared.equal("chosen experts", chosen, wanted)
    count = ours.scores.shape[1]
    a, b = dense(ours.experts, ours.weights, count), dense(experts, weights, count)
    compared.close("expert weights", a[real], b[real], within=WEIGHTS)


def ours_cached(pair: Pair, ids: Tensor, mask: Tensor, positions: Tensor, **options) -> Tensor:
    """Logits of a prefill and then one token after the other."""
    cache = KVCache.empty(pair.case.config, BATCH, TOKENS)
    parts = []
    for start, end in steps():
        out = pair.ours(
            pair.ours.embed(ids[:, start:end]),
            attention_mask=mask[:, :end],
            position_ids=positions[:, start:end],
            cache=cache,
            **options,
        )
        parts.append(pair.ours.logits(out.hidden))
    return torch.cat(parts, dim=1)


def steps() -> list[tuple[int, int]]:
    return [(0, PREFILL), *((at, at + 1) for at in range(PREFILL, TOKENS))]


@torch.no_grad()
def test_prefill_and_cached_decode_match(pair, against):
    ids, mask, positions = sample(pair, (0, 5, 13))
    cache, parts = DynamicCache(config=pair.oracle.config), []
    for start, end in steps():
        out = pair.oracle(
            ids[:, start:end],
            attention_mask=mask[:, :end].long(),
            position_ids=positions[:, start:end],
            past_key_values=cache,
            use_cache=True,
        )
        parts.append(out.logits)
    expected = torch.cat(parts, dim=1)[mask]
    forms = (True, False) if pair.case.config.use_mla else (None,)
    for absorbed in forms:
        logits = ours_cached(pair, ids, mask, positions, absorbed=absorbed)[mask]
        against(pair.label).close("logits, cached decode", logits, expected, within=LOGITS)


ROUTERS = {
    name: replace(case.config, n_routed_experts=32, num_experts_per_tok=6, n_group=groups)
    for name, groups in (("greedy", 1), ("limited groups", 8), ("base", 1), ("sigmoid, groups", 8))
    for case in (CASES[name],)
}


@pytest.mark.parametrize("name", ROUTERS)
@torch.no_grad()
def test_routers_match_on_many_tokens(name, against):
    c = ROUTERS[name]
    sigmoid = c.scoring_func == "sigmoid"
    theirs = DeepseekV3TopkRouter(v3_config(c)) if sigmoid else DeepseekV2TopkRouter(v2_config(c))
    widen(theirs)
    ours = Router(c)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3000, c.hidden_size)
    _, weights, experts = theirs(x)
    compared = against(f"transformers {CASES[name].oracle}")
    check_routing(compared, ours(x), experts, weights, torch.ones(len(x), dtype=torch.bool))


@pytest.mark.parametrize(
    "scaling",
    [
        YARN,
        replace(YARN, factor=40.0, original_max_position_embeddings=4096, mscale=1.0),
        replace(YARN, factor=2.0, mscale=1.0, mscale_all_dim=0.0, beta_fast=16, beta_slow=2),
    ],
    ids=["equal mscales", "two mscales", "no mscale_all_dim"],
)
def test_yarn_tables_match_at_released_width(scaling, against):
    c = replace(BASIS, qk_nope_head_dim=128, qk_rope_head_dim=64, rope_scaling=scaling)
    theirs = v3_config(c)
    frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](theirs)
    compared = against("transformers yarn")
    ours = inverse_frequencies(64, c.rope_theta, scaling)
    compared.close("frequencies", ours, frequencies, within=1e-8)  # measured: 0
    positions = torch.arange(0, 160_000, 977)[None]
    angles = positions[..., None] * torch.cat((frequencies, frequencies))
    cos, sin = rope_tables(positions, c)
    # Tables measured: 0.
    compared.close("tables", cos, angles.cos() * factor, within=1e-6)
    compared.close("tables", sin, angles.sin() * factor, within=1e-6)
    scale = 192**-0.5 * yarn_mscale(scaling.factor, scaling.mscale_all_dim) ** 2
    assert softmax_scale(c) == pytest.approx(scale, rel=1e-12)


def test_yarn_without_mscale_all_dim_follows_the_official_code():
    """transformers would take 0.1 ln 4 + 1 here, the official code takes mscale into account."""
    c = replace(BASIS, rope_scaling=replace(YARN, mscale_all_dim=0.0))
    cos, _ = rope_tables(torch.zeros(1, 1, dtype=torch.int64), c)
    assert cos.max().item() == pytest.approx(0.1 * 0.707 * math.log(4) + 1, rel=1e-6)
    assert softmax_scale(c) == pytest.approx(c.head_dim**-0.5)

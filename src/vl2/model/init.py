"""Initial weights: every standard deviation in one table, filled in place after a meta build.

Sources: DeepSeek-VL2 `modeling_deepseek.py` (language model N(0, initializer_range), router
kaiming-uniform with a = sqrt(5)) and `modeling_deepseek_vl_v2.py` (newline and separator
N(0, 1) / sqrt(hidden)). The vision tower was never trained from scratch there; ours draws from
N(0, 1 / fan_in), positions from sines and cosines.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vl2.config import VL2Config


def standard_deviation(name: str, shape: torch.Size, config: VL2Config) -> float:
    """Standard deviation of a parameter by its name; 0.0 means zeros.

    Norm weights, which start at one, are not in this table.
    """
    language = config.language_config
    fan_in = shape[1:].numel() if len(shape) > 1 else shape.numel()
    if name.endswith(("bias", "rel_pos_h", "rel_pos_w", "hd_alpha_downsamples")):
        return 0.0
    if name in ("image_newline", "view_seperator"):
        return language.hidden_size**-0.5
    if name.endswith("mlp.gate.weight"):
        return (3 * fan_in) ** -0.5  # of the uniform distribution on +-1/sqrt(fan_in)
    if name.startswith("language."):
        return language.initializer_range
    return fan_in**-0.5


@torch.no_grad()
def init_weights(
    model: nn.Module, config: VL2Config, generator: torch.Generator | None = None
) -> None:
    """Fill every parameter and buffer of `model`, in the order of its names."""
    norms = {f"{prefix}.weight" for prefix, module in model.named_modules() if _is_norm(module)}
    for name, parameter in model.named_parameters():
        if name in norms:
            parameter.fill_(1.0)
        elif name.endswith("vision.pos_embed"):
            parameter.copy_(sine_cosine_grid(round(parameter.shape[1] ** 0.5), parameter.shape[2]))
        else:
            _fill(parameter, name, standard_deviation(name, parameter.shape, config), generator)
    for buffer in model.buffers():
        buffer.zero_()


def sine_cosine_grid(side: int, width: int) -> Float[Tensor, "1 p w"]:
    """Positions of a square grid as sines and cosines of row and column, amplitude 1.

    A small tower trained from scratch finds neighbours sooner from these than from noise
    (arXiv 2205.01580). Wave lengths go from 2 pi up to the size of the grid, not further.
    """
    quarter = -(-width // 4)
    rates = (2.0 * side) ** -torch.linspace(0, 1, quarter)
    waves = torch.arange(side)[:, None] * rates  # (S, Q)
    line = torch.cat((waves.sin(), waves.cos()), dim=1)  # (S, 2Q)
    rows = line[:, None].expand(-1, side, -1)
    columns = line[None].expand(side, -1, -1)
    return torch.cat((rows, columns), dim=-1).flatten(0, 1)[None, :, :width]


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__ in ("LayerNorm", "RMSNorm", "LayerNorm2d")


def _fill(parameter: Tensor, name: str, std: float, generator: torch.Generator | None) -> None:
    if std == 0.0:
        parameter.zero_()
    elif name.endswith("mlp.gate.weight"):
        bound = std * 3**0.5
        parameter.uniform_(-bound, bound, generator=generator)
    else:
        parameter.normal_(0.0, std, generator=generator)

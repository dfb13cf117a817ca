"""The cache of past tokens, passed to the model as an argument.

One tensor per layer holds what attention needs of a token: with MLA the normalised latent and the
rotated rope key (512 + 64 = 576 numbers in the released models), without MLA keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vl2.config import LanguageConfig


@dataclass(slots=True)
class KVCache:
    """Preallocated rows [batch, capacity, width] per layer, of which `length` are filled."""

    layers: list[Tensor]
    length: int = 0

    @classmethod
    def empty(
        cls,
        config: LanguageConfig,
        batch: int,
        capacity: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> KVCache:
        """A cache for `batch` sequences of up to `capacity` tokens."""
        shape = (batch, capacity, config.cache_width)
        count = config.num_hidden_layers
        return cls(layers=[torch.empty(shape, device=device, dtype=dtype) for _ in range(count)])

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self.layers[0].shape[1]

    def append(self, layer: int, rows: Float[Tensor, "b t w"]) -> Float[Tensor, "b s w"]:
        """Write new rows behind the filled ones of one layer; returns all of its rows.

        The length moves only with `advance`, after every layer has written.

        Raises:
            ValueError: more rows than the capacity.
        """
        end = self.length + rows.shape[1]
        if end > self.capacity:
            raise ValueError(
                f"cache holds {self.capacity} tokens but {end} are needed: "
                "make it with a larger capacity"
            )
        self.layers[layer][:, self.length : end] = rows
        return self.layers[layer][:, :end]

    def advance(self, tokens: int) -> None:
        """Count `tokens` as written in every layer."""
        self.length += tokens

    def select(self, rows: Tensor) -> KVCache:
        """The cache of some sequences of the batch (indices or a mask over the batch)."""
        return KVCache(layers=[layer[rows] for layer in self.layers], length=self.length)

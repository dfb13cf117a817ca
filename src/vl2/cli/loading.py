"""From a model's name on the command line to an engine, with a progress bar on stderr."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vl2.cli.terminal import progress_bar

if TYPE_CHECKING:
    from vl2.engine.config import EngineConfig
    from vl2.engine.engine import Engine


def load_engine(
    model: str,
    *,
    dtype: str,
    device: str,
    quantization: str | None = None,
    config: EngineConfig | None = None,
    adapters: Mapping[str, str] | None = None,
) -> Engine:
    """The engine of an embedded, local or hub model; see `vl2.engine.loading`.

    Raises:
        ValueError: there is no such model, or its files cannot be read.
    """
    from rich.progress import DownloadColumn

    from vl2.engine.loading import load_engine as load

    with progress_bar(DownloadColumn()) as bar:
        task = bar.add_task(f"loading {model}", total=None)
        return load(
            model,
            dtype=dtype,
            device=device,
            quantization=quantization,
            config=config,
            adapters=adapters,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )

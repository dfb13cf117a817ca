"""`vl2 serve`: OpenAI's interface and a page on this machine."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vl2.cli import options
from vl2.cli.terminal import note
from vl2.folders import expand, names_something

if TYPE_CHECKING:
    from vl2.serve.config import Keys

KEY_VARIABLE = "VL2_API_KEY"


Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL] [SETTING=VALUE]...",
        help="nano, tiny, small, base, a model folder, or a hub id; settings such as "
        "limits.max_images=32 or engine.max_num_seqs=4, see docs/serving.md.",
    ),
]
Host = Annotated[str, typer.Option(help="Address; others than this machine's need a key.")]
Port = Annotated[int, typer.Option(help="0 takes a free one.")]
ApiKey = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY",
        help=f"Key that clients must send; repeat the option. {KEY_VARIABLE} is another.",
        show_default=False,
    ),
]
TrustedApiKey = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY",
        help="Key that may also send raw prompts, whose control strings are obeyed.",
        show_default=False,
    ),
]
ApiKeyFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Keys, one a line.", show_default=False)
]
AllowedHost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Further name of this server, behind a proxy.", show_default=False
    ),
]
ImageHost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="HOST", help="Host from which pictures may be fetched.", show_default=False
    ),
]


def serve(  # noqa: PLR0913 - each parameter is an option of the command
    words: Words = None,
    name: options.Name = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    trusted_api_key: TrustedApiKey = None,
    allowed_host: AllowedHost = None,
    image_host: ImageHost = None,
    adapter: options.Adapter = None,
    quantization: options.Quantization = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> None:
    """Serve a model over HTTP: OpenAI's interface at /v1, a page at /.

    The address is printed when the server answers. Ctrl-C or SIGTERM lets it finish what it has
    begun; a second one stops it at once.
    """
    from vl2.logs import log_json_to_stderr
    from vl2.overrides import override

    try:
        from vl2.serve.config import Keys, ServeConfig
        from vl2.serve.run import serve as run
        from vl2.serve.settings import Settings
    except ModuleNotFoundError as error:
        raise ValueError(f'{error.name} is missing: pip install "vl2[serve]"') from None

    names = list(words or ())
    model = names.pop(0) if names and "=" not in names[0] else "nano"
    chosen = override(Settings(), names)
    config = ServeConfig(
        host=host,
        port=port,
        keys=_keys([*(api_key or ()), *(trusted_api_key or ())], api_key_file),
        trusted=Keys.of(trusted_api_key or ()),
        names=tuple(allowed_host or ()),
        image_hosts=tuple(image_host or ()),
        limits=chosen.limits,
    )
    start = {
        "model": model,
        "dtype": dtype,
        "device": device,
        "quantization": quantization,
        "config": asdict(chosen.engine),
        "adapters": options.adapters_of(adapter),
    }
    log_json_to_stderr()
    note(f"loading {model} ...")
    code = run(name or name_of(model), config, start, lambda address: print(address, flush=True))
    if code:
        raise typer.Exit(code)


def name_of(model: str) -> str:
    """A model's name without the folders above it, which are nobody's business."""
    path = expand(model)
    if not names_something(path):
        return model
    path = path.resolve()
    return path.parent.name if path.name == "model" else path.name


def _keys(given: list[str], file: Path | None) -> Keys:
    """All keys.

    Raises:
        ValueError: one is unfit, or the file cannot be read.
    """
    from vl2.serve.config import Keys, check_key

    keys = list(given)
    if variable := os.environ.get(KEY_VARIABLE):
        check_key(variable, KEY_VARIABLE)
        keys.append(variable)
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError):
            raise ValueError(f"--api-key-file {file} cannot be read: give a text file") from None
        written = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip()}
        for number, key in written.items():
            check_key(key, f"--api-key-file {file} line {number}")
        keys += written.values()
        if not written:
            raise ValueError(f"--api-key-file {file} holds no key: write one a line")
    return Keys.of(keys)

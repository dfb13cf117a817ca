"""The command line `vl2`: stdout is data, everything else goes to stderr."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

import vl2
from vl2.cli.ask import AskCommand, ask
from vl2.cli.batch import batch
from vl2.cli.bench import bench
from vl2.cli.chat import chat
from vl2.cli.convert import convert
from vl2.cli.data import data
from vl2.cli.doctor import doctor
from vl2.cli.examples import examples_of
from vl2.cli.inspect import inspect
from vl2.cli.memory import OUT_OF_MEMORY
from vl2.cli.plan import plans
from vl2.cli.serve import serve
from vl2.cli.tiles import tiles
from vl2.cli.train import train
from vl2.failure import WorkError
from vl2.logs import log_to_stderr
from vl2.out_of_memory import is_out_of_memory

NUMBERS = {"int": "a whole number", "float": "a number", "finite": "a finite number"}
"""What is expected, by the first word of pydantic's code."""

app = typer.Typer(
    name="vl2",
    help="DeepSeek-VL2: ask about pictures, train, inspect and convert models.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # rich takes longer to import than the help may to appear
)
app.command(cls=AskCommand, epilog=examples_of("ask"))(ask)
for command in (chat, serve, batch, tiles, inspect, train, convert, bench, doctor):
    app.command(epilog=examples_of(command.__name__))(command)
app.add_typer(plans, name="plan")
app.add_typer(data, name="data")


def _show_version(wanted: bool) -> bool:
    if wanted:
        print(f"vl2 {vl2.__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _start(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print progress messages to stderr.")
    ] = False,
) -> None:
    log_to_stderr(logging.INFO if verbose else logging.WARNING)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 is success, 2 a wrong input or argument, 1 a failure of another kind; each failure is one line
    on stderr that says what to do, never a traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(args=words or ["--help"], prog_name="vl2", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except TyperException as error:
        return _fail(_usage(error), 2)
    except (WorkError, ArithmeticError) as error:
        return _fail(str(error), 1)
    except ValueError as error:
        return _fail(str(error), 2)
    except BrokenPipeError:
        # The reader has gone; without this Python complains once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 1)
    except typer.Abort:
        return _fail("stopped", 130)
    except (MemoryError, RuntimeError, ImportError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(OUT_OF_MEMORY, 1)


def _usage(error: TyperException) -> str:
    """What is wrong with an option, or Typer's own complaint, and where help is."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "vl2"
    return f"{_wrong_number(error) or error.format_message().rstrip('.')}: see {command} --help"


def _wrong_number(error: TyperException) -> str | None:
    """An option's value that is no number, with the value, which Typer leaves out."""
    told = getattr(error.__cause__, "errors", None)  # of pydantic, by which Typer reads values
    [found, *_] = told() if told else [{"type": ""}]
    wanted = NUMBERS.get(found["type"].partition("_")[0])
    parameter = getattr(error, "param", None)
    if wanted is None or parameter is None:
        return None
    return f"{parameter.opts[0]} is {found['input']!r:.80}: expected {wanted}"


def _fail(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code

"""`vl2 plan`: which precision of a model fits into some memory, and with how much context.

`vl2 plan MODEL` is short for `vl2 plan model MODEL`; beside it stands `vl2 plan train`.
"""

from __future__ import annotations

import json
import shlex
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vl2.checkpoint.sizes import format_bytes, parse_bytes
from vl2.cli.examples import examples_of
from vl2.cli.plan_train import plan_train

QUANTIZED = ("int8", "float8", "int4")
_COLUMNS = "{:<9} {:>10} {:>10} {:>11} {:>10}  {:<4} {:>11}  {}"


class PlanGroup(TyperGroup):
    """Takes the name of a model in the place of a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command that is meant in front."""
        named = not args or args[0] in self.commands or args[0] in ctx.help_option_names
        return super().parse_args(ctx, args if named else ["model", *args])


def plan(
    model: Annotated[
        str, typer.Argument(help="tiny, small, base, nano, a model folder, or a hub id.")
    ],
    memory: Annotated[str, typer.Option(help="Memory of the machine or card, such as 24GiB.")],
    context: Annotated[
        int | None, typer.Option(help="Tokens of a conversation; by default the model's longest.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show which precision of a model fits into an amount of memory, and with how much context.

    Counts one conversation and leaves room for the system; the formulas are in
    vl2/checkpoint/budget.py. The exit code is 1 if nothing fits.
    """
    from vl2.checkpoint.budget import plan_model

    budget = plan_model(model, parse_bytes(memory), context)
    budget["next"] = _next_command(budget)
    print(json.dumps(budget, indent=2) if as_json else _text(budget))
    if budget["best"] is None:
        raise typer.Exit(1)


def _text(budget: dict[str, Any]) -> str:
    lines = [
        f"{budget['model']} in {format_bytes(budget['memory'])}, one conversation of "
        f"{budget['context']:,} tokens (trained for {budget['trained_context']:,})",
        "",
        _COLUMNS.format(
            *("precision", "weights", "cache", "activations", "needed", "fits", "max context"),
            "bytes/weight",
        ),
    ]
    for scheme in budget["schemes"]:
        sizes = (scheme[name] for name in ("weights", "kv", "activations", "needed"))
        lines.append(
            _COLUMNS.format(
                scheme["name"],
                *map(format_bytes, sizes),
                "yes" if scheme["fits"] else "no",
                f"{scheme['max_context']:,}" if scheme["max_context"] else "-",
                scheme["bytes_per_weight"],
            )
        )
    wide, narrow = (scheme["kv_per_token"] for scheme in budget["schemes"][:2])
    lines += [
        "",
        f"cache: {wide:,} bytes/token in float32, else {narrow:,}",
        f"system: {format_bytes(budget['system'])} of the memory is reserved for it",
        f"activations: {format_bytes(budget['reserve'])} for the runtime, a chunk of "
        f"{budget['prefill_chunk']:,} tokens, one picture of the most tiles",
        _verdict(budget),
    ]
    return "\n".join(lines)


def _verdict(budget: dict[str, Any]) -> str:
    if budget["best"] is None:
        least = min(budget["schemes"], key=lambda scheme: scheme["needed"])
        return (
            f"nothing fits: {least['name']} needs {format_bytes(least['needed'])} in addition "
            "to the system; use a smaller model, a shorter --context or more memory"
        )
    return f"most precise that fits: {budget['best']}\nnext: {budget['next']}"


def _next_command(budget: dict[str, Any]) -> str | None:
    """A question in the advised precision."""
    if budget["best"] is None:
        return None
    options = f"--model {shlex.quote(budget['model'])}"
    if budget["best"] in QUANTIZED:
        options += f" --quantization {budget['best']}"
    return f'vl2 ask photo.png "What is in the picture?" {options}'


plans = typer.Typer(
    cls=PlanGroup,
    help="Plan what fits: a model into memory (MODEL --memory SIZE), or its training into GPUs.",
    rich_markup_mode=None,
)
plans.command("model", epilog=examples_of("plan model"))(plan)
plans.command("train", epilog=examples_of("plan train"))(plan_train)

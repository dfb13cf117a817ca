"""vl2 beside vLLM for CPUs: a picture's first token, a prompt, and decoding of one and of eight.

    make scale-vllm                                  # once: vLLM in an environment of its own
    python bench/peers.py [--form none --form int8 --form int4] [--rounds 5] [--quick]

Both hold DeepSeek-VL2-Tiny's exact shapes with random weights. vLLM computes in bfloat16; so does
vl2, with matrices as `--form` says (none: bfloat16 too). Engines take turns in one run, a form of
vl2 after the other, and the median of a round's ratios counts: `over_vllm` is vLLM's time over
vl2's. Prompts differ from request to request: equal ones choose equal experts and flatter a batch.
`ceiling_share` is the speed that was reached over `ceiling`, a bound of the same run. Set
OMP_NUM_THREADS to the cores that are really free. Prints a line of JSON per figure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from vl2.benchmarks.candidates import SEQUENCES, gather
from vl2.benchmarks.ceilings import machine_ceilings
from vl2.benchmarks.config import BenchConfig
from vl2.benchmarks.machine import describe_machine
from vl2.benchmarks.reports import MEASURES, Figure, ceiling_speeds, figure_record
from vl2.benchmarks.timing import Timer, middle, ratio, take_turns
from vl2.config import VL2Config
from vl2.logs import log_to_stderr

HERE = Path(__file__).parent
PYTHON = HERE.parent / ".venv-vllm" / "bin" / "python"
SITE = HERE.parent / "tests" / "scale" / "vllm_site"
FORMS = ("none", "int8", "int4")


def measured(name: str, figure: Figure) -> tuple[str, int]:
    """What vLLM is asked for beside a figure: the measurement and how many prompts at once."""
    return ("decode" if name == "batch" else name), int(figure.more.get("batch", 1))


@contextmanager
def vllm_process(python: Path) -> Iterator[subprocess.Popen[str]]:
    """The process of vLLM with the released size, ready to take times."""
    with tempfile.TemporaryDirectory() as folder:
        VL2Config.tiny().save(folder)
        process = subprocess.Popen(
            [str(python), str(HERE / "vllm_peer.py"), folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SITE)},
        )
        try:
            _answer(process)
            yield process
        finally:
            process.kill()
            process.wait()


def vllm_timer(process: subprocess.Popen[str], what: str, batch: int, bench: BenchConfig) -> Timer:
    """Seconds of one measurement by vLLM."""

    def timer(turn: int) -> float:
        asked = {"what": what, "batch": batch, "turn": turn}
        asked |= {"prompt": bench.prompt_tokens, "tokens": bench.decoded}
        stream: IO[str] = process.stdin  # type: ignore[assignment] - it is a pipe
        stream.write(json.dumps(asked) + "\n")
        stream.flush()
        return float(_answer(process)["seconds"])

    return timer


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"vLLM ended with code {process.wait()}: its last lines say why")
    return json.loads(line)


def compare(
    form: str, bench: BenchConfig, process: subprocess.Popen[str]
) -> Iterator[dict[str, Any]]:
    """The figures of one form, each beside vLLM's."""
    candidates = gather(bench, wide=(form,))
    figures = {
        f"{name} {number}": (name, figure)
        for name in ("ttft", "prefill", "batch")
        for number, figure in enumerate(MEASURES[name](candidates, bench, form))
    }
    ceilings = machine_ceilings(quick=bench.quick)
    timers = {key: ceiling.timer for key, ceiling in ceilings.items()}
    for key, (name, figure) in figures.items():
        timers[key] = figure.timer
        timers[f"vllm {key}"] = vllm_timer(process, *measured(name, figure), bench)
    taken = take_turns(timers, bench.counted_rounds)
    speeds = ceiling_speeds(ceilings, {key: middle(taken[key]) for key in ceilings})
    for key, (name, figure) in figures.items():
        theirs = taken[f"vllm {key}"]
        yield {
            "bench": "peers",
            "what": measured(name, figure)[0],
            "form": form,
            "over_vllm": ratio(theirs, taken[key]),
            "vllm_ms": round(1e3 * middle(theirs), 3),
            **figure_record(figure, middle(taken[key]), speeds),
        }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--vllm", type=Path, default=PYTHON, help="python of vLLM's environment")
    parser.add_argument("--form", action="append", choices=FORMS, help="how vl2 holds matrices")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--quick", action="store_true", help="few rounds and tokens")
    arguments = parser.parse_args()
    if not arguments.vllm.is_file():
        parser.error(f"--vllm: {arguments.vllm} is missing: run `make scale-vllm`, or name one")
    log_to_stderr()
    rounds = arguments.rounds
    configured = partial(BenchConfig, dtype="bfloat16", rounds=rounds)
    if arguments.quick:
        configured = partial(configured, rounds=3 if rounds is None else rounds, tokens=8)
    try:
        benches = {form: configured(forms=(form,)) for form in arguments.form or FORMS}
    except ValueError as error:
        parser.error(str(error))
    with vllm_process(arguments.vllm) as process:
        for form, bench in benches.items():
            for record in compare(form, bench, process):
                print(json.dumps(record), flush=True)
    print(json.dumps({"machine": describe_machine(), "sequences": SEQUENCES}))


if __name__ == "__main__":
    main()

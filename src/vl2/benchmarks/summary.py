"""All ratios of one model in one run: `vl2 bench summary`.

Everything takes turns in one process, so that a noisy machine slows all of it. Every ratio is the
median over the rounds, and larger is better:

    int8_decode_over_fp32         fp32 time of a token / int8 time of a token
    int8_decode_roofline_share    speed of reading weights / `_int_mm` on one large matrix
    int8_decode_fastest_share     the same against the faster of that and our own C
    int4_decode_over_int8         int8 time of a token / int4 time of a token
    int8_ttft_over_fp32           fp32 time from picture to first token / int8 time
    batch8_over_batch1            tokens per second of 8 answers at once / of one
    eager_prefill_over_reference  time of the official algorithm for a prompt / our fp32 time
    eager_decode_over_reference   time of the official algorithm for a token / our fp32 time
    stored_decode_over_reference  the same / our time with matrices in bfloat16, in fp32 arithmetic
    prefix_cache_ttft_over_first  time to first token / the same once more, from the prefix cache

`bounds` are what two of them could be at best, were all of a step the reading of weights:

    batch8_over_batch1            8 times the bytes that one token meets / those that 8 meet
    eager_decode_over_reference   the official algorithm's time / that of reading a token's float32
                                  weights at the fastest speed that this run saw

Our side is the whole engine; the official algorithm runs without one, which favours it. The two of
batch and cache are of int8, where that does not fit of int4. A ratio whose forms do not fit into
memory together is None and stands in `reasons`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vl2.benchmarks.candidates import SEQUENCES, Candidates, gather
from vl2.benchmarks.ceilings import machine_ceilings
from vl2.benchmarks.config import FORMS, STORED, BenchConfig
from vl2.benchmarks.machine import describe_machine, gib, resident_bytes
from vl2.benchmarks.measures import (
    decode_timer,
    first_token_timer,
    official_decode_timer,
    official_prefill_timer,
    prefill_timer,
)
from vl2.benchmarks.reports import ceiling_speeds, describe_model
from vl2.benchmarks.timing import Timer, middle, ratio, take_turns
from vl2.benchmarks.work import weight_bytes_read

Taken = Mapping[str, Sequence[float]]


def summarise(bench: BenchConfig) -> dict[str, Any]:
    """Measure everything and return one flat record.

    Raises:
        ValueError: the model or what is asked of it is wrong, or floats are not float32.
    """
    if bench.dtype != "float32":
        raise ValueError(f"dtype is {bench.dtype}: the summary compares with float32; leave it out")
    candidates = gather(bench, wide=bench.forms or FORMS[1:])
    fast = "int8" if "int8" in candidates.engines else list(candidates.engines)[-1]
    ceilings = machine_ceilings(quick=bench.quick)
    timers = {**_timers(candidates, bench, fast), **{k: c.timer for k, c in ceilings.items()}}
    taken = take_turns(timers, bench.counted_rounds)
    ratios = _ratios(taken, fast)
    speeds = ceiling_speeds(ceilings, {name: middle(taken[name]) for name in ceilings})
    ratios |= _shares(candidates, taken, speeds)
    return {
        "bench": "summary",
        **describe_model(bench, candidates.config),
        **ratios,
        "bounds": _bounds(candidates, taken, speeds, fast),
        "reasons": _reasons(candidates, ratios),
        "batch_and_cache_of": fast,
        "prompt": bench.prompt_tokens,
        "tokens": bench.decoded,
        "rounds": bench.counted_rounds,
        "ms": {k: round(1e3 * middle(s), 3) for k, s in taken.items() if k not in ceilings},
        "ceilings": speeds,
        "peak_gib": gib(resident_bytes()),
        "machine": describe_machine(),
    }


def _timers(candidates: Candidates, bench: BenchConfig, fast: str) -> dict[str, Timer]:
    """What a round consists of; the second question about a picture follows the first."""
    engines = candidates.engines
    found = {f"{form}_decode": decode_timer(engines[form], bench) for form in engines}
    found["batch_decode"] = decode_timer(engines[fast], bench, SEQUENCES)
    if "none" in engines:
        plain = engines["none"]
        found["official_decode"] = official_decode_timer(plain, bench)
        found["none_prefill"] = prefill_timer(plain, bench)
        found["official_prefill"] = official_prefill_timer(plain, bench)
        found["none_ttft"] = first_token_timer(plain)
    found[f"{fast}_ttft"] = first_token_timer(engines[fast])
    found["again_ttft"] = first_token_timer(engines[fast])
    return found


def _ratios(taken: Taken, fast: str) -> dict[str, float | None]:
    def over(slow: str, quick: str) -> float | None:
        return ratio(taken[slow], taken[quick]) if {slow, quick} <= taken.keys() else None

    batch = over(f"{fast}_decode", "batch_decode")
    return {
        "int8_decode_over_fp32": over("none_decode", "int8_decode"),
        "int4_decode_over_int8": over("int8_decode", "int4_decode"),
        "int8_ttft_over_fp32": over("none_ttft", "int8_ttft"),
        "batch8_over_batch1": None if batch is None else round(SEQUENCES * batch, 3),
        "eager_prefill_over_reference": over("official_prefill", "none_prefill"),
        "eager_decode_over_reference": over("official_decode", "none_decode"),
        "stored_decode_over_reference": over("official_decode", f"{STORED}_decode"),
        "prefix_cache_ttft_over_first": over(f"{fast}_ttft", "again_ttft"),
    }


def _shares(
    candidates: Candidates, taken: Taken, speeds: Mapping[str, float | None]
) -> dict[str, float | None]:
    """Speed with which int8 weights are read, over that of one large product."""
    bounds = [speeds[f"{name}_row_gb_per_s"] or 0.0 for name in ("int8", "native")]
    named = {"int8_decode_roofline_share": bounds[0], "int8_decode_fastest_share": max(bounds)}
    if "int8" not in candidates.engines:
        return dict.fromkeys(named)
    state = candidates.read["int8"]
    read = weight_bytes_read(state, candidates.config.language_config)
    speed = read / middle(taken["int8_decode"]) / 1e9
    return {name: round(speed / bound, 3) for name, bound in named.items()}


def _bounds(
    candidates: Candidates, taken: Taken, speeds: Mapping[str, float | None], fast: str
) -> dict[str, float | None]:
    """The most that reading weights leaves of two ratios."""
    config = candidates.config.language_config
    state = candidates.read[fast]
    one, many = (weight_bytes_read(state, config, tokens) for tokens in (1, SEQUENCES))
    found: dict[str, float | None] = {"batch8_over_batch1": round(SEQUENCES * one / many, 3)}
    found["eager_decode_over_reference"] = None
    if "none" in candidates.engines:
        read = weight_bytes_read(candidates.read["none"], config)
        fastest = max(speed or 0.0 for name, speed in speeds.items() if name.endswith("gb_per_s"))
        seconds = read / fastest / 1e9
        bound = middle(taken["official_decode"]) / seconds
        found["eager_decode_over_reference"] = round(bound, 3)
    return found


def _reasons(candidates: Candidates, ratios: Mapping[str, float | None]) -> dict[str, str]:
    """Why a ratio is None: the first form that it lacks and what was said of that."""
    words = {"none": ("fp32", "eager", "reference"), STORED: ("stored",)}
    words |= {"int8": ("int8",), "int4": ("int4",)}
    found = {}
    for key, value in ratios.items():
        lacking = [f for f, marks in words.items() if f not in candidates.engines]
        named = [f for f in lacking if any(mark in key for mark in words[f])]
        if value is None and named:
            found[key] = f"{named[0]}: {candidates.skipped.get(named[0], 'not asked for')}"
    return found

"""`vl2 bench`: JSON with the promised keys, a table, and one line for a wrong use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vl2.benchmarks import candidates, ceilings
from vl2.cli import main
from vl2.ops.native import kernels

SMALL = [
    *("--quick", "--rounds", "1", "--tokens", "6", "--prompt", "32"),
    *("--quantized-dtype", "float32"),
]
RATIOS = {
    "int8_decode_over_fp32",
    "int8_decode_roofline_share",
    "int8_decode_fastest_share",
    "int4_decode_over_int8",
    "int8_ttft_over_fp32",
    "batch8_over_batch1",
    "eager_prefill_over_reference",
    "eager_decode_over_reference",
    "stored_decode_over_reference",
    "prefix_cache_ttft_over_first",
}
MACHINE = {"cpu", "instructions", "amx", "cores", "threads", "torch", "memory_available_gib"}


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings are another test's matter; here they only have to be there."""
    monkeypatch.setattr(ceilings, "QUICK_READ_BYTES", 2**22)
    monkeypatch.setattr(ceilings, "ROWS", 64)


def records(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict]:
    assert main(["bench", *words, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize(
    ("what", "unit", "forms"),
    [
        ("decode", "tokens", ["none", "bfloat16", "int8", "int4"]),
        ("prefill", "tokens", ["none", "bfloat16", "int8", "int4"]),
        ("vision", "tiles", ["none", "bfloat16", "int8", "int4"]),
        ("ttft", "tokens", ["none", "bfloat16", "int8", "int4"]),
        ("batch", "tokens", [f for f in ("none", "bfloat16", "int8", "int4") for _ in range(2)]),
    ],
)
def test_every_benchmark_prints_a_record_per_form(
    what: str, unit: str, forms: list[str], capsys: pytest.CaptureFixture[str]
):
    found = records(capsys, what, "--model", "debug_small", *SMALL)
    assert [record["quantization"] for record in found] == forms
    for record in found:
        assert record["bench"] == what
        amount = record.get("batch") or record.get("prompt") or 2
        assert record[f"{unit}_per_s"] * record["ms"] == pytest.approx(1e3 * amount, rel=0.01)
        assert min(record["ms"], record["gb_per_s"], record["gflops"], record["peak_gib"]) > 0
        assert record["ceiling_share"] >= 0
        assert record["ceilings"][record["ceiling"]] > 0
        assert (record["ceilings"]["native_row_gb_per_s"] is not None) == (
            kernels.functions() is not None
        )
        assert record["machine"].keys() >= MACHINE
        assert (record["layers"], record["vision_layers"], record["quick"]) == (2, 2, True)
    if what == "batch":
        assert [record["batch"] for record in found] == [1, 8] * 4


def test_summary_has_every_ratio(capsys: pytest.CaptureFixture[str]):
    [record] = records(capsys, "summary", "--model", "debug_base", *SMALL)
    assert record.keys() >= RATIOS | {"peak_gib", "model", "layers", "quick", "machine"}
    assert record["reasons"] == {}
    assert all(record[name] > 0 for name in RATIOS - {"int8_decode_fastest_share"})
    assert record["int8_decode_roofline_share"] >= record["int8_decode_fastest_share"]


def test_summary_says_why_a_ratio_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    free = candidates.HEADROOM_BYTES + 4_000_000  # room for int4 and int8, not for floats
    monkeypatch.setattr(candidates, "available_memory", lambda: free)
    [record] = records(capsys, "summary", "--model", "debug_tiny", *SMALL)
    missing = {name for name in RATIOS if record[name] is None}
    assert missing == record["reasons"].keys()
    assert "eager_prefill_over_reference" in missing
    assert "that are free: use --layers" in record["reasons"]["int8_decode_over_fp32"]
    assert record["batch8_over_batch1"] > 0
    assert main(["bench", "summary", "--model", "debug_tiny", *SMALL]) == 0
    assert "int8_decode_over_fp32          none: " in capsys.readouterr().out


def test_memory_is_measured_in_processes_of_their_own(capsys: pytest.CaptureFixture[str]):
    found = records(capsys, "memory", "--model", "nano", "--quantization", "int8", "--tokens", "2")
    [record] = found
    assert record["weights"] == "loaded"
    assert record["peak_gib"] >= record["loaded_gib"] > record["weights_gib"] > 0
    assert record["peak_gib"] < 1.0
    assert record["machine"].keys() >= MACHINE


def test_a_quantised_folder_is_measured_in_its_own_form(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    folder = str(tmp_path / "nano-int8")
    assert main(["convert", "nano", folder, "--quantization", "int8"]) == 0
    capsys.readouterr()
    [record] = records(capsys, "decode", "--model", folder, *SMALL)
    assert (record["quantization"], record["weights"]) == ("int8", "loaded")
    [record] = records(capsys, "summary", "--model", folder, *SMALL)
    assert record["int8_decode_roofline_share"] > 0
    assert record["reasons"]["int8_decode_over_fp32"] == "none: not asked for"
    assert main(["bench", "decode", "--model", folder, "--quantization", "int4", *SMALL]) == 2
    assert "is quantised to int8 already" in capsys.readouterr().err


def test_a_float8_folder_is_measured_as_it_is(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    folder = str(tmp_path / "nano-float8")
    assert main(["convert", "nano", folder, "--quantization", "float8"]) == 0
    capsys.readouterr()
    [record] = records(capsys, "decode", "--model", folder, *SMALL)
    assert (record["quantization"], record["weights"]) == ("float8", "loaded")


def test_the_table_is_for_people(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "decode", "--model", "nano", *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "decode of nano, loaded weights, float32 (float32 beside int8 and int4), 4"
    )
    assert lines[2].split()[:4] == ["form", "batch", "prompt", "ms"]
    assert [line.split()[0] for line in lines[3:7]] == ["none", "bfloat16", "int8", "int4"]
    assert lines[8].startswith("ceilings: ")
    assert "threads of" in lines[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["speed"], "benchmark is 'speed': expected one of decode, prefill"),
        (["decode", "--quantization", "int2"], "quantization is 'int2': expected one of none"),
        (["decode", "--layers", "13"], "layers is 13: the model has 12"),
        (["decode", "--model", "nano", "--layers", "1"], "add --random-weights"),
        (["decode", "--model", "no-such"], "no model at no-such"),
        (["summary", "--dtype", "bfloat16"], "the summary compares with float32"),
        (["decode", "--threads", "0"], "threads is 0: expected at least 1"),
        (["decode", "--prompt", "x"], "see vl2 bench --help"),
    ],
)
def test_a_wrong_use_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["bench", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1

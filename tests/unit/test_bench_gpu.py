"""The benchmark of a GPU: it refuses without one, and its measurements run on a CPU as well."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from vl2.config import VL2Config

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.py"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_gpu"] = module  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bench_gpu"]


def test_without_a_gpu_it_says_so_and_fails(bench, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    assert bench.main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "needs a CUDA device" in printed.err


@pytest.mark.parametrize(
    ("preset", "form"),  # plain heads, and latent ones
    [("debug_tiny", "none"), ("debug_base", "none"), ("debug_tiny", "float8")],
)
def test_every_figure_of_a_model_is_made(bench, monkeypatch, preset, form):
    monkeypatch.setattr(bench, "PROMPT", 20)
    monkeypatch.setattr(bench, "LONG_PROMPT", 40)
    options = bench.arguments(["--rounds", "1", "--sequences", "3"])
    bounds = bench.Bounds(bandwidth=1e9, flops=1e9)
    case = bench.build(preset, form, CPU, bounds, options)
    found = list(bench.measure_model(case))
    names = [record["bench"] for record in found]
    assert names == ["step", "step", "decode", "batch", "prefill"]
    assert all(record["ms"] > 0 and record["quantization"] == form for record in found)
    assert found[0]["not_recorded_because"] == "cpu has no CUDA graphs"
    step, decode = found[0], found[2]
    assert step["share"] == pytest.approx(step["bound_ms"] / step["ms"], rel=0.1, abs=1e-3)
    state, language = case.model.state_dict(), VL2Config.preset(preset).language_config
    least = (2 if form == "none" else 1) * sum(
        t.numel() for k, t in state.items() if k.startswith("language.lm_head")
    )
    assert 1e6 * decode["bound_ms"] > least
    assert case.bound(1, 100) - case.bound(1, 0) == pytest.approx(
        100 * 2 * language.cache_width * language.num_hidden_layers / 1e9
    )


def test_bounds_parity_and_attention_run(bench):
    bounds = bench.measure_bounds(CPU, copied=2**20, width=64)
    assert bounds.bandwidth > 0
    parity = bench.measure_parity(CPU)
    assert parity["equal"] == parity["answers"] == 8
    assert (parity["errors"], parity["worst_logprob"]) == ([], 0.0)
    rows = list(bench.measure_attention(CPU, [(2, 8)]))
    assert [row["model"] for row in rows] == ["tiny", "small"]
    assert all(row["fused_us"] > 0 and row["plain_us"] > 0 for row in rows)


def test_plain_products_give_the_numbers_of_the_fused_kernels(bench):
    query, key = torch.randn(2, 1, 4, 24), torch.randn(2, 1, 9, 24)
    mask = (torch.arange(9) < torch.tensor([[5], [9]]))[:, None, None].expand(-1, -1, 4, -1)
    fused = bench.attention(query, key, key, scale=0.2, mask=mask)
    plain = bench.plain_attention(query, key, key, scale=0.2, mask=mask)
    torch.testing.assert_close(plain, fused, atol=1e-5, rtol=0)


def test_a_model_that_no_longer_fits_in_time_is_named(bench, monkeypatch):
    monkeypatch.setattr(bench, "measure_bounds", lambda device: bench.Bounds(bandwidth=1, flops=1))
    monkeypatch.setattr(bench, "measure_parity", lambda device: {"bench": "parity"})
    monkeypatch.setattr(bench, "measure_attention", lambda device, sizes: iter(()))
    options = bench.arguments(["--model", "base", "--form", "float8"])
    *_, last = bench.records(options, CPU, end=0.0)
    assert last == {
        "bench": "model",
        "model": "base",
        "quantization": "float8",
        "skipped": "no time left: raise --minutes",
    }

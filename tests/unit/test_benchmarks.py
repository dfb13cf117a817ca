"""Parts of the benchmarks: made-up models, counted work, what fits, the machine, times."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vl2 import core_count as available
from vl2.benchmarks import candidates, machine
from vl2.benchmarks.candidates import fitting_forms, form_bytes, form_state, gather
from vl2.benchmarks.config import FORMS, BenchConfig
from vl2.benchmarks.memory import measure_apart, measure_memory
from vl2.benchmarks.prompts import fitting_processor, picture_messages, text_prompt
from vl2.benchmarks.random_weights import cut_layers, random_model
from vl2.benchmarks.timing import middle, ratio, take_turns
from vl2.benchmarks.work import text_flops, tile_bytes_read, tile_flops, weight_bytes_read
from vl2.checkpoint.count import count_parameters, model_shapes
from vl2.config import VL2Config
from vl2.engine import cores as used
from vl2.failure import WorkError
from vl2.model.linear import held


def meta_state(config: VL2Config, form: str) -> dict[str, torch.Tensor]:
    """The state of a form under float32, without memory."""
    return form_state(BenchConfig(quantized_dtype="float32"), config, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preset", ["debug_tiny", "debug_base", "nano"])
def test_a_random_model_is_made_in_its_form_and_runs(preset: str, form: str):
    config = VL2Config.preset(preset)
    model, wanted = random_model(config, form), meta_state(config, form)
    state = model.state_dict()
    assert {k: (t.shape, t.dtype) for k, t in state.items()} == {
        k: (t.shape, t.dtype) for k, t in wanted.items()
    }
    assert wanted["language.model.norm.weight"].dtype == torch.float32
    assert not any(tensor.is_meta for tensor in state.values())
    with torch.inference_mode():
        out = model(torch.arange(64)[None])
    assert out.logits is not None
    assert out.logits.isfinite().all()
    # Tokens spread over the experts as they do in a real model.
    chosen = out.language.routing[-1].experts.unique()
    assert len(chosen) > 2 * (config.language_config.num_experts_per_tok or 0)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_quantised_weights_have_the_spread_of_fresh_ones(form: str):
    config = VL2Config.preset("debug_base")
    model = random_model(config, form)
    floats = held(model.get_submodule("language.model.layers.1.mlp.experts"), "gate_proj").floats()
    assert float(floats.std()) == pytest.approx(config.language_config.initializer_range, rel=0.05)
    assert abs(float(floats.mean())) < 0.1 * float(floats.std())


def test_forms_share_what_is_alike():
    config = VL2Config.preset("debug_small")
    floats = random_model(config, "none")
    state = random_model(config, "int4", shared=floats.state_dict()).state_dict()
    table = "language.model.embed_tokens.weight"
    assert state[table].data_ptr() == floats.state_dict()[table].data_ptr()
    assert len({t.data_ptr() for t in floats.state_dict().values()}) == len(floats.state_dict())


def test_layers_are_cut_at_full_width():
    config = cut_layers(VL2Config.base(), 2, 3)
    assert config.language_config.num_hidden_layers == 2
    assert config.language_config.is_moe_layer(1)
    assert config.vision_config.layers == 3
    assert config.language_config.hidden_size == 2560
    with pytest.raises(ValueError, match="layers is 31: the model has 30"):
        cut_layers(VL2Config.base(), 31, None)


@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
def test_work_of_a_token_is_that_of_the_activated_weights(preset: str):
    config = VL2Config.preset(preset)
    language, shapes = config.language_config, model_shapes(config)
    active = count_parameters(config, shapes).language_active
    state = meta_state(config, "none")
    # The difference is norms, correction biases and the pair of the token with itself.
    assert text_flops(shapes, language, 1) == pytest.approx(2 * active, rel=1e-3)
    assert weight_bytes_read(state, language) == pytest.approx(4 * active, rel=1e-3)
    all_of_it = weight_bytes_read(state, language, tokens=10_000)
    held = sum(t.nbytes for k, t in state.items() if k.startswith("language.model.layers"))
    head = state["language.lm_head.weight"].nbytes
    assert all_of_it == pytest.approx(held + head, rel=1e-3)


def test_quantised_weights_are_read_faster_by_what_they_save():
    config = VL2Config.tiny()
    language = config.language_config
    read = {f: weight_bytes_read(meta_state(config, f), language) for f in FORMS}
    assert 3.9 < read["none"] / read["int8"] < 4.0
    assert 1.98 < read["none"] / read["bfloat16"] < 2.0
    assert 1.8 < read["int8"] / read["int4"] < 1.95


def test_work_of_a_tile_leaves_the_pool_head_out():
    config = VL2Config.tiny()
    shapes = model_shapes(config)
    # 2 * 413 million weights * 729 patches, and the scores.
    assert 0.60e12 < tile_flops(shapes, config) < 0.70e12
    assert tile_bytes_read(meta_state(config, "none")) == pytest.approx(
        4 * (412_987_248 + 7_539_200), rel=1e-6
    )


def test_forms_fit_from_the_smallest(monkeypatch: pytest.MonkeyPatch):
    config = VL2Config.small()
    bench = BenchConfig(model="small")
    monkeypatch.setattr(candidates, "available_memory", lambda: 22 * 2**30)
    chosen, skipped = fitting_forms(bench, config, FORMS)
    assert chosen == ["int4"]
    assert list(skipped) == ["float8", "int8", "none", "bfloat16"]
    assert "GiB in addition to" in skipped["none"]
    with pytest.raises(ValueError, match=r"quantization int8: .* use --layers"):
        fitting_forms(BenchConfig(model="small", forms=("int8", "int4")), config, ("int8", "int4"))
    assert fitting_forms(bench, cut_layers(config, 3, 2), FORMS)[0] == list(FORMS)


def test_released_sizes_stay_under_their_bounds():
    sizes = {"small": 11, "base": 18}
    for preset, most in sizes.items():
        state = meta_state(VL2Config.preset(preset), "int4")
        assert form_bytes(state) < (most - 1) * 2**30


def test_nothing_fits_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(candidates, "available_memory", lambda: 2**20)
    with pytest.raises(ValueError, match=r"quantization int4: .* 1\.0 MiB that are free"):
        gather(BenchConfig(model="debug_tiny"))
    with pytest.raises(ValueError, match="quantization int4"):
        measure_apart(BenchConfig(model="debug_tiny"), threads=1)


def test_building_a_quantised_form_makes_no_float_copy():
    bench = BenchConfig(model="tiny", forms=("int4",), quick=True, tokens=1)
    [record] = measure_apart(bench, threads=1)
    assert record["quantization"] == "int4"
    assert record["tokens"] == 2
    # Python and torch take 0.26 GiB, the pool of random numbers 0.08; one matrix of the experts'
    # stack would be 0.27 more in floats.
    assert record["load_peak_gib"] - record["weights_gib"] < 0.5
    assert record["peak_gib"] >= record["load_peak_gib"] >= record["weights_gib"]


def test_memory_here_is_of_one_form():
    with pytest.raises(ValueError, match="name exactly one"):
        measure_memory(BenchConfig(model="debug_tiny"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"forms": ("int2",)}, "quantization is 'int2': expected one of none, bfloat16, int8"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"rounds": 0}, "rounds is 0: expected at least 1"),
        ({"model": "nano", "layers": 2}, "nano has weights of its own"),
    ],
)
def test_a_wrong_benchmark_is_refused(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        BenchConfig(**wrong)


def test_prompts_are_of_exact_length_and_new_for_every_seed():
    processor = fitting_processor(VL2Config.tiny())
    first, second = (text_prompt(processor, 50, seed) for seed in (1, 2))
    assert len(first.input_ids) == 50
    assert not torch.equal(first.input_ids, second.input_ids)
    assert not processor.tokenizer.control_ids & set(first.input_ids[1:].tolist())
    inputs = processor(picture_messages(processor, 1))
    assert inputs.images_spatial_crop.tolist() == [[1, 1]]
    assert int(inputs.images_seq_mask.sum()) == 421
    assert inputs.images.std() > 0.5


def test_times_are_taken_in_turns_and_the_first_round_does_not_count():
    heard: list[tuple[str, int]] = []

    def timer(name: str, seconds: float):
        def run(turn: int) -> float:
            heard.append((name, turn))
            return seconds * (100 if turn == 0 else 1)

        return run

    taken = take_turns({"slow": timer("slow", 6.0), "fast": timer("fast", 2.0)}, 3)
    assert heard[:4] == [("slow", 0), ("fast", 0), ("slow", 1), ("fast", 1)]
    assert ratio(taken["slow"], taken["fast"]) == 3.0
    assert middle(taken["fast"]) == 2.0
    assert ratio([1.0, 8.0, 9.0], [1.0, 2.0, 3.0]) == 3.0
    with pytest.raises(WorkError, match="too busy"):
        middle([0.1, -0.1, -0.1])
    for slow, fast in (([1.0], [-1.0]), ([-1.0], [1.0])):
        with pytest.raises(WorkError, match="too busy"):
            ratio(slow, fast)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({}, 4),
    ],
)
def test_cores_are_those_that_the_control_group_grants(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(available, "CGROUP", tmp_path)
    monkeypatch.setattr(available.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(available.os, "cpu_count", lambda: 4)
    assert available.available_cores() == cores


def test_memory_is_what_the_control_group_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "meminfo").write_text("MemTotal: 4096 kB\nMemAvailable: 2048 kB\n")
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.available_memory() == 2 * 2**20
    (tmp_path / "memory.max").write_text("1048576\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert machine.available_memory() == 48_576


def test_threads_are_those_asked_for_or_stated(monkeypatch: pytest.MonkeyPatch):
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert used.choose_threads(None) == 3
    assert used.choose_threads(5) == 5
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert used.choose_threads(None) == available.available_cores()
    assert chosen == [3, 5, available.available_cores()]
    with pytest.raises(ValueError, match="threads is 0"):
        used.choose_threads(0)


def test_resident_memory_grows_with_what_is_held():
    before = machine.resident_bytes(peak=False)
    held = torch.ones(2**25)
    assert machine.resident_bytes(peak=False) - before > 100 * 2**20
    assert machine.resident_bytes() >= machine.resident_bytes(peak=False)
    assert held.numel()

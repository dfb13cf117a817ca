"""The C functions against their twins, for this machine and for any, and how they are built."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tests.unit.native_paths import AARCH64, use_path
from tests.unit.quant_samples import relative

from vl2.ops.attention import head_product, head_product_ref
from vl2.ops.backend import in_c
from vl2.ops.groups import Groups, sort_by_expert
from vl2.ops.int4 import Int4Weight
from vl2.ops.int8 import Int8Weight, int8_linear_ref
from vl2.ops.moe import Routing, combine_experts_ref, expert_mlp_ref, router_logits
from vl2.ops.native import build, kernels, small
from vl2.ops.norm import rms_norm, rms_norm_ref
from vl2.ops.paged import Singles, Span, paged_decode_attention_ref, paged_single_attention
from vl2.ops.rope import apply_rope, apply_rope_ref
from vl2.ops.weight import activated


@pytest.fixture(params=["native", "portable", *AARCH64])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use_path(request.param, monkeypatch)
    return request.param


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for libraries, and nothing remembered of the last one."""
    monkeypatch.setenv("VL2_CACHE", str(tmp_path))
    monkeypatch.delenv("VL2_NATIVE", raising=False)
    monkeypatch.delenv("CC", raising=False)
    if not any(map(shutil.which, build.COMPILERS)):
        pytest.skip("there is no C compiler")
    return tmp_path / "native"


def grouped(experts: int, sizes: list[int], rows: int) -> Groups:
    """Groups of so many rows each, which are any rows of x."""
    assert len(sizes) == experts
    tokens = torch.randint(0, rows, (sum(sizes),))
    return Groups(tokens, torch.tensor(sizes).cumsum(0), None)


SHAPES = [(64, 128), (40, 96), (50, 100), (17, 37), (1, 64), (144, 4304 // 16)]


@pytest.mark.parametrize(("out", "width"), SHAPES)
@pytest.mark.parametrize("rows", [1, 2, 16, 17, 33, 70])
def test_int8_products_are_exact(rows: int, out: int, width: int, path: str):
    x, weight, bias = (
        torch.randn(rows, width),
        Int8Weight.pack(torch.randn(out, width)),
        torch.randn(out),
    )
    steps, scale = Int8Weight.pack(x)
    exact = (steps.double() @ weight.values.double().T).float()
    wanted = exact * weight.scale * scale[:, None] + bias
    assert torch.equal(kernels.int8_linear(x, [weight], bias=bias), wanted)
    half = kernels.int8_linear(x, [weight], bias=bias, dtype=torch.bfloat16)
    assert torch.equal(half, wanted.bfloat16())
    assert kernels.int8_linear(x.half(), [weight], dtype=torch.float16).dtype == torch.float16


def test_int8_matrices_of_different_heights_stand_side_by_side(path: str):
    x = torch.randn(5, 96).bfloat16()
    weights = [Int8Weight.pack(torch.randn(out, 96)) for out in (40, 7, 64)]
    found = kernels.int8_linear(x, weights).split([40, 7, 64], dim=1)
    for part, weight in zip(found, weights, strict=True):
        assert torch.equal(part, kernels.int8_linear(x, [weight]))


@pytest.mark.parametrize("sizes", [[3, 0, 40, 1, 0, 17], [0, 0, 0, 0, 0, 2], [1] * 6])
def test_int8_groups_meet_their_experts(sizes: list[int], path: str):
    x, weight = torch.randn(9, 96), Int8Weight.pack(torch.randn(6, 48, 96))
    groups = grouped(6, sizes, 9)
    found = kernels.int8_linear(x, [weight], groups=groups)
    first = 0
    for expert, size in enumerate(sizes):
        assert groups.tokens is not None
        rows = x[groups.tokens[first : first + size]]
        own = weight._replace(values=weight.values[expert], scale=weight.scale[expert])
        if size:
            assert torch.equal(found[first : first + size], kernels.int8_linear(rows, [own]))
        first += size


def test_groups_may_name_their_experts(path: str):
    x, weight = torch.randn(1, 96), Int8Weight.pack(torch.randn(6, 48, 96))
    chosen = torch.tensor([4, 1])
    groups = Groups(torch.zeros(2, dtype=torch.int64), torch.tensor([1, 2]), chosen)
    found = kernels.int8_linear(x, [weight], groups=groups)
    for row, expert in zip(found, chosen.tolist(), strict=True):
        own = weight._replace(values=weight.values[expert], scale=weight.scale[expert])
        assert torch.equal(row[None], kernels.int8_linear(x, [own]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_swiglu_is_nearly_pytorch_s(dtype: torch.dtype, path: str):
    x = (torch.randn(33, 192) * 3).to(dtype)
    x[0, 0], x[1, 1] = 200.0, -200.0  # exp of these is no float
    weight = Int8Weight.pack(torch.randn(64, 96))
    found = kernels.int8_linear(x, [weight], activation="swiglu")
    assert relative(found, int8_linear_ref(x.float(), weight, activation="swiglu")) < 1e-3
    exact = activated(x.double(), "swiglu") @ weight.floats().double().T
    assert relative(found[2:], exact[2:]) < 0.02


def test_results_do_not_depend_on_threads_or_neighbours(path: str):
    x = torch.randn(35, 96)
    int8, int4 = Int8Weight.pack(torch.randn(70, 96)), Int4Weight.pack(torch.randn(70, 96))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            together = kernels.int8_linear(x, [int8])
            alone = [kernels.int8_linear(row[None], [int8]) for row in x]
            assert torch.equal(together, torch.cat(alone))
            if kernels.has_int4():
                together = kernels.int4_linear(x, *int4[:2])
                alone = [kernels.int4_linear(row[None], *int4[:2]) for row in x]
                assert torch.equal(together, torch.cat(alone))
    finally:
        torch.set_num_threads(threads)


def test_two_threads_of_python_may_call_at_once(path: str):
    x, weight = torch.randn(40, 128), Int8Weight.pack(torch.randn(256, 128))
    wanted = kernels.int8_linear(x, [weight])
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: kernels.int8_linear(x, [weight]), range(50)))
    assert all(torch.equal(one, wanted) for one in found)


def test_tiles_are_left_as_pytorch_wants_them(path: str):
    """Its own products in bfloat16 use the same registers."""
    x, weight = torch.randn(64, 256).bfloat16(), torch.randn(256, 256).bfloat16()
    int8 = Int8Weight.pack(weight)
    wanted = x @ weight.T
    for _ in range(3):
        kernels.int8_linear(x, [int8])
        assert torch.equal(x @ weight.T, wanted)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9])
def test_int4_products_equal_the_floats_product(rows: int):
    if not kernels.has_int4():
        pytest.skip("no AVX-512")
    x, weight = torch.randn(rows, 96), Int4Weight.pack(torch.randn(3, 80, 96))
    groups = Groups(None, torch.tensor([rows // 2, rows // 2, rows]), None)
    found, padded = kernels.int4_linear(x, *weight[:2], groups=groups).split([80, 48], dim=1)
    assert float(padded.abs().max()) < 1e-20
    floats = weight.floats().double()
    parts = zip(x.double().split([rows // 2, 0, rows - rows // 2]), floats, strict=True)
    assert relative(found, torch.cat([part @ matrix.T for part, matrix in parts])) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [48, 100])
def test_small_functions_equal_their_twins(dtype: torch.dtype, width: int, path: str):
    x, weight = torch.randn(2, 6, width).to(dtype), torch.randn(width).to(dtype)
    eps = torch.finfo(dtype).eps
    assert in_c("norm", x)
    assert relative(rms_norm(x, weight, 1e-6), rms_norm_ref(x, weight, 1e-6)) < eps
    router = torch.randn(12, width).to(dtype)
    wanted = x[0].double() @ router.double().T
    assert relative(router_logits(x[0], router), wanted) < 1e-6
    heads, angles = torch.randn(2, 3, 5, width).to(dtype), torch.randn(2, 3, width)
    turned = apply_rope(heads, angles.cos(), angles.sin())
    assert torch.equal(turned, apply_rope_ref(heads, angles.cos(), angles.sin()))
    matrices = torch.randn(5, 20, width).to(dtype)[:, 4:]  # which lie apart
    for turned in (False, True):
        given = torch.randn(2, 3, 5, 16 if turned else width).to(dtype)
        twin = head_product_ref(given.double(), matrices.double(), turned=turned)
        assert relative(head_product(given, matrices, turned=turned), twin) < eps
    order, weights = torch.randperm(4 * 6), torch.rand(4, 6)
    rows = torch.randn(24, width).to(dtype)
    wanted = combine_experts_ref(rows, order, weights)
    assert relative(small.combine(rows, order, weights), wanted) < 1e-7
    straight = small.combine(rows, torch.arange(24), weights)
    assert torch.equal(small.combine(rows, None, weights), straight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "keys"), [(4, 4), (6, 2)])
def test_attention_of_single_tokens_equals_its_twin(
    heads: int, keys: int, dtype: torch.dtype, path: str
):
    """Sequences of one row, of less and more than a part, and in several runs."""
    pool = torch.randn(1500, 2 * keys * 32).to(dtype)
    runs = [((7, 8),), ((100, 131),), ((200, 456), (10, 30)), ((500, 1400), (40, 44), (9, 10))]
    spans = [Span.over(1, some, device=torch.device("cpu"), absorbed=False) for some in runs]
    query = torch.randn(len(runs), heads, 32).to(dtype)
    found = paged_single_attention(query, pool, Singles.of(spans), scale=0.3)
    twin = paged_decode_attention_ref(query, pool, spans, scale=0.3)
    assert found.dtype == dtype
    assert relative(found, twin) < (1e-6 if dtype == torch.float32 else 8e-3)
    alone = [
        paged_single_attention(row[None], pool, Singles.of([span]), scale=0.3)
        for row, span in zip(query, spans, strict=True)
    ]
    assert torch.equal(found, torch.cat(alone))


@pytest.mark.parametrize("tokens", [9, 40, 200])
@pytest.mark.parametrize(("hidden", "inner"), [(64, 48), (50, 31), (300, 24)])
def test_experts_in_float32_equal_their_twin(tokens: int, hidden: int, inner: int):
    """From no token to more than 64 of an expert."""
    if not kernels.has_experts():
        pytest.skip("no AVX-512")
    weights = torch.randn(4, inner, hidden), torch.randn(4, inner, hidden)
    weights = (*(w * 0.1 for w in weights), torch.randn(4, hidden, inner) * 0.1)
    chosen = torch.stack([torch.randperm(3)[:2] for _ in range(tokens)])
    chosen[0] = torch.tensor([0, 3])
    routing = Routing(chosen, torch.rand(tokens, 2), torch.rand(tokens, 4))
    x = torch.randn(tokens, hidden)
    order, counts = sort_by_expert(chosen, 4)
    groups = Groups(order // 2, counts.cumsum(0), None)
    found = combine_experts_ref(kernels.float_experts(x, groups, *weights), order, routing.weights)
    double = [w.double() for w in weights]
    twin = expert_mlp_ref(x.double(), routing, *double)
    assert relative(found, twin) < 1e-6


def test_a_matrix_of_another_width_is_refused(path: str):
    with pytest.raises(ValueError, match="rows are 32 wide and the matrix takes 64"):
        kernels.int8_linear(torch.randn(2, 32), [Int8Weight.pack(torch.randn(8, 64))])


def test_gradients_and_other_devices_go_elsewhere(path: str):
    x = torch.randn(2, 32, requires_grad=True)
    assert not in_c("norm", x)
    with torch.no_grad():
        assert in_c("norm", x)
    assert not in_c("norm", torch.empty(2, 32, device="meta"))
    assert rms_norm(x, torch.ones(32), 1e-6).requires_grad


def test_a_library_is_compiled_once(own_cache: Path):
    build.load(())
    [made] = own_cache.iterdir()
    before = made.stat().st_mtime_ns
    build.load(())
    assert [made.stat().st_mtime_ns for made in own_cache.iterdir()] == [before]


def no_home(cls: type[Path]) -> Path:
    """As pathlib says it of a user without a home."""
    raise RuntimeError("Could not determine home directory.")


def test_compiling_is_announced(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    said = []
    monkeypatch.setattr(build.log, "warning", lambda line: said.append(line))
    monkeypatch.setattr(build, "FLAGS", ("--no-such-flag",))
    with pytest.raises(build.NotBuiltError, match="fails and says"):
        build.load(())
    assert len(said) == 1
    assert said[0].startswith("compiling faster CPU kernels for this machine: once, up to 90 s")


def test_why_there_is_no_library(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def reason() -> str:
        with pytest.raises(build.NotBuiltError) as caught:
            build.load(("-O0",))
        return str(caught.value)

    monkeypatch.setenv("VL2_NATIVE", "0")
    assert reason() == "VL2_NATIVE is 0"
    monkeypatch.delenv("VL2_NATIVE")
    monkeypatch.setenv("CC", "no-such-compiler")
    assert reason() == "no-such-compiler is not installed (gcc or clang would do)"
    script = tmp_path / "broken"
    script.write_bytes(b"\x7fELF")
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    assert reason().startswith(f"{script} cannot be run: ")
    with monkeypatch.context() as homeless:
        homeless.delenv("VL2_CACHE")
        homeless.setattr(Path, "home", classmethod(no_home))
        homeless.delenv("CC")
        assert reason() == "Could not determine home directory. Set VL2_CACHE to a folder of yours"
    monkeypatch.setenv("CC", "false")
    assert "false fails and says: nothing" in reason()
    assert list(own_cache.iterdir()) == []
    monkeypatch.delenv("CC")
    with monkeypatch.context() as broken:
        broken.setattr(build, "_compile", lambda c, f, path: path.write_bytes(b"no library"))
        assert f"{own_cache}" in reason()
    [made] = own_cache.iterdir()
    assert reason().endswith("remove it")
    with monkeypatch.context() as other:
        other.setattr(build, "_trusted", lambda: {made.stat().st_uid + 1})
        assert reason().startswith(f"{made} belongs to another user")
    made.unlink()
    own_cache.rmdir()
    own_cache.write_text("a file in the folder's place")
    assert "cannot be written" in reason()


def test_what_fails_is_said_once_and_pytorch_goes_on(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    said = []
    monkeypatch.setattr(build.log, "info", lambda line, *values: said.append(line % values))
    monkeypatch.setenv("VL2_NATIVE", "0")
    assert build.library.__wrapped__() is None
    assert said == ["no CPU kernels in C, PyTorch computes instead: VL2_NATIVE is 0"]

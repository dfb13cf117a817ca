"""Weights that stay as stored: products against their twins, and a model in two dtypes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.native_paths import use_path
from tests.unit.quant_samples import relative
from tests.unit.small_engines import MIXED

import vl2
from vl2.checkpoint.convert import convert_checkpoint
from vl2.checkpoint.load import load_model
from vl2.checkpoint.save import save_model
from vl2.cli.loading import load_engine
from vl2.engine import loading
from vl2.engine.quantize import quantize_model
from vl2.engine.self_check import SelfCheck
from vl2.model.linear import Linear
from vl2.model.moe import matrix_layers
from vl2.ops import stored
from vl2.ops.chosen_experts import chosen_expert_mlp
from vl2.ops.moe import ExpertChange, LowRank, Routing, expert_mlp_ref
from vl2.ops.native import kernels
from vl2.ops.stored import stored_linears, stored_linears_ref

GOLDEN = Path(__file__).parents[1] / "golden" / "model"


@pytest.fixture(params=["native", "portable", "kernel"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use_path(request.param, monkeypatch)
    monkeypatch.setattr(stored, "DEQUANTIZE_NUMBERS", 700)  # several parts per matrix
    return request.param


@pytest.mark.parametrize("stored_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outs", "width"), [((40,), 96), ((17, 3), 100), ((65, 5, 32), 48)])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 30])
def test_products_equal_their_twin(
    rows: int, outs: tuple[int, ...], width: int, stored_dtype: torch.dtype, path: str
):
    weights = [torch.randn(out, width).to(stored_dtype) for out in outs]
    x, bias = torch.randn(1, rows, width), torch.randn(outs[0]) if len(outs) == 1 else None
    found = stored_linears(x, weights, bias)
    assert found.dtype == torch.float32
    twin = stored_linears_ref(
        x.double(), [w.double() for w in weights], None if bias is None else bias.double()
    )
    assert relative(found, twin) < 1e-6
    half = stored_linears(x.bfloat16(), weights, bias)
    assert half.dtype == torch.bfloat16
    assert relative(half, stored_linears_ref(x.bfloat16().float(), weights, bias)) < 4e-3


@pytest.mark.parametrize("path", ["native", "portable"], indirect=True)
def test_a_row_of_a_product_depends_on_that_row_alone(path: str):
    weights = [torch.randn(33, 200).bfloat16()]
    x = torch.randn(8, 200)
    whole = stored_linears(x, weights)
    assert torch.equal(whole, torch.cat([stored_linears(row[None], weights) for row in x]))
    assert torch.equal(whole[2:5], stored_linears(x[2:5], weights))


@pytest.mark.parametrize("tokens", [1, 2, 8, 9, 40, 200])
@pytest.mark.parametrize(("hidden", "inner"), [(64, 48), (50, 31), (300, 24)])
@pytest.mark.parametrize("changed", [False, True])
def test_stored_experts_equal_their_twin(
    tokens: int, hidden: int, inner: int, changed: bool, path: str
):
    shapes = (4, inner, hidden), (4, inner, hidden), (4, hidden, inner)
    weights = [(torch.randn(shape) * 0.1).bfloat16() for shape in shapes]
    chosen = torch.stack([torch.randperm(3)[:2] for _ in range(tokens)])
    chosen[0] = torch.tensor([0, 3])
    routing = Routing(chosen, torch.rand(tokens, 2), torch.rand(tokens, 4))
    x = torch.randn(tokens, hidden)
    change = None
    if changed:
        change = ExpertChange(
            *(LowRank(torch.randn(4, 2, i) * 0.1, torch.randn(4, o, 2)) for _, o, i in shapes)
        )
    with torch.inference_mode():
        found = chosen_expert_mlp(x, routing, *weights, change)
    double = change and ExpertChange(*(LowRank(low.a.double(), low.b.double()) for low in change))
    twin = expert_mlp_ref(x.double(), routing, *(weight.double() for weight in weights), double)
    assert relative(found, twin) < 1e-6


def test_matrices_that_do_not_fit_are_refused():
    if kernels.functions() is None:
        pytest.skip("there is no C compiler")
    x, matrix = torch.randn(1, 8), torch.randn(8, 8)
    with pytest.raises(ValueError, match="rows are 7 wide and the matrix takes 8"):
        kernels.wide_linear(x[:, :7], (matrix,))
    for wrong in ((matrix.T,), (matrix, matrix.bfloat16())):
        with pytest.raises(ValueError, match="expected one dtype, by rows"):
            kernels.wide_linear(x, wrong)


def in_bfloat16(name: str, folder: Path) -> Path:
    """A golden model as a released file holds it."""
    save_model(load_model(GOLDEN / name, "bfloat16", "cpu"), folder)
    return folder


@pytest.mark.parametrize("name", ["tiny_like", "base_like", "qlora_group_yarn"])
def test_a_stored_model_computes_what_a_float32_load_computes(name: str, tmp_path: Path):
    folder = in_bfloat16(name, tmp_path)
    wanted = load_model(folder, "float32", "cpu")
    model = load_model(folder, "float32", "cpu", storage_dtype="auto")
    ids = torch.randint(3, model.config.language_config.vocab_size, (2, 21))
    for logits in ("all", "last"):
        with torch.inference_mode():
            found, same = (m(ids, logits=logits).logits for m in (model, wanted))
        assert found.dtype == torch.float32
        assert relative(found, same) < 1e-5  # 3e-7 here
    losses = [m(ids, labels=ids).loss.item() for m in (model, wanted)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_matrices_are_stored_and_the_rest_computes(tmp_path: Path):
    folder = in_bfloat16("base_like", tmp_path)
    state = load_model(folder, "float32", "cpu", storage_dtype="bfloat16").state_dict()
    wanted = load_model(folder, "float32", "cpu").state_dict()
    assert state.keys() == wanted.keys()
    narrow = {key for key, tensor in state.items() if tensor.dtype == torch.bfloat16}
    for key, tensor in state.items():
        assert torch.equal(tensor.float(), wanted[key]), key
    layer = "language.model.layers.1"
    assert narrow >= {
        "language.lm_head.weight",
        f"{layer}.self_attn.o_proj.weight",
        f"{layer}.mlp.experts.gate_proj",
        "vision.blocks.0.attn.qkv.weight",
    }
    kept = (
        "language.model.embed_tokens.weight",
        f"{layer}.self_attn.kv_b_proj.weight",
        f"{layer}.mlp.gate.weight",
        f"{layer}.mlp.gate.e_score_correction_bias",
        f"{layer}.input_layernorm.weight",
        "vision.blocks.0.attn.qkv.bias",
        "image_newline",
    )
    assert {state[key].dtype for key in kept} == {torch.float32}


def test_auto_keeps_what_the_files_hold_in_more(tmp_path: Path):
    """One matrix of the queries and one expert's are float32 in the file."""
    model = load_model(GOLDEN / "tiny_like", "bfloat16", "cpu")
    save_model(model, tmp_path, None)
    tensors = load_file(tmp_path / "model.safetensors")
    layer = "language.model.layers.1"
    exact = (f"{layer}.self_attn.q_proj.weight", f"{layer}.mlp.experts.2.up_proj.weight")
    for key in exact:
        tensors[key] = torch.randn(tensors[key].shape) * 0.1
    save_file(tensors, tmp_path / "model.safetensors")
    wanted = load_model(tmp_path, "float32", "cpu")
    model = load_model(tmp_path, "float32", "cpu", storage_dtype="auto")
    state = model.state_dict()
    assert state[exact[0]].dtype == state[f"{layer}.mlp.experts.up_proj"].dtype == torch.float32
    assert state[f"{layer}.self_attn.k_proj.weight"].dtype == torch.bfloat16
    assert state[f"{layer}.mlp.experts.gate_proj"].dtype == torch.bfloat16
    ids = torch.randint(3, 60, (1, 5))
    with torch.inference_mode():
        assert relative(model(ids).logits, wanted(ids).logits) < 1e-5


def test_a_stored_model_is_saved_as_it_is(tmp_path: Path):
    model = load_model(in_bfloat16("tiny_like", tmp_path / "a"), "float32", storage_dtype="auto")
    save_model(model, tmp_path / "b")
    again = load_model(tmp_path / "b", "float32", storage_dtype="auto").state_dict()
    for key, tensor in model.state_dict().items():
        assert (tensor.dtype, tensor.tolist()) == (again[key].dtype, again[key].tolist())


def test_every_way_of_running_a_stored_model_agrees():
    model = load_model("nano", "float32", "cpu", storage_dtype="auto")
    processor = vl2.Processor.from_pretrained("nano")
    prompts = [processor(talk) for talk in MIXED]
    check = SelfCheck(model=model, processor=processor, prompts=prompts, max_tokens=6)
    found = list(check.run(compiling=False))
    assert len(found) == 6
    assert [c.name for c in found if not c.passed] == []
    assert {m.weight.dtype for m in stored_ones(model)} == {torch.bfloat16}


def stored_ones(model: torch.nn.Module) -> list[Linear]:
    return [m for _, m in matrix_layers(model) if isinstance(m, Linear) and m.stored]


@pytest.mark.parametrize(
    ("asked", "emulated", "compiled", "dtype", "kept"),
    [
        ("auto", True, True, "float32", "bfloat16"),
        ("auto", False, True, "bfloat16", "bfloat16"),
        ("auto", True, False, "bfloat16", None),
        ("bfloat16", True, True, "bfloat16", "bfloat16"),
        ("float32", False, False, "float32", None),
        ("float16", True, True, "float16", None),
    ],
)
def test_commands_load_what_suits_the_processor(
    asked: str, emulated: bool, compiled: bool, dtype: str, kept: str | None,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr(loading, "emulates_bfloat16", lambda: emulated)
    monkeypatch.setattr(kernels, "functions", lambda: object() if compiled else None)
    model = load_engine("nano", dtype=asked, device="cpu").model
    assert model.image_newline.dtype == getattr(torch, dtype)
    assert bool(stored_ones(model)) == (kept is not None)
    assert model.language.lm_head.weight.dtype == getattr(torch, kept or dtype)


def test_commands_load_other_files_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "emulates_bfloat16", lambda: True)
    convert_checkpoint("nano", tmp_path / "int8", quantization="int8")
    model = load_engine(str(tmp_path / "int8"), dtype="auto", device="cpu").model
    assert model.image_newline.dtype == torch.bfloat16
    assert not stored_ones(model)
    with pytest.raises(ValueError, match="matrices are quantised to int8: choose one of the two"):
        load_model(tmp_path / "int8", storage_dtype="auto")
    convert_checkpoint("nano", tmp_path / "wide", "float32")
    model = load_engine(str(tmp_path / "wide"), dtype="auto", device="cpu").model
    assert model.image_newline.dtype == torch.float32
    assert not stored_ones(model)


@pytest.mark.compiled
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_stored_model_compiles():
    model = load_model("nano", "float32", "cpu", storage_dtype="auto")
    processor = vl2.Processor.from_pretrained("nano")
    prompts = [processor(talk) for talk in MIXED]
    check = SelfCheck(model=model, processor=processor, prompts=prompts, max_tokens=6)
    *_, found = check.run()
    assert (found.name, found.passed) == ("compiled = eager", True)


def test_gradients_pass_to_the_input_and_nothing_trains(tmp_path: Path):
    model = load_model(in_bfloat16("tiny_like", tmp_path), "float32", storage_dtype="auto")
    embeds = torch.randn(1, 5, model.config.language_config.hidden_size, requires_grad=True)
    model.language.logits(model.language(embeds).hidden).sum().backward()
    assert embeds.grad is not None
    assert embeds.grad.abs().sum() > 0
    assert stored_ones(model)
    assert not any(m.weight.requires_grad for m in stored_ones(model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"storage_dtype": "int8"},
            "storage_dtype is int8: expected auto, float32, bfloat16, float16",
        ),
        (
            {"storage_dtype": "auto", "quantization": "int8"},
            "storage_dtype is given and matrices are quantised to int8: choose one of the two",
        ),
    ],
)
def test_a_wrong_storage_is_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        load_model(GOLDEN / "tiny_like", "float32", "cpu", **arguments)


def test_a_stored_model_is_not_quantised_in_part():
    model = load_model(GOLDEN / "tiny_like", "float32", "cpu", storage_dtype="bfloat16")
    with pytest.raises(ValueError, match="load it without storage_dtype"):
        quantize_model(model, "int8")

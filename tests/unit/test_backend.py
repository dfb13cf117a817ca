"""When C computes: the one table, and that nobody decides beside it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import vl2
from vl2.ops import backend
from vl2.ops.backend import FEW_ROWS, TABLE, in_c
from vl2.ops.native import kernels

OPS = Path(vl2.__file__).parent / "ops"


@pytest.fixture(autouse=True)
def with_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor for which there is a library, without any part."""
    monkeypatch.setattr(kernels, "functions", lambda: object())
    for part in ("has_tiles", "has_int4", "has_experts"):
        monkeypatch.setattr(kernels, part, lambda: False)


@pytest.mark.parametrize("product", sorted(set(TABLE) - {"activations"}))
def test_every_product_runs_without_gradients_in_memory_and_on_no_other_device(
    product, monkeypatch
):
    for part in ("has_tiles", "has_int4", "has_experts"):
        monkeypatch.setattr(kernels, part, lambda: True)
    rows = 1 + TABLE[product].least
    x = torch.ones(rows, 32, dtype=(TABLE[product].dtypes or (torch.float32,))[0])
    weight = torch.ones(4, 32, dtype=TABLE[product].others[-1])
    inputs = (x,) if TABLE[product].alike == 0 else (x, weight)
    with torch.inference_mode():
        assert in_c(product, *inputs)
        assert not in_c(product, *(y.to("meta") for y in inputs))
        with kernels.left_out():
            assert not in_c(product, *inputs)
    assert not in_c(product, x.clone().requires_grad_(), *inputs[1:])
    with torch.no_grad():
        assert in_c(product, *inputs) == (not TABLE[product].inference)


def test_activations_are_for_training_in_bfloat16():
    x = torch.ones(3, 4)
    assert not in_c("activations", x.bfloat16())
    assert not in_c("activations", x.requires_grad_())
    assert in_c("activations", x.bfloat16())
    assert in_c("activations", torch.ones((), dtype=torch.bfloat16, requires_grad=True))
    with torch.no_grad():
        assert not in_c("activations", x.bfloat16())


def test_many_rows_need_amx_and_none_is_wider_than_its_sums_hold(monkeypatch):
    few, many = torch.ones(FEW_ROWS, 32), torch.ones(FEW_ROWS + 1, 32)
    wide = torch.ones(1, kernels.MOST_WIDTH + 1)
    assert in_c("int8 linear", few)
    assert not in_c("int8 linear", many)
    assert not in_c("int8 linear", few, rows=FEW_ROWS + 1)
    monkeypatch.setattr(kernels, "has_tiles", lambda: True)
    assert in_c("int8 linear", many)
    assert not in_c("int8 linear", wide)
    assert not in_c("stored linear", many)


def test_dtypes_that_c_does_not_read_go_another_way():
    x, half = torch.ones(2, 32), torch.ones(2, 32, dtype=torch.float16)
    assert in_c("int8 linear", half)  # which is cast
    assert not in_c("router", half, x)
    assert not in_c("router", x, half)
    assert in_c("router", x, x.bfloat16())
    assert not in_c("norm", x, x[0].bfloat16())
    with torch.inference_mode():
        assert in_c("stored experts", x, *[x.bfloat16()] * 3)
        assert not in_c("stored experts", x, x, x, x)


def test_experts_of_two_dtypes_are_none_for_c(monkeypatch):
    monkeypatch.setattr(kernels, "has_experts", lambda: True)
    x, weight = torch.ones(FEW_ROWS + 1, 32), torch.ones(2, 32)
    with torch.inference_mode():
        assert in_c("float32 experts", x, *[weight.bfloat16()] * 3)
        assert not in_c("float32 experts", x, weight, weight, weight.bfloat16())
        assert not in_c("float32 experts", x[:FEW_ROWS], weight, weight, weight)
        assert not in_c("float32 experts", x.bfloat16(), weight, weight, weight)


def test_the_table_says_what_this_processor_lacks(monkeypatch):
    assert set(backend.table()) == set(TABLE)
    assert backend.table()["int8 linear"] == f"up to {FEW_ROWS} rows, no gradient"
    assert backend.table()["int4 linear"].startswith("never here")
    monkeypatch.setattr(kernels, "has_tiles", lambda: True)
    assert backend.table()["int8 linear"] == "any rows, no gradient"
    monkeypatch.setattr(kernels, "functions", lambda: None)
    assert all(when.startswith("never here") for when in backend.table().values())


def test_nobody_else_decides():
    """Files of ops/ ask the table, not the library."""
    asks = re.compile(r"\b(available|has_tiles|has_int4|has_experts|FEW_ROWS)\b(?! =)")
    found = {path.name for path in OPS.glob("*.py") if asks.search(path.read_text())}
    assert found == {"backend.py"}

"""Quantised weights: how they are held, against plain twins."""

from __future__ import annotations

import pytest
import torch
from tests.unit.quant_samples import matrix, relative

from vl2.ops.int4 import INT4_ROWS, Int4Weight, int4_group, pack_int4_ref
from vl2.ops.int8 import Int8Weight, pack_int8_ref


def test_int8_weights_equal_the_twin_and_are_near():
    weight = matrix(40, 96)
    found, twin = Int8Weight.pack(weight), pack_int8_ref(weight)
    torch.testing.assert_close(found.scale, twin.scale, rtol=1e-6, atol=0)
    assert int((found.values.int() - twin.values.int()).abs().max()) <= 1
    error = (found.floats() - weight).abs()
    assert bool((error <= 0.5001 * found.scale[:, None]).all())
    assert bool((found.floats()[20] == 0).all())


@pytest.mark.parametrize(("out", "width"), [(64, 128), (80, 96), (130, 64)])
def test_int4_weights_equal_the_twin_and_are_near(out: int, width: int):
    weight = matrix(out, width)
    weight[3] = 5.0  # a group without a range
    found, twin = Int4Weight.pack(weight), pack_int4_ref(weight)
    assert torch.equal(found.values, twin.values)
    assert torch.equal(found.scale, twin.scale)
    back = found.floats()
    padded = torch.cat(list(found.blocks(torch.float32)))
    assert back.shape == weight.shape
    assert len(padded) == -(-out // INT4_ROWS) * INT4_ROWS
    assert torch.equal(padded[:out], back)
    assert bool((padded[out:] == 0).all())
    group = int4_group(width)
    parts = weight.unflatten(1, (-1, group))
    largest = parts.abs().amax(-1)
    span = torch.maximum(parts.amax(-1) - parts.amin(-1), largest * 2**-5)
    error = (back.unflatten(1, (-1, group)) - parts).abs().amax(-1)
    assert bool((error <= span / 15 * 0.6 + largest * 2**-8).all())
    assert relative(back, weight) < 0.1


def test_int4_groups_are_the_longest_that_fit():
    assert [int4_group(w) for w in (1280, 6848, 10944, 96, 4304)] == [128, 64, 64, 32, None]
    with pytest.raises(ValueError, match=r"rows of 4304 weights cannot be held in int4: .*int8"):
        Int4Weight.pack(torch.zeros(64, 4304))

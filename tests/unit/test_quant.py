"""Quantised weights: how they are held, against plain twins."""

from __future__ import annotations

import pytest
import torch
from tests.unit.quant_samples import matrix, relative

from vl2.ops.weight import (
    dequantize_int4,
    dequantize_rows,
    int4_group,
    quantize_int4,
    quantize_int4_ref,
    quantize_int8,
    quantize_int8_ref,
)


def test_int8_weights_equal_the_twin_and_are_near():
    weight = matrix(40, 96)
    found, twin = quantize_int8(weight), quantize_int8_ref(weight)
    torch.testing.assert_close(found.scale, twin.scale, rtol=1e-6, atol=0)
    assert int((found.values.int() - twin.values.int()).abs().max()) <= 1
    error = (dequantize_rows(found) - weight).abs()
    assert bool((error <= 0.5001 * found.scale[:, None]).all())
    assert bool((dequantize_rows(found)[20] == 0).all())


@pytest.mark.parametrize(("out", "width"), [(64, 128), (80, 96), (130, 64)])
def test_int4_weights_equal_the_twin_and_are_near(out: int, width: int):
    weight = matrix(out, width)
    weight[3] = 5.0  # a group without a range
    found, twin = quantize_int4(weight), quantize_int4_ref(weight)
    assert torch.equal(found.values, twin.values)
    assert torch.equal(found.scale, twin.scale)
    back = dequantize_int4(found)
    assert bool((back[out:] == 0).all())
    group = int4_group(width)
    parts = weight.unflatten(1, (-1, group))
    largest = parts.abs().amax(-1)
    span = torch.maximum(parts.amax(-1) - parts.amin(-1), largest * 2**-5)
    error = (back[:out].unflatten(1, (-1, group)) - parts).abs().amax(-1)
    assert bool((error <= span / 15 * 0.6 + largest * 2**-8).all())
    assert relative(back[:out], weight) < 0.1


def test_int4_groups_are_the_longest_that_fit():
    assert [int4_group(w) for w in (1280, 6848, 10944, 96, 4304)] == [128, 64, 64, 32, None]
    with pytest.raises(ValueError, match=r"rows of 4304 weights cannot be held in int4: .*int8"):
        quantize_int4(torch.zeros(64, 4304))

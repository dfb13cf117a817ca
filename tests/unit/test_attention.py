from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from vl2.ops import attention as ops_attention
from vl2.ops.attention import attention, attention_ref, decoder_mask, patch_attention
from vl2.ops.row_sizes import next_size

CASES = [(4, 4, 16, 16), (4, 2, 16, 16), (4, 4, 24, 16)]


@pytest.mark.parametrize(("heads", "kv_heads", "width", "value_width"), CASES)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_its_plain_twin(heads, kv_heads, width, value_width, masked):
    q = torch.randn(2, heads, 5, width)
    k, v = torch.randn(2, kv_heads, 5, width), torch.randn(2, kv_heads, 5, value_width)
    mask = None
    if masked:
        real = torch.tensor([[False, False, True, True, True], [True] * 5])
        mask = decoder_mask(5, 5, device=q.device, attention_mask=real)
    got = attention(q, k, v, scale=0.2, mask=mask, causal=not masked)
    want = attention_ref(q, k, v, scale=0.2, mask=mask, causal=not masked)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)  # worst measured 4e-7
    assert got.isfinite().all()


@pytest.mark.parametrize(("rows", "keys"), [(17, 17), (70, 70), (21, 85), (40, 47)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_filled_up_to_few_sizes_equals_its_plain_twin(
    monkeypatch: pytest.MonkeyPatch, rows: int, keys: int, masked: bool
):
    monkeypatch.setattr(ops_attention, "few_sizes", lambda x: True)
    q, k, v = torch.randn(2, 4, rows, 24), torch.randn(2, 2, keys, 24), torch.randn(2, 2, keys, 16)
    how: dict = {"causal": rows == keys}
    if masked:
        real = torch.ones(2, keys, dtype=torch.bool)
        real[0, :5] = False
        how = {"mask": decoder_mask(rows, keys, device=q.device, attention_mask=real)}
    used: set[tuple[int, int]] = set()

    plain = F.scaled_dot_product_attention

    def fused(query: torch.Tensor, key: torch.Tensor, *rest, **more) -> torch.Tensor:
        used.add((query.shape[2], key.shape[2]))
        return plain(query, key, *rest, **more)

    with mock.patch.object(ops_attention.F, "scaled_dot_product_attention", fused):
        got = attention(q, k, v, scale=0.2, **how)
    assert used == {(next_size(rows), next_size(keys))}
    want = attention_ref(q, k, v, scale=0.2, **how)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)  # worst measured 5e-7


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 0.02)])
def test_attention_of_patches_equals_its_plain_twin_forward_and_backward(dtype, error):
    generator = torch.Generator().manual_seed(3)
    plain = [torch.randn(2, 2, 25, 32, generator=generator) for _ in range(3)]
    given = [x.to(dtype).requires_grad_() for x in plain]
    wanted = [x.to(dtype).float().requires_grad_() for x in plain]
    out = patch_attention(*given)
    reference = attention_ref(*wanted, scale=32**-0.5)
    assert torch.allclose(out.float(), reference, atol=error)
    for x, y in zip(given, wanted, strict=True):
        [got] = torch.autograd.grad(out.float().square().sum(), x, retain_graph=True)
        [want] = torch.autograd.grad(reference.square().sum(), y, retain_graph=True)
        assert torch.allclose(got.float(), want, atol=4 * error)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_attention_that_trains_in_bfloat16_is_that_of_float32(causal: bool, packed: bool):
    generator = torch.Generator().manual_seed(0)
    widths = (24, 24, 16)  # keys are wider than values, as in MLA
    plain = [torch.randn(2, 3, 20, width, generator=generator) for width in widths]
    given = [x.bfloat16().requires_grad_() for x in plain]
    wanted = [x.bfloat16().float().requires_grad_() for x in plain]
    mask = None
    if packed:
        segments = torch.arange(20).div(7, rounding_mode="floor").expand(2, -1)
        real = torch.rand(2, 20, generator=generator) < 0.9
        place = torch.device("cpu")
        mask = decoder_mask(20, 20, device=place, attention_mask=real, segment_ids=segments)
    with mock.patch("torch.cpu._is_amx_tile_supported", return_value=True):
        out = attention(*given, scale=0.2, mask=mask, causal=causal and not packed)
    reference = attention_ref(*wanted, scale=0.2, mask=mask, causal=causal and not packed)
    assert torch.allclose(out.float(), reference, atol=0.02)
    for x, y in zip(given, wanted, strict=True):
        [got] = torch.autograd.grad(out.float().square().sum(), x, retain_graph=True)
        [want] = torch.autograd.grad(reference.square().sum(), y, retain_graph=True)
        assert torch.allclose(got.float(), want, atol=0.1)


def test_decoder_mask_hides_the_future_padding_and_other_segments():
    real = torch.tensor([[False, True, True, True, True]])
    segments = torch.tensor([[0, 0, 1, 2, 2]])
    mask = decoder_mask(2, 5, device=torch.device("cpu"), attention_mask=real, segment_ids=segments)
    assert mask[0, 0].tolist() == [
        [False, True, False, True, False],
        [False, True, False, True, True],
    ]

"""Best tokens and log-probabilities against PyTorch's own in double precision."""

from __future__ import annotations

import pytest
import torch

from vl2.ops.logits import row_peaks


@pytest.mark.parametrize("width", [1, 5, 300, 20000])
def test_peaks_of_logits_are_the_best_tokens_and_their_log_probabilities(width: int):
    logits = torch.randn(4, width) * 4
    logits[1, width // 3 :] = -torch.inf  # from 1 logit to most of them, that nobody may choose
    logits[1, 0] = 1.0
    logits[2, [width // 2, -1]] = 50.0  # of equals the first, and all but certain
    peaks = row_peaks(logits)
    exact = logits.double().log_softmax(dim=-1)
    assert torch.equal(peaks.best, logits.argmax(dim=-1))
    assert peaks.best[2] == width // 2
    assert torch.equal(peaks.highest, logits.amax(dim=-1))
    found = peaks.logprobs(logits).double()
    assert torch.allclose(found, exact, rtol=1e-6, atol=1e-6)
    assert torch.allclose(found.exp(), exact.exp(), rtol=1e-5, atol=0)
    others = exact.exp().scatter(-1, peaks.best[:, None], 0.0).sum(dim=-1)
    best = exact.gather(-1, peaks.best[:, None])[:, 0].exp()
    assert torch.allclose(peaks.rest.double(), others / best, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 9000, 19999])
def test_rows_with_what_is_no_number_have_no_logprobs(wrong: float, place: int):
    logits = torch.full((3, 20000), -torch.inf)
    logits[0, place], logits[1, 1] = wrong, 0.0
    logprobs = row_peaks(logits).logprobs(logits[:, [1]])
    assert logprobs.isnan()[:, 0].tolist() == [True, False, True]

"""Steps over paged pools against the plain model: any split, any place, side by side."""

from dataclasses import replace

import pytest
import torch

from vl2.config import VL2Config
from vl2.model.vl2 import VL2Model
from vl2.ops.paged import PagedStep, Span, empty_pools

CLOSE = {"rtol": 1e-4, "atol": 2e-5}  # measured: 4e-6
CPU = torch.device("cpu")
PLAIN_HEADS = {
    "use_mla": False,
    "kv_lora_rank": None,
    "qk_nope_head_dim": 0,
    "qk_rope_head_dim": 0,
    "v_head_dim": 0,
}


@pytest.fixture(scope="module", params=["mla", "mha"])
def model(request) -> VL2Model:
    config = VL2Config.nano()
    changes = PLAIN_HEADS if request.param == "mha" else {}
    language = replace(config.language_config, num_hidden_layers=2, **changes)
    built = VL2Model(replace(config, language_config=language))
    built.init_weights(torch.Generator().manual_seed(3))
    return built.eval()


def run_step(model, pools, embeds, parts, *, absorbed=0):
    """One step; parts are (tokens, runs) of the sequences whose new embeddings are given."""
    spans, slots, positions = [], [], []
    for place, (tokens, runs) in enumerate(parts):
        places = [slot for first, end in runs for slot in range(first, end)]
        spans.append(Span.over(tokens, runs, device=CPU, absorbed=place < absorbed))
        slots += places[-tokens:]
        positions += range(len(places) - tokens, len(places))
    pages = PagedStep(pools=pools, slots=torch.tensor(slots), spans=tuple(spans), absorbed=absorbed)
    with torch.inference_mode():
        return model.language.step(torch.cat(embeds, dim=1), torch.tensor([positions]), pages)


def embeds_of(model, tokens: int, seed: int) -> torch.Tensor:
    width = model.config.language_config.hidden_size
    return torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("absorbed", [0, 2])
def test_sequences_side_by_side_in_scattered_runs_equal_each_alone(model, absorbed):
    one, two = embeds_of(model, 9, 1), embeds_of(model, 7, 2)
    runs = [((16, 20), (4, 9)), ((30, 37),)]
    pools = empty_pools(model.config.language_config, 40, device=CPU, dtype=torch.float32)
    run_step(model, pools, [one[:, :6]], [(6, ((16, 20), (4, 6)))])
    run_step(model, pools, [two[:, :4]], [(4, ((30, 34),))])
    hidden = run_step(
        model, pools, [one[:, 6:], two[:, 4:]], [(3, runs[0]), (3, runs[1])], absorbed=absorbed
    )
    with torch.inference_mode():
        wanted = [model.language(states).hidden[:, -3:] for states in (one, two)]
    torch.testing.assert_close(hidden, torch.cat(wanted, dim=1), **CLOSE)


def test_a_short_span_stands_before_a_whole_prompt(model):
    one, two = embeds_of(model, 5, 4), embeds_of(model, 12, 5)
    pools = empty_pools(model.config.language_config, 40, device=CPU, dtype=torch.float32)
    run_step(model, pools, [one[:, :4]], [(4, ((0, 4),))])
    hidden = run_step(
        model, pools, [one[:, 4:], two], [(1, ((0, 5),)), (12, ((20, 32),))], absorbed=1
    )
    with torch.inference_mode():
        wanted = [model.language(one).hidden[:, -1:], model.language(two).hidden]
    torch.testing.assert_close(hidden, torch.cat(wanted, dim=1), **CLOSE)


def test_rows_in_one_run_are_read_in_place(model):
    pool = torch.randn(32, 4)
    one_run = Span.over(1, ((3, 9),), device=CPU, absorbed=False)
    assert one_run.read(pool).data_ptr() == pool[3].data_ptr()
    two_runs = Span.over(1, ((3, 9), (12, 14)), device=CPU, absorbed=False)
    assert torch.equal(two_runs.read(pool), pool[[3, 4, 5, 6, 7, 8, 12, 13]])

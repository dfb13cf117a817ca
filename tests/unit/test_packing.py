"""Questions that share a picture: packed, they compute what each computes alone."""

from dataclasses import replace

import pytest
import torch

from vl2.config import VL2Config
from vl2.data.packing import common_prefix, share_prefix
from vl2.model.vl2 import VL2Model
from vl2.ops.loss import IGNORE_ID
from vl2.processing.inputs import ModelInputs


def sample(ids: list[int], pictures: int = 0) -> ModelInputs:
    tensor = torch.tensor(ids)
    mask = torch.zeros_like(tensor, dtype=torch.bool)
    mask[1 : 1 + pictures] = True
    torch.manual_seed(1)
    return ModelInputs(
        input_ids=tensor,
        labels=tensor.masked_fill(mask, IGNORE_ID),
        images=torch.randn(2, 3, 112, 112),
        images_seq_mask=mask,
        images_spatial_crop=torch.tensor([[1, 1]]),
        image_sizes=((112, 112),),
        notes=(),
    )


def test_common_prefix_leaves_each_row_something():
    assert common_prefix([torch.tensor([1, 2, 3]), torch.tensor([1, 2, 4, 5])]) == 2
    assert common_prefix([torch.tensor([1, 2]), torch.tensor([1, 2, 4])]) == 1


def test_a_packed_row_has_segments_positions_and_no_borrowed_targets():
    row = share_prefix([sample([7, 8, 9, 1, 2]), sample([7, 8, 9, 3]), sample([7, 8, 9, 4, 5, 6])])
    assert row.input_ids.tolist() == [7, 8, 9, 1, 2, 3, 4, 5, 6]
    assert row.segment_ids.tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 3]
    assert row.position_ids.tolist() == [0, 1, 2, 3, 4, 3, 3, 4, 5]
    assert row.labels.tolist() == [7, 8, 9, -100, 2, -100, -100, 5, 6]


def test_one_sample_is_one_segment():
    row = share_prefix([sample([7, 8, 9])])
    assert row.segment_ids.tolist() == [1, 1, 1]
    assert row.position_ids.tolist() == [0, 1, 2]


def test_different_pictures_are_refused():
    with pytest.raises(ValueError, match="pack only one picture's"):
        share_prefix([sample([1, 5, 5, 5], pictures=2), sample([2, 5, 5, 6], pictures=2)])


@torch.no_grad()
def test_packed_logits_equal_those_of_each_sample_alone():
    nano = VL2Config.nano()
    language = replace(nano.language_config, num_hidden_layers=2, vocab_size=64)
    model = VL2Model(replace(nano, language_config=language))
    model.init_weights(torch.Generator().manual_seed(0))
    model.eval()
    start = [2, *[5] * 41, 9]
    samples = [sample([*start, *rest], pictures=41) for rest in ([10, 11], [12, 13, 14], [15])]
    row = share_prefix(samples)
    picture = (samples[0].images[None], row.images_seq_mask[None])
    packed = model(
        row.input_ids[None],
        *picture,
        samples[0].images_spatial_crop[None],
        segment_ids=row.segment_ids[None],
        position_ids=row.position_ids[None],
    ).logits[0]
    for number, alone in enumerate(samples, start=1):
        wanted = model(
            alone.input_ids[None],
            alone.images[None],
            alone.images_seq_mask[None],
            alone.images_spatial_crop[None],
        ).logits[0]
        own = packed[row.segment_ids == number]
        # worst measured 2e-6
        torch.testing.assert_close(own, wanted[-len(own) :], atol=2e-5, rtol=1e-4)

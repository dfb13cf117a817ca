from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from PIL import Image

from vl2.config import VL2Config
from vl2.data.collate import Sample, collate_rows
from vl2.data.encode import encode_record
from vl2.data.records import Record, Turn
from vl2.model.vl2 import VL2Model
from vl2.ops.loss import IGNORE_ID, token_losses
from vl2.processing.processor import Processor


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_pretrained("nano").with_settings(max_tiled_images=2)


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), (number * 40 % 256, 90, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def talk(source: str, number: int, *, pictures: int = 0, words: int = 3) -> Record:
    said = "<image>" * pictures + f" what is {number}?"
    answer = " ".join(["a", "red", "dog", "ran", "over", "green", "hills", "and", "on"][:words])
    return Record(
        id=f"{source}-{number}",
        source=source,
        images=tuple(png(number + i) for i in range(pictures)),
        turns=(Turn(role="user", text=said), Turn(role="assistant", text=answer)),
    )


def sample_of(record: Record, processor: Processor, source: int = 0) -> Sample:
    inputs = encode_record(record, processor)
    return Sample(source=source, position=0, row=0, id=record.id, inputs=inputs)


def small_model() -> VL2Model:
    nano = VL2Config.nano()
    model = VL2Model(
        replace(
            nano,
            language_config=replace(nano.language_config, num_hidden_layers=2),
            vision_config=replace(nano.vision_config, layers=1),
        )
    )
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval()


@torch.no_grad()
def test_a_packed_row_computes_what_its_samples_compute_alone(processor: Processor):
    model = small_model()
    records = [talk("a", 0, pictures=1), talk("a", 1, words=9), talk("a", 2, pictures=2)]
    samples = [sample_of(record, processor, source=i) for i, record in enumerate(records)]

    def losses(rows: list[list[Sample]], **settings) -> torch.Tensor:
        tensors = dict(collate_rows(rows, pad_id=0, **settings).tensors)
        labels = tensors.pop("labels")
        hidden = model(**tensors, logits="none").language.hidden
        return token_losses(hidden, model.language.lm_head.weight, labels)

    alone = torch.cat([losses([[sample]]) for sample in samples])
    order = [samples[2], samples[0]]
    padded = losses([[samples[0], samples[1]], [samples[2]]])
    assert torch.allclose(padded, alone, atol=1e-5)
    swapped = losses([order])
    assert not torch.allclose(swapped, losses([order], isolate_documents=False), atol=1e-3)
    assert torch.allclose(swapped, torch.cat([losses([[s]]) for s in order]), atol=1e-5)


def test_a_packed_row_has_segments_positions_sources_and_no_borrowed_targets(processor: Processor):
    first, second = talk("a", 0), talk("b", 1, pictures=1)
    samples = [sample_of(first, processor), sample_of(second, processor, source=1)]
    whole = replace(
        samples[1], inputs=replace(samples[1].inputs, labels=samples[1].inputs.input_ids)
    )
    batch = collate_rows([[samples[0], whole], [samples[0]]], pad_id=9, source_names=("a", "b"))
    cut, second_length = (len(s.inputs.input_ids) for s in samples)
    length = cut + second_length
    t = batch.tensors
    assert t["input_ids"].shape == (2, length)
    assert t["segment_ids"][0].tolist() == [1] * cut + [2] * (length - cut)
    assert t["segment_ids"][1].tolist() == [1] * cut + [-1] * (length - cut)
    assert t["position_ids"][0].tolist() == [*range(cut), *range(length - cut)]
    assert t["labels"][0, cut] == IGNORE_ID
    assert t["labels"][0, cut + 1] == samples[1].inputs.input_ids[1]
    assert (t["labels"][1, cut:] == IGNORE_ID).all()
    assert (t["input_ids"][1, cut:] == 9).all()
    assert t["attention_mask"].sum(dim=1).tolist() == [length, cut]
    assert batch.source_ids[0].tolist() == [0] * cut + [1] * (length - cut)
    assert batch.source_ids[1].tolist() == [0] * cut + [-1] * (length - cut)
    assert torch.equal(t["images"][0], samples[1].inputs.images)
    assert t["images_spatial_crop"].tolist() == [[[1, 1]], [[0, 0]]]
    assert (batch.tokens, batch.images, batch.tiles) == (length + cut, 1, 2)
    assert batch.supervised == int((t["labels"] != IGNORE_ID).sum())
    assert [(s.source, s.id) for s in batch.samples] == [(0, "a-0"), (1, "b-1"), (0, "a-0")]
    assert all(s.inputs is None for s in batch.samples)


def test_the_unisolated_variant_shares_a_segment_but_restarts_positions(processor: Processor):
    samples = [sample_of(talk("a", i), processor) for i in range(2)]
    t = collate_rows([samples], pad_id=0, isolate_documents=False).tensors
    assert (t["segment_ids"] == 1).all()
    cut = len(samples[0].inputs.input_ids)
    assert t["position_ids"][0, cut] == 0
    assert t["labels"][0, cut] == IGNORE_ID


@torch.no_grad()
def test_text_alone_and_empty_rows_go_through_the_model(processor: Processor):
    model = small_model()
    sample = sample_of(talk("a", 0), processor)
    nothing = replace(sample, id="", inputs=None)
    for rows in ([[sample], []], [[sample], [nothing]], [[]], [[nothing]]):
        batch = collate_rows(rows, pad_id=0)
        assert not any(name.startswith("images") for name in batch.tensors)
        out = model(**batch.tensors)
        assert out.loss is not None
        assert torch.isfinite(out.loss)

"""The task: gradients do not depend on how a step is cut, and its figures say what they name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vl2 import geometry
from vl2.config import VL2Config
from vl2.data.collate import PAD_SEGMENT, Sample, TrainBatch, collate_rows
from vl2.geometry import TileGrid
from vl2.model.vl2 import VL2Model
from vl2.ops.loss import IGNORE_ID
from vl2.processing.inputs import ModelInputs
from vl2.train import task
from vl2.train.config import BalanceConfig
from vl2.train.optim import freeze
from vl2.train.task import LanguageTask, Task

NAMES = ("web", "books")


def model_of(preset: str = "debug_base", **language) -> VL2Model:
    config = VL2Config.preset(preset)
    config = replace(config, language_config=replace(config.language_config, **language))
    model = VL2Model(config)
    model.init_weights(torch.Generator().manual_seed(0))
    freeze(model, ("",))
    return model.train()


def sample(number: int, text: int, learnt: int, *, picture: bool = False) -> Sample:
    """`text` random tokens behind the picture's; the last `learnt` are supervised."""
    config = VL2Config.preset("debug_base")
    size = config.vision_config.image_size
    generator = torch.Generator().manual_seed(number)
    grid = TileGrid(wide=1, high=1) if picture else None
    places = geometry.image_tokens(config.tokens_per_side, grid) if grid else 0
    ids = torch.randint(10, 2000, (places + text,), generator=generator)
    labels = ids.clone()
    labels[: len(ids) - learnt] = IGNORE_ID
    inputs = ModelInputs(
        input_ids=ids,
        labels=labels,
        images=torch.randn(grid.tiles if grid else 1, 3, size, size, generator=generator),
        images_seq_mask=torch.arange(len(ids)) < places,
        images_spatial_crop=torch.tensor([[1, 1] if picture else [0, 0]]),
    )
    return Sample(source=number % 2, position=0, row=0, inputs=inputs)


def batch_of(*rows: list[Sample], pad_to: int = 0) -> TrainBatch:
    batch = collate_rows(rows, pad_id=2, source_names=NAMES)
    fill = {"input_ids": 2, "labels": IGNORE_ID, "segment_ids": PAD_SEGMENT}
    per_token = {k: v for k, v in batch.tensors.items() if v.shape == batch.source_ids.shape}
    more = (0, max(pad_to - batch.source_ids.shape[1], 0))
    padded = {k: F.pad(v, more, value=fill.get(k, 0)) for k, v in per_token.items()}
    source_ids = F.pad(batch.source_ids, more, value=-1)
    return replace(batch, tensors={**batch.tensors, **padded}, source_ids=source_ids)


def mixed_rows() -> list[list[Sample]]:
    """Rows of unequal length and supervision, packed and not, with and without pictures."""
    return [
        [sample(0, 30, 20, picture=True)],
        [sample(1, 9, 1)],
        [sample(2, 14, 3), sample(3, 20, 17, picture=True)],
        [sample(5, 40, 0)],
    ]


def gradients(model: VL2Model) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def relative(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest difference of a gradient's tensor relative to its norm."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[n] - g).norm() / g.norm().clamp(min=1e-12)) for n, g in theirs.items())


def run(
    batches: list[TrainBatch], preset: str = "debug_base", balance: BalanceConfig | None = None
) -> tuple[float, dict[str, float], dict[str, Tensor]]:
    model = model_of(preset)
    report = LanguageTask(model, balance or BalanceConfig()).accumulate(batches)
    return report.loss, report.values, gradients(model)


@pytest.mark.parametrize("preset", ["debug_tiny", "debug_base"])
@pytest.mark.parametrize("pad_to", [0, 90])
def test_cutting_a_step_into_micro_batches_changes_nothing(preset: str, pad_to: int):
    rows = mixed_rows()
    balance = BalanceConfig(loss_weight=0.5)  # heavy, so that a wrong share would show
    loss, values, whole = run([batch_of(*rows, pad_to=90)], preset, balance)
    cuts = ([rows[:1], rows[1:2], rows[2:3], rows[3:]], [rows[:3], rows[3:]])
    for cut in cuts:
        micro = [batch_of(*part, pad_to=pad_to) for part in cut]
        other_loss, other_values, parts = run(micro, preset, balance)
        assert other_loss == pytest.approx(loss, rel=1e-6)
        assert other_values == pytest.approx(values, rel=1e-5)
        assert relative(parts, whole) < 1e-6


def test_the_loss_is_the_mean_over_the_supervised_tokens_of_the_step():
    model = model_of()
    rows = mixed_rows()
    task = LanguageTask(model, BalanceConfig(loss_weight=0.0))
    loss = task.accumulate([batch_of(row) for row in rows]).loss
    total, count = 0.0, 0
    for row in rows:
        tensors = dict(batch_of(row).tensors)
        labels = tensors.pop("labels")
        with torch.no_grad():
            logits = model(**tensors).logits[:, :-1]
        target = labels[:, 1:]
        wanted = target != IGNORE_ID
        total += float(-logits.log_softmax(-1)[wanted].gather(-1, target[wanted][:, None]).sum())
        count += int(wanted.sum())
    assert count == 20 + 1 + 3 + 17
    assert loss == pytest.approx(total / count, rel=1e-5)


def test_loss_per_source_is_the_mean_over_its_own_tokens():
    first, second = sample(2, 12, 5), sample(3, 20, 2)
    both = run([batch_of([first, second])])
    alone = [run([batch_of([one])])[0] for one in (first, second)]
    assert both[1]["loss/web"] == pytest.approx(alone[0], rel=1e-5)
    assert both[1]["loss/books"] == pytest.approx(alone[1], rel=1e-5)
    assert both[0] == pytest.approx((5 * alone[0] + 2 * alone[1]) / 7, rel=1e-5)
    only = run([batch_of([sample(2, 12, 5)]), batch_of([sample(3, 20, 0)])])[1]
    assert "loss/books" not in only  # nothing of it was learnt


def test_the_weight_of_the_balance_loss_replaces_alpha():
    rows = mixed_rows()

    def measured(weight: float | None) -> tuple[float, dict[str, Tensor]]:
        _, values, found = run([batch_of(*rows)], balance=BalanceConfig(loss_weight=weight))
        return values["balance_loss"], found

    none, without = measured(0.0)
    own, _ = measured(None)
    one, single = measured(1.0)
    ten, tenfold = measured(10.0)
    alpha = VL2Config.preset("debug_base").language_config.aux_loss_alpha
    assert none == 0.0
    assert own == pytest.approx(alpha * one, rel=1e-5)
    assert ten == pytest.approx(10 * one, rel=1e-5)
    name = "language.model.layers.1.mlp.gate.weight"
    change, larger = (found[name] - without[name] for found in (single, tenfold))
    assert change.norm() > 1e-3
    assert torch.allclose(larger, 10 * change, rtol=1e-3, atol=1e-6)


def test_padding_is_in_no_load_and_no_loss():
    rows = mixed_rows()
    model = model_of()
    task = LanguageTask(model, BalanceConfig())
    loads = []
    for pad_to in (0, 200):
        task.accumulate([batch_of(*rows, pad_to=pad_to)])
        loads.append(task.balancer.loads.clone())
    assert torch.equal(loads[0], loads[1])
    pictures = sum(int(s.inputs.images_seq_mask.sum()) for row in rows for s in row)
    tokens = sum(len(s.inputs.input_ids) for row in rows for s in row)
    chosen = model.config.language_config.num_experts_per_tok
    assert chosen is not None
    assert loads[0].sum(-1).tolist() == [
        [chosen * (tokens - pictures)] * 2,
        [chosen * pictures] * 2,
    ]


def test_a_step_without_pictures_and_a_row_without_samples():
    loss, values, found = run([batch_of([sample(2, 12, 5)], [])])
    alone, _, _ = run([batch_of([sample(2, 12, 5)])])
    assert loss == pytest.approx(alone, rel=1e-6)
    assert "load_text" in values
    assert "load_image" not in values
    assert not any(name.startswith(("vision", "projector")) for name in found)


def test_a_step_without_supervised_tokens_has_no_loss_and_no_gradient():
    rows = [[sample(0, 30, 0, picture=True)], [sample(1, 9, 0)]]
    loss, values, found = run([batch_of(*rows)], balance=BalanceConfig(loss_weight=0.0))
    assert loss == 0.0
    assert not [name for name in values if name.startswith("loss/")]
    assert all(not grad.any() for grad in found.values())
    router = "language.model.layers.1.mlp.gate.weight"
    balanced = run([batch_of(*rows)])[2]
    assert balanced[router].any()  # the balance loss still teaches


def test_a_label_of_a_first_token_is_not_counted():
    batch = batch_of([sample(2, 12, 5)])
    whole = run([batch])[0]
    batch.tensors["labels"][:, 0] = 7  # nothing comes before it
    assert run([batch])[0] == whole


def test_biases_move_after_the_step_and_not_when_it_is_thrown_away():
    model = model_of()
    task = LanguageTask(model, BalanceConfig(bias_step=0.25))
    assert isinstance(task, Task)
    biases = [router.e_score_correction_bias for router in task.balancer.routers]
    task.accumulate([batch_of(row) for row in mixed_rows()])
    assert not any(bias.any() for bias in biases)
    task.discard()
    task.after_step()
    assert not any(bias.any() for bias in biases)
    task.accumulate([batch_of(row) for row in mixed_rows()])
    task.after_step()
    assert all(set(bias.abs().tolist()) <= {0.0, 0.25} and bias.any() for bias in biases)


def test_a_repeated_computation_counts_its_loads_once():
    task = LanguageTask(model_of(), BalanceConfig())
    task.accumulate([batch_of([sample(2, 12, 5)])])
    once = task.balancer.loads.clone()
    task.accumulate([batch_of([sample(2, 12, 5)])])
    assert torch.equal(task.balancer.loads, once)


def test_gradients_add_up_in_float32_under_autocast():
    model = model_of()
    report = LanguageTask(model, BalanceConfig(), autocast=True).accumulate(
        [batch_of(row) for row in mixed_rows()]
    )
    exact, _, _ = run([batch_of(row) for row in mixed_rows()])
    assert report.loss == pytest.approx(exact, rel=5e-3)
    assert report.loss != exact
    assert all(grad.dtype == torch.float32 for grad in gradients(model).values())


def test_a_weight_without_an_alpha_is_refused():
    with pytest.raises(ValueError, match=r"loss_weight is 0\.5.*aux_loss_alpha 0.*leave"):
        LanguageTask(model_of(aux_loss_alpha=0.0), BalanceConfig(loss_weight=0.5))


def test_a_step_of_a_model_without_a_bias_is_refused():
    with pytest.raises(ValueError, match=r"bias_step is 0\.001.*set it to 0"):
        LanguageTask(model_of("debug_tiny"), BalanceConfig(bias_step=0.001))


@pytest.mark.parametrize("twin", [False, True])
def test_bfloat16_learns_as_float32_does(monkeypatch: pytest.MonkeyPatch, twin: bool):
    monkeypatch.setattr(task, "_takes_twin", lambda model: twin)
    batches = [batch_of(*mixed_rows()[n : n + 2]) for n in (0, 2)]
    losses = []
    for autocast in (False, True):
        model = model_of()
        trained = LanguageTask(model, BalanceConfig(bias_step=0.01), autocast=autocast)
        assert (trained.twin is not None) == (twin and autocast)
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
        for _ in range(12):
            report = trained.accumulate(batches)
            optimizer.step()
            optimizer.zero_grad()
            trained.after_step()
        losses.append(report.loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)  # measured: 0.003
    assert losses[0] < 5.0  # of 7.6 at the start

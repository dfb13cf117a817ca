"""A pipeline of stages computes what one process does, wherever the model is cut."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
import torch.distributed as dist
from tests.distributed.launch import run_ranks
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from vl2 import geometry
from vl2.config import VL2Config
from vl2.data.collate import Sample, TrainBatch, collate_rows
from vl2.geometry import TileGrid
from vl2.model.vl2 import VL2Model
from vl2.ops.loss import IGNORE_ID
from vl2.parallel.activation_checkpoint import recompute_activations
from vl2.parallel.pipeline import Pipeline, PipelineStep
from vl2.parallel.pipeline_batch import pad_micro_batches
from vl2.parallel.pipeline_stage import (
    embed,
    keep_units,
    run_tower,
)
from vl2.processing.inputs import ModelInputs
from vl2.train.balance import Balancer
from vl2.train.config import TRAINED, BalanceConfig, OptimConfig
from vl2.train.optim import Optimizers, freeze
from vl2.train.task import LanguageTask

CONFIG = VL2Config.preset("debug_base")
UNITS = 8  # embedding, 2 vision blocks, adaptor, 3 layers, head
BALANCE = BalanceConfig(loss_weight=0.5, bias_step=0.01)  # heavy, so that a wrong share would show
SCALE = 0.5 / CONFIG.language_config.aux_loss_alpha
OPTIM = OptimConfig(learning_rate=1e-3, vision_scale=1.0, schedule="constant")
Rows = list[list[Sample]]
Grid = tuple[int, int]


class Case(NamedTuple):
    """How a model is cut, run and frozen. Two stages run on the last two of the three ranks."""

    cuts: tuple[int, ...]
    schedule: Literal["1f1b", "gpipe"]
    stage: str = "pretrain"
    recompute: Literal["none", "full"] = "none"

    @property
    def ranges(self) -> list[range]:
        return [range(*pair) for pair in itertools.pairwise((0, *self.cuts, UNITS))]


CASES = [
    Case((2,), "1f1b"),  # inside the tower
    Case((5,), "gpipe", recompute="full"),  # inside the language model
    Case((2, 5), "1f1b"),  # both
    Case((2, 5), "gpipe", "align"),
    Case((3, 7), "1f1b", "align"),  # in front of the adaptor and of the frozen head
]


class Run(NamedTuple):
    """What some steps of training did, on one rank."""

    losses: list[float]
    balance: list[float]
    gradients: dict[str, Tensor]  # of the first step
    resting: list[str]  # parameters without a gradient in the step of text alone
    state: dict[str, Tensor]  # parameters and buffers at the end


def sample(number: int, text: int, *grids: Grid) -> Sample:
    """Pictures of the given grids, then `text` random tokens, of which the last half is learnt."""
    size = CONFIG.vision_config.image_size
    generator = torch.Generator().manual_seed(number)
    cuts = [TileGrid(wide=wide, high=high) for wide, high in grids]
    places = sum(geometry.image_tokens(CONFIG.tokens_per_side, cut) for cut in cuts)
    ids = torch.randint(10, 2000, (places + text,), generator=generator)
    tiles = [torch.randn(cut.tiles, 3, size, size, generator=generator) for cut in cuts]
    for views in tiles:
        views[1:] = views[0] if len(views) == 2 else views[1:]  # one tile is its own global view
    inputs = ModelInputs(
        input_ids=ids,
        labels=ids.masked_fill(torch.arange(len(ids)) < len(ids) - text // 2, IGNORE_ID),
        images=torch.cat(tiles) if tiles else torch.zeros(1, 3, size, size),
        images_seq_mask=torch.arange(len(ids)) < places,
        images_spatial_crop=torch.tensor(grids or [(0, 0)]),
    )
    return Sample(source=0, position=0, row=0, inputs=inputs)


def mixed_step(seed: int) -> list[Rows]:
    """Micro batches of two rows: grids of all kinds, packed rows, one batch of text alone."""
    return [
        [[sample(seed, 20, (2, 2))], [sample(seed + 1, 9)]],
        [[sample(seed + 2, 14), sample(seed + 3, 20)], [sample(seed + 4, 30)]],
        [[sample(seed + 5, 8, (1, 2)), sample(seed + 6, 12, (2, 1), (1, 1))], []],
        [[sample(seed + 7, 10, (1, 1))], [sample(seed + 8, 10), sample(seed + 9, 6)]],
    ]


def text_step(seed: int) -> list[Rows]:
    return [[[sample(seed + n, 20)], [sample(seed + n + 4, 7 + n)]] for n in range(4)]


def steps_of(stage: str) -> list[list[Rows]]:
    """The second step is text alone; in `align` nothing would learn from it."""
    steps = [mixed_step(0), mixed_step(40), mixed_step(60)]
    return steps if stage == "align" else [steps[0], text_step(20), *steps[1:]]


def batch_of(rows: Rows) -> TrainBatch:
    return collate_rows(rows, pad_id=2, source_names=("a",))


def tensors_of(step: Sequence[Rows]) -> list[dict[str, Tensor]]:
    return [dict(batch_of(rows).tensors) for rows in step]


def model_of(stage: str = "pretrain") -> VL2Model:
    model = VL2Model(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    freeze(model, TRAINED[stage])
    return model.train()


def state_of(model: VL2Model) -> dict[str, Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def gradients(model: VL2Model) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def one_process(stage: str, balance: BalanceConfig = BALANCE) -> Run:
    """The trainer's own task. `align` gets each step whole: text alone has no gradient there."""
    model = model_of(stage)
    task = LanguageTask(model, balance)
    optimizers = Optimizers(model, OPTIM, steps=4)
    run = Run([], [], {}, [], {})
    for number, step in enumerate(steps_of(stage)):
        whole = [list(itertools.chain(*step))] if stage == "align" else step
        report = task.accumulate([batch_of(rows) for rows in whole])
        run.losses.append(report.loss)
        run.balance.append(report.values["balance_loss"])
        move(run, model, optimizers, task.balancer, number)
    run.state.update(state_of(model))
    return run


def move(
    run: Run, model: VL2Model, optimizers: Optimizers, balancer: Balancer, number: int
) -> None:
    """What follows the gradients of a step."""
    found = gradients(model)
    if number == 0:
        run.gradients.update(found)
    if number == 1:
        run.resting.extend(n for n, _ in model.named_parameters() if n not in found)
    optimizers.set_rates(number)
    optimizers.step()
    optimizers.zero_grad()
    balancer.update()


def stage_of(case: Case, mesh: DeviceMesh, **options: Any) -> tuple[VL2Model, Pipeline]:
    model = model_of(case.stage)
    units = case.ranges[mesh.get_local_rank()]
    keep_units(model, units)
    recompute_activations(model, case.recompute, case.recompute)
    return model, Pipeline(model, mesh, units, schedule=case.schedule, **options)


def run_step(pipeline: Pipeline, step: Sequence[Rows], **more: Any) -> tuple[PipelineStep, int]:
    """The step's report and its number of supervised tokens."""
    batches = tensors_of(step)
    tokens = sum(int((b["labels"][:, 1:] != IGNORE_ID).sum()) for b in batches)
    rows = sum(map(len, step))
    more = {"balance_scale": SCALE, **more}
    return pipeline.step(batches, tokens=tokens, rows=rows, **more), tokens


def one_stage(case: Case, mesh: DeviceMesh) -> Run:
    model, pipeline = stage_of(case, mesh)
    balancer = Balancer(model, BALANCE.bias_step)
    optimizers = Optimizers(model, OPTIM, steps=4)
    run = Run([], [], {}, [], {})
    for number, step in enumerate(steps_of(case.stage)):
        balancer.reset()
        report, tokens = run_step(pipeline, step, observe=balancer.observe)
        assert sum(map(len, report.token_losses)) == (tokens if UNITS - 1 in pipeline.units else 0)
        run.losses.append(report.loss / tokens)
        run.balance.append(report.balance_loss)
        move(run, model, optimizers, balancer, number)
    run.state.update(state_of(model))
    return run


def refusals(mesh: DeviceMesh) -> list[str]:
    """What is wrong with steps that every rank must refuse alike, and go on behind."""
    _, pipeline = stage_of(Case((2, 5), "1f1b"), mesh)
    own = mixed_step(dist.get_rank())
    said = []
    for step in (mixed_step(0)[:2], own, own[:3]):
        with pytest.raises(ValueError, match=r".") as error:
            run_step(pipeline, step)
        said.append(str(error.value))
    run_step(pipeline, mixed_step(0))
    return said


def nothing_to_learn(mesh: DeviceMesh) -> tuple[float, int]:
    """Text alone, and a language model that is frozen."""
    model, pipeline = stage_of(Case((2, 5), "1f1b", "align"), mesh)
    report, _ = run_step(pipeline, text_step(0))
    return report.loss, len(gradients(model))


def on_three_ranks() -> tuple[list[dict[str, Any] | None], list[str], tuple[float, int]]:
    """Everything that needs ranks, in one launch; each `Run` as a dict."""
    warnings.simplefilter("error")
    two, three = DeviceMesh("cpu", [1, 2]), DeviceMesh("cpu", [0, 1, 2])
    runs = []
    for case in CASES:
        mesh = two if len(case.cuts) == 1 else three
        runs.append(one_stage(case, mesh)._asdict() if mesh.get_coordinate() else None)
    return runs, refusals(three), nothing_to_learn(three)


def relative(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest difference of a tensor relative to its norm.

    The key's third of a bias shifts all scores of a query alike: its gradient is zero but for
    rounding, which AdamW blows up to whole steps.
    """
    assert ours.keys() == theirs.keys()
    worst = 0.0
    for name, tensor in theirs.items():
        pair = [ours[name], tensor]
        if name.endswith("attn.qkv.bias"):
            pair = [torch.cat(t.chunk(3)[::2]) for t in pair]
        worst = max(worst, float((pair[0] - pair[1]).norm() / pair[1].norm().clamp(min=1e-12)))
    return worst


@pytest.fixture(scope="module")
def ranks() -> list[tuple[list[Run | None], list[str], tuple[float, int]]]:
    found = run_ranks(3, on_three_ranks)
    return [([run and Run(**run) for run in runs], *more) for runs, *more in found]


@pytest.fixture(scope="module")
def expected() -> dict[str, Run]:
    return {stage: one_process(stage) for stage in ("pretrain", "align")}


@pytest.mark.parametrize("number", range(len(CASES)), ids=map(str, CASES))
def test_stages_train_as_one_process(ranks, expected, against, number: int):
    case = CASES[number]
    runs = [found[0][number] for found in ranks if found[0][number] is not None]
    assert len(runs) == len(case.ranges)
    one, check = expected[case.stage], against("one process")
    for run in runs:
        check.at_most("losses", worst(run.losses, one.losses), 1e-6)
        check.at_most("balance losses", worst(run.balance, one.balance), 1e-6)
    for what, bound in (("gradients", 2e-6), ("state", 3e-5)):  # measured: 1.6e-5 with AMX
        parts = [getattr(run, what) for run in runs]
        together = {name: tensor for part in parts for name, tensor in part.items()}
        assert len(together) == sum(map(len, parts))  # no name on two stages
        check.at_most(what, relative(together, getattr(one, what)), bound)
    assert sorted(itertools.chain(*(run.resting for run in runs))) == sorted(one.resting)


def worst(ours: list[float], theirs: list[float]) -> float:
    return max(abs(a / b - 1) for a, b in zip(ours, theirs, strict=True))


def test_what_the_comparison_sees(expected):
    """The balance loss weighs in the gradients, text alone lets the tower rest, biases move."""
    one, without = expected["pretrain"], one_process("pretrain", BalanceConfig(loss_weight=0.0))
    gates = [name for name in one.gradients if name.endswith("mlp.gate.weight")]
    assert len(gates) == 2
    for name in gates:
        assert relative({name: without.gradients[name]}, {name: one.gradients[name]}) > 0.1
    tower = {n for n in one.gradients if n.startswith(("vision.", "projector.", "image", "view"))}
    assert tower <= set(one.resting)
    assert all(t.any() for n, t in one.state.items() if n.endswith("correction_bias"))


def test_every_rank_refuses_alike_and_goes_on(ranks):
    few, different, fewer_rows = zip(*(said for _, said, _ in ranks), strict=True)
    assert re.match(r"2 micro batches in a step for 3 pipeline stages.*gpipe", few[0])
    assert re.match(r"the ranks of a pipeline got different micro batches.*same", different[0])
    assert "different micro batches" in fewer_rows[0]
    assert all(len(set(said)) == 1 for said in (few, different, fewer_rows))


def test_a_step_without_anything_to_learn_has_a_loss_and_no_gradient(ranks):
    losses, counts = zip(*(nothing for _, _, nothing in ranks), strict=True)
    assert losses[0] > 0
    assert len(set(losses)) == 1
    assert counts == (0, 0, 0)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[DeviceMesh]:
    """A pipeline of one stage in this process, with shape checks on."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield DeviceMesh("cpu", [0])
    dist.destroy_process_group()


WHOLE = Case((), "1f1b")


def test_one_stage_alone(alone, expected):
    one, run = expected["pretrain"], one_stage(WHOLE, alone)
    assert worst(run.losses, one.losses) < 1e-6
    assert relative(run.gradients, one.gradients) < 2e-6
    assert relative(run.state, one.state) < 3e-5  # measured: 1.2e-5 with AMX


def test_text_alone_takes_part_when_others_have_pictures(alone):
    model, pipeline = stage_of(WHOLE, alone)
    run_step(pipeline, text_step(0), pictures=True)
    found = gradients(model)
    unused = {n for n, _ in model.named_parameters() if n.startswith("vision.attn_pool")}
    assert found.keys() == {n for n, _ in model.named_parameters()} - unused
    plain, pipeline = stage_of(WHOLE, alone)
    run_step(pipeline, text_step(0))
    assert relative({n: found[n] for n in gradients(plain)}, gradients(plain)) == 0
    assert not any(g.any() for n, g in found.items() if n not in gradients(plain))


def test_products_in_bfloat16(alone):
    model, pipeline = stage_of(WHOLE, alone, autocast=True)
    report, tokens = run_step(pipeline, mixed_step(0))
    task = LanguageTask(model_of(), BALANCE, autocast=True)
    other = task.accumulate([batch_of(rows) for rows in mixed_step(0)])
    # A pipeline casts each product, the twin computes in bfloat16 throughout: measured 2.4e-4.
    assert report.loss / tokens == pytest.approx(other.loss, rel=4e-4)
    assert all(grad.dtype == torch.float32 for grad in gradients(model).values())


def test_padded_micro_batches_have_one_shape_and_the_model_s_features():
    step = tensors_of(mixed_step(0))
    micro = pad_micro_batches(step, CONFIG)
    assert {m.tensors["input_ids"].shape for m in micro} == {micro[0].tensors["input_ids"].shape}
    assert [m.tiles for m in micro] == [3 + 3 + 1] * 4  # two equal views of (1, 1) are one tile
    assert [[*map(len, m.views)] for m in micro] == [[5], [], [3, 3, 1], [1]]
    model = model_of()
    for given, padded in zip(step, micro, strict=True):
        names = ("images", "images_seq_mask", "images_spatial_crop")
        whole = model.embed_inputs(given["input_ids"], *(given.get(name) for name in names))
        features = run_tower(model, range(UNITS), None, padded)
        ours = embed(model, features, padded)[:, : whole.shape[1]]
        assert torch.allclose(ours, whole, atol=1e-6)


def test_bad_micro_batches_are_refused():
    step = tensors_of(mixed_step(0))
    with pytest.raises(ValueError, match=r"micro batches of \[2, 1\] rows.*data\.micro_batch"):
        pad_micro_batches([step[0], {n: t[:1] for n, t in step[1].items()}], CONFIG)
    with pytest.raises(ValueError, match=r"micro batches of \[\] rows"):
        pad_micro_batches([], CONFIG)
    with pytest.raises(ValueError, match=r"does not take \['images_high'\]"):
        pad_micro_batches([{**step[0], "images_high": torch.zeros(1)}], CONFIG)
    mask = torch.zeros_like(step[0]["images_seq_mask"])
    with pytest.raises(ValueError, match=r"0 image placeholders for 27 image features"):
        pad_micro_batches([{**step[0], "images_seq_mask": mask}], CONFIG)

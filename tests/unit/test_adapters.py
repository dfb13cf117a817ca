"""Adapters beside their base in one engine: each answers as it would alone."""

import asyncio
import copy
from pathlib import Path

import pytest
import torch
from tests.unit.small_engines import ATTENTION, MIXED, engine_of, picture, random_model, user

from vl2.checkpoint.lora_files import load_lora, save_lora
from vl2.engine import model_runner
from vl2.engine.async_engine import AsyncEngine
from vl2.engine.config import EngineConfig, SamplingParams
from vl2.engine.engine import Engine
from vl2.model.lora import lora_layers
from vl2.model.quantized import default_plan, quantize_modules
from vl2.model.vl2 import VL2Model
from vl2.train.lora import TARGETS, LoraConfig, apply_lora

PARAMS = SamplingParams(max_tokens=8, ignore_eos=True)
TARGETED = {
    "words": ("attention", "dense", "experts"),
    "sight": tuple(TARGETS),
    "few": ("experts",),
}


def adapter_of(model: VL2Model, folder: Path, targets: tuple[str, ...], seed: int) -> Path:
    adapted = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    apply_lora(adapted, LoraConfig(rank=4, targets=targets), generator)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(0, 0.1, generator=generator)
    save_lora(adapted, folder, base_model="base")
    return folder


@pytest.fixture(scope="module", params=ATTENTION)
def model(request: pytest.FixtureRequest) -> VL2Model:
    return random_model(request.param)


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: adapter_of(model, folder / name, targets, seed)
        for seed, (name, targets) in enumerate(TARGETED.items())
    }


def served(model: VL2Model, folders: dict[str, Path], **sizes) -> Engine:
    processor = engine_of(model, num_blocks=300).processor
    return Engine(model, processor, EngineConfig(**sizes), adapters=folders)


def alone(model: VL2Model, folder: Path | None) -> list[list[int]]:
    """Tokens of an engine whose model has the adapter for good."""
    adapted = copy.deepcopy(model)
    if folder is not None:
        load_lora(adapted, folder)
    return [answer.token_ids for answer in engine_of(adapted).generate(MIXED, PARAMS)]


@pytest.fixture(scope="module")
def expected(model, folders) -> dict[str | None, list[list[int]]]:
    found = {name: alone(model, folders.get(name)) for name in (None, *folders)}
    assert len({str(tokens) for tokens in found.values()}) == len(found)
    return found


SIZES = [
    {},
    {"block_size": 4, "max_num_batched_tokens": 61},
    {"num_blocks": 30, "max_model_len": 380, "max_num_seqs": 5},  # some give up their blocks
    {"enable_prefix_caching": False, "vision_cache_gib": 0.0, "speculative_tokens": 2},
]


@pytest.mark.parametrize("sizes", SIZES)
def test_base_and_adapters_in_one_batch_answer_as_each_alone(model, folders, expected, sizes):
    engine = served(model, folders, **sizes)
    names = [None, *folders]
    asked = [(name, number) for number in range(len(MIXED)) for name in names]
    for order in (asked, asked[::-1]):  # the second time much is found in the caches
        answers = engine.generate(
            [MIXED[number] for _, number in order], PARAMS, adapter=[name for name, _ in order]
        )
        for (name, number), answer in zip(order, answers, strict=True):
            assert answer.token_ids == expected[name][number], (name, number)
    assert not lora_layers(model)


def test_adapters_run_beside_a_batch_that_decodes_on_a_card(model, folders, expected, monkeypatch):
    monkeypatch.setattr(model_runner, "decodes_together", lambda device: True)
    engine = served(model, folders)
    decoding, together = engine._runner.decoding, []
    run = decoding.run
    monkeypatch.setattr(decoding, "run", lambda items: together.extend(items) or run(items))
    names = [None, "words", None, "sight"]
    answers = engine.generate(MIXED, PARAMS, adapter=names)
    # What was recorded on a card holds the base's layers.
    assert {item.sequence.adapter for item in together} == {None}
    for number, (name, answer) in enumerate(zip(names, answers, strict=True)):
        assert answer.token_ids == expected[name][number]


def test_nothing_computed_under_another_adapter_is_found(model, folders):
    twin = {**folders, "twin": folders["words"]}
    engine = served(model, twin, block_size=4)
    talk = user("What is the total price of all that?", picture(200, 90))

    def cached(name: str | None) -> int:
        [answer] = engine.generate([talk], PARAMS, adapter=name)
        return answer.usage.cached_tokens

    for name in (None, *folders):
        assert cached(name) == 0
        assert cached(name) > 0
    assert cached("twin") > 0  # the same files under another name
    # Features are the base's own where an adapter does not change them.
    assert engine.stats.tiles_encoded == 2 * len(engine.processor(talk).images)


def test_streams_and_traces_are_of_their_adapter(model, folders, expected):
    engine = served(model, folders)
    params = SamplingParams(max_tokens=8, ignore_eos=True, trace=True)

    async def ask() -> list[list[int]]:
        async with AsyncEngine(engine) as answers:
            found = await asyncio.gather(
                *(answers.generate(MIXED[1], params, adapter=name) for name in (None, *folders))
            )
            with pytest.raises(ValueError, match="adapter is 'other': expected one"):
                await answers.generate(MIXED[1], adapter="other")
        assert all(one.trace is not None for answers in found for one in answers)
        return [one.token_ids for answers in found for one in answers]

    assert asyncio.run(ask()) == [expected[name][1] for name in (None, *folders)]


def test_a_request_that_fails_leaves_the_base_in_place(model, folders, expected, monkeypatch):
    engine = served(model, folders)

    def fail(x, routing):
        raise RuntimeError("broken")

    swaps = [swap for swap in engine.adapters["few"].swaps if swap.child == "experts"]
    monkeypatch.setattr(swaps[0].layer, "forward", fail)
    names = [None, "few", "words", None]
    answers = engine.generate(MIXED, PARAMS, adapter=names)
    assert [answer.error and "broken" in answer.error for answer in answers] == [
        *(None, True, None, None)
    ]
    for number in (0, 2, 3):
        assert answers[number].token_ids == expected[names[number]][number]
    assert not lora_layers(model)


def test_a_quantised_base_takes_adapters(model, folders):
    quantised = copy.deepcopy(model)
    quantize_modules(quantised, default_plan(quantised, "int8"))
    wanted = alone(quantised, folders["words"])
    answers = served(quantised, {"words": folders["words"]}).generate(
        [*MIXED, *MIXED], PARAMS, adapter=["words"] * len(MIXED) + [None] * len(MIXED)
    )
    assert [a.token_ids for a in answers[: len(MIXED)]] == wanted
    assert [a.token_ids for a in answers[len(MIXED) :]] == alone(quantised, None)


def test_a_model_that_trains_goes_on_to_do_so(model, folders):
    model.language.lm_head.requires_grad_(True)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    served(model, folders)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_what_cannot_be_served_is_told_in_one_line(model, folders, tmp_path):
    other = random_model("mla" if not model.config.language_config.use_mla else "mha")
    foreign = adapter_of(other, tmp_path / "foreign", ("attention",), 0)
    for given, words in (
        ({"x": foreign}, "adapter x: .*of another model"),
        ({"x": tmp_path}, "adapter x: .*adapter_config.json"),
        ({"a:b": folders["words"]}, "name is 'a:b'"),
        ({"": folders["words"]}, "name is ''"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            served(model, given)
        assert "\n" not in str(error.value)
        assert not lora_layers(model)
    with pytest.raises(ValueError, match="layers are swapped"):
        served(model, folders, compile=True)
    engine = served(model, folders)
    with pytest.raises(ValueError, match="adapter is 'x': expected one that the engine has"):
        engine.generate(MIXED, PARAMS, adapter="x")
    with pytest.raises(ValueError, match="2 adapters for 4 conversations"):
        engine.generate(MIXED, PARAMS, adapter=["words", None])

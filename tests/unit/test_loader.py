from __future__ import annotations

import itertools
import json
import logging
import os
import signal
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from tests.unit.loaders import (
    WORDS,
    Records,
    config_of,
    ids,
    index_of,
    loader_of,
    png,
    same,
    take,
    talk,
    two_sources,
)

from vl2.data.collate import TrainBatch
from vl2.data.config import DataConfig, SourceConfig
from vl2.data.index import RowIndex
from vl2.data.loader import TrainLoader
from vl2.data.records import Record
from vl2.data.sources import open_source
from vl2.data.substitute import DataWorkError
from vl2.processing.processor import Processor


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_pretrained("nano").with_settings(max_tiled_images=2)


def test_an_epoch_has_every_sample_once(processor: Processor):
    sources = two_sources()[1:]
    config = config_of(sources, batch_size=1, micro_batch=1, packing=False)
    batches = take(loader_of(sources, processor, config).micro_batches(), 12)
    assert sorted(id for _, id, _ in ids(batches)) == sorted(f"read-{i}" for i in range(12))
    assert [position for _, _, position in ids(batches)] == list(range(12))


def test_packed_windows_lose_no_sample(processor: Processor):
    sources = two_sources(60)
    sources[1].records = [talk("read", i, words=4 + i % 30) for i in range(200)]
    loader = loader_of(sources, processor)
    batches = take(loader.micro_batches(), 90)
    seen = sorted(position for _, _, position in ids(batches))
    assert len(set(seen)) == len(seen)
    window = loader.state()["place"]["position"]
    assert window > 0
    assert seen[:window] == list(range(window))
    fill = sum(b.tokens for b in batches) / (160 * 2 * len(batches))
    assert fill > 0.85


def test_steps_are_lists_of_micro_batches(processor: Processor):
    config = config_of(two_sources(), batch_size=6, micro_batch=2)
    step = next(iter(loader_of(two_sources(), processor, config)))
    assert [batch.closes_step for batch in step] == [False, False, True]
    assert all(len(batch.tensors["input_ids"]) == 2 for batch in step)
    flat = take(loader_of(two_sources(), processor, config).micro_batches(), 3)
    assert all(same(a, b) for a, b in zip(step, flat, strict=True))


def test_ranks_count_bad_records_together(processor: Processor):
    bad = two_sources()
    bad[0].bad, bad[1].bad = {2, 5}, {7}
    config = config_of(bad, batch_size=4, micro_batch=1, max_bad_rate=0.9)
    alone = loader_of(bad, processor, config)
    next(steps := iter(alone))
    next(steps)
    said: list[str] = []
    quiet = loader_of(
        bad, processor, config, rank=1, world=2, gather=lambda t: said.append(t) or [t]
    )
    next(steps := iter(quiet))
    next(steps)
    first = loader_of(bad, processor, config, rank=0, world=2, gather=lambda t: [t, said.pop(0)])
    next(steps := iter(first))
    next(steps)
    counts = ("tried", "bad", "replaced", "empty")
    states = [loader.state()["sources"] for loader in (alone, first)]
    one, two = ({n: [s[c] for c in counts] for n, s in state.items()} for state in states)
    assert one == two
    assert sum(source["bad"] for source in states[0].values()) > 0


def test_goes_on_from_every_micro_batch(processor: Processor):
    bad = two_sources()
    bad[0].bad, bad[1].bad = {2, 5}, {7}
    config = config_of(bad, batch_size=4, micro_batch=1, max_bad_rate=0.9)
    loader = loader_of(bad, processor, config)
    states, batches = [loader.state()], []
    for batch in itertools.islice(loader.micro_batches(), 24):
        batches.append(batch)
        states.append(json.loads(json.dumps(loader.state())))
    assert sum(source["bad"] for source in states[-1]["sources"].values()) > 3
    again = loader_of(bad, processor, config)
    for number, state in enumerate(states[:-1]):
        again.restore(state)
        assert again.state() == state
        rest = take(again.micro_batches(), 2)
        assert all(same(a, b) for a, b in zip(rest, batches[number : number + 2], strict=False))
        assert again.state() == [*states, again.state()][number + 2]


def test_an_iterator_in_use_goes_on_from_a_restored_state(processor: Processor):
    loader = loader_of(two_sources(), processor)
    steps = iter(loader)
    state, first = loader.state(), next(steps)
    next(steps)
    loader.restore(state)
    assert all(same(a, b) for a, b in zip(next(steps), first, strict=True))


@pytest.mark.parametrize("world", [2, 4])
def test_a_step_has_the_same_samples_for_any_number_of_ranks(processor: Processor, world: int):
    config = config_of(two_sources(), batch_size=8, micro_batch=1)
    alone = iter(loader_of(two_sources(), processor, config))
    ranks = [
        loader_of(two_sources(), processor, config, rank=rank, world=world) for rank in range(world)
    ]
    streams = [iter(rank) for rank in ranks]
    for _ in range(3):
        parts = [ids(next(stream)) for stream in streams]
        assert sorted(itertools.chain(*parts)) == sorted(ids(next(alone)))
        assert len({json.dumps(rank.state()["place"]) for rank in ranks}) == 1
    with pytest.raises(ValueError, match="expected a multiple of micro_batch x ranks"):
        loader_of(two_sources(), processor, config, world=3)


def skewed_sources() -> list[Records]:
    """Pictures of few and of many tiles, and text."""
    sizes = [(60 + 160 * (i % 5), 60) for i in range(40)]
    wide = [talk("wide", i, pictures=1, size=size, words=2) for i, size in enumerate(sizes)]
    return [Records("wide", wide), *two_sources(40)[1:]]


@pytest.mark.parametrize("packing", [True, False])
def test_ranks_see_about_equal_tiles_as_planned(processor: Processor, packing: bool):
    sources = skewed_sources()
    whole = []
    for balance in (False, True):
        settings = {"batch_size": 8, "micro_batch": 1, "packing": packing, "balance_tiles": balance}
        config = config_of(sources, sequence_length=320, **settings)
        streams = [iter(loader_of(sources, processor, config, rank=r, world=4)) for r in range(4)]
        most = mean = 0.0
        for _ in range(8):
            step = [next(stream) for stream in streams]
            tiles = [[batch.tiles for batch in batches] for batches in step]
            (told,) = {batch.tile_load for batches in step for batch in batches}
            assert told is not None
            assert told.most == sum(max(at) for at in zip(*tiles, strict=True))
            assert told.mean == sum(map(sum, tiles)) / 4
            most, mean = most + told.most, mean + told.mean
        whole.append(most / mean)
    assert whole[0] > 1.4
    assert whole[1] < 1 + 0.5 * (whole[0] - 1)


def test_the_fingerprint_names_the_stream(processor: Processor):
    config = config_of(two_sources())
    first = loader_of(two_sources(), processor, config).fingerprint
    assert loader_of(two_sources(), processor, replace(config, workers=2)).fingerprint == first
    others = [replace(config, seed=1), replace(config, packing=False)]
    others.append(replace(config, balance_tiles=False))
    assert first not in [loader_of(two_sources(), processor, c).fingerprint for c in others]


def test_sources_need_names_of_their_own(processor: Processor):
    twice = [two_sources()[0], two_sources()[0]]
    with pytest.raises(ValueError, match=r"give each its own data.sources.name"):
        loader_of(twice, processor)


def test_state_of_other_sources_is_refused(processor: Processor):
    loader = loader_of(two_sources(), processor)
    state = loader.state()
    with pytest.raises(ValueError, match="resume with the same sources"):
        loader.restore({**state, "sources": {}})
    with pytest.raises(ValueError, match="data state is"):
        loader.restore({**state, "place": {"position": 1, "bin": 0, "done": 0}})


# Bad records


def test_a_bad_record_is_replaced_in_its_place_and_counted(
    processor: Processor, caplog: pytest.LogCaptureFixture
):
    def batches_of(bad: set[int]) -> tuple[list[TrainBatch], dict]:
        sources = [Records("read", [talk("read", i, words=4 + 3 * i) for i in range(20)], [*bad])]
        config = config_of(sources, batch_size=1, micro_batch=1, max_bad_rate=0.9)
        loader = loader_of(sources, processor, config)
        batches = take(loader.micro_batches(), 60)
        return batches, loader.state()["sources"]["read"]

    clean, counts = batches_of(set())
    assert (counts["bad"], counts["replaced"], counts["empty"]) == (0, 0, 0)
    with caplog.at_level(logging.WARNING, logger="vl2"):
        bad, counts = batches_of({3, 11})
    assert caplog.text.count("read: a record cannot be used and is replaced: broken") == 3
    again, _ = batches_of({3, 11})
    assert all(same(a, b) for a, b in zip(bad, again, strict=True))
    was = {s.position: s for b in clean for s in b.samples}
    now = {s.position: s for b in bad for s in b.samples}
    assert was.keys() == now.keys()
    changed = [p for p in was if was[p] != now[p]]
    assert changed == [p for p in was if was[p].row in {3, 11}]
    assert all(now[p].row < was[p].row and now[p].row not in {3, 11} for p in changed)
    assert len({now[p].row for p in changed}) > 1
    assert counts["replaced"] == len(changed)
    assert counts["tried"] == len(was) + counts["bad"]
    assert len(counts["reasons"]) == 3


def test_a_place_without_a_substitute_stays_empty(processor: Processor):
    sources = [Records("read", [talk("read", i, words=9) for i in range(8)], range(1, 8))]
    short = Records("short", [talk("short", 0, words=2), talk("short", 1, words=20)], [0])
    config = config_of([*sources, short], max_bad_rate=1.0)
    loader = loader_of([*sources, short], processor, config)
    batches = take(loader.micro_batches(), 12)
    assert {id for _, id, _ in ids(batches)} == {"read-0", "short-1"}
    counts = loader.state()["sources"]
    assert counts["short"]["empty"] > 0
    assert counts["read"]["empty"] == 0
    assert counts["read"]["replaced"] > 0


def test_more_tokens_than_planned_is_a_bad_record(processor: Processor):
    sources = [Records("read", [talk("read", i, words=9) for i in range(6)])]
    config = config_of(sources, max_bad_rate=1.0)
    loader = loader_of(sources, processor, config)
    sources[0].records = [talk("read", 0, words=30), *sources[0].records[1:]]
    batches = take(loader.micro_batches(), 5)
    assert "read-0" not in {id for _, id, _ in ids(batches)}
    assert "where its index has" in loader.state()["sources"]["read"]["reasons"][0]


def test_a_mistake_in_the_code_is_one_clear_line(processor: Processor):
    class Broken(Records):
        def __getitem__(self, row: int) -> Record:
            raise KeyError("spam\nand more")

    sources = [Records("read", [talk("read", i) for i in range(4)])]
    config = config_of(sources)
    index = index_of(sources, processor)
    loader = TrainLoader(config, processor, [Broken("read", sources[0].records)], index)
    with pytest.raises(DataWorkError, match=r"^row \d of read at position \d+: KeyError: [^\n]+$"):
        next(iter(loader))


# Worker processes


def corpus(folder: Path) -> tuple[SourceConfig, ...]:
    """Files on disk: pictures of which some turn out to be cut off, and text."""
    rows = []
    for i in range(14):
        data = png(i, (40 + i, 30))
        (folder / f"{i}.png").write_bytes(data[:-30] if i in {4, 9} else data)
        said = [{"from": "human", "value": "<image>\nname it"}, {"from": "gpt", "value": WORDS[i]}]
        rows.append({"id": str(i), "image": f"{i}.png", "conversations": said})
    (folder / "seen.json").write_text(json.dumps(rows))
    lines = [json.dumps({"text": " ".join(WORDS[: 3 + i])}) for i in range(12)]
    (folder / "read.jsonl").write_text("\n".join(lines))
    return (
        SourceConfig(path=str(folder / "seen.json"), augment=0.5),
        SourceConfig(path=str(folder / "read.jsonl"), format="text"),
    )


@pytest.mark.slow
def test_workers_and_prefetch_do_not_change_the_stream(tmp_path: Path, processor: Processor):
    configs = corpus(tmp_path)
    sources = [open_source(config) for config in configs]
    config = DataConfig(
        sources=configs, sequence_length=160, batch_size=6, micro_batch=2, max_bad_rate=0.9
    )
    index = RowIndex.build(config, sources, processor)
    here = TrainLoader(config, processor, sources, index)
    states, batches = [here.state()], []
    for batch in itertools.islice(here.micro_batches(), 16):
        batches.append(batch)
        states.append(here.state())
    assert states[-1]["sources"]["seen"]["replaced"] > 1
    for prefetch in (1, 3):
        pooled = replace(config, workers=2, prefetch=prefetch)
        torch_state = torch.get_rng_state()
        with TrainLoader(pooled, processor, sources, index) as loader:
            stream = loader.micro_batches()
            for number, expected in enumerate(batches[:10], start=1):
                assert same(next(stream), expected)
                assert loader.state() == states[number]
            for worker in loader._workers:
                assert worker.pid
                os.kill(worker.pid, signal.SIGTERM)  # as a scheduler does, to all processes
                os.kill(vars(forkserver._forkserver)["_forkserver_pid"], signal.SIGTERM)
            loader.restore(states[4])
            for number, expected in enumerate(batches[4:], start=5):
                assert same(next(stream), expected)
                assert loader.state() == states[number]
            workers = loader._workers
            assert len(workers) == 2
        assert not any(worker.is_alive() for worker in workers)
        assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.slow
def test_a_killed_worker_is_one_clear_line(tmp_path: Path, processor: Processor):
    configs = corpus(tmp_path)
    sources = [open_source(config) for config in configs]
    config = DataConfig(
        sources=configs, sequence_length=160, batch_size=1, workers=1, max_bad_rate=1.0
    )
    with TrainLoader(
        config, processor, sources, RowIndex.build(config, sources, processor)
    ) as loader:
        stream = loader.micro_batches()
        next(stream)
        loader._workers[0].kill()
        with pytest.raises(DataWorkError, match=r"^a data worker died \([^\n]+\): look for lack"):
            take(stream, 20)

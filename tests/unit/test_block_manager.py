"""Blocks of the paged cache: owners add up, runs stay whole, shared beginnings are found."""

import random

import pytest

from vl2.engine.block_manager import BlockManager, block_name, slot_runs


def names(*texts: str) -> list[bytes]:
    """Chained names of blocks that hold these texts."""
    chain = [b""]
    for text in texts:
        chain.append(block_name(chain[-1], map(ord, text), []))
    return chain[1:]


def test_a_sequence_grows_in_one_run_and_its_neighbours_too():
    manager = BlockManager(64, 16)
    owned = [manager.grow([], 3), manager.grow([], 3), manager.grow([], 3)]
    for _ in range(8):
        for blocks in owned:
            blocks += manager.grow(blocks, 1)
    for blocks in owned:
        assert blocks == list(range(blocks[0], blocks[0] + 11))


def test_too_few_blocks_take_nothing():
    manager = BlockManager(4, 16)
    assert manager.grow([], 5) is None
    assert manager.free == 4
    kept = manager.grow([], 3)
    assert manager.grow(kept, 2) is None
    assert manager.free == 1


def test_scattered_free_blocks_are_all_used():
    manager = BlockManager(9, 1)
    whole = manager.grow([], 9)
    manager.release(whole[::2])
    assert sorted(manager.grow([], 5)) == [0, 2, 4, 6, 8]


def test_a_published_beginning_is_found_and_shared():
    manager = BlockManager(8, 4)
    first, second, third = names("abcd", "efgh", "ijkl")
    blocks = manager.grow([], 3)
    manager.publish(blocks[0], first)
    manager.publish(blocks[1], second)
    found = manager.find([first, second, third])
    assert found == blocks[:2]
    manager.share(found)
    manager.release(blocks)
    assert manager.free == 6  # two are still owned by the one who shares them
    manager.release(found)
    assert manager.free == 8
    assert manager.find([first, second]) == blocks[:2]  # nobody's, and still there


def test_a_beginning_differs_by_tokens_order_and_pictures():
    plain = block_name(b"", [1, 2, 3], [])
    assert plain != block_name(b"", [1, 23], [])
    assert plain != block_name(b"", [3, 2, 1], [])
    assert plain != block_name(b"", [1, 2, 3], [b"picture"])
    assert block_name(b"", [1], [b"one"]) != block_name(b"", [1], [b"two"])
    assert plain != block_name(plain, [1, 2, 3], [])


def test_room_is_made_from_the_blocks_unused_for_longest():
    manager = BlockManager(12, 4)
    old, new = names("old!")[0], names("new!")[0]
    for name in (old, new):
        blocks = manager.grow([], 1)
        manager.publish(blocks[0], name)
        manager.release(blocks)
    for _ in range(2):
        manager.grow([], 5)
    assert manager.find([old])
    assert manager.find([new])
    manager.grow([], 1)
    assert not manager.find([old])
    assert manager.find([new])


def test_the_end_of_a_text_goes_before_its_beginning():
    manager = BlockManager(2, 4)
    first, second = names("abcd", "efgh")
    blocks = manager.grow([], 2)
    for block, name in zip(blocks, (first, second), strict=True):
        manager.publish(block, name)
    manager.release(blocks)
    manager.grow([], 1)
    assert manager.find([first, second]) == blocks[:1]


def test_forgotten_blocks_are_not_found_but_owned():
    manager = BlockManager(4, 4)
    [name] = names("abcd")
    blocks = manager.grow([], 1)
    manager.publish(blocks[0], name)
    manager.forget(blocks)
    assert manager.find([name]) == []
    assert manager.free == 3
    manager.release(blocks)
    assert manager.free == 4


def test_without_sharing_nothing_is_found():
    manager = BlockManager(4, 4, sharing=False)
    [name] = names("abcd")
    blocks = manager.grow([], 1)
    manager.publish(blocks[0], name)
    assert manager.find([name]) == []


@pytest.mark.parametrize("seed", range(20))
def test_random_traffic_gives_back_every_block(seed):
    rng = random.Random(seed)
    manager = BlockManager(40, 4)
    owned: list[list[int]] = []
    texts = ["abcd", "efgh", "ijkl", "mnop"]
    for _ in range(300):
        action = rng.random()
        if action < 0.35:
            chain = names(*rng.choices(texts, k=rng.randint(1, 4)))
            blocks = manager.find(chain)
            manager.share(blocks)
            more = manager.grow(blocks, len(chain) - len(blocks))
            if more is None:
                manager.release(blocks)
                continue
            blocks = blocks + more
            for block, name in zip(blocks, chain, strict=True):
                manager.publish(block, name)
            owned.append(blocks)
        elif action < 0.7 and owned:
            blocks = rng.choice(owned)
            blocks += manager.grow(blocks, 1) or []
        elif owned:
            manager.release(owned.pop(rng.randrange(len(owned))))
        holders = {block for blocks in owned for block in blocks}
        assert manager.free == 40 - len(holders)
    for blocks in owned:
        manager.release(blocks)
    assert manager.free == 40
    assert sorted(manager.grow([], 40)) == list(range(40))


def test_slots_of_neighbouring_blocks_are_one_run():
    assert slot_runs([3, 4, 5], 4, 10) == ((12, 22),)
    assert slot_runs([3, 5, 6], 4, 12) == ((12, 16), (20, 28))
    assert slot_runs([7], 4, 1) == ((28, 29),)

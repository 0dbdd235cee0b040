from models.inventory import Inventory
from models.manifest import CHUNK_SIZE_BYTES, Shard, describe_shard

ONE, TWO, THREE = (describe_shard(name, [name.encode()]) for name in ("one", "two", "three"))
CHUNK = THREE.chunks[0]


def both(first: Shard, second: Shard) -> Shard:
    """Make a shard of two others' chunks; its digest and size are of no matter here."""
    size_bytes = CHUNK_SIZE_BYTES + second.size_bytes
    return Shard(name="both", sha256="f" * 64, size_bytes=size_bytes, chunks=(*first.chunks, *second.chunks))


def test_the_least_recently_used_goes_first_and_pins_stay():
    held = Inventory()
    held.add_shard(ONE)
    held.add_chunk(CHUNK, 5)
    held.add_shard(TWO)
    held.touch(ONE.sha256)
    assert list(held.spare()) == [CHUNK, TWO.sha256, ONE.sha256]
    held.pin(TWO)
    held.pin(THREE)
    assert list(held.spare()) == [ONE.sha256]
    held.unpin(THREE.sha256)
    assert list(held.spare()) == [CHUNK, ONE.sha256]


def test_a_chunk_stays_wanted_until_the_last_pinned_shard_that_has_it_goes():
    held = Inventory()
    held.pin(ONE)
    held.pin(both(ONE, TWO))
    held.pin(ONE)
    held.unpin(ONE.sha256)
    assert held.is_wanted(ONE.chunks[0])
    held.unpin("f" * 64)
    held.unpin("f" * 64)
    assert not held.is_wanted(ONE.chunks[0])


def test_a_chunk_of_two_whole_shards_is_found_in_the_other_when_one_goes():
    held = Inventory()
    held.add_shard(both(ONE, TWO))
    held.add_shard(TWO)
    assert held.place(TWO.chunks[0]) == (TWO.sha256, 0)
    held.drop_shard(TWO.sha256)
    assert held.place(TWO.chunks[0]) == ("f" * 64, 1)
    held.drop_shard("f" * 64)
    assert not held.has(TWO.chunks[0])
    assert held.used_bytes == 0

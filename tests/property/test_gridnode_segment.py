"""An arena against a plain list of its blocks: they never overlap, and free room is found where there is some."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gridnode.control import ALIGNMENT_BYTES
from gridnode.segment import BLOCK_BYTES, Arena

BLOCKS = 12
SIZE = BLOCKS * BLOCK_BYTES


class ArenaMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.arena = Arena(SIZE)
        self.live = {}

    def free_runs(self):
        """Return the free stretches in rising order, found block by block."""
        taken = {start + at for start, size in self.live.items() for at in range(0, size, BLOCK_BYTES)}
        runs, begin = [], None
        for at in range(0, SIZE + BLOCK_BYTES, BLOCK_BYTES):
            is_free = at < SIZE and at not in taken
            if is_free and begin is None:
                begin = at
            elif not is_free and begin is not None:
                runs.append((begin, at))
                begin = None
        return runs

    @rule(size_bytes=st.integers(1, SIZE + BLOCK_BYTES))
    def allocate(self, size_bytes):
        fitting = [start for start, end in self.free_runs() if end - start >= size_bytes]
        start = self.arena.allocate(size_bytes)
        assert start == (fitting[0] if fitting else None), "the lowest room that is large enough is given"
        if start is not None:
            assert start % ALIGNMENT_BYTES == 0
            assert start + size_bytes <= SIZE
            assert all(start + size_bytes <= other or other + size <= start for other, size in self.live.items())
            self.live[start] = size_bytes

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data):
        start = data.draw(st.sampled_from(sorted(self.live)))
        self.arena.free(start)
        del self.live[start]

    @invariant()
    def stretches_are_joined(self):
        assert list(zip(self.arena._starts, self.arena._ends, strict=True)) == self.free_runs()

    def teardown(self):
        """Once all is freed, it is whole again."""
        for start in self.live:
            self.arena.free(start)
        assert self.arena.allocate(SIZE) == 0


TestArena = ArenaMachine.TestCase
TestArena.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

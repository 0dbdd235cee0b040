"""What leaves a nursery: the fault itself, unless something graver is with it."""

import pytest
import trio

from gridnode.nurseries import collapsing


async def fail(error):
    raise error


async def run_both(*errors):
    with collapsing(OSError, EOFError):
        async with trio.open_nursery() as nursery:
            for error in errors:
                nursery.start_soon(fail, error)


def test_a_single_fault_leaves_unwrapped():
    with pytest.raises(OSError, match="gone"):
        trio.run(run_both, OSError("gone"))


def test_several_faults_of_the_kinds_leave_as_one():
    with pytest.raises((OSError, EOFError)):
        trio.run(run_both, OSError("a"), EOFError("b"), BrokenPipeError("c"))


def test_a_bug_beside_a_fault_is_not_hidden():
    with pytest.raises(ExceptionGroup) as caught:
        trio.run(run_both, OSError("a"), ValueError("bug"))
    assert caught.value.subgroup(ValueError) is not None


def test_what_is_no_group_passes():
    with pytest.raises(KeyError), collapsing(OSError):
        raise KeyError
    with pytest.raises(OSError, match="plain"), collapsing(OSError):
        raise OSError("plain")


def test_a_cancellation_outweighs_a_fault_that_comes_with_it():
    """The scope around takes the cancellation in; nothing of the fault may be left for callers who cannot expect it."""

    async def cancelled_and_broken():
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("broken while cancelled")

    async def main():
        with trio.CancelScope() as scope, collapsing(OSError):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancelled_and_broken)
                nursery.start_soon(trio.sleep_forever)
                await trio.lowlevel.checkpoint()
                scope.cancel()
                await trio.sleep_forever()
        return scope.cancelled_caught

    assert trio.run(main)

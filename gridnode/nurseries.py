"""Helpers for exceptions that leave nurseries."""

from collections.abc import Iterator
from contextlib import contextmanager

import trio


@contextmanager
def collapsing(*kinds: type[Exception]) -> Iterator[None]:
    """Turn a group that holds only exceptions of some kinds into its first one.

    A nursery wraps even a single fault into a group; callers that expect the fault itself get it. A cancellation
    beside such faults outweighs them: it goes on alone, since nobody is left whom the fault would concern, and the
    scope that takes the cancellation in must not leave a group that nobody expects. A group with anything else in it
    goes on as it is.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        known, rest = group.split(kinds)
        if known is None:
            raise
        if rest is not None:
            if rest.split(trio.Cancelled)[1] is not None:
                raise
            raise rest from None
        leaf: BaseException = known
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        raise leaf from None

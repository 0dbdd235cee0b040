"""Helpers for exceptions that leave nurseries."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collapsing(kind: type[Exception]) -> Iterator[None]:
    """Turn a group that holds only exceptions of one kind into its first one.

    A nursery wraps even a single fault into a group; callers that expect the fault itself get it. A group with
    anything else in it, a cancellation too, goes on as it is.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        known, rest = group.split(kind)
        if rest is not None or known is None:
            raise
        leaf: BaseException = known
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        raise leaf from None

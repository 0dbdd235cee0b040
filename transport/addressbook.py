"""The address book: where peers were reached, kept over a restart. Owns its file and nothing else."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import msgspec

from transport.files import StateFileError, read_bounded, write_atomically

BOOK_MAX_BYTES: Final = 1 << 20
"""Largest address book file: peers_max entries of four long addresses take about 700 kB."""
ADDRESSES_MAX: Final = 4
"""Addresses kept per peer, best first."""


class Address(msgspec.Struct, frozen=True, array_like=True):
    """Where a control plane listens."""

    host: Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


class BookEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What the address book holds of a peer."""

    node: Annotated[str, msgspec.Meta(min_length=1, max_length=80)]
    addresses: Annotated[tuple[Address, ...], msgspec.Meta(min_length=1, max_length=ADDRESSES_MAX)]
    connected_s: float = 0.0
    """Grid time of the last connection, in seconds since 1970; 0 for never."""
    failures: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Dials that failed since."""


class _BookFile(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    peers: tuple[BookEntry, ...]


def load_book(path: Path) -> tuple[tuple[BookEntry, ...], str | None]:
    """Read an address book.

    Blocks; call it in a thread. A book that is missing is empty; one that cannot be read is empty too, since peers
    are learned again from the bootstrap nodes.

    Returns
    -------
    entries : tuple of BookEntry
        Most recently connected first.
    warning : str or None
        Why the file could not be used.
    """
    try:
        data = read_bounded(path, max_bytes=BOOK_MAX_BYTES)
        if data is None:
            return (), None
        book = msgspec.json.decode(data, type=_BookFile)
    except (StateFileError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        return (), f"address book {path} is unusable and starts empty: {error}"
    if book.version != 1:
        return (), f"address book {path} has version {book.version}, this program reads 1; it starts empty"
    return book.peers, None


def save_book(path: Path, entries: Iterable[BookEntry]) -> None:
    """Write an address book atomically. Blocks; call it in a thread.

    Raises
    ------
    StateFileError
        The machine's fault: no room or no permission. The node can go on without a book.
    """
    write_atomically(path, msgspec.json.encode(_BookFile(version=1, peers=tuple(entries))))

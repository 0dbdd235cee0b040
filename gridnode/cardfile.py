"""The cards of the last life on disk, so that a node finds the grid again after a restart. Owns the file."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from gridnode.logs import EventLog
from transport.cards import NodeCard
from transport.files import StateFileError, read_bounded, write_atomically

log = EventLog("membership")

FILE_MAX_BYTES: Final = 4 << 20
CARDS_KEPT: Final = 256
"""Cards written to disk: enough to find the grid again."""


def save_cards(path: Path, cards: Iterable[NodeCard]) -> None:
    """Write cards. Blocks on fsync; a full disk is logged, the node goes on."""
    try:
        write_atomically(path, msgspec.msgpack.encode([card.encoded for card in islice(cards, CARDS_KEPT)]))
    except StateFileError as error:
        log.warning("cards_not_saved", error=error)


def load_cards(path: Path) -> list[bytes]:
    """Read the cards of the last life, unchecked; a damaged file counts as empty. Blocks."""
    try:
        data = read_bounded(path, max_bytes=FILE_MAX_BYTES)
        return [] if data is None else msgspec.msgpack.decode(data, type=list[bytes])
    except (StateFileError, msgspec.MsgspecError) as error:
        log.warning("cards_damaged", error=error)
        return []

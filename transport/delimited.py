"""Messages behind a varint of their length, as libp2p's gossip sends them. Pure.

Owns how a stream of bytes is cut into such messages, however they arrive. Knows nothing of what they mean.
"""

from collections.abc import Iterator
from typing import Final

from transport.wire import FrameTooLargeError, RemoteProtocolError

VARINT_MAX_BYTES: Final = 5
"""Longest length prefix: 2**35, far above any bound on the length itself."""


class DelimitedReader:
    """Cuts a stream into messages.

    Parameters
    ----------
    max_bytes : int
        Longest message.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        r"""Take bytes; yields the messages that are whole.

        Raises
        ------
        FrameTooLargeError
            A message is announced as longer than max_bytes.
        RemoteProtocolError
            A length has no end.

        Examples
        --------
        >>> reader = DelimitedReader(100)
        >>> list(reader.feed(b"\x03abc\x02d")), list(reader.feed(b"e"))
        ([b'abc'], [b'de'])
        """
        data = self._rest + data if self._rest else data
        at = 0
        while (prefix := self._prefix(data, at)) is not None:
            begin, length = prefix
            if len(data) < begin + length:
                break
            at = begin + length
            yield data[begin:at]
        self._rest = data[at:]

    def _prefix(self, data: bytes, at: int) -> tuple[int, int] | None:
        """Return where the message begins and its length; None when the length is not there yet."""
        length = 0
        for index in range(VARINT_MAX_BYTES):
            if at + index >= len(data):
                return None
            byte = data[at + index]
            length |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                if length > self._max_bytes:
                    raise FrameTooLargeError(f"a message of {length} bytes, at most {self._max_bytes} may be")
                return at + index + 1, length
        raise RemoteProtocolError(f"a length of more than {VARINT_MAX_BYTES} bytes")


def delimit(message: bytes) -> bytes:
    """Return a message behind its length.

    Examples
    --------
    >>> delimit(bytes(300))[:2].hex()
    'ac02'
    """
    prefix = bytearray()
    length = len(message)
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + message

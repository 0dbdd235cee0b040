"""What the join door and those who knock say to each other.

Owns the door's messages and one bounded question and answer over TLS. Knows nothing of tokens' validity or who
may ask. Frames are those of the data plane (transport.framing) with smaller bounds: whoever knocks is a stranger.
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from transport.framing import FrameReceiver, encode_prefix
from transport.securestream import SecureStream
from transport.wire import CARD_MAX_BYTES, PeerUnreachableError, RemoteProtocolError

MESSAGE_MAX_BYTES: Final = 16 * 1024
"""Largest question, and largest answer without its bundle."""
FILES_MAX_BYTES: Final = 1024 * 1024
"""Grid files in a bundle: TUF metadata of a grid takes a few kilobytes, its targets list grows with the models."""
CARDS_MAX: Final = 64
"""Node cards in a bundle: enough neighbours for a start."""
BUNDLE_MAX_BYTES: Final = FILES_MAX_BYTES + CARDS_MAX * (CARD_MAX_BYTES + 8) + 64 * 1024

FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""No slash and no leading dot, so that a name cannot leave the directory it is written to."""
ChainPem = Annotated[bytes, Meta(max_length=8192)]
CaPem = Annotated[bytes, Meta(max_length=8192)]
Csr = Annotated[bytes, Meta(max_length=4096)]


class AskAuthority(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="ask_authority"):
    """Asks for the CA file; anybody may."""


class Authority(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="authority"):
    """The CA file, to be compared with the token's hash."""

    ca_pem: CaPem


class AskJoin(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="ask_join"):
    """Asks for a first certificate. Sent only to a door that proved to belong to the token's issuer."""

    secret: Annotated[bytes, Meta(min_length=32, max_length=32)]
    csr: Csr
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{0,63}$")]
    """Host label, for the issuer's log."""


class AskRenewal(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="ask_renewal"):
    """Asks for a new certificate; the old one was shown in the TLS handshake."""

    csr: Csr


class Granted(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="granted"):
    """The certificate chain; a Bundle follows as payload."""

    chain_pem: ChainPem


class DoorRefused(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="door_refused"):
    """The answer is no."""

    error: Annotated[str, Meta(max_length=64)]
    """Name of the error class."""
    message: Annotated[str, Meta(max_length=1024)]
    reason: Annotated[str, Meta(max_length=64)] = ""
    """A RefusalReason, where a certificate was refused."""


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """What a new node needs beside its certificate."""

    files: dict[FileName, bytes] = {}
    """Grid files by name; opaque here."""
    cards: Annotated[tuple[Annotated[bytes, Meta(max_length=CARD_MAX_BYTES)], ...], Meta(max_length=CARDS_MAX)] = ()
    """Cards of some nodes."""


DoorMessage = AskAuthority | Authority | AskJoin | AskRenewal | Granted | DoorRefused

_MESSAGE_DECODER: Final[msgspec.msgpack.Decoder[DoorMessage]] = msgspec.msgpack.Decoder(DoorMessage)
_BUNDLE_DECODER: Final = msgspec.msgpack.Decoder(Bundle)


def decode_door(data: bytes | bytearray | memoryview) -> DoorMessage:
    """Decode a message of the door; raises RemoteProtocolError."""
    try:
        return _MESSAGE_DECODER.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"a message at the join door is malformed: {error}") from error


def decode_bundle(data: bytes | bytearray | memoryview) -> Bundle:
    """Decode a bundle and check its size; raises RemoteProtocolError."""
    try:
        bundle = _BUNDLE_DECODER.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"the bundle from the join door is malformed: {error}") from error
    if sum(len(content) for content in bundle.files.values()) > FILES_MAX_BYTES:
        raise RemoteProtocolError(f"the bundle from the join door has more than {FILES_MAX_BYTES} bytes of files")
    return bundle


class DoorLink:
    """One question and its answer over TLS.

    Parameters
    ----------
    stream : SecureStream
        After the handshake.
    side : "door" or "guest"
        Only the guest takes payloads.
    """

    def __init__(self, stream: SecureStream, side: Literal["door", "guest"]) -> None:
        self._stream = stream
        payload_max_bytes = BUNDLE_MAX_BYTES if side == "guest" else 0
        self._receiver = FrameReceiver(header_max_bytes=MESSAGE_MAX_BYTES, payload_max_bytes=payload_max_bytes)

    async def send(self, message: DoorMessage, payload: bytes = b"") -> None:
        """Send a message.

        Raises
        ------
        PeerUnreachableError
            The connection broke.
        FrameTooLargeError
            Ours is too large.
        """
        header = msgspec.msgpack.encode(message)
        prefix = encode_prefix(
            header, len(payload), header_max_bytes=MESSAGE_MAX_BYTES, payload_max_bytes=BUNDLE_MAX_BYTES
        )
        await self._stream.send([prefix + header, payload])

    async def receive(self) -> tuple[DoorMessage, memoryview]:
        """Receive a message; the caller limits the time.

        Raises
        ------
        PeerUnreachableError
            The connection broke or ended.
        RemoteProtocolError, FrameTooLargeError
            The other side sent nonsense.
        """
        while True:
            count = await self._stream.receive_into(self._receiver.wanted())
            if count == 0:
                raise PeerUnreachableError("the other side of the join door closed the connection")
            frame = self._receiver.filled(count)
            if frame is not None:
                return decode_door(frame.header), frame.payload

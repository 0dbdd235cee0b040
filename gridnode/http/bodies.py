"""Bodies of requests: how they are read, within which bounds, and where their JSON ends."""

import functools
import zlib
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import trio

from gridnode.http.heads import ChunkedBody, Head, HttpError
from gridnode.http.receiving import Receiver
from gridnode.http.requests import JSON_MAX_BYTES

ENCODINGS: Final = {"gzip": 31, "deflate": 15}
"""Content encodings that are taken, and what zlib calls them."""
PICTURES: Final = ("image/jpeg", "image/png")
"""Content types of bodies that are a picture and nothing else."""


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """A body as received."""

    text: memoryview
    """Its JSON."""
    binary: memoryview
    """What follows the JSON."""
    is_raw: bool = False
    """Whether there is no JSON: the body is the model's one input."""
    is_picture: bool = False
    """Whether there is no JSON: the body is a JPEG or PNG."""


Allocate = Callable[[int], memoryview]
"""Returns where so many bytes for workers are to be received."""


def held_bytes(head: Head, *, most_bytes: int) -> int:
    """Return the room that a request's body needs; raises HttpError where it exceeds a bound.

    Parameters
    ----------
    most_bytes : int
        Largest body.
    """
    if head.encoding not in ("", "identity", *ENCODINGS):
        raise HttpError(415, f"content-encoding {head.encoding[:40]!r} is not taken; send it plain, or as gzip")
    if head.body_bytes > most_bytes:
        raise HttpError(413, f"body has {head.body_bytes} bytes, at most {most_bytes} are accepted; shrink it")
    return most_bytes if head.is_chunked or head.encoding in ENCODINGS else head.body_bytes


async def read_body(
    receiver: Receiver,
    head: Head,
    data: bytes,
    *,
    most_bytes: int,
    allocate: Allocate,
    in_thread: Callable[[Callable[[], memoryview]], Awaitable[memoryview]],
) -> Body:
    """Receive a request's body.

    Parameters
    ----------
    data : bytes
        The head as received.
    most_bytes : int
        Largest body, after decompression too.
    allocate : Allocate
        For what is received as it goes to workers; called once at most.
    in_thread : callable
        Does what takes long in a thread.

    Raises
    ------
    HttpError
        It exceeds a bound, or its lengths contradict one another: the client's fault.
    EOFError, OSError
        The connection ended.
    """
    if not head.is_chunked and head.encoding not in ENCODINGS:
        text_bytes = _text_bytes(head, head.body_bytes)
        text = await receiver.read_into(memoryview(bytearray(text_bytes)))
        binary_bytes = head.body_bytes - text_bytes
        binary = await receiver.read_into(allocate(binary_bytes)) if binary_bytes else memoryview(b"")
    else:
        whole = await _read_whole(receiver, head, data, most_bytes=most_bytes)
        if head.encoding in ENCODINGS:
            whole = await in_thread(functools.partial(_decompress, whole, head.encoding, most_bytes))
        text_bytes = _text_bytes(head, len(whole))
        text, binary = whole[:text_bytes], whole[text_bytes:]
    is_picture = head.content_type in PICTURES
    return Body(text=text, binary=binary, is_raw=head.json_bytes == 0 and not is_picture, is_picture=is_picture)


def _text_bytes(head: Head, body_bytes: int) -> int:
    """Return how much of a body is JSON."""
    if head.content_type in PICTURES:
        return 0
    text_bytes = body_bytes if head.json_bytes is None else head.json_bytes
    if text_bytes > body_bytes:
        raise HttpError(400, f"inference-header-content-length is {text_bytes}, the body has {body_bytes} bytes")
    if text_bytes > JSON_MAX_BYTES:
        raise HttpError(
            413, f"JSON has {text_bytes} bytes, at most {JSON_MAX_BYTES} are accepted; send tensors as binary data"
        )
    return text_bytes


async def _read_whole(receiver: Receiver, head: Head, data: bytes, *, most_bytes: int) -> memoryview:
    if not head.is_chunked:
        return await receiver.read_into(memoryview(bytearray(head.body_bytes)))
    body = ChunkedBody(data, most_bytes=most_bytes)
    while body.rest is None:
        body.feed(await receiver.read_some())
        while not body.advance():
            await trio.lowlevel.checkpoint()
    receiver.give_back(body.rest)
    return memoryview(body.data)


def _decompress(data: memoryview, encoding: str, most_bytes: int) -> memoryview:
    """Decompress a body, never beyond its bound."""
    machine = zlib.decompressobj(ENCODINGS[encoding])
    try:
        plain = machine.decompress(data, most_bytes + 1)
    except zlib.error as error:
        raise HttpError(400, f"body is no {encoding}: {error}") from error
    if len(plain) > most_bytes:
        raise HttpError(413, f"body has more than {most_bytes} bytes when decompressed, the most accepted here")
    if not machine.eof or machine.unused_data:
        raise HttpError(400, f"body is cut off, or goes on behind the end of its {encoding} data")
    return memoryview(plain)

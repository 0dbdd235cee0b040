"""Heads of requests: what is read of them, and which contradictions are refused."""

import h11
import pytest

from gridnode.http.heads import (
    CHUNKS_PER_TURN,
    HEAD_MAX_BYTES,
    ChunkedBody,
    HeadMemory,
    HttpError,
    parse_head,
    response_head,
)


def head(*lines, first="POST /v2/models/m/infer HTTP/1.1"):
    return "\r\n".join((first, *lines, "", "")).encode("latin-1")


def test_a_head_as_tritonclient_sends_it():
    seen = parse_head(
        head(
            "Content-Type: application/octet-stream",
            "Content-Length: 196808",
            "Inference-Header-Content-Length: 200",
            "Host: localhost:8000",
            "User-Agent: python-geventhttpclient-2.6.1",
        )
    )
    assert (seen.method, seen.path, seen.host) == ("POST", "/v2/models/m/infer", "localhost:8000")
    assert (seen.body_bytes, seen.json_bytes, seen.is_chunked) == (196808, 200, False)
    assert seen.keeps_alive


def test_the_query_is_not_part_of_the_path():
    assert parse_head(head("Host: x", first="GET /v2?a=/infer HTTP/1.1")).path == "/v2"


@pytest.mark.parametrize(
    ("lines", "first"),
    [
        (["Host: x", "Connection: close"], "GET / HTTP/1.1"),
        (["Host: x", "Connection: Keep-Alive, Upgrade", "Upgrade: h2c"], "GET / HTTP/1.1"),
        ([], "GET / HTTP/1.0"),
    ],
)
def test_connections_that_end_with_their_answer(lines, first):
    assert not parse_head(head(*lines, first=first)).keeps_alive


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (head("Host: x", "Content-Length: 4", "Content-Length: 5"), 400),
        (head("Host: x", "Content-Length: 4", "Transfer-Encoding: chunked"), 400),
        (head("Host: x", "Transfer-Encoding: gzip, chunked"), 501),
        (head("Host: x", "Content-Length: -4"), 400),
        (head("Host: x", "Content-Length: 4" + "0" * 30), 400),
        (head("Host: x", "Inference-Header-Content-Length: 4", "Inference-Header-Content-Length: 5"), 400),
        (head("Host: x", "Inference-Header-Content-Length: +4"), 400),
        (head("Host: x", "Inference-Header-Content-Length: \xb2"), 400),
        (head("Host: x", "Inference-Header-Content-Length: " + "9" * 13), 400),
        (head("Host: x", "Content-Encoding: gzip", "Content-Encoding: deflate"), 400),
        (head("Host: x", "Expect: 200-ok"), 417),
        (head("Host: x", "Host: y"), 400),
        (head(), 400),
        (head("Host : x"), 400),
        (b"GET / HTTP/1.1\nHost: x\n\nGET /v2 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
    ],
)  # fmt: skip
def test_heads_that_contradict_themselves_are_refused(data, status):
    with pytest.raises(HttpError) as caught:
        parse_head(data)
    assert caught.value.status == status


def test_the_same_head_is_read_once():
    memory = HeadMemory()
    data = head("Host: x")
    assert memory.parse(data) is memory.parse(bytes(bytearray(data)))
    assert memory.parse(head("Host: y")).host == "y"


def test_a_chunked_body_in_any_pieces():
    start = head("Host: x", "Transfer-Encoding: chunked")
    body = ChunkedBody(start, most_bytes=100)
    stream = b"5;name=value\r\nhello\r\n1\r\n!\r\n0\r\nTrailer: x\r\n\r\nGET /next"
    for at in range(len(stream) - len(b"GET /next") - 1):
        body.feed(stream[at : at + 1])
        assert body.advance()
        assert body.rest is None
    body.feed(stream[-len(b"GET /next") - 1 :])
    assert body.advance()
    assert body.rest == b"GET /next"
    assert body.data == b"hello!"


def test_many_small_chunks_are_read_some_at_a_time():
    body = ChunkedBody(head("Host: x", "Transfer-Encoding: chunked"), most_bytes=10_000)
    body.feed(b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n")
    turns = 1
    while not body.advance():
        turns += 1
    assert (turns, body.data, body.rest) == (1000 // CHUNKS_PER_TURN + 1, b"x" * 1000, b"")


@pytest.mark.parametrize(
    ("stream", "status"),
    [
        (b"65\r\n" + bytes(101), 413),
        (b"xyz\r\n", 400),
        (b"5\r\nhello--", 400),
        (b"1;" + b"e" * (HEAD_MAX_BYTES + 10), 400),
        (b"0\r\nTrailer: " + b"x" * (HEAD_MAX_BYTES + 10), 400),
    ],
)
def test_chunked_bodies_beyond_their_bounds_are_refused(stream, status):
    body = ChunkedBody(head("Host: x", "Transfer-Encoding: chunked"), most_bytes=100)
    body.feed(stream)
    with pytest.raises(HttpError) as caught:
        body.advance()
    assert caught.value.status == status


@pytest.mark.parametrize(
    "status", [100, 200, 400, 403, 404, 405, 408, 409, 413, 415, 417, 429, 431, 500, 501, 503, 504]
)
def test_a_response_head_is_read_by_others(status):
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(
        response_head(
            status, content_type=b"text/plain", body_bytes=2, headers=b"Retry-After: 1\r\n", keeps_alive=False
        )
        + b"ok"
    )
    response = client.next_event()
    assert response.status_code == status
    if status != 100:
        assert (b"retry-after", b"1") in list(response.headers)
        assert bytes(client.next_event().data) == b"ok"

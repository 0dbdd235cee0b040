"""The metrics port on real sockets: what scrapers get, and what it costs to speak nonsense to it."""

import functools

import numpy as np
import pytest
import trio
import trio.testing
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from gridnode.errors import StateDirectoryError, UnknownModelError
from gridnode.http.metrics import CONNECTIONS_MAX, REQUEST_TIMEOUT_S, serve_metrics
from gridnode.report import MetricsText


def document():
    text = MetricsText()
    text.counter("gridnode_jobs", "Jobs.", [((), 3)])
    return text.render()


def run_port(scenario, *, ready=True, clock=None):
    async def main():
        async with trio.open_nursery() as nursery:
            port = await nursery.start(
                functools.partial(serve_metrics, host="127.0.0.1", port=0, render=document, is_ready=lambda: ready)
            )
            await scenario(port)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)


async def ask(port, request):
    """Send a request and return all that comes until the end."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(request)
        answer = b""
        with trio.fail_after(10.0):
            while True:
                try:
                    piece = await stream.receive_some()
                except trio.BrokenResourceError:
                    return answer
                if not piece:
                    return answer
                answer += piece


def status(answer):
    return int(answer.split(b" ", 2)[1])


def test_metrics_are_openmetrics():
    async def scenario(port):
        answer = await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        head, body = answer.split(b"\r\n\r\n", 1)
        assert b"application/openmetrics-text; version=1.0.0" in head
        [family] = text_string_to_metric_families(body.decode())
        assert (family.name, family.samples[0].value) == ("gridnode_jobs", 3.0)

    run_port(scenario)


@pytest.mark.parametrize(("ready", "code"), [(True, 200), (False, 503)])
def test_health_says_whether_the_node_takes_work(ready, code):
    async def scenario(port):
        assert status(await ask(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")) == code

    run_port(scenario, ready=ready)


@pytest.mark.parametrize(
    ("request_head", "code"),
    [
        (b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.0\r\n\r\n", 200),
        (b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"HEAD /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 405),
        (b"CONNECT /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"\r\n\r\n\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 404),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n", 431),
    ],
)
def test_odd_requests_get_an_answer_or_a_closed_connection_and_the_port_lives(request_head, code):
    async def scenario(port):
        answer = await ask(port, request_head)
        assert not answer or status(answer) in (code, 400)
        assert status(await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")) == 200

    run_port(scenario)


def test_a_head_request_is_answered_without_a_body():
    async def scenario(port):
        for path in (b"/metrics", b"/healthz", b"/nothing"):
            answer = await ask(port, b"HEAD " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer.endswith(b"\r\n\r\n")
            assert status(answer) in (200, 404)

    run_port(scenario)


def test_programs_that_say_nothing_hold_the_port_for_a_bounded_time():
    async def scenario(port):
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(CONNECTIONS_MAX)]
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert await ask(port, b"") == b""  # one too many is closed at once
        for stream in silent:
            with trio.fail_after(60.0):
                assert await stream.receive_some() == b""
            await stream.aclose()
        assert status(await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")) == 200

    # The clock runs fast: REQUEST_TIMEOUT_S passes in a fraction of a second.
    run_port(scenario, clock=trio.testing.MockClock(rate=REQUEST_TIMEOUT_S * 4))


def test_a_scraper_that_resets_the_connection_costs_nothing():
    async def scenario(port):
        for _ in range(20):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            stream.setsockopt(1, 13, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # SO_LINGER 0: a reset instead of an end
            await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
            stream.socket.close()
        assert status(await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")) == 200

    run_port(scenario)


def test_a_port_in_use_is_named_with_its_remedy():
    async def scenario(port):
        with pytest.raises(StateDirectoryError, match=r"metrics\.port"):
            await serve_metrics(host="127.0.0.1", port=port, render=document, is_ready=lambda: True)

    run_port(scenario)


def test_a_whole_node_renders_metrics_that_parse(run_grid):
    async def scenario(sandbox):
        async with sandbox.program("slow") as grid:
            with pytest.raises(UnknownModelError):
                await grid.infer("nothing", {"x": np.zeros(10, np.uint8)})
            await grid.infer("m", {"x": np.zeros(10, np.uint8)})
        families = {}
        for node in sandbox.alive():
            families = {family.name: family for family in text_string_to_metric_families(node.insight.metrics())}
            assert families["gridnode_invariant_violations"].samples[0].value == 0
        assert "gridnode_sojourn_seconds" in families

    run_grid(scenario)

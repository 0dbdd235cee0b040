"""A js-libp2p node in an open test grid: noise, yamux and gossipsub of another implementation, records both ways."""

import contextlib
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import trio

from transport.base import STATE_TOPIC
from transport.identity import NodeKey
from transport.libp2p_host import Libp2pHost
from transport.wire import StateRecord, decode_state, encode

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent.parent / "interop" / "js"
GRID_ID = "5a" * 32
TOPIC = f"gridnode/{GRID_ID[:16]}/{STATE_TOPIC}"
LIMIT_S = 20.0
INSTALL_S = 90.0
NO_REGISTRY = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "E403", "E404", "E5")


def install():
    """Install the packages of the lock file, once; skips where that cannot be done."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no node and npm on this machine")
    wanted = hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest()
    stamp = FOLDER / "node_modules" / ".gridnode-lock"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1"]
    try:
        done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"the npm registry did not give the packages within {INSTALL_S} s")
    if done.returncode and any(word in done.stderr for word in NO_REGISTRY):
        pytest.skip(f"no npm registry: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr[-2000:]
    stamp.write_text(wanted)


class Js:
    """The other node, and what it says."""

    def __init__(self, process):
        self._process = process
        self._lines = self._read()

    async def _read(self):
        rest = b""
        async for part in self._process.stdout:
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                yield json.loads(line)

    async def wait(self, word):
        """Return what it says under this word."""
        async for said in self._lines:
            if word in said:
                return said
        raise AssertionError(f"node ended with {await self._process.wait()}")


@contextlib.asynccontextmanager
async def js_peer(address):
    command = ["node", "--import", "./node20.mjs", "peer.mjs", address, TOPIC]
    process = await trio.lowlevel.open_process(command, cwd=FOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    js = Js(process)
    try:
        yield js
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5.0):
            await js._lines.aclose()
            await process.stdin.aclose()
            with trio.move_on_after(3.0):
                await process.wait()
            process.kill()
            await process.wait()
            await process.stdout.aclose()


def fail(error):
    raise error


def test_a_js_node_hears_state_records_and_is_heard():
    install()
    judged = []

    def judge(message):
        record = decode_state(message.data)
        judged.append((message, record))
        return record.node == message.origin

    def record(host, sequence):
        return encode(StateRecord(1, host.node, 7, sequence, 1.25, 2, 0.5, 1.0, 3, 1 << 30, False, 0, bytes(8)))

    async def publish(host):
        for sequence in range(1, 200):
            await host.publish(STATE_TOPIC, record(host, sequence))
            await trio.sleep(0.3)  # the node's subscription is on its way: the next record finds it

    async def main():
        host = Libp2pHost(
            NodeKey.generate(),
            grid_id=GRID_ID,
            epoch=1,
            listen=("127.0.0.1", 0),
            trust=None,
            chain_pem=None,
            on_bug=fail,
        )
        host.set_validator(STATE_TOPIC, judge)
        with trio.fail_after(LIMIT_S):
            async with trio.open_nursery() as nursery:
                _, port = await nursery.start(host.serve)
                async with js_peer(f"/ip4/127.0.0.1/tcp/{port}/p2p/{host.node}") as js:
                    assert await js.wait("dialled") == {
                        "dialled": host.node,
                        "muxer": "/yamux/1.0.0",
                        "encryption": "/noise",
                    }
                    nursery.start_soon(publish, host)
                    heard = (await js.wait("heard"))["heard"]
                    assert heard == heard | {
                        "version": 1, "node": host.node, "epoch": 7, "backlog": 1.25, "slots": 2, "signer": host.node,
                    }  # fmt: skip
                    async for message in host.messages():
                        theirs = decode_state(message.data)
                        break
                    assert theirs.node == message.origin == message.forwarder != host.node
                    assert (theirs.sequence, theirs.backlog_s, theirs.slots) == (heard["sequence"], 2.5, 3)
                    assert [judged[0][0], judged[0][1]] == [message, theirs]
                    assert host.statistics().faults == {}
                nursery.cancel_scope.cancel()

    trio.run(main)

"""What of libp2p is left out, in processes of their own: this one has all of it, for the tests beside."""

import json
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from transport import libp2p_imports

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent

BEGIN = """
import json, sys
from transport import libp2p_imports
assert libp2p_imports.leave_out() and libp2p_imports.leave_out()
"""

NAMES = """
import transport.libp2p_host
found = {}
for name, module in sorted(sys.modules.items()):
    placeholders = [key for key, value in vars(module).items() if type(value).__name__ == "_PlaceholderType"]
    if placeholders and not name.startswith((*libp2p_imports.ABSENT,)):
        found[name] = sorted(placeholders)
print(json.dumps([found, len(sys.modules)]))
"""

TALK = """
import trio
from transport.base import STATE_TOPIC, TOPICS
from transport.libp2p_host import Libp2pHost
from transport.sandbox import SandboxGrid
from transport.base import Dial

grid = SandboxGrid()
def fail(error):
    raise error
def make():
    member = grid.make_node()
    return Libp2pHost(member.key, grid_id=grid.grid_id, epoch=1, listen=("127.0.0.1", 0), trust=grid.trust(),
                      chain_pem=member.chain_pem, on_bug=fail)

async def talk():
    first, second = make(), make()
    for host in (first, second):
        host.set_validator(STATE_TOPIC, lambda message: True)
    async with trio.open_nursery() as nursery:
        address = await nursery.start(first.serve)
        await nursery.start(second.serve)
        await second.connect(Dial(node=first.node, host=address[0], port=address[1]))
        heard = None
        with trio.fail_after(20):
            while heard is None:
                await second.publish(STATE_TOPIC, b"news")
                with trio.move_on_after(0.2):
                    heard = await first.messages().receive()
        assert heard.data == b"news", heard
        await second.disconnect(first.node)
        counts = [host.statistics().faults for host in (first, second)]
        nursery.cancel_scope.cancel()
    return counts

faults = trio.run(talk)
print(json.dumps([libp2p_imports.touched, faults]))
"""

FOREIGN_KEYS = """
from libp2p.crypto.pb import crypto_pb2
from libp2p.crypto.serialization import deserialize_public_key
named = []
for kind in (crypto_pb2.KeyType.RSA, crypto_pb2.KeyType.Secp256k1):
    try:
        deserialize_public_key(crypto_pb2.PublicKey(key_type=kind, data=b"x" * 33).SerializeToString())
    except libp2p_imports.LeftOutError as error:
        named.append(str(error).split(" ")[0])
print(json.dumps([named, libp2p_imports.touched]))
"""

WHOLE = """
import json
import libp2p.abc
from transport import libp2p_imports
before = libp2p_imports.leave_out()
import transport.libp2p_host
from libp2p import new_host
print(json.dumps([before, callable(new_host)]))
"""


def run(script: str) -> list:
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_lists_were_made_for_the_version_that_is_pinned_and_installed():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    remedy = "go through transport.libp2p_imports and this file before the pin of libp2p moves"
    assert f"libp2p=={libp2p_imports.VERSION}" in wanted, remedy
    assert version("libp2p") == libp2p_imports.VERSION, remedy


def test_what_stands_in_for_what_is_left_out_is_known_by_name():
    found, modules = run(BEGIN + NAMES)
    assert found == {
        "libp2p.crypto.serialization": ["RSAPrivateKey", "RSAPublicKey", "Secp256k1PrivateKey", "Secp256k1PublicKey"],
        "libp2p.custom_types": ["QUICStream"],
        "libp2p.host.basic_host": [
            "ACMEClient", "BootstrapDiscovery", "BrokerClient", "MDNSDiscovery", "UpnpManager", "compute_b36_peer_id",
            "create_mdns_discovery", "is_private_ip",
        ],
        "libp2p.metrics.swarm": ["Counter"],
        "libp2p.network.swarm": ["QUICTransportConfig", "new_protected_conn"],
        "libp2p.peer.envelope": ["RSAPublicKey", "Secp256k1PublicKey"],
        "libp2p.rcmgr.manager": [
            "Allowlist", "AllowlistConfig", "CIDRLimiter", "CircuitBreaker", "CircuitBreakerError",
            "ConnectionLifecycleManager", "ConnectionLimits", "ConnectionPool", "ConnectionTracker",
            "GracefulDegradation", "MemoryConnectionLimits", "MemoryPool", "MemoryStatsCache", "PrometheusExporter",
            "RateLimiter", "create_per_peer_rate_limiter", "create_prometheus_exporter",
            "new_connection_limits_with_defaults", "new_memory_connection_limits_with_defaults",
        ],
    }  # fmt: skip
    assert modules < 660  # 615 now; 1,360 with all of libp2p


def test_hosts_talk_without_touching_what_is_left_out():
    touched, faults = run(BEGIN + TALK)
    assert touched == []
    assert faults == [{}, {}]


def test_a_kind_of_key_that_no_grid_has_is_refused_by_name():
    named, touched = run(BEGIN + FOREIGN_KEYS)
    assert named == [
        "libp2p.crypto.rsa.RSAPublicKey.from_bytes",
        "libp2p.crypto.secp256k1.Secp256k1PublicKey.from_bytes",
    ]
    assert touched == named


def test_the_rest_of_libp2p_is_named_where_it_is_missed():
    script = BEGIN + "import libp2p.abc\ntry:\n    libp2p.new_host\nexcept AttributeError as error:\n"
    [said] = run(script + "    print(json.dumps([str(error)]))")
    assert "libp2p.new_host is left out" in said


def test_a_daemon_can_still_leave_out_when_it_makes_its_host():
    script = "import json, sys\nimport gridnode.cli.main, gridnode.daemon, models.runtime\n"
    script += "print(json.dumps([name for name in sys.modules if name.startswith(('libp2p', 'multiaddr'))]))"
    assert run(script) == []


def test_libp2p_stays_whole_where_it_was_imported_first():
    assert run(WHOLE) == [False, True]


def test_another_version_of_libp2p_stays_whole():
    script = "from transport import libp2p_imports\nlibp2p_imports.VERSION = '0.8.2'\n"
    script += "import json\nprint(json.dumps([libp2p_imports.leave_out()]))"
    assert run(script) == [False]

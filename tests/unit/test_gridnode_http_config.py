"""The HTTP port is opened to others only by who says that he means it."""

import socket

import pytest

from gridnode.cli.checks import check_ports
from gridnode.config import load_config
from gridnode.errors import ConfigError


def load(**http):
    return load_config(None, environment={}, flags={"http": http}).http


def test_it_is_off_and_on_this_machine_alone_unless_asked_for():
    config = load()
    assert (config.enabled, config.host, config.port, config.allow_remote) == (False, "127.0.0.1", 8000, False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_addresses_of_this_machine_alone_are_taken(host):
    assert load(host=host).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "grid.example", "localhost.example"])
def test_other_addresses_need_a_second_word(host):
    with pytest.raises(ConfigError, match=r"http\.allow_remote=true"):
        load(host=host)
    assert load(host=host, allow_remote=True).host == host


def test_the_loopback_preset_takes_any_free_port():
    assert load_config(None, environment={}, flags={"preset": "loopback"}).http.port == 0


@pytest.mark.parametrize("enabled", [True, False])
def test_doctor_looks_at_the_port_where_it_is_on(enabled):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flags = {"preset": "loopback", "http": {"enabled": enabled, "port": port}}
        found = {
            finding.check: finding.verdict for finding in check_ports(load_config(None, environment={}, flags=flags))
        }
    assert found.get("port http") == ("bad" if enabled else None)


@pytest.mark.parametrize(
    ("http", "words"),
    [
        ({"port": 70000}, "http.port"),
        ({"body_bytes": 65 << 20}, "http.body_bytes"),
        ({"connections": 0}, "http.connections"),
        ({"request_s": 0}, "http.request_s"),
        ({"idle_s": -1}, "http.idle_s"),
        ({"portt": 1}, "did you mean 'port'"),
    ],
)
def test_values_out_of_range_are_named(http, words):
    with pytest.raises(ConfigError, match=words):
        load(**http)

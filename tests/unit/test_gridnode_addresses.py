"""Which addresses of a machine are told to peers."""

import socket
from collections import namedtuple

import pytest

from gridnode.addresses import ADVERTISED_MAX, own_addresses

Address = namedtuple("Address", "family address")


def machine(monkeypatch, **interfaces):
    known = {
        name: [Address(socket.AF_INET6 if ":" in text else socket.AF_INET, text) for text in texts]
        for name, texts in interfaces.items()
    }
    monkeypatch.setattr("psutil.net_if_addrs", lambda: known)


def test_what_the_operator_names_is_taken_as_it_is():
    assert own_addresses(["a.example", "10.0.0.1"], bound="0.0.0.0") == ("a.example", "10.0.0.1")
    assert len(own_addresses([f"h{i}" for i in range(9)], bound="0.0.0.0")) == ADVERTISED_MAX


def test_a_bound_address_is_itself_the_answer():
    assert own_addresses([], bound="127.0.0.1") == ("127.0.0.1",)


def test_private_ones_come_first_and_useless_ones_not_at_all(monkeypatch):
    machine(
        monkeypatch,
        lo=["127.0.0.1", "::1"],
        eth0=["8.8.4.4", "fe80::1%eth0", "2001:4860::1"],
        wlan0=["192.168.1.5", "169.254.3.3"],
        docker0=["172.17.0.1"],
        veth12=["10.9.9.9"],
        odd=["0.0.0.0", "224.0.0.1"],
    )
    assert own_addresses([], bound="0.0.0.0") == ("192.168.1.5", "8.8.4.4", "2001:4860::1")


@pytest.mark.parametrize("interfaces", [{}, {"lo": ["127.0.0.1"]}, {"docker0": ["172.17.0.1"]}])
def test_a_machine_alone_tells_loopback(monkeypatch, interfaces):
    machine(monkeypatch, **interfaces)
    assert own_addresses([], bound="::") == ("127.0.0.1",)


def test_no_more_are_told_than_a_card_holds(monkeypatch):
    machine(monkeypatch, eth0=[f"10.0.0.{i}" for i in range(1, 20)])
    assert len(own_addresses([], bound="0.0.0.0")) == ADVERTISED_MAX

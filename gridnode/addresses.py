"""Which addresses of this machine peers can use.

Container bridges and virtual pairs are left out: their addresses are the same on every machine, and a peer that dials
one reaches itself, or nobody. What the operator names in network.advertise is taken as it is.
"""

import ipaddress
import socket
from collections.abc import Iterable
from typing import Final

import psutil

ADVERTISED_MAX: Final = 4
"""Addresses told to peers per plane; a card holds two planes in 2 KiB, beside the certificates."""
_VIRTUAL: Final = ("docker", "br-", "veth", "virbr", "cni", "flannel", "cali", "lxc", "lxd", "podman", "kube", "tun")


def own_addresses(configured: Iterable[str], *, bound: str) -> tuple[str, ...]:
    """Return the hosts to tell peers, best first.

    Parameters
    ----------
    configured : iterable of str
        network.advertise; taken as it is where not empty.
    bound : str
        The address listened on; itself the answer unless it is a wildcard.
    """
    chosen = tuple(configured)
    if chosen:
        return chosen[:ADVERTISED_MAX]
    if bound not in ("0.0.0.0", "::"):
        return (bound,)
    found: list[tuple[int, str]] = []
    for interface, addresses in sorted(psutil.net_if_addrs().items()):
        if interface.startswith(_VIRTUAL):
            continue
        for address in addresses:
            rank = _rank(address.family, address.address)
            if rank is not None:
                found.append((rank, address.address))
    return tuple(host for _, host in sorted(found)[:ADVERTISED_MAX]) or ("127.0.0.1",)


def _rank(family: int, text: str) -> int | None:
    """Return 0 for private IPv4, 1 for other IPv4, 2 for global IPv6; None for what peers cannot use."""
    if family not in (socket.AF_INET, socket.AF_INET6) or "%" in text:
        return None
    address = ipaddress.ip_address(text)
    if address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast:
        return None
    if address.version == 4:
        return 0 if address.is_private else 1
    return 2

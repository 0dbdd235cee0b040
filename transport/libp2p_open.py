"""Noise for open test grids, as other libp2p implementations speak it. Private grids never import this module."""

from libp2p.abc import IRawConnection, ISecureConn, ISecureTransport
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.security.noise.transport import PROTOCOL_ID
from libp2p.security.noise.transport import Transport as NoiseTransport

from transport.libp2p_security import Establish


def open_security(keys: KeyPair, establish: Establish) -> dict[TProtocol, ISecureTransport]:
    """Return noise by its protocol; anyone may come in."""
    return {PROTOCOL_ID: OpenSecurity(keys, create_new_key_pair(), establish)}


class OpenSecurity(NoiseTransport):
    """Stock noise that tells of peers who have proved their key."""

    def __init__(self, keys: KeyPair, noise_keys: KeyPair, establish: Establish) -> None:
        super().__init__(keys, noise_privkey=noise_keys.private_key)
        self._establish = establish

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:
        """Do the responder's part."""
        secured = await super().secure_inbound(conn)
        if isinstance(conn, RawConnection):
            self._establish(conn)
        return secured

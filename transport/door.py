"""The join door: a listener of its own, through which new nodes come in.

Owns when the door is open and what it answers. Knows nothing of the grid files it hands out (a function passed
in makes the bundle). It is open only while an invite is outstanding, and a little longer, so that a node whose
answer was lost can fetch it again. Three kinds of guests:

* anybody may ask for the CA certificate, which the token's hash verifies;
* who brings the secret of an invite and a request for its own key gets a certificate;
* who shows an expired certificate (at most 90 days, not revoked) gets a new one with the same roles.

Guests are strangers: few at a time, few seconds, small messages, one question per connection.
"""

import socket
import ssl
from collections.abc import Callable
from functools import partial

import msgspec
import trio

from transport.admission import PendingLimit
from transport.certificates import CertificateRefusedError, GridTrust, RefusalReason
from transport.doorwire import (
    AskAuthority,
    AskJoin,
    AskRenewal,
    Authority,
    Bundle,
    DoorLink,
    DoorMessage,
    DoorRefused,
    Granted,
)
from transport.identity import NodeKey, peer_id
from transport.issuing import Issuer, read_csr
from transport.securestream import ListenError, SecureStream, take_socket
from transport.tls import peer_chain, server_context
from transport.tokens import Invites
from transport.wire import RemoteProtocolError, TransportError


class DoorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of the join door."""

    host: str = "0.0.0.0"
    """Address to listen on."""
    port: int = 0
    """Port; it stands in tokens, so it should be fixed. 0 lets the system choose once."""
    guests_max: int = 4
    """Connections at once."""
    guests_per_host: int = 2
    """Of these from one IP address, so that one silent host cannot keep the door busy alone."""
    question_s: float = 5.0
    """From the connection to the whole question, in seconds."""
    answer_s: float = 30.0
    """For sending the answer, in seconds: a bundle of 1 MiB at 300 kbit/s. Only guests with a secret get one."""
    linger_s: float = 60.0
    """How long the door stays open after an invite was redeemed, in seconds."""
    look_s: float = 1.0
    """How often it is looked whether invites expired, in seconds."""


class DoorStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the start."""

    is_open: bool
    guests: int
    refused_crowded: int
    joined: int
    renewed: int
    refused: int
    """Questions answered with no."""
    faults: int
    """Guests that sent nonsense, were too slow or went away."""


class Door:
    """Runs the join door of an admit node.

    Parameters
    ----------
    key, chain_pem
        This node's key and certificate, which the door shows.
    trust : GridTrust
        Judges certificates shown for renewal; its CA file is handed out.
    issuer : Issuer
        Signs.
    invites : Invites
        Outstanding tokens; tell the door of new ones by `refresh`.
    bundle : callable
        Makes what new nodes get beside their certificate.
    config : DoorConfig
        Bounds.
    on_joined : callable, optional
        Told PeerID and name of a node that got a first certificate.
    """

    def __init__(
        self,
        key: NodeKey,
        chain_pem: bytes,
        *,
        trust: GridTrust,
        issuer: Issuer,
        invites: Invites,
        bundle: Callable[[], Bundle],
        config: DoorConfig,
        on_joined: Callable[[str, str], None] = lambda _node, _name: None,
    ) -> None:
        self._key = key
        self._trust = trust
        self._issuer = issuer
        self._invites = invites
        self._bundle = bundle
        self._config = config
        self._on_joined = on_joined
        self._limit = PendingLimit(per_host=config.guests_per_host, in_all=config.guests_max)
        self._changed = trio.Event()
        self._opened = trio.Event()
        self._open_until_s = float("-inf")
        self._guests = self._crowded = self._joined = self._renewed = self._refused = self._faults = 0
        self.renew(chain_pem)

    def renew(self, chain_pem: bytes, issuer: Issuer | None = None) -> None:
        """Show another certificate from now on, and sign with another intermediate if one is given."""
        self._context = server_context(self._key, chain_pem, self._trust.ca_pem, client_certificate=ssl.CERT_OPTIONAL)
        self._issuer = issuer or self._issuer

    def refresh(self) -> None:
        """Look at once whether the door should be open: an invite was made."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait_open(self) -> None:
        """Wait until the door is open."""
        await self._opened.wait()

    def statistics(self) -> DoorStatistics:
        """Return counters."""
        return DoorStatistics(
            is_open=self._opened.is_set(),
            guests=self._guests,
            refused_crowded=self._crowded,
            joined=self._joined,
            renewed=self._renewed,
            refused=self._refused,
            faults=self._faults,
        )

    # ------------------------------------------------------------ open and shut

    async def serve(self, *, task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED) -> None:
        """Open and shut the door until cancelled; reports host and port, which stay reserved while it is shut.

        Raises
        ------
        ListenError
            The port cannot be had.
        """
        plain = self._bind(self._config.host, self._config.port)
        address: tuple[str, int] = plain.getsockname()[:2]
        task_status.started(address)
        try:
            async with trio.open_nursery() as guests:
                while True:
                    await self._wait_until_wanted(True)
                    await self._stay_open(plain, guests)
                    plain = self._bind(*address)
        finally:
            plain.close()

    def _bind(self, host: str, port: int) -> socket.socket:
        """Reserve the port without listening: guests are turned away by the kernel until the door opens."""
        plain = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            plain.setblocking(False)
            plain.bind((host, port))
        except OSError as error:
            plain.close()
            raise ListenError(f"the join door cannot use {host}:{port}: {error}; choose another port") from error
        return plain

    def _is_wanted(self) -> bool:
        return trio.current_time() < self._open_until_s or self._invites.has_outstanding(self._trust.grid_time.now_s())

    async def _wait_until_wanted(self, wanted: bool) -> None:
        while self._is_wanted() is not wanted:
            with trio.move_on_after(self._config.look_s):
                await self._changed.wait()

    async def _stay_open(self, plain: socket.socket, guests: trio.Nursery) -> None:
        """Listen while that is wanted; guests who are in then may finish, in the nursery passed in."""
        try:
            plain.listen(16)
        except OSError as error:
            raise ListenError(f"the join door cannot listen: {error}; choose another port") from error
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(plain))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(trio.serve_listeners, self._meet, [listener], handler_nursery=guests))
                self._opened.set()
                await self._wait_until_wanted(False)
                nursery.cancel_scope.cancel()
        finally:
            self._opened = trio.Event()
            listener.socket.close()

    # ------------------------------------------------------------ guests

    async def _meet(self, guest: trio.SocketStream) -> None:
        plain = take_socket(guest)
        with self._limit.enter(plain) as may_try:
            if not may_try:
                self._crowded += 1
                plain.close()
                return
            self._guests += 1
            stream = SecureStream(plain, self._context, server_side=True)
            try:
                await self._converse(stream)
            except (TransportError, trio.TooSlowError):
                self._faults += 1
            finally:
                stream.close()

    async def _converse(self, stream: SecureStream) -> None:
        link = DoorLink(stream, "door")
        with trio.fail_after(self._config.question_s):
            await stream.handshake()
            question, _ = await link.receive()
        answer, payload = await self._answer(question, peer_chain(stream.ssl_object))
        with trio.fail_after(self._config.answer_s):
            await link.send(answer, payload)

    async def _answer(self, question: DoorMessage, chain: tuple[bytes, ...]) -> tuple[DoorMessage, bytes]:
        try:
            if isinstance(question, AskAuthority):
                return Authority(ca_pem=self._trust.ca_pem), b""
            if isinstance(question, AskJoin):
                granted = await self._admit(question)
            elif isinstance(question, AskRenewal):
                granted = self._renew_guest(question, chain)
            else:
                raise RemoteProtocolError(f"the join door takes no {type(question).__name__}")
            return granted, msgspec.msgpack.encode(self._bundle())
        except TransportError as error:
            self._refused += 1
            reason = error.reason if isinstance(error, CertificateRefusedError) else ""
            return DoorRefused(error=type(error).__name__, message=str(error)[:1024], reason=reason), b""

    async def _admit(self, question: AskJoin) -> Granted:
        key = read_csr(question.csr)
        node = peer_id(key.public_bytes_raw())
        now_s = self._trust.grid_time.now_s()
        # The thread writes to disk that the secret is spent; only then is anything signed.
        roles = await trio.to_thread.run_sync(lambda: self._invites.redeem(question.secret, node, now_s=now_s))
        self._open_until_s = trio.current_time() + self._config.linger_s
        chain_pem = self._issuer.issue(key, roles, now_s=now_s)
        self._joined += 1
        self._on_joined(node, question.name)
        return Granted(chain_pem=chain_pem)

    def _renew_guest(self, question: AskRenewal, chain: tuple[bytes, ...]) -> Granted:
        if not chain:
            raise CertificateRefusedError(RefusalReason.UNTRUSTED, "a renewal needs the old certificate; join instead")
        certificate = self._trust.judge_renewal(chain)
        chain_pem = self._issuer.renew(question.csr, certificate, now_s=self._trust.grid_time.now_s())
        self._renewed += 1
        return Granted(chain_pem=chain_pem)

"""The new node's side of the join door: from a token to a certificate.

Owns the order in which a new node trusts: first nothing (it fetches the CA certificate from whoever answers),
then the CA whose hash stands in the token, then a door that proves by that CA to be the token's issuer; only to
that one it sends the secret. Knows nothing of where the results are kept.
"""

import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from hashlib import sha256
from typing import Final

import msgspec
import trio

from transport.cards import Address
from transport.certificates import (
    ADMIT,
    CertificateRefusedError,
    GridTrust,
    NothingRevoked,
    PeerCertificate,
    RefusalReason,
)
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
    decode_bundle,
)
from transport.gridtime import GridTime
from transport.identity import NodeKey
from transport.issuing import chain_ders, make_csr
from transport.securestream import SecureStream, take_socket
from transport.tls import client_context, first_contact_context, joining_context, judge_peer
from transport.tokens import (
    JoinToken,
    TokenError,
    TokenExpiredError,
    TokenSpentError,
    TokenUnknownError,
    WrongGridError,
)
from transport.wire import PeerUnreachableError, RemoteProtocolError, TransportError

STEP_S: Final = 5.0
"""For connecting and shaking hands with a door, in seconds."""
ANSWER_S: Final = 40.0
"""For the door's answer, in seconds; a little more than the door takes for a large bundle on a slow link."""
PATIENCE_S: Final = 60.0
"""For how long a guest comes back to a door that hangs up, in seconds: a door has few guests at once, and a rack of
boxes behind one address may join together."""
PAUSE_S: Final = 0.1
"""Before the first return, in seconds; doubles."""
PAUSE_MAX_S: Final = 2.0
"""Longest pause between two returns, in seconds."""

_REFUSALS: Final[dict[str, type[TokenError]]] = {
    error.__name__: error for error in (TokenExpiredError, TokenSpentError, TokenUnknownError)
}


class DoorBusyError(PeerUnreachableError):
    """The door hung up before it answered: too many guests, or it was just being shut."""


class JoinGrant(msgspec.Struct, frozen=True, kw_only=True):
    """What a node got at the door."""

    grid_id: str
    ca_pem: bytes
    chain_pem: bytes
    """Leaf and intermediate, to be kept beside the key."""
    certificate: PeerCertificate
    bundle: Bundle


async def join(token: JoinToken, key: NodeKey, *, name: str, grid_time: GridTime) -> JoinGrant:
    """Join a grid with a token.

    Parameters
    ----------
    token : JoinToken
        From `parse_token`.
    key : NodeKey
        The new node's key; the same one again when a join is repeated.
    name : str
        Host label of up to 63 letters, digits, dots, dashes, for the issuer's log.
    grid_time : GridTime
        Of this node; the door's certificate moves its floor.

    Raises
    ------
    TokenExpiredError, TokenSpentError, TokenUnknownError
        The door refused the token.
    WrongGridError
        At the token's addresses is no door of its issuer.
    DoorBusyError
        The door hung up for a whole minute.
    PeerUnreachableError
        No door answered: it is open only while an invite is outstanding.
    CertificateRefusedError, RemoteProtocolError
        The door refused for another reason or answered nonsense.
    """

    async def attempt(address: Address) -> JoinGrant:
        ca_pem = await _fetch_authority(address, token)
        grid_id = token.grid_id.hex()
        trust = GridTrust(ca_pem, grid_id, revocations=NothingRevoked(), grid_time=grid_time)
        question = AskJoin(secret=token.secret, csr=make_csr(key), name=name)
        return await _ask_for_certificate(address, joining_context(ca_pem), trust, key, question, issuer=token.issuer)

    try:
        return await _try_each(token.addresses, attempt, random.Random(key.node))
    except PeerUnreachableError as error:
        if grid_time.now_s() > token.expires_at_s:
            raise TokenExpiredError("the join token has expired and the door is shut; ask for a new one") from error
        raise


async def renew_at_door(addresses: Sequence[Address], key: NodeKey, chain_pem: bytes, trust: GridTrust) -> JoinGrant:
    """Get a new certificate for one that expired at most 90 days ago; doors of any admit node will do.

    Raises
    ------
    CertificateRefusedError
        The door refused: revoked, or expired for too long.
    PeerUnreachableError
        No door is open; make an invite on an admit node.
    """

    async def attempt(address: Address) -> JoinGrant:
        context = client_context(key, chain_pem, trust.ca_pem)
        return await _ask_for_certificate(address, context, trust, key, AskRenewal(csr=make_csr(key)), issuer=None)

    return await _try_each(addresses, attempt, random.Random(key.node))


async def _try_each(
    addresses: Sequence[Address], attempt: Callable[[Address], Awaitable[JoinGrant]], rng: random.Random
) -> JoinGrant:
    """Try doors in their order, and again while one of them hangs up; asking twice does no harm."""
    give_up_s = trio.current_time() + PATIENCE_S
    pause_s = PAUSE_S
    while True:
        try:
            return await _try_once(addresses, attempt)
        except DoorBusyError:
            if trio.current_time() + pause_s > give_up_s:
                raise
        # Those who were turned away together must not come back together.
        await trio.sleep(pause_s * rng.uniform(0.5, 1.5))
        pause_s = min(2 * pause_s, PAUSE_MAX_S)


async def _try_once(addresses: Sequence[Address], attempt: Callable[[Address], Awaitable[JoinGrant]]) -> JoinGrant:
    """Try doors in their order; go on where nobody or somebody else answers, stop where the door says no."""
    failures: list[TransportError] = []
    for address in addresses:
        try:
            return await attempt(address)
        except (PeerUnreachableError, WrongGridError) as error:
            failures.append(error)
    text = "; ".join(str(failure) for failure in failures)
    if any(isinstance(failure, DoorBusyError) for failure in failures):
        raise DoorBusyError(f"the join door hung up, it takes few guests at a time: {text}")
    if any(isinstance(failure, WrongGridError) for failure in failures):
        raise WrongGridError(text)
    raise PeerUnreachableError(f"no join door answered, they are open only while an invite is outstanding: {text}")


async def _fetch_authority(address: Address, token: JoinToken) -> bytes:
    async with _knock(address, first_contact_context()) as (_, link):
        answer, _ = await _ask(link, AskAuthority())
    if not isinstance(answer, Authority):
        raise RemoteProtocolError(f"the door at {address.host}:{address.port} did not hand out its CA certificate")
    if sha256(answer.ca_pem).digest() != token.ca_sha256:
        message = f"the door at {address.host}:{address.port} belongs to another grid than the token; check the address"
        raise WrongGridError(message)
    return answer.ca_pem


async def _ask_for_certificate(
    address: Address,
    context: ssl.SSLContext,
    trust: GridTrust,
    key: NodeKey,
    question: AskJoin | AskRenewal,
    *,
    issuer: str | None,
) -> JoinGrant:
    try:
        async with _knock(address, context) as (ssl_object, link):
            judge_peer(ssl_object, trust, node=issuer, role=ADMIT)
            answer, payload = await _ask(link, question)
    except CertificateRefusedError as error:
        raise WrongGridError(f"the door at {address.host}:{address.port} is not the issuer's: {error}") from error
    if isinstance(answer, DoorRefused):
        raise _refusal(answer)
    if not isinstance(answer, Granted):
        raise RemoteProtocolError(f"the join door answered {type(answer).__name__} to a request")
    certificate = trust.judge(chain_ders(answer.chain_pem), node=key.node)
    return JoinGrant(
        grid_id=trust.grid_id,
        ca_pem=trust.ca_pem,
        chain_pem=answer.chain_pem,
        certificate=certificate,
        bundle=decode_bundle(payload),
    )


def _refusal(answer: DoorRefused) -> TransportError:
    if answer.error in _REFUSALS:
        return _REFUSALS[answer.error](answer.message)
    if answer.error == CertificateRefusedError.__name__:
        reason = RefusalReason(answer.reason) if answer.reason in set(RefusalReason) else RefusalReason.UNTRUSTED
        return CertificateRefusedError(reason, f"the join door refused: {answer.message}")
    return RemoteProtocolError(f"the join door refused: {answer.message}")


@asynccontextmanager
async def _knock(address: Address, context: ssl.SSLContext) -> AsyncIterator[tuple[ssl.SSLObject, DoorLink]]:
    try:
        with trio.fail_after(STEP_S):
            plain = await _connect(address)
            stream = SecureStream(plain, context, server_side=False)
            is_done = False
            try:
                with _hung_up(address):
                    await stream.handshake()
                is_done = True
            finally:
                if not is_done:
                    stream.close()
    except trio.TooSlowError as error:
        raise PeerUnreachableError(f"the door at {address.host}:{address.port} did not answer in time") from error
    try:
        with _hung_up(address):
            yield stream.ssl_object, DoorLink(stream, "guest")
    except trio.TooSlowError as error:
        raise PeerUnreachableError(f"the door at {address.host}:{address.port} did not answer in time") from error
    finally:
        stream.close()


@contextmanager
def _hung_up(address: Address) -> Iterator[None]:
    """Tell a door that was there and hung up from one that is not there, or silent."""
    try:
        yield
    except PeerUnreachableError as error:
        raise DoorBusyError(f"{address.host}:{address.port}: {error}") from error


async def _connect(address: Address) -> socket.socket:
    try:
        return take_socket(await trio.open_tcp_stream(address.host, address.port))
    except (OSError, UnicodeError) as error:
        raise PeerUnreachableError(f"no connection to {address.host}:{address.port}: {error}") from error


async def _ask(link: DoorLink, question: DoorMessage) -> tuple[DoorMessage, memoryview]:
    with trio.fail_after(ANSWER_S):
        await link.send(question)
        return await link.receive()

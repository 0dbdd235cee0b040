"""Join tokens, and the issuer's record of those it gave out.

Owns the token's text and the file of outstanding invites. Knows nothing of sockets: transport.door redeems,
transport.joining uses the token on the new node's side.

A token pins everything that the new node cannot know: the grid's id, where the join door is, the hash of the
CA certificate, and the issuer's PeerID; and it carries a one-time secret. The issuer keeps only the SHA-256 of
the secret, so its state directory gives no token away. A secret is marked spent, on disk, before the certificate
leaves; the node that spent it may fetch its certificate again until the token expires (its first answer may
have been lost), nobody else may.
"""

import base64
import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from transport.cards import Address
from transport.certificates import ROLES
from transport.files import read_checked, write_checked
from transport.wire import NodeText, TransportError

TOKEN_PREFIX: Final = "gn1."
TOKEN_MAX_CHARACTERS: Final = 2048
"""A token with eight addresses takes under 600 characters."""
INVITES_MAX: Final = 256
"""Invites kept until they expire, spent or not."""
INVITE_LIFE_MAX_S: Final = 30 * 86400.0
"""A token is a key to the grid; none lies about for more than a month."""
_CHECKSUM_BYTES: Final = 4
_SECRET_BYTES: Final = 32
_FILE_MAX_BYTES: Final = 256 * 1024


class TokenError(TransportError):
    """A join token is of no use; the message says why and what to do."""


class TokenMalformedError(TokenError):
    """The text is no token, or was not copied whole."""


class TokenExpiredError(TokenError):
    """Its time is over."""


class TokenSpentError(TokenError):
    """Another node has joined with it."""


class TokenUnknownError(TokenError):
    """The door knows no such invite."""


class WrongGridError(TokenError):
    """The door belongs to another grid, or is not run by the issuer of the token."""


class JoinToken(msgspec.Struct, frozen=True, array_like=True):
    """What the text holds. Positional: new fields go to the end."""

    grid_id: Annotated[bytes, Meta(min_length=32, max_length=32)]
    addresses: Annotated[tuple[Address, ...], Meta(min_length=1, max_length=8)]
    ca_sha256: Annotated[bytes, Meta(min_length=32, max_length=32)]
    """Of the CA file as the door hands it out."""
    issuer: NodeText
    secret: Annotated[bytes, Meta(min_length=_SECRET_BYTES, max_length=_SECRET_BYTES)]
    expires_at_s: Annotated[int, Meta(ge=0, le=2**40)]
    """Seconds since 1970, by the issuer's grid time."""

    def __repr__(self) -> str:
        """Hide the secret: tokens end up in logs."""
        return f"JoinToken(grid_id={self.grid_id.hex()[:12]}, issuer={self.issuer}, expires_at_s={self.expires_at_s})"

    @property
    def text(self) -> str:
        """The token as it is handed to people."""
        body = msgspec.msgpack.encode(self)
        checksum = hashlib.sha256(body).digest()[:_CHECKSUM_BYTES]
        return TOKEN_PREFIX + _as_text(body + checksum)


_TOKEN_DECODER: Final = msgspec.msgpack.Decoder(JoinToken)


def _as_text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def parse_token(text: str) -> JoinToken:
    """Read a token's text.

    Raises
    ------
    TokenMalformedError
        It is no token, or a character is missing or wrong.
    """
    text = "".join(text.split())  # terminals and mails break long lines
    if not text.startswith(TOKEN_PREFIX) or len(text) > TOKEN_MAX_CHARACTERS:
        raise TokenMalformedError(f"this is no join token: one begins with {TOKEN_PREFIX!r}; ask for a new invite")
    encoded = text[len(TOKEN_PREFIX) :]
    try:
        data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise TokenMalformedError("the join token has a character that does not belong there; copy it again") from error
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    # The last character has bits that no byte takes: with them wrong it stands for the same bytes.
    if hashlib.sha256(body).digest()[:_CHECKSUM_BYTES] != checksum or _as_text(data) != encoded:
        raise TokenMalformedError(
            "the join token's checksum does not fit: part of it is missing or mistyped; copy it again"
        )
    try:
        return _TOKEN_DECODER.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise TokenMalformedError(f"the join token is of another version: {error}") from error


class Invite(msgspec.Struct, frozen=True, kw_only=True):
    """An issuer's record of one token."""

    secret_sha256: bytes
    expires_at_s: float
    roles: tuple[str, ...]
    spent_by: str = ""
    """PeerID of the node that joined with it."""


_INVITES_DECODER: Final = msgspec.msgpack.Decoder(tuple[Invite, ...])


class Invites:
    """The invites that an issuer has given out, and their file.

    Methods that write block on fsync; call them in a thread. They may run in several threads at once.

    Parameters
    ----------
    path : Path
        The file; see `load`.
    invites_max : int
        Bound on invites kept until they expire.
    """

    def __init__(self, path: Path, *, invites_max: int = INVITES_MAX) -> None:
        self._path = path
        self._invites_max = invites_max
        self._invites: dict[bytes, Invite] = {}
        self._lock = Lock()

    @classmethod
    def load(cls, path: Path) -> "Invites":
        """Read the file, empty when there is none. Blocks for a file read.

        Raises
        ------
        StateFileError
            The file is damaged.
        """
        invites = cls(path)
        kept = read_checked(path, _INVITES_DECODER, max_bytes=_FILE_MAX_BYTES, remedy="delete it and invite again")
        if kept is not None:
            invites._invites = {invite.secret_sha256: invite for invite in kept}
        return invites

    def create(
        self,
        *,
        grid_id: str,
        ca_pem: bytes,
        issuer: str,
        addresses: Sequence[Address],
        roles: tuple[str, ...],
        now_s: float,
        life_s: float,
    ) -> JoinToken:
        """Make a token and record it on disk.

        Parameters
        ----------
        grid_id : str
            64 hex digits.
        ca_pem : bytes
            The CA file that the door will hand out.
        issuer : str
            PeerID of this node.
        addresses : sequence of Address
            Where the join door will be reached, best first, 1 to 8.
        roles : tuple of str
            What the new node may do.
        now_s, life_s : float
            Grid time (seconds since 1970), and for how long the token holds, in seconds.

        Raises
        ------
        TokenError
            There are too many already.
        StateFileError
            It cannot be recorded.
        """
        if not 0 < life_s <= INVITE_LIFE_MAX_S:
            raise ValueError(f"an invite holds for more than 0 and at most {INVITE_LIFE_MAX_S:.0f} s, not {life_s}")
        if not roles or set(roles) - set(ROLES):
            raise ValueError(f"roles {roles} must be some of {ROLES}")
        secret = secrets.token_bytes(_SECRET_BYTES)
        token = JoinToken(
            grid_id=bytes.fromhex(grid_id),
            addresses=tuple(addresses),
            ca_sha256=hashlib.sha256(ca_pem).digest(),
            issuer=issuer,
            secret=secret,
            expires_at_s=int(now_s + life_s),
        )
        parse_token(token.text)  # a wrong field shows here, not at the new node
        key = hashlib.sha256(secret).digest()
        with self._lock:
            self._prune(now_s)
            if len(self._invites) >= self._invites_max:
                raise TokenError(f"{self._invites_max} invites are kept already; wait until some have expired")
            invite = Invite(secret_sha256=key, expires_at_s=token.expires_at_s, roles=tuple(sorted(set(roles))))
            self._write({**self._invites, key: invite})
        return token

    def redeem(self, secret: bytes, node: str, *, now_s: float) -> tuple[str, ...]:
        """Spend an invite for a node, on disk, and return the roles it grants.

        Raises
        ------
        TokenUnknownError, TokenExpiredError, TokenSpentError
            It is of no use to that node.
        StateFileError
            It cannot be marked; nothing may be issued then.
        """
        key = hashlib.sha256(secret).digest()
        with self._lock:
            invite = self._invites.get(key)
            if invite is None:
                raise TokenUnknownError("this door knows no such invite; it may have expired, ask for a new one")
            if now_s > invite.expires_at_s:
                raise TokenExpiredError("the join token has expired; ask for a new one")
            if invite.spent_by not in ("", node):
                raise TokenSpentError("another node has joined with this token; each node needs one of its own")
            if not invite.spent_by:
                self._write({**self._invites, key: msgspec.structs.replace(invite, spent_by=node)})
            return invite.roles

    def has_outstanding(self, now_s: float) -> bool:
        """Say whether a token that can still be used is about: then the join door is open."""
        return any(not invite.spent_by and now_s <= invite.expires_at_s for invite in self.all())

    def all(self) -> tuple[Invite, ...]:
        """Return the invites kept, in the order they were made."""
        return tuple(self._invites.values())

    def _prune(self, now_s: float) -> None:
        """Forget what expired; a late joiner then hears that the invite is unknown."""
        self._invites = {key: invite for key, invite in self._invites.items() if now_s <= invite.expires_at_s}

    def _write(self, invites: dict[bytes, Invite]) -> None:
        write_checked(self._path, tuple(invites.values()))
        self._invites = invites

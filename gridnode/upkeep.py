"""What has to be done from time to time: expired certificates, grid time on disk, revocation lists that grew apart."""

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from gridnode.credentials import Credentials
from gridnode.logs import EventLog
from gridnode.membership import Membership
from transport.certificates import REVOKE
from transport.files import StateFileError
from transport.wire import TransportError

log = EventLog("upkeep")

EVERY_S: Final = 60.0
"""Certificates live for weeks and are allowed ten minutes; a minute more is nothing."""


class Upkeep:
    """Looks after one node.

    Parameters
    ----------
    judge_connections : callable
        Closes data connections whose certificate is refused by now.
    """

    def __init__(
        self,
        credentials: Credentials,
        membership: Membership,
        *,
        judge_connections: Callable[[], Awaitable[object]],
    ) -> None:
        self._credentials = credentials
        self._membership = membership
        self._judge_connections = judge_connections
        self._wake = trio.Event()

    def judge_now(self) -> None:
        """Judge connections at once: somebody was revoked."""
        self._wake.set()

    async def serve(self) -> None:
        """Run until cancelled."""
        while True:
            with trio.move_on_after(EVERY_S):
                await self._wake.wait()
            self._wake = trio.Event()
            self._membership.drop_expired()
            await self._judge_connections()
            self._sign_union()
            if self._credentials.grid_time.is_save_due:
                await self.save_time()

    def _sign_union(self) -> None:
        """Sign one list of all that is revoked, where two revokers signed apart and this node may."""
        credentials = self._credentials
        revocations = credentials.revocations
        if revocations.is_complete or REVOKE not in credentials.certificate.roles:
            return
        try:
            document = revocations.sign_next(
                credentials.grid_id,
                credentials.key.private,
                now_s=credentials.grid_time.now_s(),
                chain=credentials.chain,
            )
            self._membership.take_revocations(document)
        except TransportError as error:
            log.warning("revocations_not_joined", error=error)

    async def save_time(self) -> None:
        """Keep grid time on disk; a disk that cannot be written is logged."""
        try:
            await trio.to_thread.run_sync(self._credentials.grid_time.save)
        except StateFileError as error:
            log.warning("grid_time_not_saved", error=error)

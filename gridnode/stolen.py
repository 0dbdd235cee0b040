"""The thief's side of a steal: granted jobs are taken in, and answered on the connection they came over.

The victim's side is gridnode.leases.
"""

import trio

from gridnode.config import HANDOVER_TIMEOUT_S
from gridnode.conversation import Conversation
from gridnode.driver import Driver
from gridnode.jobtable import JobTable
from transport.base import Exchange
from transport.wire import JobCancel, JobSend, PeerUnreachableError, RemoteProtocolError, StealAnswer


async def serve_stolen(
    exchange: Exchange, granted: int, *, jobs: JobTable, driver: Driver, node: str, nursery: trio.Nursery
) -> None:
    """Take in the granted jobs, then answer each on this connection as an executor does.

    Raises
    ------
    TransportError
        The connection broke, the victim broke the protocol, or it did not hand over what it granted; the jobs that
        came are cancelled, since nobody waits for their answers.
    """
    conversation = Conversation(exchange, jobs=jobs, driver=driver, node=node, nursery=nursery)
    try:
        with trio.fail_after(HANDOVER_TIMEOUT_S):
            await _receive_granted(exchange, conversation, granted)
    except trio.TooSlowError as error:
        conversation.abandon()
        raise PeerUnreachableError(f"granted jobs did not come within {HANDOVER_TIMEOUT_S} s") from error
    except BaseException:
        conversation.abandon()
        raise
    await conversation.run()
    await _receive_bracket(exchange)


async def _receive_granted(exchange: Exchange, conversation: Conversation, granted: int) -> None:
    """Take in the jobs of a grant, and cancels of those that ended at the victim meanwhile."""
    while granted:
        message, payload = await exchange.receive()
        match message:
            case JobSend():
                conversation.admit(message.job, payload, stolen=True)
                granted -= 1
            case JobCancel():
                conversation.cancel(message.key)
            case _:
                raise RemoteProtocolError(f"peer sent {type(message).__name__} where a granted job was due")


async def _receive_bracket(exchange: Exchange) -> None:
    """Wait for the victim's last word, past cancels that crossed our outcomes."""
    with trio.move_on_after(HANDOVER_TIMEOUT_S):
        while True:
            message, _ = await exchange.receive()
            if isinstance(message, StealAnswer):
                return
            if not isinstance(message, JobCancel):
                raise RemoteProtocolError(f"peer sent {type(message).__name__} where its last word was due")
    raise PeerUnreachableError("the victim did not end a steal")

"""Who may ask what over the data plane."""

import pytest
import trio

from gridnode.exchanges import Exchanges
from transport.certificates import PeerCertificate
from transport.wire import LaneRun, Refused, StealRequest, TableRequest
from transport.wire import StateRecord as State

RUN = LaneRun(key=b"k" * 24, model="a" * 64, budget_s=1.0, body=b"")
STATE = State(1, "peer", 2, 3, 0.5, 2, 0.0, 1.0, 1, 10**9, False, 0, b"12345678")
STEAL = StealRequest(models=(), room=1, state=STATE)


class Exchange:
    """A question of a peer whose certificate names some roles, or of one in memory that has none."""

    peer = "peer"

    def __init__(self, roles):
        self.sent = []
        self.is_finished = False
        if roles is not None:
            self.certificate = PeerCertificate(
                node="peer",
                grid_id="5a" * 32,
                roles=roles,
                not_before_s=0.0,
                not_after_s=1.0,
                serial="1",
                issuer_serial="2",
            )

    async def send(self, message, payload=()):
        await trio.lowlevel.checkpoint()
        self.sent.append(message)

    def finish(self):
        self.is_finished = True


class House:
    """Takes what is let in, and knows one role of the peer."""

    def __init__(self, role):
        self.role = role
        self.taken = []

    async def handle(self, exchange, message, payload):
        await trio.lowlevel.checkpoint()
        self.taken.append(message)
        return True

    def has_role(self, node, role):
        assert node == "peer"
        return role == self.role


@pytest.mark.parametrize("knows", ["certificate", "membership"])
@pytest.mark.parametrize(
    ("message", "role", "is_let_in"),
    [
        (RUN, "submit", True),
        (RUN, "serve", False),
        (STEAL, "submit", False),
        (STEAL, "serve", True),
        (TableRequest(), "admit", True),
    ],
    ids=["run", "run without role", "steal without role", "steal", "table"],
)
def test_a_peers_roles_say_what_it_may_ask(message, role, is_let_in, knows):
    async def main():
        by_certificate = knows == "certificate"
        house = House("" if by_certificate else role)
        exchange = Exchange((role,) if by_certificate else None)
        await Exchanges(house, house, house).serve(exchange, message, memoryview(b""))
        assert house.taken == ([message] if is_let_in else [])
        assert [type(answer) for answer in exchange.sent] == ([] if is_let_in else [Refused])
        assert not exchange.is_finished, "a refused connection is closed"

    trio.run(main)

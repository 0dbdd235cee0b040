"""The join door and those who knock, over real sockets on 127.0.0.1."""

import socket
import ssl
import struct
from contextlib import asynccontextmanager, suppress

import msgpack
import pytest
import trio
import trio.testing

from transport.cards import Address
from transport.certificates import ADMIT, DAY_S, SERVE, SUBMIT, CertificateRefusedError, GridTrust, RefusalReason
from transport.door import Door, DoorConfig
from transport.doorwire import (
    FILES_MAX_BYTES,
    AskAuthority,
    AskJoin,
    AskRenewal,
    Bundle,
    DoorLink,
    DoorRefused,
    Granted,
    decode_bundle,
)
from transport.framing import encode_prefix
from transport.gridtime import GridTime
from transport.identity import NodeKey
from transport.issuing import chain_ders, make_csr
from transport.joining import DoorBusyError, join, renew_at_door
from transport.revocation import Revocations
from transport.sandbox import GRID_ID, NOW_S, SandboxGrid
from transport.securestream import ListenError, SecureStream, take_socket
from transport.tls import client_context, first_contact_context, joining_context, server_context
from transport.tokens import (
    Invites,
    JoinToken,
    TokenExpiredError,
    TokenSpentError,
    TokenUnknownError,
    WrongGridError,
)
from transport.wire import PeerUnreachableError, RemoteProtocolError

BUNDLE = Bundle(files={"root.json": b"{}" * 1000, "1.root.json": b"{}"}, cards=(b"card",))


class OpenDoor:
    """A door, its grid and its invites."""

    def __init__(self, path, *, grid=None, revocations=None, bundle=BUNDLE, **changes):
        self.grid = grid or SandboxGrid()
        self.clock = [NOW_S]
        self.joined = []
        trust = GridTrust(
            self.grid.ca_pem,
            GRID_ID,
            revocations=revocations or Revocations(),
            grid_time=GridTime(lambda: self.clock[0]),
        )
        self.invites = Invites(path / f"invites-{id(self)}")
        self.door = Door(
            self.grid.admit.key,
            self.grid.admit.chain_pem,
            trust=trust,
            issuer=self.grid.issuer,
            invites=self.invites,
            bundle=lambda: bundle,
            config=DoorConfig(host="127.0.0.1", **({"guests_per_host": 4} | changes)),
            on_joined=lambda node, name: self.joined.append((node, name)),
        )
        self.address = Address("127.0.0.1", 1)

    def invite(self, *, roles=(SERVE, SUBMIT), life_s=3600.0, addresses=None) -> JoinToken:
        token = self.invites.create(
            grid_id=GRID_ID,
            ca_pem=self.grid.ca_pem,
            issuer=self.grid.admit.node,
            addresses=addresses or (self.address,),
            roles=roles,
            now_s=self.clock[0],
            life_s=life_s,
        )
        self.door.refresh()
        return token


@asynccontextmanager
async def open_door(path, **changes):
    here = OpenDoor(path, **changes)
    async with trio.open_nursery() as nursery:
        here.address = Address(*await nursery.start(here.door.serve))
        yield here
        nursery.cancel_scope.cancel()


async def come_in(token, key=None, *, name="box-2", now_s=0.0):
    return await join(token, key or NodeKey.generate(), name=name, grid_time=GridTime(lambda: now_s))


async def eventually(fact):
    """Wait for a fact that another task brings about."""
    with trio.fail_after(10):
        while not fact():
            await trio.testing.wait_all_tasks_blocked(0.001)


def run(main, *arguments):
    async def within_limit():
        with trio.fail_after(30):
            await main(*arguments)

    trio.run(within_limit)


# ---------------------------------------------------------------- joining


def test_a_token_turns_into_a_certificate_and_what_else_is_needed(tmp_path):
    async def main():
        async with open_door(tmp_path) as here:
            key = NodeKey.generate()
            grid_time = GridTime(lambda: 0.0)
            grant = await join(here.invite(), key, name="box-2", grid_time=grid_time)
            assert grant.grid_id == GRID_ID
            assert grant.ca_pem == here.grid.ca_pem
            assert grant.bundle == BUNDLE
            assert (grant.certificate.node, grant.certificate.roles) == (key.node, (SERVE, SUBMIT))
            assert here.grid.trust().judge(chain_ders(grant.chain_pem)) == grant.certificate
            assert here.joined == [(key.node, "box-2")]
            assert grid_time.now_s() == NOW_S, "a board without a clock knows the time now"
            assert here.door.statistics().joined == 1

    run(main)


def test_the_invite_says_which_roles_are_given(tmp_path):
    async def main():
        async with open_door(tmp_path) as here:
            assert (await come_in(here.invite(roles=(ADMIT, SERVE)))).certificate.roles == (ADMIT, SERVE)

    run(main)


def test_a_token_is_good_for_one_node_which_may_ask_again(tmp_path):
    async def main():
        async with open_door(tmp_path) as here:
            token, key = here.invite(), NodeKey.generate()
            first = await come_in(token, key)
            with pytest.raises(TokenSpentError, match="another node"):
                await come_in(token)
            again = await come_in(token, key)
            assert again.certificate.node == first.certificate.node

    run(main)


def test_racing_for_one_token_lets_one_in(tmp_path):
    async def main():
        async with open_door(tmp_path) as here:
            token, outcomes = here.invite(), []

            async def race():
                try:
                    await come_in(token)
                    outcomes.append("in")
                except TokenSpentError:
                    outcomes.append("spent")

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(race)
            assert sorted(outcomes) == ["in", "spent", "spent"]

    run(main)


def test_an_expired_token_is_named_by_the_door(tmp_path):
    async def main():
        async with open_door(tmp_path) as here:
            token, _ = here.invite(life_s=60.0), here.invite(life_s=3600.0)
            here.clock[0] += 61
            with pytest.raises(TokenExpiredError):
                await come_in(token)

    run(main)


def test_an_expired_token_is_named_when_the_door_is_shut(tmp_path):
    async def main():
        async with open_door(tmp_path, look_s=0.01) as here:
            token = here.invite(life_s=60.0)
            await here.door.wait_open()
            here.clock[0] += 61
            await eventually(lambda: not here.door.statistics().is_open)
            with pytest.raises(TokenExpiredError, match="shut"):
                await come_in(token, now_s=here.clock[0])
            with pytest.raises(PeerUnreachableError, match="open only while an invite"):
                await come_in(token)

    run(main)


def test_an_unknown_secret_is_refused(tmp_path):
    async def main():
        async with open_door(tmp_path) as here:
            token = here.invite()
            guess = JoinToken(
                token.grid_id, token.addresses, token.ca_sha256, token.issuer, bytes(32), token.expires_at_s
            )
            with pytest.raises(TokenUnknownError):
                await come_in(guess)
            assert here.door.statistics().refused == 1

    run(main)


def test_a_door_of_another_grid_never_sees_the_secret(tmp_path):
    async def main():
        async with open_door(tmp_path) as here, open_door(tmp_path) as other:
            other.invite()
            token = here.invite(addresses=(other.address,))
            with pytest.raises(WrongGridError, match="another grid"):
                await come_in(token)
            assert other.door.statistics().refused == 0

    run(main)


def test_another_node_of_the_grid_never_sees_the_secret(tmp_path):
    async def main():
        grid = SandboxGrid()
        async with open_door(tmp_path, grid=grid) as here:
            token = here.invite()
            stranger = JoinToken(
                token.grid_id,
                token.addresses,
                token.ca_sha256,
                grid.make_node(ADMIT).node,
                token.secret,
                token.expires_at_s,
            )
            with pytest.raises(WrongGridError, match="not the issuer"):
                await come_in(stranger)
            assert here.joined == []

    run(main)


def test_a_node_in_the_middle_with_the_real_ca_certificate_never_sees_the_secret(tmp_path):
    """It can hand out the CA's certificate, which is public, but not prove to be the issuer."""

    async def main():
        async with open_door(tmp_path) as here:
            fake = OpenDoor(tmp_path)
            fake.door._trust = here.grid.trust()
            async with trio.open_nursery() as nursery:
                address = Address(*await nursery.start(fake.door.serve))
                fake.invite()
                token = here.invite(addresses=(address,))
                with pytest.raises(WrongGridError, match="not the issuer"):
                    await come_in(token)
                assert fake.door.statistics().refused == 0
                nursery.cancel_scope.cancel()

    run(main)


def test_the_next_address_is_tried_when_nobody_or_somebody_else_is_there(tmp_path):
    async def main():
        async with open_door(tmp_path) as here, open_door(tmp_path) as other:
            other.invite()
            nobody = Address("127.0.0.1", free_port())
            no_host = Address("a" * 100 + ".", 1)
            token = here.invite(addresses=(nobody, no_host, other.address, here.address))
            assert (await come_in(token)).grid_id == GRID_ID

    run(main)


def free_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


# ---------------------------------------------------------------- open and shut


def test_the_door_is_open_only_while_an_invite_is_outstanding(tmp_path):
    async def main():
        async with open_door(tmp_path, linger_s=0.0, look_s=0.01) as here:
            with pytest.raises(OSError, match=r"connection|connect"):
                await trio.open_tcp_stream(here.address.host, here.address.port)
            await come_in(here.invite())
            await eventually(lambda: not here.door.statistics().is_open)
            with pytest.raises(OSError, match=r"connection|connect"):
                await trio.open_tcp_stream(here.address.host, here.address.port)
            await come_in(here.invite())  # at the same address

    run(main)


def test_a_port_that_is_taken_is_named(tmp_path):
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as taken:
            here = OpenDoor(tmp_path, port=taken.getsockname()[1])
            with pytest.raises(ListenError, match="another port"):
                await here.door.serve()

    run(main)


# ---------------------------------------------------------------- renewal


def test_an_expired_certificate_is_renewed_with_its_roles(tmp_path):
    async def main():
        async with open_door(tmp_path) as here:
            node = here.grid.make_node(SERVE)
            here.clock[0] += 80 * DAY_S
            admit = here.grid.admit
            here.door.renew(here.grid.issue(admit.key, (ADMIT, SERVE), at_s=here.clock[0]))
            here.invite()
            trust = here.grid.trust(now_s=here.clock[0])
            grant = await renew_at_door([here.address], node.key, node.chain_pem, trust)
            assert (grant.certificate.node, grant.certificate.roles) == (node.node, (SERVE,))
            assert grant.certificate.not_before_s == here.clock[0]
            assert here.door.statistics().renewed == 1

    run(main)


@pytest.mark.parametrize(
    ("days", "revoked", "reason"), [(125, False, RefusalReason.EXPIRED), (5, True, RefusalReason.REVOKED)]
)
def test_a_certificate_expired_too_long_or_revoked_is_not_renewed(tmp_path, days, revoked, reason):
    async def main():
        revocations = Revocations()
        async with open_door(tmp_path, revocations=revocations) as here:
            node = here.grid.make_node()
            here.clock[0] += days * DAY_S
            here.invite()
            if revoked:
                document = revocations.sign_next(GRID_ID, here.grid.ca_key, now_s=NOW_S, nodes=[node.node])
                revocations.accept(document, here.grid.trust())
            with pytest.raises(CertificateRefusedError, match="door refused") as caught:
                await renew_at_door([here.address], node.key, node.chain_pem, here.grid.trust())
            assert caught.value.reason is reason

    run(main)


def test_a_renewal_without_certificate_or_for_another_key_is_refused(tmp_path):
    async def main():
        async with open_door(tmp_path) as here:
            here.invite()
            node = here.grid.make_node()
            with_certificate = client_context(node.key, node.chain_pem, here.grid.ca_pem)
            for context in (joining_context(here.grid.ca_pem), with_certificate):
                answer = await ask(here, AskRenewal(csr=make_csr(NodeKey.generate())), context)
                assert isinstance(answer, DoorRefused)

    run(main)


def test_when_the_intermediate_has_expired_the_guest_is_told(tmp_path):
    async def main():
        async with open_door(tmp_path) as here:
            here.clock[0] += 91 * DAY_S
            with pytest.raises(RemoteProtocolError, match="owner must sign"):
                await come_in(here.invite())

    run(main)


# ---------------------------------------------------------------- bad input


async def knock(here, context=None):
    await here.door.wait_open()
    stream = await trio.open_tcp_stream(here.address.host, here.address.port)
    return SecureStream(take_socket(stream), context or first_contact_context(), server_side=False)


async def ask(here, question, context=None):
    stream = await knock(here, context)
    try:
        await stream.handshake()
        link = DoorLink(stream, "guest")
        await link.send(question)
        return (await link.receive())[0]
    finally:
        stream.close()


@pytest.mark.parametrize(
    "nonsense",
    [
        struct.pack(">II", 0, 0),
        struct.pack(">II", 16 * 1024 + 1, 0),
        struct.pack(">II", 5, 1) + b"hello",
        struct.pack(">II", 5, 0) + b"hello",
        struct.pack(">II", 16_000, 0) + b"\x91" * 16_000,
        struct.pack(">II", 16_000, 0) + (b"\x82\xa1t\xadask_authority\xa1x" + b"\x91" * 16_000)[:16_000],
        encode_prefix(b"\x81\xa1t\xa8ask_join", 0) + b"\x81\xa1t\xa8ask_join",
    ],
    ids=["empty", "too large", "payload", "no map", "nested", "nested in a field", "fields missing"],
)
def test_nonsense_costs_one_guest(tmp_path, nonsense):
    async def main():
        async with open_door(tmp_path) as here:
            token = here.invite()
            stream = await knock(here)
            await stream.handshake()
            await stream.send([nonsense])
            assert await stream.receive_into(memoryview(bytearray(10))) == 0
            stream.close()
            assert here.door.statistics().faults == 1
            await come_in(token)

    run(main)


def test_a_message_only_doors_send_is_refused(tmp_path):
    async def main():
        async with open_door(tmp_path) as here:
            here.invite()
            answer = await ask(here, Granted(chain_pem=b""))
            assert isinstance(answer, DoorRefused)

    run(main)


def test_a_bad_request_does_not_spend_the_invite(tmp_path):
    async def main():
        async with open_door(tmp_path) as here:
            token = here.invite()
            answer = await ask(here, AskJoin(secret=token.secret, csr=b"garbage", name="x"))
            assert isinstance(answer, DoorRefused)
            assert answer.error == "RemoteProtocolError"
            await come_in(token)

    run(main)


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 5000], ids=["http", "zeros"])
def test_garbage_before_tls_costs_one_guest(tmp_path, garbage):
    async def main():
        async with open_door(tmp_path) as here:
            token = here.invite()
            await here.door.wait_open()
            async with await trio.open_tcp_stream(here.address.host, here.address.port) as stream:
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(garbage)
                    assert len(b"".join([piece async for piece in stream])) <= 7, "more than a TLS alert"
            await eventually(lambda: here.door.statistics().faults == 1)
            await come_in(token)

    run(main)


def test_silent_guests_are_few_and_sent_away(tmp_path):
    async def main():
        async with open_door(tmp_path, question_s=0.3, guests_per_host=2) as here:
            token = here.invite()
            await here.door.wait_open()
            streams = [await trio.open_tcp_stream(here.address.host, here.address.port) for _ in range(10)]
            await eventually(lambda: here.door.statistics().refused_crowded == 8)
            await eventually(lambda: here.door.statistics().faults == 2)
            await come_in(token)
            for stream in streams:
                await stream.aclose()

    run(main)


def test_twelve_boxes_behind_one_address_join_at_once(tmp_path):
    async def main():
        async with open_door(tmp_path, guests_per_host=2) as here:
            tokens = [here.invite() for _ in range(12)]
            async with trio.open_nursery() as nursery:
                for token in tokens:
                    nursery.start_soon(come_in, token)
            assert here.door.statistics().joined == 12
            assert here.door.statistics().refused_crowded > 0, "else nobody had to come back"

    run(main)


def test_a_guest_gives_up_on_a_door_that_hangs_up_for_a_minute():
    async def main():
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        knocks = []

        async def hang_up(stream):
            knocks.append(trio.current_time())
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, hang_up, [listener])
            token = JoinToken(
                grid_id=bytes(32),
                issuer="nobody",
                ca_sha256=bytes(32),
                addresses=(Address(*listener.socket.getsockname()),),
                secret=bytes(32),
                expires_at_s=1e12,
            )
            with pytest.raises(DoorBusyError, match="few guests at a time"):
                await come_in(token)
            nursery.cancel_scope.cancel()
        assert 20 <= len(knocks) <= 70, "pauses double to two seconds"
        # The minute bounds when a knock may be waited for; real sockets move the virtual clock on by a little more.
        assert 50 <= knocks[-1] - knocks[0] <= 63

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_a_guest_that_trickles_is_sent_away(tmp_path):
    async def main():
        async with open_door(tmp_path, question_s=0.2) as here:
            here.invite()
            stream = await knock(here)
            await stream.handshake()

            async def trickle():
                for byte in struct.pack(">II", 1000, 0) + bytes(1000):
                    await stream.send([bytes([byte])])
                    await trio.sleep(0.01)  # the attack itself

            with pytest.raises(PeerUnreachableError):
                await trickle()
            assert here.door.statistics().faults == 1

    run(main)


def test_a_certificate_of_another_owner_is_turned_away_in_the_handshake(tmp_path):
    async def main():
        async with open_door(tmp_path) as here:
            here.invite()
            stranger = SandboxGrid().make_node()
            stream = await knock(here, client_context(stranger.key, stranger.chain_pem, here.grid.ca_pem))
            with suppress(RemoteProtocolError, PeerUnreachableError):  # the alert, or the end behind it
                await stream.handshake()
                assert await stream.receive_into(memoryview(bytearray(1))) == 0
            stream.close()
            await eventually(lambda: here.door.statistics().faults == 1)

    run(main)


def test_a_false_door_that_answers_nonsense_is_named(tmp_path):
    async def main():
        async with open_door(tmp_path) as here, trio.open_nursery() as nursery:
            node = here.grid.admit
            context = server_context(node.key, node.chain_pem, here.grid.ca_pem, client_certificate=ssl.CERT_OPTIONAL)

            async def answer(guest):
                stream = SecureStream(take_socket(guest), context, server_side=True)
                await stream.handshake()
                link = DoorLink(stream, "door")
                await link.receive()
                await link.send(AskAuthority())
                stream.close()

            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, answer, listeners)
            token = here.invite(addresses=(Address(*listeners[0].socket.getsockname()),))
            with pytest.raises(RemoteProtocolError, match="did not hand out"):
                await come_in(token)
            nursery.cancel_scope.cancel()

    run(main)


def test_a_bundle_is_bounded_and_its_names_stay_in_the_directory():
    for bad in (
        {"files": {"../evil": b""}},
        {"files": {".hidden": b""}},
        {"files": {"a/b": b""}},
        {"files": {"big": bytes(FILES_MAX_BYTES + 1)}},
        {"cards": [bytes(3000)]},
        {"cards": [b""] * 65},
        [],
    ):
        with pytest.raises(RemoteProtocolError, match="bundle"):
            decode_bundle(msgpack.packb(bad))
    with pytest.raises(RemoteProtocolError, match="bundle"):
        decode_bundle(b"\x91" * 100_000)


def test_a_large_bundle_arrives_whole(tmp_path):
    async def main():
        bundle = Bundle(files={"targets.json": bytes(FILES_MAX_BYTES)}, cards=(bytes(2048),) * 64)
        async with open_door(tmp_path, bundle=bundle) as here:
            assert (await come_in(here.invite())).bundle == bundle

    run(main)

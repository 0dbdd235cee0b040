"""Who is in the grid, as whole nodes on a virtual clock see it: restarts, set-backs, revocations, lies."""

import pytest
import trio

from gridnode.membership import EpochBehindError
from gridnode.sandbox import SandboxDevice
from gridnode.sandboxload import Load
from transport.addressbook import load_book
from transport.base import CARD_TOPIC, HEALTH_TOPIC, STATE_TOPIC, TRUST_TOPIC, GossipMessage
from transport.wire import (
    CardNotice,
    CardRequest,
    HealthNotice,
    HoldingsRequest,
    JobCancel,
    JobHeader,
    JobOffer,
    JobSend,
    PeerUnreachableError,
    Pong,
    PublishRequest,
    SignRequest,
    StealRequest,
    TransportError,
    TrustRequest,
    encode,
)

NAMES = ("fast", "mid", "slow")


def standing(sandbox, name, of):
    """Return how a node sees another one."""
    peers = sandbox.nodes[name].running.insight.peers()
    return next((peer.status for peer in peers if peer.name == of), "unknown")


def node_of(sandbox, name):
    return sandbox.nodes[name].running.credentials.node


def knows(sandbox, name):
    return sum(peer.is_open for peer in sandbox.nodes[name].running.core.peers())


def test_all_nodes_know_all_others(run_grid):
    async def scenario(sandbox):
        for name in NAMES:
            for other in set(NAMES) - {name}:
                assert standing(sandbox, name, other) == "alive"
            assert sandbox.nodes[name].running.insight.status().health == "ok"

    run_grid(scenario)


@pytest.mark.parametrize("way", ["kill", "stop"])
def test_a_restarted_node_has_a_higher_epoch_and_is_heard_at_once(run_grid, way):
    async def scenario(sandbox):
        await getattr(sandbox, way)("mid")
        await sandbox.start("mid")
        assert sandbox.nodes["mid"].running.epoch == 2
        began_s = trio.current_time()
        await sandbox.wait_until(lambda: all(knows(sandbox, name) == 2 for name in NAMES), limit_s=10.0)
        assert trio.current_time() - began_s < 3.0
        cards = {
            sandbox.nodes[name].running.membership.card(node_of(sandbox, "mid")).epoch for name in ("fast", "slow")
        }
        assert cards == {2}

    run_grid(scenario)


def test_a_node_killed_young_has_the_addresses_of_the_others_on_disk(run_grid):
    """The first node of a grid has no bootstrap node; after a restart on other ports nobody would find it."""

    async def scenario(sandbox):
        await trio.sleep(4.0)
        others = {node_of(sandbox, name) for name in ("mid", "slow")}
        await sandbox.kill("fast")
        entries, problem = load_book(sandbox.nodes["fast"].state.addresses)
        assert ({entry.node for entry in entries}, problem) == (others, None)

    run_grid(scenario)


def test_a_killed_node_is_dead_for_all_within_15_s_and_closed_to_work_at_once(run_grid):
    async def scenario(sandbox):
        await sandbox.kill("mid")
        await sandbox.wait_until(lambda: knows(sandbox, "slow") == 1, limit_s=5.0)
        await sandbox.wait_until(
            lambda: all(standing(sandbox, name, "mid") == "dead" for name in ("fast", "slow")), limit_s=15.0
        )

    run_grid(scenario)


def test_a_silent_node_is_suspected_within_5_s_and_lives_again_when_it_speaks(run_grid):
    async def scenario(sandbox):
        sandbox.network.pause(node_of(sandbox, "mid"))
        await sandbox.wait_until(
            lambda: all(standing(sandbox, name, "mid") != "alive" for name in ("fast", "slow")), limit_s=5.0
        )
        sandbox.network.resume(node_of(sandbox, "mid"))
        await sandbox.wait_until(
            lambda: all(standing(sandbox, name, "mid") == "alive" for name in ("fast", "slow")), limit_s=10.0
        )

    run_grid(scenario)


def test_a_node_whose_state_was_set_back_ends_and_says_above_which_epoch_to_start(run_grid):
    async def scenario(sandbox):
        for _ in range(3):
            await sandbox.stop("mid")
            await sandbox.start("mid")
        await sandbox.wait_until(lambda: all(knows(sandbox, name) == 2 for name in NAMES), limit_s=10.0)
        await sandbox.stop("mid")
        (sandbox.nodes["mid"].state.path / "epoch").write_text("1\n")
        await sandbox.start("mid")  # epoch 2, while the others hold a card of epoch 4
        await trio.sleep(20.0)
        pytest.fail("the node went on")

    with pytest.raises(ExceptionGroup) as caught:
        run_grid(scenario)
    error = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, EpochBehindError)
    assert error.epoch == 4


def test_a_revoked_node_gets_no_work_and_is_not_heard_any_more(run_grid):
    async def scenario(sandbox):
        node = node_of(sandbox, "mid")
        assert (await sandbox.nodes["fast"].running.insight.answer("revoke", "mid"))["revoked"] == node
        began_s = trio.current_time()
        await sandbox.wait_until(
            lambda: all(standing(sandbox, name, "mid") == "unknown" for name in ("fast", "slow")), limit_s=10.0
        )
        assert trio.current_time() - began_s < 10.0
        async with sandbox.program("slow") as grid:
            load = Load(grid)
            await load.send(100, every_s=0.03)
        assert load.answered == 100
        assert load.nodes["mid"] == 0
        # It is still there and talks; nobody listens.
        await trio.sleep(10.0)
        assert all(standing(sandbox, name, "mid") == "unknown" for name in ("fast", "slow"))
        assert all(knows(sandbox, name) == 1 for name in ("fast", "slow"))
        # The list is kept: a restart does not forget it.
        await sandbox.stop("slow")
        await sandbox.start("slow")
        assert sandbox.nodes["slow"].running.credentials.revocations.version == 1
        await sandbox.wait_until(lambda: knows(sandbox, "slow") == 1, limit_s=10.0)

    run_grid(scenario)


def test_only_a_node_with_the_role_may_revoke(run_grid):
    async def scenario(sandbox):
        with pytest.raises(Exception, match="no role 'revoke'"):
            await sandbox.nodes["mid"].running.insight.answer("revoke", "slow")

    run_grid(scenario)


def test_what_peers_gossip_falsely_is_neither_used_nor_fatal(run_grid):
    """A member floods all topics with nonsense, others' records, and deaths of those who live."""

    async def scenario(sandbox):
        liar = sandbox.nodes["mid"].running
        fast = node_of(sandbox, "fast")
        lies = [
            (STATE_TOPIC, b""),
            (STATE_TOPIC, b"\xc1" * 100),
            (STATE_TOPIC, b"\x91" * 200),
            (HEALTH_TOPIC, encode(HealthNotice(subject=fast, epoch=1, incarnation=2**50, status="dead"))),
            (HEALTH_TOPIC, encode(HealthNotice(subject=fast, epoch=2**50, incarnation=0, status="left"))),
            (HEALTH_TOPIC, encode(HealthNotice(subject="nobody", epoch=0, incarnation=0, status="dead"))),
            (CARD_TOPIC, encode(CardNotice(card=b""))),
            (CARD_TOPIC, encode(CardNotice(card=bytes(2000)))),
            ("trust", b"\xff"),
            ("revocations", b"\xff"),
        ]
        for topic, data in lies:
            await liar._control.publish(topic, data)
            await trio.sleep(0.3)
        await sandbox.wait_until(lambda: standing(sandbox, "slow", "fast") == "alive", limit_s=10.0)
        await sandbox.wait_until(lambda: all(knows(sandbox, name) == 2 for name in NAMES), limit_s=10.0)
        assert sandbox.nodes["slow"].running.credentials.revocations.version == 0

    run_grid(scenario)


def messages_heard(sandbox, name, topic, of):
    """Collect when a node hears messages of another one on a topic from now on, news or not."""
    gossip, origin = sandbox.nodes[name].running.membership.gossip, node_of(sandbox, of)
    heard = []

    def judge(message):
        if message.origin == origin:
            heard.append(trio.current_time())
        return gossip.is_good(message)

    sandbox.nodes[name].running._control.set_validator(topic, judge)
    return heard


def test_a_neighbour_that_was_with_us_all_along_is_not_told_which_signed_state_there_is(run_grid):
    async def scenario(sandbox):
        parts = sandbox.nodes["fast"].running.parts
        heard = messages_heard(sandbox, "mid", TRUST_TOPIC, "fast")
        await trio.sleep(10.0)  # what the start had to tell has been told

        async def greeted(neighbour):
            heard.clear()
            parts._greet(neighbour)
            await trio.sleep(5.0)
            return len(heard)

        assert await greeted(node_of(sandbox, "slow")) == 1  # it may come out of a partition
        await trio.sleep(30.0)
        assert await greeted(node_of(sandbox, "slow")) == 0
        assert await greeted("a stranger") == 1
        sandbox.network.pause(node_of(sandbox, "slow"))
        await sandbox.wait_until(lambda: standing(sandbox, "fast", "slow") != "alive", limit_s=10.0)
        assert await greeted(node_of(sandbox, "slow")) == 1
        sandbox.network.resume(node_of(sandbox, "slow"))
        await sandbox.wait_until(lambda: standing(sandbox, "fast", "slow") == "alive", limit_s=20.0)
        assert await greeted(node_of(sandbox, "slow")) >= 1  # back, and who knows from where

    run_grid(scenario)


def test_neighbours_that_come_and_go_do_not_have_a_known_card_gossiped_again(run_grid):
    async def scenario(sandbox):
        fast = sandbox.nodes["fast"].running.membership
        heard = messages_heard(sandbox, "mid", CARD_TOPIC, "fast")
        await trio.sleep(10.0)  # what the start had to tell has been told

        async def greeted(neighbour):
            heard.clear()
            fast.greet(neighbour)
            await trio.sleep(10.0)
            return len(heard)

        assert await greeted(node_of(sandbox, "slow")) == 3  # a young card, which some may lack
        await trio.sleep(60.0)
        assert await greeted(node_of(sandbox, "slow")) == 0
        assert await greeted("a stranger, whom no introduction reaches") == 3
        await trio.sleep(300.0)
        assert await greeted(node_of(sandbox, "slow")) == 3  # now and then even so
        assert await greeted(node_of(sandbox, "slow")) == 0
        fast.announce(control=(), data=())
        assert await greeted(node_of(sandbox, "slow")) == 3  # a card made anew is young again

    run_grid(scenario)


def test_a_state_record_in_another_nodes_name_is_refused(run_grid):
    async def scenario(sandbox):
        record = encode_state(sandbox.nodes["fast"].running)
        gossip = sandbox.nodes["slow"].running.membership.gossip
        true = GossipMessage(
            topic=STATE_TOPIC, origin=node_of(sandbox, "fast"), forwarder=node_of(sandbox, "mid"), data=record
        )
        forged = GossipMessage(
            topic=STATE_TOPIC, origin=node_of(sandbox, "mid"), forwarder=node_of(sandbox, "mid"), data=record
        )
        assert gossip.is_good(true)
        assert not gossip.is_good(forged)

    run_grid(scenario)


@pytest.mark.parametrize("case", range(11))
def test_odd_questions_of_a_peer_cost_their_connection_alone(run_grid, case):
    """Asked by a certified peer over the data plane: what it may not say, or says at the wrong moment."""

    async def scenario(sandbox):
        asker, asked = sandbox.nodes["mid"].running, node_of(sandbox, "slow")
        digest = next(iter(sandbox.nodes["slow"].running.house.published().values()))[0]
        state = state_record(asker)
        header = JobHeader(
            key=bytes(24),
            entry=asker.credentials.node,
            hops=1,
            budget_s=2.0,
            models=(digest,),
            input_bytes=100,
            body=b"x",
        )
        question, payload = [
            (JobSend(job=header, estimate_s=0.0, state=state), b"short"),
            (JobSend(job=header, estimate_s=0.0, state=state), bytes(100)),  # a body that is no request
            (JobOffer(job=header, estimate_s=0.0, state=state), b""),  # and then no payload
            (StealRequest(models=(digest,), room=1000, state=state), b""),  # and then no answer
            (StealRequest(models=("0" * 64,), room=0, state=state), b""),
            (JobCancel(key=bytes(24)), b""),
            (Pong(nonce=1, reached=True, state=state), b""),
            (SignRequest(csr=b"no request"), b""),
            (TrustRequest(path="../../node.key"), b""),
            (HoldingsRequest(sha256="0" * 64), b""),
            (PublishRequest(), b"no publication"),
        ][case]
        try:
            with trio.move_on_after(1.0):
                async with asker._data.exchange(asked) as exchange:
                    await exchange.send(question, (payload,) if payload else ())
                    answer, data = await exchange.receive()
                    assert not getattr(answer, "found", False)
                    assert not data
        except TransportError:
            pass
        with trio.fail_after(5.0):
            async with asker._data.exchange(asked) as exchange:
                await exchange.send(CardRequest())
                answer, _ = await exchange.receive()
                assert answer.cards

    run_grid(scenario)


def test_a_job_of_a_peer_without_the_role_is_refused(run_grid):
    async def scenario(sandbox):
        slow = sandbox.nodes["slow"].running
        slow.membership._book.remove(node_of(sandbox, "mid"))
        async with sandbox.nodes["mid"].running._data.exchange(node_of(sandbox, "slow")) as exchange:
            await exchange.send(JobSend(**job_fields(sandbox)))
            answer, _ = await exchange.receive()
        assert "submit" in answer.reason

    run_grid(scenario)


def test_an_unreachable_data_port_makes_a_node_ineligible_until_it_answers(run_grid):
    async def scenario(sandbox):
        slow, fast = sandbox.nodes["slow"].running, node_of(sandbox, "fast")
        slow.membership.unreachable(fast)
        assert not slow.membership.is_reachable(fast)
        assert knows(sandbox, "slow") == 1
        await sandbox.wait_until(lambda: knows(sandbox, "slow") == 2, limit_s=5.0)

    run_grid(scenario)


def test_an_address_that_is_wrong_makes_exchanges_fail_by_name(run_grid):
    async def scenario(sandbox):
        slow = sandbox.nodes["slow"].running
        with pytest.raises(PeerUnreachableError):
            async with slow._data.exchange("12D3KooWnobody"):
                pass

    run_grid(scenario, devices={"slow": SandboxDevice()})


def state_record(node):
    from gridnode.translate import state_to_wire

    return state_to_wire(node.core.state_record(trio.current_time()))


def encode_state(node):
    return encode(state_record(node))


def job_fields(sandbox):
    mid = sandbox.nodes["mid"].running
    header = JobHeader(
        key=bytes(24), entry=mid.credentials.node, hops=1, budget_s=2.0, models=("0" * 64,), input_bytes=0, body=b"x"
    )
    return {"job": header, "estimate_s": 0.0, "state": state_record(mid)}

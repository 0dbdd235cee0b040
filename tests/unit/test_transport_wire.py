import msgpack
import pytest

from transport import wire
from transport.wire import (
    CARD_MAX_BYTES,
    GOSSIP_MAX_BYTES,
    HEADER_MAX_BYTES,
    STATE_MAX_BYTES,
    CardNotice,
    FrameTooLargeError,
    HealthNotice,
    Hello,
    JobResult,
    LaneDone,
    LanePassed,
    LaneRun,
    LocalProtocolError,
    PeerUnreachableError,
    Ping,
    Refused,
    RemoteProtocolError,
    StateRecord,
    Table,
    TransportError,
    decode_data,
    decode_gossip,
    decode_state,
    encode,
)

STATE = StateRecord(1, "node", 2, 3, 0.5, 2, 0.0, 1.0, 1, 10**9, False, 0, b"12345678")
KEY = b"k" * 24
DECODERS = (decode_state, decode_gossip, decode_data)


def test_every_fault_of_the_package_has_one_root():
    for error in (LocalProtocolError, RemoteProtocolError, FrameTooLargeError, PeerUnreachableError):
        assert issubclass(error, TransportError)


def test_a_state_record_is_a_positional_array():
    array = msgpack.unpackb(encode(STATE))
    assert array == [1, "node", 2, 3, 0.5, 2, 0.0, 1.0, 1, 10**9, False, 0, b"12345678"]
    assert len(encode(STATE)) < 100


def test_an_old_reader_skips_what_newer_ones_append():
    array = [*msgpack.unpackb(encode(STATE)), "new", {"more": [1, 2]}]
    assert decode_state(msgpack.packb(array)) == STATE


def test_a_reader_ignores_unknown_fields_of_messages():
    fields = msgpack.unpackb(encode(Ping(nonce=5)))
    assert decode_data(msgpack.packb({**fields, "later": [1]})) == Ping(nonce=5)


def test_a_message_is_a_map_with_its_tag():
    fields = msgpack.unpackb(encode(Hello(versions=(1,), node="n", epoch=4)))
    assert fields == {"t": "hello", "versions": [1], "node": "n", "epoch": 4}


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (
            LaneRun(key=KEY, model="a" * 64, budget_s=2.5, body=b"body"),
            {"t": "lane_run", "key": KEY, "model": "a" * 64, "budget_s": 2.5, "body": b"body"},
        ),
        (
            LaneDone(key=KEY, service_s=0.5, body=bytes(48 * 1024)),
            {"t": "lane_done", "key": KEY, "service_s": 0.5, "body": bytes(48 * 1024)},
        ),
        (LanePassed(key=KEY, is_unfit=True), {"t": "lane_passed", "key": KEY, "is_unfit": True}),
        (LanePassed(key=KEY, is_unfit=False), {"t": "lane_passed", "key": KEY, "is_unfit": False}),
    ],
    ids=["run", "done", "unfit", "passed"],
)
def test_what_goes_by_lanes_is_told_field_by_field(message, fields):
    assert msgpack.unpackb(encode(message)) == fields
    assert decode_data(encode(message)) == message


@pytest.mark.parametrize("takes_lanes", [False, True])
def test_a_result_says_whether_its_node_takes_lanes_and_an_older_peers_does_not(takes_lanes):
    result = JobResult(
        key=KEY,
        attempt=0,
        model="a" * 64,
        node="n",
        hops=0,
        waiting_s=0.0,
        service_s=0.0,
        body=b"",
        state=STATE,
        takes_lanes=takes_lanes,
    )
    assert decode_data(encode(result)) == result
    fields = msgpack.unpackb(encode(result))
    assert fields.pop("takes_lanes") is takes_lanes
    assert not decode_data(msgpack.packb(fields)).takes_lanes


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xc1", id="never used"),
        pytest.param(b"\x91" * 200, id="nested arrays"),
        pytest.param(b"\x81" * 200, id="nested maps"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="huge map"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="huge array"),
        pytest.param(b"\xc6\xff\xff\xff\xff", id="huge bytes"),
        pytest.param(b"\x80", id="no tag"),
        pytest.param(b"\xa3abc", id="text"),
    ],
)
def test_nonsense_is_one_named_error(decode, data):
    with pytest.raises(RemoteProtocolError):
        decode(data)


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1t"])
def test_a_hundred_thousand_nested_containers_are_one_named_error(decode, opening):
    with pytest.raises(RemoteProtocolError):
        decode(opening * 100_000)


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1x"])
def test_nesting_inside_an_ignored_field_is_one_named_error(opening):
    within_bounds = opening * (60_000 // len(opening)) + b"\xc0"
    with pytest.raises(RemoteProtocolError):
        decode_data(b"\x83\xa1t\xa4ping\xa5nonce\x01\xa5later" + within_bounds)


@pytest.mark.parametrize(
    ("decode", "bound"),
    [(decode_state, STATE_MAX_BYTES), (decode_gossip, GOSSIP_MAX_BYTES), (decode_data, HEADER_MAX_BYTES)],
)
def test_size_is_checked_before_decoding(decode, bound):
    with pytest.raises(RemoteProtocolError, match=f"at most {bound}"):
        decode(bytes(bound + 1))


def test_what_is_too_large_to_send_is_our_fault():
    entries = tuple(wire.CapabilityRecord("a" * 64, 1.0, 1.0, 1, 1.0, 1, ("x" * 256,) * 16) for _ in range(20))
    with pytest.raises(LocalProtocolError, match="Table takes"):
        encode(Table(node="n", digest=b"12345678", entries=entries))
    with pytest.raises(LocalProtocolError, match="CardNotice takes"):
        encode(CardNotice(bytes(GOSSIP_MAX_BYTES)))
    long = wire.StateRecord(*(*msgpack.unpackb(encode(STATE))[:1], "n" * 300, *msgpack.unpackb(encode(STATE))[2:]))
    with pytest.raises(LocalProtocolError, match="StateRecord takes"):
        encode(long)


@pytest.mark.parametrize(
    "fields",
    [
        {"t": "ping", "nonce": -1},
        {"t": "ping", "nonce": 2**60},
        {"t": "ping", "nonce": "1"},
        {"t": "ping"},
        {"t": "nobody knows"},
        {"t": 7, "nonce": 1},
        {"nonce": 1},
        {"t": "hello", "versions": [], "node": "n", "epoch": 1},
        {"t": "hello", "versions": [1], "node": "", "epoch": 1},
        {"t": "trust_request", "path": "metadata"},
        {"t": "trust_request", "path": "/etc/passwd"},
        {"t": "chunk_request", "cid": "b" * 58},
        {"t": "holdings_request", "sha256": "A" * 64},
        {"t": "cancel", "key": b"short"},
        {"t": "cards", "cards": [bytes(CARD_MAX_BYTES + 1)]},
        {"t": "steal_answer", "granted": 65, "state": None},
        {"t": "lane_run", "key": KEY[1:], "model": "a" * 64, "budget_s": 1.0, "body": b""},
        {"t": "lane_run", "key": KEY, "model": "a" * 63, "budget_s": 1.0, "body": b""},
        {"t": "lane_run", "key": KEY, "model": "a" * 64, "budget_s": -1.0, "body": b""},
        {"t": "lane_run", "key": KEY, "model": "a" * 64, "budget_s": 2e6, "body": b""},
        {"t": "lane_run", "key": KEY, "model": "a" * 64, "budget_s": float("nan"), "body": b""},
        {"t": "lane_run", "key": KEY, "model": "a" * 64, "budget_s": 1.0, "body": bytes(48 * 1024 + 1)},
        {"t": "lane_run", "key": KEY, "model": "a" * 64, "budget_s": 1.0},
        {"t": "lane_done", "key": KEY + b"k", "service_s": 1.0, "body": b""},
        {"t": "lane_done", "key": KEY, "service_s": float("inf"), "body": b""},
        {"t": "lane_done", "key": KEY, "service_s": 1.0, "body": bytes(48 * 1024 + 1)},
        {"t": "lane_passed", "key": KEY, "is_unfit": 1},
        {"t": "lane_passed", "key": KEY},
    ],
)
def test_values_out_of_bounds_are_the_senders_fault(fields):
    with pytest.raises(RemoteProtocolError):
        decode_data(msgpack.packb(fields))


def test_numbers_that_are_none_are_refused():
    for bad in (float("nan"), float("inf"), -1.0, 1e7):
        array = msgpack.unpackb(encode(STATE))
        array[4] = bad
        with pytest.raises(RemoteProtocolError):
            decode_state(msgpack.packb(array))


def test_gossip_and_data_are_not_mixed_up():
    with pytest.raises(RemoteProtocolError):
        decode_data(encode(HealthNotice("n", 1, 1, "alive")))
    with pytest.raises(RemoteProtocolError):
        decode_gossip(encode(Refused(reason="no")))


def test_a_state_record_fits_its_bound_at_its_largest():
    largest = StateRecord(255, "n" * 80, 2**53, 2**53, 1e6, 65535, 1e6, 1e6, 2**63 - 1, 2**53, True, 15, b"12345678")
    assert len(encode(largest)) <= STATE_MAX_BYTES

"""Every message type goes round, and an independent decoder reads the same values."""

import typing

import msgpack
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transport import wire
from transport.wire import RemoteProtocolError, StateRecord, decode_data, decode_gossip, decode_state, encode

DATA_TYPES = typing.get_args(wire.DataMessage)
GOSSIP_TYPES = typing.get_args(wire.Gossip)
SMALL = 24
"""Longest text, bytes or tuple drawn unless the type asks for more; keeps messages under their bound."""


def of_metadata(base: type, notes: tuple[msgspec.Meta, ...]) -> st.SearchStrategy:
    bounds = {
        name: getattr(note, name)
        for note in notes
        for name in ("ge", "le", "min_length", "max_length", "pattern")
        if getattr(note, name) is not None
    }
    if "pattern" in bounds:
        return st.from_regex(bounds["pattern"].replace("$", r"\Z"))
    shortest = bounds.get("min_length", 0)
    longest = min(bounds.get("max_length", SMALL), max(shortest, SMALL))
    if base is int:
        return st.integers(bounds.get("ge", -(2**63)), bounds.get("le", 2**63 - 1))
    if base is float:
        return st.floats(bounds["ge"], bounds["le"])
    if base is str:
        return st.text(st.characters(codec="utf-8"), min_size=shortest, max_size=longest)
    if base is bytes:
        return st.binary(min_size=shortest, max_size=longest)
    item = typing.get_args(base)[0]
    return st.lists(of_type(item), min_size=shortest, max_size=min(longest, 4)).map(tuple)


def of_type(hint: object) -> st.SearchStrategy:
    if typing.get_origin(hint) is typing.Annotated:
        base, *notes = typing.get_args(hint)
        if typing.get_origin(base) is typing.Annotated:
            return of_type(base)
        return of_metadata(base, tuple(note for note in notes if isinstance(note, msgspec.Meta)))
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return of_struct(hint)
    if hint is bool:
        return st.booleans()
    if hint is type(None):
        return st.none()
    if typing.get_origin(hint) is tuple or hint in (int, float, str, bytes):
        return of_metadata(hint, ())
    return st.one_of(*(of_type(part) for part in typing.get_args(hint)))


def of_struct(kind: type) -> st.SearchStrategy:
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {name: of_type(hints[name]) for name in kind.__struct_fields__}
    return st.fixed_dictionaries(fields).map(lambda values: kind(**values))


def agrees(seen: object, value: object) -> bool:
    """Say whether what a decoder without our types saw is this value."""
    if isinstance(value, tuple):
        return isinstance(seen, list) and len(seen) == len(value) and all(map(agrees, seen, value))
    if not isinstance(value, msgspec.Struct):
        return type(seen) is type(value) and seen == value
    config, names = value.__struct_config__, value.__struct_fields__
    if config.array_like:
        return agrees(seen, tuple(getattr(value, name) for name in names))
    assert isinstance(seen, dict)
    tag = {config.tag_field: config.tag} if config.tag_field else {}
    assert set(seen) <= {*names, *tag}
    assert all(seen[name] == tag[name] for name in tag)
    # A default that is left out stands for itself, whatever the type.
    defaults = dict(zip(reversed(names), reversed(value.__struct_defaults__), strict=False))
    return all(
        agrees(seen[name], getattr(value, name)) if name in seen else getattr(value, name) == defaults[name]
        for name in names
    )


@pytest.mark.parametrize("kind", DATA_TYPES, ids=lambda kind: kind.__name__)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_data_messages_go_round(kind, data):
    message = data.draw(of_struct(kind))
    encoded = encode(message)
    assert decode_data(encoded) == message
    assert decode_data(bytearray(encoded)) == message
    assert agrees(msgpack.unpackb(encoded), message)


@pytest.mark.parametrize("kind", GOSSIP_TYPES, ids=lambda kind: kind.__name__)
@settings(max_examples=25)
@given(st.data())
def test_gossip_messages_go_round(kind, data):
    message = data.draw(of_struct(kind))
    encoded = encode(message)
    assert decode_gossip(encoded) == message
    assert agrees(msgpack.unpackb(encoded), message)


@given(of_struct(StateRecord))
def test_state_records_go_round(record):
    assert decode_state(encode(record)) == record
    assert agrees(msgpack.unpackb(encode(record)), record)


@given(st.binary(max_size=512))
def test_any_bytes_give_a_message_or_one_named_error(data):
    for decode in (decode_state, decode_gossip, decode_data):
        try:
            decode(data)
        except RemoteProtocolError:
            continue


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TAGS = st.sampled_from([kind.__struct_config__.tag for kind in (*DATA_TYPES, *GOSSIP_TYPES)])


@given(TAGS, st.dictionaries(st.sampled_from(["key", "state", "job", "node", "versions", "cards", "nonce"]), PLAIN))
def test_well_formed_nonsense_gives_a_message_or_one_named_error(tag, fields):
    data = msgpack.packb({"t": tag, **fields})
    for decode in (decode_gossip, decode_data):
        try:
            decode(data)
        except RemoteProtocolError:
            continue

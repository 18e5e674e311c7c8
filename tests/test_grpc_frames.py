"""gRPC's frames and headers, alone: whatever pieces they come in."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kservekit.codec import grpc_frames as frames
from kservekit.errors import InvalidInput, PayloadTooLarge


def joined(framed):
    return framed if isinstance(framed, bytes) else b"".join(framed)


@given(st.lists(st.binary(max_size=40), max_size=5), st.lists(st.integers(1, 60)))
def test_messages_are_found_whole_in_whatever_pieces_they_come(messages, cuts):
    data = b"".join(joined(frames.framed(message)) for message in messages)
    reader, found = frames.Reader(40), []
    while data:
        size = cuts.pop() if cuts else len(data)
        found += reader.feed(data[:size])
        data = data[size:]
    assert found == [(message, False) for message in messages]
    assert reader.between


def test_a_large_message_is_sent_without_a_copy_of_it():
    message = bytes(frames.COPIED_BYTES + 1)
    prefix, same = frames.framed(message)
    assert same is message
    assert list(frames.Reader(len(message)).feed(prefix + same)) == [(message, False)]


def test_what_is_too_large_is_refused_at_its_prefix():
    with pytest.raises(PayloadTooLarge, match="101 bytes: over 100"):
        frames.Reader(100).feed(b"\0\0\0\0\x65")


def test_a_first_byte_that_is_no_flag_is_refused():
    with pytest.raises(InvalidInput, match="begins with 7"):
        frames.Reader(100).feed(b"\7\0\0\0\1x")


def test_a_message_that_ends_too_soon_is_seen():
    reader = frames.Reader(100)
    assert list(reader.feed(b"\0\0\0\0\2x")) == []
    assert not reader.between


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5S", 5), ("250m", 0.25), ("1H", 3600), ("2M", 120), ("3u", 3e-6), ("99999999n", 0.099999999)],
)
def test_a_timeout_is_read(text, expected):
    assert frames.seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "5", "S", "5s", "-1S", "123456789S", "٣S", "1.5S"])
def test_what_is_no_timeout_is_refused(text):
    with pytest.raises(InvalidInput, match="grpc-timeout"):
        frames.seconds(text)


@given(st.floats(0, 1e9))
def test_a_timeout_that_is_written_is_never_less_than_asked(asked):
    read = frames.seconds(frames.timeout(asked))
    assert asked - 1e-9 * asked <= read <= asked * 1.0001 + 1e-6


@given(st.text())
def test_a_status_text_survives_its_header(text):
    written = frames.percent_encoded(text)
    assert written.isascii()
    assert "\n" not in written
    if not any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        assert frames.percent_decoded(written) == text


def test_the_codes_are_grpcs():
    assert [code.name for code in sorted(grpc.StatusCode, key=lambda code: code.value[0])] == list(frames.CODES)

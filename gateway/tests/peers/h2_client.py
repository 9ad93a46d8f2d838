#!/usr/bin/env python3
"""A small h2spec: what a client may not say in HTTP/2, section by section of RFC 9113, and what must come of it.

    h2_client.py ADDRESS AUTHORITY

Every case has a connection of its own. Meanwhile and after each, requests on a connection beside it are answered. Where the RFC asks
for an error of a stream, one of the whole connection is as good (§5.4), and so is 400 for a malformed request (§8.1.1).
"""

import sys

from frames import *

ADDRESS, AUTHORITY = sys.argv[1:3]
REQUEST = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", AUTHORITY)]
POST = [(":method", "POST"), (":scheme", "http"), (":path", "/count"), (":authority", AUTHORITY)]
cases = []


def case(section, *expected):
    """What the case gives back is sent; then one of `expected` is to come: `connection CODE`, `stream CODE`, `closed`, `status CODE`, `alive`."""

    def register(make):
        cases.append((f"{section} {make.__name__}", make, expected))
        return make

    return register


def headers(connection, fields, stream=1, flags=END_STREAM | END_HEADERS):
    return frame(HEADERS, flags, stream, connection.block(fields))


def outcome(connection, wanted):
    """What comes of stream 1 or the connection: the first thing that is an outcome. PING tells that nothing else does."""
    connection.send(frame(PING, payload=b"wellwell"))
    while True:
        try:
            kind, flags, stream, payload = connection.next()
        except Closed:
            return "closed"
        except TimeoutError:
            return "silence"
        if kind == GOAWAY and int.from_bytes(payload[4:8], "big"):
            return f"connection {CODES[int.from_bytes(payload[4:8], 'big')]}"
        if kind == RST_STREAM:
            return f"stream {CODES[int.from_bytes(payload, 'big')]}"
        if kind == HEADERS:
            end = " and the end" if flags & END_STREAM and any("the end" in outcome for outcome in wanted) else ""
            return f"status {connection.fields(payload)[':status']}{end}"
        if kind == PING and flags & ACK and payload == b"wellwell" and "alive" in wanted:
            return "alive"


PROTOCOL, SIZE = "connection PROTOCOL_ERROR", "connection FRAME_SIZE_ERROR"
# `h2` has one word for all frames that it cannot read.
UNREADABLE = (SIZE, PROTOCOL)
COMPRESSION = ("connection COMPRESSION_ERROR", PROTOCOL)
MALFORMED = ("stream PROTOCOL_ERROR", PROTOCOL, "status 400", "closed")


# `h2` takes what a client has not set as it is by default.
@case("3.4", PROTOCOL, "closed", "alive")
def first_frame_is_not_settings(c):
    c.close()
    host, port = ADDRESS.rsplit(":", 1)
    c.sock = socket.create_connection((host, int(port)), timeout=PATIENCE)
    return PREFACE + frame(PING, payload=b"12345678")


@case("3.4", PROTOCOL, "closed")
def preface_is_broken(c):
    c.close()
    host, port = ADDRESS.rsplit(":", 1)
    c.sock = socket.create_connection((host, int(port)), timeout=PATIENCE)
    return PREFACE[:16] + b"XX\r\n\r\n" + frame(SETTINGS)


@case("4.1", "status 200")
def unknown_kinds_and_flags_and_the_reserved_bit_are_ignored(c):
    request = headers(c, REQUEST, flags=END_STREAM | END_HEADERS | 0x80 | 0x40)
    return frame(0x42, 0xFF, 0x80000000, b"what") + frame(PING, 0xFE, 0x80000000, b"12345678") + request


@case("4.2", SIZE, "stream FRAME_SIZE_ERROR")
def data_is_too_large(c):
    return headers(c, POST, flags=END_HEADERS) + frame(DATA, 0, 1, bytes(16_385))


@case("4.2", *UNREADABLE)
def headers_are_too_large(c):
    return frame(HEADERS, END_HEADERS | END_STREAM, 1, c.block(REQUEST) + bytes([0x40, 1]) + b"a" + bytes(17_000))


@case("4.3", *COMPRESSION)
def block_names_an_entry_that_is_not_there(c):
    return frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xff\xff\x03")


@case("4.3", *COMPRESSION)
def block_ends_in_the_middle(c):
    return frame(HEADERS, END_HEADERS | END_STREAM, 1, c.block(REQUEST) + b"\x40\x05ab")


@case("RFC 7541 4.2", *COMPRESSION)
def table_is_made_larger_than_allowed(c):
    return frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x3f\xe1\xff\x7f" + c.block(REQUEST))


@case("RFC 7541 5.2", *COMPRESSION)
def huffman_string_is_padded_with_a_whole_byte(c):
    return frame(HEADERS, END_HEADERS | END_STREAM, 1, c.block(REQUEST) + b"\x40\x01a\x82\x1f\xff")


@case("5.1", PROTOCOL)
def data_on_an_idle_stream(c):
    return frame(DATA, END_STREAM, 1, b"x")


@case("5.1", PROTOCOL)
def reset_of_an_idle_stream(c):
    return frame(RST_STREAM, 0, 1, number(8))


@case("5.1", PROTOCOL)
def window_of_an_idle_stream(c):
    return frame(WINDOW_UPDATE, 0, 1, number(100))


@case("5.1", PROTOCOL)
def continuation_without_headers(c):
    return frame(CONTINUATION, END_HEADERS, 1, c.block(REQUEST))


@case("5.1", "stream STREAM_CLOSED", "connection STREAM_CLOSED", PROTOCOL, "status 200")
def data_after_the_end(c):
    return headers(c, REQUEST) + frame(DATA, END_STREAM, 1, b"x")


@case("5.1", "stream STREAM_CLOSED", "connection STREAM_CLOSED", PROTOCOL)
def headers_after_the_end(c):
    return headers(c, [*REQUEST[:2], (":path", "/delay/60000"), REQUEST[3]]) + headers(c, [("x", "y")])


@case("5.1", "stream STREAM_CLOSED", "connection STREAM_CLOSED", "alive")
def data_after_a_reset(c):
    return headers(c, POST, flags=END_HEADERS) + frame(RST_STREAM, 0, 1, number(8)) + frame(DATA, END_STREAM, 1, b"x")


@case("5.1", "stream STREAM_CLOSED", "connection STREAM_CLOSED", PROTOCOL)
def headers_after_a_reset(c):
    return headers(c, POST, flags=END_HEADERS) + frame(RST_STREAM, 0, 1, number(8)) + headers(c, REQUEST)


@case("5.1.1", PROTOCOL)
def streams_of_even_numbers(c):
    return headers(c, REQUEST, stream=2)


@case("5.1.1", PROTOCOL, "connection STREAM_CLOSED")
def numbers_of_streams_go_down(c):
    return headers(c, [*REQUEST[:2], (":path", "/delay/60000"), REQUEST[3]], stream=5) + headers(c, REQUEST, stream=3)


@case("5.1.2", "stream REFUSED_STREAM", "stream PROTOCOL_ERROR", PROTOCOL)
def more_streams_than_allowed(c):
    slow = [*REQUEST[:2], (":path", "/delay/60000"), REQUEST[3]]
    return b"".join(headers(c, slow, stream=1 + 2 * n) for n in range(300))


@case("6.1", PROTOCOL)
def data_on_stream_0(c):
    return frame(DATA, END_STREAM, 0, b"x")


@case("6.1", PROTOCOL)
def padding_of_data_is_longer_than_the_frame(c):
    return headers(c, POST, flags=END_HEADERS) + frame(DATA, END_STREAM | PADDED, 1, b"\x06hello")


@case("6.2", PROTOCOL)
def headers_on_stream_0(c):
    return headers(c, REQUEST, stream=0)


@case("6.2", PROTOCOL)
def padding_of_headers_is_longer_than_the_frame(c):
    return frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, b"\xff" + c.block(REQUEST))


@case("6.2", PROTOCOL)
def another_stream_between_headers_and_continuation(c):
    return headers(c, REQUEST, flags=END_STREAM) + headers(c, REQUEST, stream=3)


@case("6.2", PROTOCOL)
def ping_between_headers_and_continuation(c):
    return headers(c, REQUEST, flags=END_STREAM) + frame(PING, payload=b"12345678") + frame(CONTINUATION, END_HEADERS, 1)


@case("6.3", "status 200")
def priorities_are_ignored(c):
    priority = number(0) + b"\x10"
    return frame(PRIORITY, 0, 3, priority) + frame(HEADERS, END_STREAM | END_HEADERS | HAS_PRIORITY, 1, priority + c.block(REQUEST))


@case("6.3", PROTOCOL)
def priority_of_stream_0(c):
    return frame(PRIORITY, 0, 0, number(1) + b"\x10")


@case("6.3", "stream FRAME_SIZE_ERROR", *UNREADABLE)
def priority_of_four_bytes(c):
    return headers(c, POST, flags=END_HEADERS) + frame(PRIORITY, 0, 1, number(0))


@case("6.4", PROTOCOL)
def reset_of_stream_0(c):
    return frame(RST_STREAM, 0, 0, number(8))


@case("6.4", *UNREADABLE)
def reset_of_three_bytes(c):
    return headers(c, POST, flags=END_HEADERS) + frame(RST_STREAM, 0, 1, b"\0\0\0")


@case("6.5", *UNREADABLE)
def acknowledgement_of_settings_with_a_payload(c):
    return frame(SETTINGS, ACK, 0, setting((3, 1)))


@case("6.5", PROTOCOL)
def settings_of_a_stream(c):
    return frame(SETTINGS, 0, 1, setting((3, 1)))


@case("6.5", *UNREADABLE)
def settings_of_five_bytes(c):
    return frame(SETTINGS, 0, 0, b"12345")


@case("6.5.2", PROTOCOL)
def push_is_neither_0_nor_1(c):
    return frame(SETTINGS, 0, 0, setting((2, 2)))


@case("6.5.2", "connection FLOW_CONTROL_ERROR", PROTOCOL)
def initial_window_is_too_large(c):
    return frame(SETTINGS, 0, 0, setting((4, 1 << 31)))


@case("6.5.2", PROTOCOL)
def frames_are_to_be_too_small(c):
    return frame(SETTINGS, 0, 0, setting((5, 16_383)))


@case("6.5.2", PROTOCOL)
def frames_are_to_be_too_large(c):
    return frame(SETTINGS, 0, 0, setting((5, 1 << 24)))


@case("6.5.2", "status 200")
def settings_that_nobody_knows_are_ignored(c):
    return frame(SETTINGS, 0, 0, setting((0xFFFF, 7), (0x99, 1))) + headers(c, REQUEST)


@case("6.6", PROTOCOL)
def push_promise_of_a_client(c):
    return headers(c, POST, flags=END_HEADERS) + frame(PUSH_PROMISE, END_HEADERS, 1, number(2) + c.block(REQUEST))


@case("6.7", PROTOCOL)
def ping_of_a_stream(c):
    return frame(PING, 0, 1, b"12345678")


@case("6.7", *UNREADABLE)
def ping_of_seven_bytes(c):
    return frame(PING, 0, 0, b"1234567")


@case("6.7", "alive")
def answers_to_pings_that_nobody_sent_are_ignored(c):
    return frame(PING, ACK, 0, b"12345678")


@case("6.8", PROTOCOL)
def goaway_of_a_stream(c):
    return frame(GOAWAY, 0, 1, number(0) * 2)


@case("6.8", "status 200")
def streams_finish_after_a_goaway(c):
    return headers(c, [*REQUEST[:2], (":path", "/delay/50"), REQUEST[3]]) + frame(GOAWAY, 0, 0, number(0) * 2)


@case("6.9", PROTOCOL)
def window_of_the_connection_grows_by_0(c):
    return frame(WINDOW_UPDATE, 0, 0, number(0))


@case("6.9", "stream PROTOCOL_ERROR", PROTOCOL)
def window_of_a_stream_grows_by_0(c):
    return headers(c, POST, flags=END_HEADERS) + frame(WINDOW_UPDATE, 0, 1, number(0))


@case("6.9", *UNREADABLE)
def window_of_three_bytes(c):
    return frame(WINDOW_UPDATE, 0, 0, b"\0\0\1")


@case("6.9.1", "connection FLOW_CONTROL_ERROR")
def window_of_the_connection_is_too_large(c):
    return frame(WINDOW_UPDATE, 0, 0, number(0x7FFFFFFF)) * 2


@case("6.9.1", "stream FLOW_CONTROL_ERROR", "connection FLOW_CONTROL_ERROR")
def window_of_a_stream_is_too_large(c):
    return headers(c, POST, flags=END_HEADERS) + frame(WINDOW_UPDATE, 0, 1, number(0x7FFFFFFF)) * 2


@case("6.9.1", "connection FLOW_CONTROL_ERROR", "stream FLOW_CONTROL_ERROR")
def more_is_sent_than_the_window_takes(c):
    slow = [(":method", "POST"), (":scheme", "http"), (":path", "/delay/60000"), (":authority", AUTHORITY)]
    return headers(c, slow, flags=END_HEADERS) + frame(DATA, 0, 1, bytes(16_384)) * 200


@case("6.9.2", "connection FLOW_CONTROL_ERROR", "stream FLOW_CONTROL_ERROR")
def settings_make_the_window_of_a_stream_too_large(c):
    return headers(c, POST, flags=END_HEADERS) + frame(WINDOW_UPDATE, 0, 1, number(0x7FFF0000 - 65_535 + 65_535)) + frame(SETTINGS, 0, 0, setting((4, 0x7FFFFFFF)))


@case("6.10", "status 200")
def head_in_many_continuations(c):
    block = c.block(REQUEST)
    return frame(HEADERS, END_STREAM, 1, block[:1]) + b"".join(frame(CONTINUATION, 0, 1, block[n : n + 4]) for n in range(1, len(block), 4)) + frame(CONTINUATION, END_HEADERS, 1)


@case("6.10", "connection ENHANCE_YOUR_CALM", PROTOCOL, "closed", "status 431", "stream PROTOCOL_ERROR")
def head_without_end(c):
    piece = c.block([(f"x-{n:08}", "y" * 100) for n in range(100)])
    return headers(c, REQUEST, flags=END_STREAM) + frame(CONTINUATION, 0, 1, piece) * 1_000


@case("8.1", *MALFORMED)
def trailers_without_the_end_of_the_stream(c):
    return headers(c, POST, flags=END_HEADERS) + headers(c, [("x", "y")], flags=END_HEADERS)


# `h2` leaves them out of what it passes on.
@case("8.1", *MALFORMED, "status 200")
def trailers_with_a_pseudo_field(c):
    return headers(c, POST, flags=END_HEADERS) + headers(c, [(":path", "/")])


@case("8.1.1", *MALFORMED)
def fewer_bytes_than_the_length_says(c):
    return headers(c, [*POST, ("content-length", "5")], flags=END_HEADERS) + frame(DATA, END_STREAM, 1, b"four")


@case("8.1.1", *MALFORMED)
def more_bytes_than_the_length_says(c):
    return headers(c, [*POST, ("content-length", "3")], flags=END_HEADERS) + frame(DATA, END_STREAM, 1, b"four")


@case("8.1.1", *MALFORMED)
def two_lengths(c):
    return headers(c, [*POST, ("content-length", "3"), ("content-length", "4")], flags=END_HEADERS) + frame(DATA, END_STREAM, 1, b"four")


@case("8.1.1", *MALFORMED)
def length_that_is_no_number(c):
    return headers(c, [*POST, ("content-length", "+4")], flags=END_HEADERS) + frame(DATA, END_STREAM, 1, b"four")


def malformed(section, name, fields):
    def make(c):
        return headers(c, fields)

    make.__name__ = name
    case(section, *MALFORMED)(make)


METHOD, SCHEME, PATH, HOST = REQUEST
malformed("8.2.1", "uppercase_name", [*REQUEST, ("X-Upper", "y")])
malformed("8.2.1", "name_with_a_space", [*REQUEST, ("x y", "z")])
malformed("8.2.1", "name_with_a_colon", [*REQUEST, ("x:y", "z")])
malformed("8.2.1", "empty_name", [*REQUEST, ("", "z")])
malformed("8.2.1", "value_with_a_line_end", [*REQUEST, ("x", "y\r\nforged: z")])
malformed("8.2.1", "value_with_a_nul", [*REQUEST, ("x", "y\0z")])
malformed("8.2.2", "connection_field", [*REQUEST, ("connection", "close")])
malformed("8.2.2", "transfer_encoding", [*REQUEST, ("transfer-encoding", "chunked")])
malformed("8.2.2", "upgrade_field", [*REQUEST, ("upgrade", "h2c")])
malformed("8.2.2", "keep_alive_field", [*REQUEST, ("keep-alive", "timeout=5")])
malformed("8.2.2", "te_of_gzip", [*REQUEST, ("te", "gzip")])
malformed("8.3", "unknown_pseudo_field", [*REQUEST, (":what", "x")])
malformed("8.3", "pseudo_field_of_responses", [*REQUEST, (":status", "200")])
malformed("8.3", "pseudo_field_after_others", [METHOD, SCHEME, HOST, ("x", "y"), PATH])
malformed("8.3", "two_paths", [*REQUEST, PATH])
malformed("8.3", "two_methods", [METHOD, *REQUEST])
malformed("8.3.1", "no_method", [SCHEME, PATH, HOST])
malformed("8.3.1", "no_scheme", [METHOD, PATH, HOST])
malformed("8.3.1", "no_path", [METHOD, SCHEME, HOST])
malformed("8.3.1", "empty_path", [METHOD, SCHEME, (":path", ""), HOST])
malformed("8.3.1", "path_with_a_space", [METHOD, SCHEME, (":path", "/a b HTTP/1.1"), HOST])
malformed("8.3.1", "authority_with_a_line_end", [METHOD, SCHEME, PATH, (":authority", AUTHORITY + "\r\nx: y")])
malformed("8.3.1", "method_with_a_space", [(":method", "GET /x HTTP/1.1"), SCHEME, PATH, HOST])


@case("RFC 9110 9.3.2", "status 404 and the end")
def answers_to_head_have_no_body(c):
    return headers(c, [(":method", "HEAD"), (":scheme", "http"), (":path", "/"), (":authority", "nobody.shop")])


@case("8.5", "status 501", *MALFORMED)
def connect_is_not_supported(c):
    return headers(c, [(":method", "CONNECT"), HOST])


@case("10.5", "alive", "connection ENHANCE_YOUR_CALM", "closed")
def thousands_of_pings(c):
    return frame(PING, payload=b"12345678") * 20_000


@case("10.5", "alive", "connection ENHANCE_YOUR_CALM", "closed")
def thousands_of_settings(c):
    return frame(SETTINGS, 0, 0, setting((3, 100))) * 20_000


@case("10.5", "alive", "connection ENHANCE_YOUR_CALM", "closed")
def thousands_of_streams_reset_at_once(c):
    slow = [*REQUEST[:2], (":path", "/delay/1000"), REQUEST[3]]
    return b"".join(headers(c, slow, stream=n) + frame(RST_STREAM, 0, n, number(8)) for n in range(1, 20_001, 2))


@case("10.5", "alive", "connection ENHANCE_YOUR_CALM", "closed")
def thousands_of_empty_frames(c):
    return headers(c, POST, flags=END_HEADERS) + frame(DATA, 0, 1) * 20_000


class Beside:
    """A connection on which all is well, whatever others do."""

    def __init__(self):
        self.connection, self.stream = connect(ADDRESS), 1

    def request(self):
        self.connection.send(headers(self.connection, REQUEST, self.stream))
        status = None
        while True:
            kind, flags, stream, payload = self.connection.next()
            if kind == SETTINGS and not flags:
                self.connection.send(frame(SETTINGS, ACK))
            if kind == PING and not flags & ACK:
                self.connection.send(frame(PING, ACK, 0, payload))
            if kind == HEADERS:
                status = self.connection.fields(payload).get(":status", status)
            if kind == DATA and payload:
                self.connection.send(frame(WINDOW_UPDATE, 0, 0, number(len(payload))))
            if kind in (RST_STREAM, GOAWAY):
                raise AssertionError(f"kind {kind}: {payload!r}")
            if stream == self.stream and flags & END_STREAM and kind in (HEADERS, DATA):
                self.stream += 2
                assert status == "200", status
                return


def main():
    beside, wrong = Beside(), 0
    beside.request()
    for name, make, expected in cases:
        connection = connect(ADDRESS)
        connection.send(make(connection))
        try:
            beside.request()
            got = outcome(connection, expected)
            beside.request()
        except Exception as error:
            got = f"the connection beside it broke: {type(error).__name__}: {error}"
            beside = Beside()
        connection.close()
        if got not in expected:
            wrong += 1
            print(f"{name}: {got}, not {' or '.join(expected)}", file=sys.stderr)
    print(f"{len(cases)} cases")
    sys.exit(1 if wrong else 0)


main()

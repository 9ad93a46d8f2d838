#!/usr/bin/env python3
"""An HTTP/2 server that misbehaves as the path of a request says, and is asked through a gateway.

    h2_server.py serve             prints its port, serves until its standard input ends
    h2_server.py ask ADDRESS HOST  asks ADDRESS for every path below and judges what comes; exit code 1: something is not right

Every misbehaviour costs the request that asked for it at most (and those beside it on the same connection, where the connection is to
end): requests before and after it are answered, whole or with 502, and in time.
"""

import http.client
import io
import socket
import sys
import threading
import time

from frames import *

OK = [(":status", "200"), ("content-length", "5")]
paths, lock, times = {}, threading.Lock(), {}


def path(*expected, method="GET", asked=None):
    """`expected`: `whole` (200 and all of the body), `cut` (200 and the end missing), `empty`, a status; `asked`: how often, at most."""

    def register(function):
        paths["/" + function.__name__] = (function, expected, method, asked)
        return function

    return register


def whole(c, stream, body=b"hello", fields=OK):
    c.send(frame(HEADERS, END_HEADERS, stream, c.block(fields)), frame(DATA, END_STREAM, stream, body))


def head(c, stream, fields=OK):
    c.send(frame(HEADERS, END_HEADERS, stream, c.block(fields)))


def goaway(c, last, code=0):
    c.send(frame(GOAWAY, 0, 0, number(last) + number(code)))


def first_time(name):
    with lock:
        times[name] = times.get(name, 0) + 1
        return times[name] % 2 == 1


@path("whole")
def ok(c, stream):
    whole(c, stream)


@path("whole", method="POST")
def goaway_before_it_is_processed(c, stream):
    if first_time("before"):
        goaway(c, stream - 2 if stream > 1 else 0)
        raise Closed
    whole(c, stream)


@path("whole", method="POST")
def goaway_of_all_then_a_close(c, stream):
    if first_time("all"):
        goaway(c, 0)
        raise Closed
    whole(c, stream)


@path("whole")
def goaway_twice_and_then_the_answer(c, stream):
    goaway(c, 0x7FFFFFFF)
    goaway(c, stream)
    whole(c, stream)


@path("whole")
def goaway_in_the_middle_of_the_answer(c, stream):
    head(c, stream)
    c.send(frame(DATA, 0, stream, b"he"))
    goaway(c, stream)
    c.send(frame(DATA, END_STREAM, stream, b"llo"))


@path("502", method="POST", asked=1)
def goaway_with_an_error(c, stream):
    goaway(c, stream, 2)
    raise Closed


@path("cut", "502")
def close_in_the_middle_of_the_answer(c, stream):
    head(c, stream)
    c.send(frame(DATA, 0, stream, b"he"))
    raise Closed


@path("502", method="POST", asked=1)
def close_without_a_word(c, stream):
    raise Closed


@path("cut", "502")
def half_a_frame_and_a_close(c, stream):
    head(c, stream)
    c.send(frame(DATA, END_STREAM, stream, b"hello")[:11])
    raise Closed


@path("whole", method="POST")
def refused_once(c, stream):
    if first_time("refused"):
        return c.send(frame(RST_STREAM, 0, stream, number(7)))
    whole(c, stream)


def reset(code):
    @path("502", method="POST", asked=1)
    def function(c, stream):
        c.send(frame(RST_STREAM, 0, stream, number(code)))

    @path("cut", "502", method="POST", asked=1)
    def later(c, stream):
        head(c, stream)
        c.send(frame(DATA, 0, stream, b"he"), frame(RST_STREAM, 0, stream, number(code)))

    paths[f"/reset_{code}"] = paths.pop("/function")
    paths[f"/reset_{code}_in_the_middle"] = paths.pop("/later")


for code in (*range(7), *range(8, 14), 0xDEADBEEF):
    reset(code)


@path("whole")
def reset_without_error_after_the_end(c, stream):
    whole(c, stream)
    c.send(frame(RST_STREAM, 0, stream, number(0)))


@path("whole")
def settings_in_flight(c, stream):
    c.send(frame(SETTINGS, 0, 0, setting((1, 0), (3, 1), (4, 1), (5, 1 << 20), (0x77, 7))))
    whole(c, stream)
    c.send(frame(SETTINGS, 0, 0, setting((1, 4096), (3, 100), (4, 65_535), (5, 16_384))))


@path("whole", method="UPLOAD")
def windows_that_open_late(c, stream):
    c.send(frame(SETTINGS, 0, 0, setting((4, 0))))
    c.send(frame(SETTINGS, 0, 0, setting((4, 70_000))))
    c.send(frame(WINDOW_UPDATE, 0, 0, number(1 << 20)), frame(WINDOW_UPDATE, 0, stream, number(1 << 20)))
    while True:
        kind, flags, of, payload = c.next()
        if kind == SETTINGS and not flags:
            c.send(frame(SETTINGS, ACK))
        if kind == DATA and of == stream and flags & END_STREAM:
            return whole(c, stream)


@path("whole")
def pings(c, stream):
    c.send(*[frame(PING, 0, 0, b"%08d" % n) for n in range(20)])
    answered = 0
    while answered < 20:
        kind, flags, _, payload = c.next()
        if kind == PING and flags & ACK and payload.isdigit():
            answered += 1
    whole(c, stream)


@path("whole")
def interim_responses(c, stream):
    for status in ("100", "103", "103", "102"):
        c.send(frame(HEADERS, END_HEADERS, stream, c.block([(":status", status), ("link", "</a>")])))
    # All of them are on their way before the answer is: nobody may say them again meanwhile.
    time.sleep(0.3)
    whole(c, stream)


@path("whole")
def unknown_frames_and_padding(c, stream):
    c.send(frame(0xEE, 0xFF, stream, b"what"))
    head(c, stream)
    c.send(frame(DATA, PADDED, stream, b"\x03hel" + bytes(3)), frame(0xEF), frame(DATA, END_STREAM | PADDED, stream, b"\x00lo"))


@path("whole")
def head_in_pieces(c, stream):
    block = c.block(OK)
    c.send(frame(HEADERS, 0, stream, block[:2]), frame(CONTINUATION, 0, stream), frame(CONTINUATION, END_HEADERS, stream, block[2:]))
    c.send(frame(DATA, END_STREAM, stream, b"hello"))


def breaks(name, make, *expected, asked=2):
    """Sends what may not be sent, where a head is expected. A GET may be sent once more."""

    def function(c, stream):
        c.send(make(c, stream))

    function.__name__ = name
    path(*(expected or ("502",)), asked=asked)(function)


def fields(*items):
    return lambda c, stream: frame(HEADERS, END_HEADERS | END_STREAM, stream, c.block(items))


S = (":status", "200")
breaks("status_101", fields((":status", "101"), ("upgrade", "x")))
breaks("no_status", fields(("x", "y")))
breaks("status_that_is_none", fields((":status", "abc")))
breaks("two_statuses", fields(S, S))
# `h2` leaves out what it does not expect.
breaks("pseudo_field_of_requests", fields(S, (":path", "/"), ("content-length", "0")), "502", "empty")
breaks("pseudo_field_last", fields(("x", "y"), S))
breaks("uppercase_field", fields(S, ("X-Upper", "y")))
breaks("connection_field", fields(S, ("connection", "close")))
breaks("transfer_encoding", fields(S, ("transfer-encoding", "chunked")))
breaks("value_with_a_line_end", fields(S, ("x", "y\r\nforged: z")))
breaks("data_before_the_head", lambda c, s: frame(DATA, END_STREAM, s, b"x"))
breaks("data_on_stream_0", lambda c, s: frame(DATA, END_STREAM, 0, b"x"))
breaks("head_on_stream_0", lambda c, s: frame(HEADERS, END_HEADERS, 0, c.block(OK)))
breaks("head_on_an_idle_stream", lambda c, s: frame(HEADERS, END_HEADERS, s + 200, c.block(OK)))
breaks("head_on_an_even_stream", lambda c, s: frame(HEADERS, END_HEADERS, 2, c.block(OK)))
breaks("bad_block", lambda c, s: frame(HEADERS, END_HEADERS, s, b"\xff\xff\x03"))
breaks("frame_that_is_too_large", lambda c, s: frame(HEADERS, END_HEADERS, s, c.block(OK) + bytes(17_000)))
breaks("window_grows_by_0", lambda c, s: frame(WINDOW_UPDATE, 0, s, number(0)))
breaks("window_of_the_connection_grows_by_0", lambda c, s: frame(WINDOW_UPDATE, 0, 0, number(0)))
breaks("window_that_is_too_large", lambda c, s: frame(WINDOW_UPDATE, 0, 0, number(0x7FFFFFFF)) * 2)
breaks("continuation_alone", lambda c, s: frame(CONTINUATION, END_HEADERS, s, c.block(OK)))
breaks("short_ping", lambda c, s: frame(PING, 0, 0, b"1"))
breaks("short_settings", lambda c, s: frame(SETTINGS, 0, 0, b"1"))
breaks("settings_of_a_stream", lambda c, s: frame(SETTINGS, 0, s))
breaks("short_reset", lambda c, s: frame(RST_STREAM, 0, s, b"1"))
breaks("push_promise", lambda c, s: frame(PUSH_PROMISE, END_HEADERS, s, number(2) + c.block([(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "a")])))
breaks("garbage", lambda c, s: b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
breaks("zeros", lambda c, s: bytes(9) * 10 + b"\xff" * 9)


@path("cut", "502")
def length_that_is_too_long(c, stream):
    whole(c, stream, b"hell")


@path("cut", "502")
def length_that_is_too_short(c, stream):
    whole(c, stream, b"hello, world")


@path("502")
def length_that_is_no_number(c, stream):
    whole(c, stream, fields=[S, ("content-length", "5x")])


# `h2` leaves them out.
@path("cut", "502", "whole")
def trailers_with_a_pseudo_field(c, stream):
    head(c, stream, [S])
    c.send(frame(DATA, 0, stream, b"hello"), frame(HEADERS, END_HEADERS | END_STREAM, stream, c.block([S])))


@path("cut", "502")
def trailers_that_are_not_the_end(c, stream):
    head(c, stream, [S])
    c.send(frame(DATA, 0, stream, b"hello"), frame(HEADERS, END_HEADERS, stream, c.block([("x", "y")])))


@path("whole", "502", "cut")
def data_after_the_end(c, stream):
    whole(c, stream)
    c.send(frame(DATA, END_STREAM, stream, b"more"))


def serve_connection(sock):
    c = Connection(sock)
    try:
        assert c.exactly(len(PREFACE)) == PREFACE
        c.send(frame(SETTINGS))
        while True:
            kind, flags, stream, payload = c.next()
            if kind == SETTINGS and not flags & ACK:
                c.send(frame(SETTINGS, ACK))
            elif kind == PING and not flags & ACK:
                c.send(frame(PING, ACK, 0, payload))
            elif kind == HEADERS:
                name = c.fields(payload).get(":path", "/asked_none")
                with lock:
                    times[name] = times.get(name, 0) + 1
                if name.startswith("/asked_"):
                    count = str(times.get("/" + name.removeprefix("/asked_"), 0)).encode()
                    whole(c, stream, count, [S, ("content-length", str(len(count)))])
                else:
                    paths.get(name, paths["/ok"])[0](c, stream)
            elif kind == GOAWAY:
                raise Closed
    except (Closed, TimeoutError, AssertionError):
        pass
    c.close()


def serve():
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    print(listener.getsockname()[1], flush=True)

    def accept():
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=serve_connection, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


class Answer:
    """Bytes that have come, as http.client wants them."""

    def __init__(self, data):
        self.data = data

    def makefile(self, mode):
        return io.BytesIO(self.data)


def fetch(address, host, target, method):
    """What came: `whole`, `cut`, or a status; and the body."""
    server, port = address.rsplit(":", 1)
    body = b"x" * 300_000 if method == "UPLOAD" else b"x" if method == "POST" else b""
    method = "GET" if method == "GET" else "POST"
    data = b""
    try:
        with socket.create_connection((server, int(port)), timeout=PATIENCE) as sock:
            sock.sendall(f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            while piece := sock.recv(65536):
                data += piece
    except TimeoutError:
        return "silence", data
    except OSError as error:
        return f"{type(error).__name__}: {error}", data
    interim = 0
    while data.startswith(b"HTTP/1.1 1"):
        data, interim = data.partition(b"\r\n\r\n")[2], interim + 1
    # 100 is for who expects it.
    if interim != (3 if target == "/interim_responses" else 0):
        return f"{interim} informational responses", data
    try:
        response = http.client.HTTPResponse(Answer(data), method=method)
        response.begin()
        data = response.read()
        return "whole" if response.status == 200 else str(response.status), data
    except http.client.IncompleteRead as error:
        return "cut", error.partial
    except http.client.HTTPException as error:
        return f"{type(error).__name__}: {error}", data


def ask(address, host):
    wrong = 0

    def fault(what):
        nonlocal wrong
        wrong += 1
        print(what, file=sys.stderr)

    for target, (_, expected, method, asked) in paths.items():
        _, before = fetch(address, host, "/asked_" + target[1:], "GET")
        got, data = fetch(address, host, target, method)
        if got == "whole" and data == b"":
            got = "empty"
        if got not in expected or (got == "whole" and data != b"hello"):
            fault(f"{target}: {got} {data[:200]!r}, not {' or '.join(expected)}")
        after = fetch(address, host, "/ok", "GET")
        if after != ("whole", b"hello"):
            fault(f"after {target}: {after}")
        _, count = fetch(address, host, "/asked_" + target[1:], "GET")
        if asked and count.isdigit() and before.isdigit() and int(count) - int(before) > asked:
            fault(f"{target}: asked {int(count) - int(before)} times, not {asked}")
    print(f"{len(paths)} paths")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else ask(*sys.argv[2:])

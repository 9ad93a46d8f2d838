"""Cases as Autobahn's fuzzing client has them (framing, pings, reserved bits, opcodes, fragments, UTF-8, close, sizes, compression) against a
server that sends back what comes. Frames are written by hand, so that wrong ones can be. Prints what each case came to, a line each.

websocket_client.py ADDRESS HOST
"""

import base64
import hashlib
import os
import socket
import struct
import sys
import zlib

from websockets.sync.client import connect

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
(HOST_ADDRESS, PORT), HOST = sys.argv[1].rsplit(":", 1), sys.argv[2]


def frame(opcode, payload=b"", fin=True, rsv=0, masked=True):
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    bit = 0x80 if masked else 0
    size = len(payload)
    if size < 126:
        head += bytes([bit | size])
    elif size < 65536:
        head += bytes([bit | 126]) + struct.pack("!H", size)
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", size)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    pad = (mask * (size // 4 + 1))[:size]
    masked_payload = (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")
    return head + mask + masked_payload


def close(code=1000, reason=b""):
    return frame(CLOSE, struct.pack("!H", code) + reason)


class Raw:
    """A connection that has switched."""

    def __init__(self):
        self.socket = socket.create_connection((HOST_ADDRESS, int(PORT)), 60)
        key = base64.b64encode(os.urandom(16))
        self.socket.sendall(
            b"GET / HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n\r\n" % (HOST.encode(), key)
        )
        self.file = self.socket.makefile("rb")
        assert self.file.readline().startswith(b"HTTP/1.1 101 "), "it switches"
        proof = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        fields = {}
        while line := self.file.readline().strip():
            name, value = line.split(b": ", 1)
            fields[name.lower()] = value
        assert fields[b"sec-websocket-accept"] == proof

    def frame(self):
        """The next frame: its first byte, size and sum; or the code of a close; or how it ended."""
        try:
            head = self.file.read(2)
            if len(head) < 2:
                return "end"
            size = head[1] & 0x7F
            if size == 126:
                (size,) = struct.unpack("!H", self.file.read(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", self.file.read(8))
            payload = self.file.read(size)
        except OSError as error:
            return type(error).__name__
        if head[0] & 15 == CLOSE:
            return ("close", struct.unpack("!H", payload[:2])[0] if payload else None)
        return (head[0], size, zlib.crc32(payload))


def case(name, *frames, answers=0, chop=None):
    """Sends frames. Once there were as many answers, closes; without any, whatever was sent ends it."""
    raw = Raw()
    data = b"".join(frames)
    for at in range(0, len(data), chop or len(data)):
        raw.socket.sendall(data[at : at + (chop or len(data))])
    heard = [raw.frame() for _ in range(answers)]
    if answers:
        raw.socket.sendall(close())
    while isinstance(last := raw.frame(), tuple):
        heard.append(last)
        if last[0] == "close":
            raw.socket.shutdown(socket.SHUT_WR)
    print(name, heard, last, flush=True)


SIZES = [0, 1, 125, 126, 127, 128, 65535, 65536, 1 << 20]
for size in SIZES:
    case(f"1.1 text {size}", frame(TEXT, b"*" * size), answers=1)
    case(f"1.2 binary {size}", frame(BINARY, b"\xfe" * size), answers=1)
for chop in [1, 997]:
    case(f"1.3 in pieces of {chop}", frame(TEXT, b"*" * 2000), chop=chop, answers=1)
for size in [0, 1, 125]:
    case(f"2.1 ping {size}", frame(PING, b"p" * size), answers=1)
case("2.2 ping too long", frame(PING, b"p" * 126))
case("2.3 pong nobody asked for", frame(PONG, b"p"), frame(PING, b"q"), answers=1)
case("2.4 ten pings", *[frame(PING, b"%d" % n) for n in range(10)], answers=10)
for rsv in range(1, 8):
    case(f"3.{rsv} reserved bits", frame(TEXT, b"x", rsv=rsv))
for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15]:
    case(f"4.{opcode} opcode", frame(opcode, b"x"))
case("5.1 fragment of a ping", frame(PING, b"a", fin=False))
case("5.2 fragments", frame(TEXT, b"a", fin=False), frame(0, b"b", fin=False), frame(0, b"c"), answers=1)
case("5.3 ping between", frame(TEXT, b"a", fin=False), frame(PING, b"p"), frame(0, b"b"), answers=2)
case("5.4 continues nothing", frame(0, b"a"))
case("5.5 text within text", frame(TEXT, b"a", fin=False), frame(TEXT, b"b"))
for n, text in enumerate([b"\xce\xba\xe1\xbd\xb9", b"\xf0\x9f\x98\x80"]):
    case(f"6.{n} UTF-8", frame(TEXT, text), answers=1)
for n, text in enumerate([b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"a\xff"], 2):
    case(f"6.{n} not UTF-8", frame(TEXT, text))
case("6.9 UTF-8 across fragments", frame(TEXT, b"\xf0\x9f", fin=False), frame(0, b"\x98\x80"), answers=1)
case("7.1 after close", close(), frame(TEXT, b"x"), frame(PING, b"x"))
case("7.2 close of nothing", frame(CLOSE))
case("7.3 close of one byte", frame(CLOSE, b"x"))
case("7.4 reason not UTF-8", close(1000, b"\xff"))
case("7.5 longest reason", close(1000, b"r" * 123))
for code in [1000, 1001, 1002, 1003, 1007, 1011, 3000, 4999, 0, 999, 1004, 1005, 1006, 1016, 2999, 5000, 65535]:
    case(f"7.7 close {code}", close(code))
case("8.1 not masked", frame(TEXT, b"x", masked=False))
for size in [1 << 22]:
    case(f"9.1 message of {size}", frame(BINARY, b"\x5a" * size), answers=1)
    parts = [frame(0, b"y" * 65536, fin=False) for _ in range(size // 65536 - 1)]
    case(f"9.2 fragments of {size}", frame(BINARY, b"y" * 65536, fin=False), *parts, frame(0), answers=1)
case("9.3 many small ones", *[frame(TEXT, b"%d" % n) for n in range(2000)], answers=2000)

# Of the library, which compresses and names a protocol.
socket_of_library = socket.create_connection((HOST_ADDRESS, int(PORT)), 60)
with connect(f"ws://{HOST}/", sock=socket_of_library, subprotocols=["chat"], max_size=None) as client:
    print("12 protocol", client.subprotocol, [extension.name for extension in client.protocol.extensions])
    for size in SIZES:
        sent = ("lorem ipsum " * (size // 12 + 1))[:size]
        client.send(sent)
        assert client.recv(60) == sent
        client.send(part for part in [sent[: size // 2], sent[size // 2 :]])
        assert client.recv(60) == sent
        assert client.ping(b"%d" % size).wait(60)
    print("12 compressed", len(SIZES))
print("13 closed", client.close_code, client.close_reason)

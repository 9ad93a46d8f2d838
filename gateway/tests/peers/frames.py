"""HTTP/2 frames by hand, well-formed or not (RFC 9113 §4.1)."""

import socket
import struct

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 1, 1, 4, 8, 32
CODES = [
    "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED", "FRAME_SIZE_ERROR",
    "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
]  # fmt: skip
PATIENCE = 20


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def setting(*pairs):
    return b"".join(struct.pack("!HI", name, value) for name, value in pairs)


def number(value):
    return struct.pack("!I", value)


class Closed(Exception):
    """The other end closed or reset the connection."""


class Connection:
    """One connection, from either end."""

    def __init__(self, sock):
        self.sock, self.buffer = sock, b""
        sock.settimeout(PATIENCE)
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()

    def send(self, *frames):
        try:
            self.sock.sendall(b"".join(frames))
        except OSError:
            pass  # what the other end said before it closed is to be read

    def block(self, fields):
        return self.encoder.encode(fields, huffman=False)

    def exactly(self, count):
        while len(self.buffer) < count:
            try:
                piece = self.sock.recv(65536)
            except TimeoutError:
                raise
            except OSError:
                piece = b""
            if not piece:
                raise Closed
            self.buffer += piece
        piece, self.buffer = self.buffer[:count], self.buffer[count:]
        return piece

    def next(self):
        """Kind, flags, stream and payload of the next frame."""
        head = self.exactly(9)
        length = int.from_bytes(head[:3], "big")
        return head[3], head[4], int.from_bytes(head[5:], "big") & 0x7FFFFFFF, self.exactly(length)

    def fields(self, payload):
        return dict(self.decoder.decode(payload))

    def close(self):
        try:
            self.sock.close()
        except OSError:
            pass


def connect(address, *settings):
    host, port = address.rsplit(":", 1)
    connection = Connection(socket.create_connection((host, int(port)), timeout=PATIENCE))
    connection.send(PREFACE, frame(SETTINGS, payload=setting(*settings)))
    return connection

#!/usr/bin/env python3
"""gRPC calls on grpcio through a gateway to `grpc_server.py`: everything must be as if nobody stood between.

    grpc_client.py ADDRESS SCENARIO...

Scenarios are the functions below. Exit code 1: something was not right, and standard error says what.
"""

import asyncio
import hashlib
import inspect
import json
import os
import sys
import time

import grpc
from grpc import StatusCode, aio

PATIENCE = 60


class Client:
    def __init__(self, address, host="calls.shop"):
        options = [
            ("grpc.default_authority", host),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.enable_retries", 0),
        ]
        self.channel = aio.insecure_channel(address, options=options)
        self.echo = self.channel.unary_unary("/peers.Test/Echo")
        self.count = self.channel.unary_stream("/peers.Test/Count")
        self.digest = self.channel.stream_unary("/peers.Test/Digest")
        self.chat = self.channel.stream_stream("/peers.Test/Chat")

    async def report(self):
        return json.loads(await self.channel.unary_unary("/peers.Test/Report")(b"", timeout=PATIENCE))

    async def until(self, what, condition):
        deadline = time.monotonic() + PATIENCE
        while not condition(report := await self.report()):
            assert time.monotonic() < deadline, f"not in time: {what}: {report}"
            await asyncio.sleep(0.05)


def pairs(metadata):
    return {name: value for name, value in metadata}


async def kinds(client):
    """All four kinds of calls, small and large messages, in both directions."""
    large = bytes(range(256)) * 12_000
    for message in (b"", b"hello", large):
        assert await client.echo(message, timeout=PATIENCE) == message
    assert [m async for m in client.count(b"500", timeout=PATIENCE)] == [str(n).encode() for n in range(500)]
    messages = [bytes([n % 256]) * (n * 37) for n in range(300)]
    expected = f"300 {hashlib.sha256(b''.join(messages)).hexdigest()}".encode()
    assert await client.digest(iter(messages), timeout=PATIENCE) == expected
    assert [m async for m in client.chat(iter(messages), timeout=PATIENCE)] == messages
    # One message at a time: each is there before the next is sent.
    chat = client.chat(timeout=PATIENCE)
    for n in range(50):
        await chat.write(str(n).encode())
        assert await chat.read() == str(n).encode()
    await chat.done_writing()
    assert await chat.read() is aio.EOF and await chat.code() is StatusCode.OK


async def metadata(client):
    """Metadata of both ends, binary too, and repeated."""
    value = bytes(range(256))
    call = client.echo(b"x", metadata=(("x-ask", "a, b"), ("x-ask-bin", value)), timeout=PATIENCE)
    initial, trailing = pairs(await call.initial_metadata()), pairs(await call.trailing_metadata())
    assert (initial["x-echo"], initial["x-echo-bin"]) == ("a, b", value), initial
    assert (trailing["x-trail"], trailing["x-trail-bin"]) == ("end", value), trailing


async def status(client):
    """Every code, with its details as they were."""
    for code in StatusCode:
        number, details = code.value[0], f"why: {code.name}, 100 %, ümläut \t ✓"
        if code is StatusCode.OK:
            continue
        call = client.echo(f"fail {number} {details}".encode(), timeout=PATIENCE)
        try:
            await call
            raise AssertionError(f"{code} became OK")
        except aio.AioRpcError as error:
            assert (error.code(), error.details()) == (code, details), error
            assert pairs(error.trailing_metadata()).get("x-trail") == "end", error


async def deadlines(client):
    """Each hop knows what is left; whoever waits too long hears it, and the server stops."""
    left = float(await client.echo(b"deadline", timeout=30))
    # grpcio rounds what it sends up to three digits: 30.1 s when it wrote a moment later than it thought.
    assert 5 < left <= 30.5, left
    before = (await client.report())["cancelled"]
    began = time.monotonic()
    try:
        await client.echo(b"sleep 300", timeout=0.5)
        raise AssertionError("answered")
    except aio.AioRpcError as error:
        assert error.code() is StatusCode.DEADLINE_EXCEEDED, error
    assert time.monotonic() - began < 30
    await client.until("the server sees the deadline", lambda report: report["cancelled"] > before)


async def cancellation(client):
    """The server sees that a client does not want it any more, whatever kind of call it is."""
    before = (await client.report())["cancelled"]
    stream = client.count(b"1000000 0.01", timeout=PATIENCE)
    await stream.read()
    chat = client.chat(timeout=PATIENCE)
    await chat.write(b"x")
    await chat.read()
    echo = client.echo(b"sleep 300", timeout=PATIENCE)
    await client.until("all are open", lambda report: report["open"] >= 3)
    for call in (stream, chat, echo):
        call.cancel()
    # To grpcio's servers the requests of a cancelled stream just end.
    await client.until("the server sees cancellations", lambda report: report["cancelled"] >= before + 2 and report["open"] == 0)


async def own_errors(client, address):
    """What the gateway says itself is a status, not an HTTP code, to calls of one message and to streams.

    The stream sends no message of its own: grpcio calls a message that it could not send any more an INTERNAL
    error of its own, whatever status has come (10 of 3,000 calls straight to a server of grpcio's that has no such method).
    """
    for host, code in (("nobody.shop", StatusCode.UNIMPLEMENTED), ("empty.shop", StatusCode.UNAVAILABLE)):
        other = Client(address, host)
        for call in (other.echo(b"x", timeout=PATIENCE), other.digest(timeout=PATIENCE)):
            assert (await call.code(), bool(await call.details())) == (code, True), (host, call)
        await other.channel.close()


async def thousand(client, address):
    """1,000 streams at once: each carries a message before any of them ends."""
    clients = [Client(address) for _ in range(5)]
    calls = [other.chat(timeout=PATIENCE * 3) for other in clients for _ in range(200)]

    async def first(n, call):
        await call.write(str(n).encode())
        assert await call.read() == str(n).encode()

    await asyncio.gather(*(first(n, call) for n, call in enumerate(calls)))
    report = await client.report()
    assert report["open"] >= 1_000, report

    async def last(call):
        await call.done_writing()
        assert await call.read() is aio.EOF and await call.code() is StatusCode.OK

    await asyncio.gather(*map(last, calls))
    for other in clients:
        await other.channel.close()


async def quiet(client):
    """A server says nothing for a while, many times at once: that is no reason to take it for hung."""
    for _ in range(50):
        await client.echo(b"x", timeout=PATIENCE)
    quiet_ones = [client.count(b"1 3", timeout=PATIENCE) for _ in range(8)]
    chats = [client.chat(timeout=PATIENCE) for _ in range(4)]
    for chat in chats:
        await chat.write(b"x")
        assert await chat.read() == b"x"
    for stream in quiet_ones:
        assert [m async for m in stream] == [b"0"]
    for chat in chats:
        await chat.write(b"y")
        assert await chat.read() == b"y"
        await chat.done_writing()


async def ages(client):
    """The server ends each connection after a moment (GOAWAY): no call may notice."""

    async def caller():
        for n in range(40):
            assert await client.echo(str(n).encode(), timeout=PATIENCE) == str(n).encode()
            if n % 10 == 0:
                assert len([m async for m in client.count(b"10 0.03", timeout=PATIENCE)]) == 10

    await asyncio.gather(*(caller() for _ in range(10)))
    report = await client.report()
    assert report["peers"] > 3, f"no connection aged: {report}"


async def few_streams(client):
    """The server takes 10 streams on a connection: more connections, and nobody waits."""
    calls = [client.chat(timeout=PATIENCE) for _ in range(60)]
    for n, call in enumerate(calls):
        await call.write(str(n).encode())
    for n, call in enumerate(calls):
        assert await call.read() == str(n).encode()
    report = await client.report()
    assert report["open"] >= 60 and report["peers"] >= 6, report
    for call in calls:
        await call.done_writing()
        assert await call.read() is aio.EOF


async def main():
    address, *names = sys.argv[1:]
    client, failed = Client(address), False
    for name in names:
        scenario = globals()[name]
        try:
            arguments = (client, address)[: len(inspect.signature(scenario).parameters)]
            await asyncio.wait_for(scenario(*arguments), PATIENCE * 3)
        except Exception as error:
            failed = True
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    # At an ordinary exit grpcio sometimes takes itself apart for ever.
    sys.stderr.flush()
    os._exit(1 if failed else 0)


asyncio.run(main())

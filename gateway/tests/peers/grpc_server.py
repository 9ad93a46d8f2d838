#!/usr/bin/env python3
"""A gRPC server on grpcio for gateways to talk to: all four kinds of calls, on plain bytes, and what it saw of them.

    grpc_server.py [--port N] [--max-streams N] [--max-age-ms N]

Prints its port. Ends when its standard input does, or by a signal.
"""

import argparse
import asyncio
import hashlib
import json
import sys

import grpc

seen = {"calls": 0, "open": 0, "open_max": 0, "cancelled": 0, "peers": set()}


def counted(method):
    """Counts calls that are open, and those that end before they are done because nobody waits for them any more."""

    async def call(request, context):
        seen["calls"] += 1
        seen["open"] += 1
        seen["open_max"] = max(seen["open_max"], seen["open"])
        seen["peers"].add(context.peer())
        done = False
        try:
            result = method(request, context)
            if hasattr(result, "__aiter__"):
                async for message in result:
                    yield message
            else:
                yield await result
            done = True
        except grpc.aio.AbortError:
            done = True
            raise
        finally:
            seen["open"] -= 1
            seen["cancelled"] += not done

    return call


def single(method):
    """Of a kind that answers with one message."""

    async def call(request, context):
        answer = [message async for message in counted(method)(request, context)]
        return answer[0]

    return call


async def echo(request, context):
    """The message back, with the caller's metadata; `fail CODE DETAILS` fails, `sleep SECONDS` takes its time."""
    word, _, rest = request.decode("utf-8", "replace").partition(" ")
    metadata = dict(context.invocation_metadata())
    await context.send_initial_metadata((("x-echo", str(metadata.get("x-ask", ""))), ("x-echo-bin", metadata.get("x-ask-bin", b""))))
    context.set_trailing_metadata((("x-trail", "end"), ("x-trail-bin", bytes(range(256)))))
    if word == "fail":
        code, _, details = rest.partition(" ")
        await context.abort(next(c for c in grpc.StatusCode if c.value[0] == int(code)), details)
    if word == "sleep":
        await asyncio.sleep(float(rest))
    if word == "deadline":
        return str(context.time_remaining()).encode()
    return request


async def count(request, context):
    """`COUNT [SECONDS]`: so many messages, and that long between them."""
    number, _, pause = request.decode().partition(" ")
    for index in range(int(number)):
        if pause:
            await asyncio.sleep(float(pause))
        yield str(index).encode()


async def digest(requests, context):
    """How many messages came, and their hash."""
    total, hash_ = 0, hashlib.sha256()
    async for message in requests:
        total += 1
        hash_.update(message)
    return f"{total} {hash_.hexdigest()}".encode()


async def chat(requests, context):
    """Every message back when it comes."""
    async for message in requests:
        yield message


async def report(request, context):
    return json.dumps({**seen, "peers": len(seen["peers"])}).encode()


async def main():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--port", type=int, default=0)
    flags.add_argument("--max-streams", type=int)
    flags.add_argument("--max-age-ms", type=int)
    args = flags.parse_args()
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
    if args.max_streams:
        options.append(("grpc.max_concurrent_streams", args.max_streams))
    if args.max_age_ms:
        options += [("grpc.max_connection_age_ms", args.max_age_ms), ("grpc.max_connection_age_grace_ms", 20_000)]
    server = grpc.aio.server(options=options)
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(single(echo)),
        "Count": grpc.unary_stream_rpc_method_handler(counted(count)),
        "Digest": grpc.stream_unary_rpc_method_handler(single(digest)),
        "Chat": grpc.stream_stream_rpc_method_handler(counted(chat)),
        "Report": grpc.unary_unary_rpc_method_handler(report),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("peers.Test", handlers),))
    port = server.add_insecure_port(f"127.0.0.1:{args.port}")
    await server.start()
    print(port, flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
    await server.stop(0)


asyncio.run(main())

"""A WebSocket server (the library `websockets`) that sends back what comes, as fuzzing clients want it. Prints its port."""

import asyncio
import sys

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosedError


async def echo(connection):
    try:
        async for message in connection:
            await connection.send(message)
    except ConnectionClosedError:
        # What a case that is wrong on purpose comes to.
        pass


def chosen(_connection, offered):
    return "chat" if "chat" in offered else None


async def main():
    async with serve(echo, "127.0.0.1", 0, max_size=None, ping_interval=None, select_subprotocol=chosen) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        # Until whoever started it lets go.
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())

"""A WebSocket server that sends everything back, and closes when asked to.

Its first line is the port on which it listens.
"""

import asyncio

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed


async def echo(socket):
    try:
        async for message in socket:
            if message == "close, please":
                await socket.close(4001, "as asked")
                return
            if message == "ping, please":
                await (await socket.ping(b"from the server"))
            await socket.send(message)
    except ConnectionClosed as closed:
        if closed.rcvd is None:
            print("ended", repr(closed.__cause__), closed, flush=True)
            return
    print("closed", socket.close_code, flush=True)


async def main():
    async with serve(echo, "127.0.0.1", 0, max_size=4 << 20, compression=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()


asyncio.run(main())

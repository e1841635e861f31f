"""Calls the echo server through the door whose port is the first argument; the second names what to try.

It ends with a traceback if the answer is not what it has to be.
"""

import asyncio
import os
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus


def dial(**more):
    return connect(
        "ws://echo/any/path?q=1",
        host="127.0.0.1",
        port=int(sys.argv[1]),
        proxy=None,
        max_size=4 << 20,
        **more,
    )


async def same(socket, message):
    await socket.send(message)
    answer = await asyncio.wait_for(socket.recv(), 20)
    assert answer == message, (len(message), len(answer))


async def messages():
    for compression in (None, "deflate"):
        async with dial(compression=compression) as socket:
            await same(socket, "straße 🚃")
            await same(socket, bytes(range(256)))
            await same(socket, "")
            await same(socket, os.urandom(1 << 20))
            await same(socket, "x" * (1 << 20))


async def pings():
    async with dial() as socket:
        for _ in range(10):
            await asyncio.wait_for(await socket.ping(os.urandom(125)), 20)
        # The server pings, and sends its answer only after our pong.
        await same(socket, "ping, please")


async def crowd():
    async def one(number):
        async with dial() as socket:
            for turn in range(20):
                await same(socket, f"{number}: {turn} " + "y" * (number * 100))

    await asyncio.gather(*(one(number) for number in range(100)))


async def closed():
    async with dial() as socket:
        await socket.send("close, please")
        try:
            await asyncio.wait_for(socket.recv(), 20)
        except ConnectionClosed as end:
            assert (end.rcvd.code, end.rcvd.reason) == (4001, "as asked"), end
            assert end.rcvd_then_sent, "the server was first"
        else:
            raise AssertionError("it was not closed")


async def closes():
    socket = await dial()
    await same(socket, "once")
    await socket.close(4002, "enough")
    assert socket.close_code == 4002, socket.close_code


async def stays():
    """One echo each 50 ms, a line for each, until the connection ends; then how it did."""
    async with dial() as socket:
        try:
            for turn in range(10_000):
                await same(socket, f"turn {turn}")
                print("turn", turn, flush=True)
                await asyncio.sleep(0.05)
        except ConnectionClosed as end:
            print("ended", repr(end.__cause__), end, flush=True)


async def refused():
    try:
        async with dial():
            raise AssertionError("it was taken")
    except InvalidStatus as answer:
        print("status", answer.response.status_code, flush=True)


asyncio.run(globals()[sys.argv[2]]())

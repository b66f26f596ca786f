"""gRPC connections that only rest: real clients hold all that there is room for, and those who ask get in."""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from aimass_lab.serving import grpc_app
from aimass_lab.serving.grpc_messages import INFERENCE_SERVICE, message

PATIENCE_S = 60


@contextlib.asynccontextmanager
async def grpc_here(**limits: float) -> AsyncIterator[str]:
    """The server in this process, with a service that can say that it lives and what methods it has, to anybody, and no more."""
    service: Any = types.SimpleNamespace(log=None, ready=True, door=types.SimpleNamespace(admit=lambda token: "anybody"))
    server, port = await grpc_app.start_grpc(service, service, "127.0.0.1:0", 2**20, **limits)  # type: ignore[arg-type]
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def client(stack: contextlib.AsyncExitStack, address: str) -> Any:
    """One with a connection of its own, as every process has it."""
    return await stack.enter_async_context(grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]))


async def ask(channel: Any, method: str) -> Any:
    answer = message(f"inference.{method}Response")
    call = channel.unary_unary(f"/{INFERENCE_SERVICE}/{method}", lambda m: m.SerializeToString(), answer.FromString)
    return await call(message(f"inference.{method}Request")(), timeout=PATIENCE_S, wait_for_ready=True)


def test_those_that_rest_make_room_and_come_back_and_who_waits_for_an_answer_keeps_his(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for three: two that asked once and rest, and one whose answer takes its time. A fourth gets in."""

    async def run() -> None:
        asked, may_answer = asyncio.Event(), asyncio.Event()

        async def late(*_: Any) -> dict[str, bool]:
            asked.set()
            await may_answer.wait()
            return {"ready": True}

        monkeypatch.setattr(grpc_app.GrpcApp, "ServerReady", late)
        monkeypatch.setattr(grpc_app, "grpc_connections", lambda: 3)
        monkeypatch.setattr(grpc_app, "KEEP_ALIVE_S", 0.3)
        async with grpc_here() as address, contextlib.AsyncExitStack() as stack:
            waits, *rest = [await client(stack, address) for _ in range(3)]
            answer = asyncio.create_task(ask(waits, "ServerReady"))
            await asyncio.wait_for(asked.wait(), PATIENCE_S)
            assert [(await ask(channel, "ServerLive")).live for channel in rest] == [True, True]
            fourth = await client(stack, address)
            assert (await ask(fourth, "ServerLive")).live
            assert [(await ask(channel, "ServerLive")).live for channel in rest] == [True, True]
            assert not answer.done()
            may_answer.set()
            assert (await answer).ready

    asyncio.run(run())


def test_who_never_says_a_word_and_who_never_ends_a_stream_are_shown_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("grpc_reflection", reason="the one method that streams needs grpcio-reflection")
    monkeypatch.setattr(grpc_app, "MOST_AGE_S", 1.0)

    async def run() -> None:
        async with grpc_here(greeting_timeout_s=0.3, grace_s=0.3) as address, contextlib.AsyncExitStack() as stack:
            host, port = address.rsplit(":", 1)
            reader, writer = await asyncio.open_connection(host, int(port))
            await asyncio.wait_for(reader.read(), PATIENCE_S)  # to its end, which the server makes
            writer.close()
            channel = await client(stack, address)
            stream = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(stream.read(), PATIENCE_S)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "age" in str(caught.value.details())
            assert (await ask(channel, "ServerLive")).live

    asyncio.run(run())

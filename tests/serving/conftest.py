"""Servers that the tests share, and what ends what a test started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aimass_lab.serving.launch import Server, start

from .servers import guarded_server, write_faulty, write_identity, write_linear


@pytest.fixture(scope="session")
def linear_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear(tmp_path_factory.mktemp("linear") / "bundle")


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that asks for the token ``secret``."""
    with guarded_server(tmp_path_factory.mktemp("guarded")) as server:
        yield server


@pytest.fixture(scope="session")
def linear(linear_folder: Path) -> Iterator[Server]:
    with start(linear_folder) as server:
        yield server
        assert server.exit_code is None, server.log


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start(write_identity(tmp_path_factory.mktemp("identity") / "bundle")) as server:
        yield server


@pytest.fixture
def run_faulty(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a server of the faulty model with the given settings."""
    servers = []

    def run(*, grpc_port: int | None = None, **settings: Any) -> Server:
        folder = write_faulty(tmp_path / f"bundle{len(servers)}", **settings)
        servers.append(start(folder, grpc_port=grpc_port))
        return servers[-1]

    yield run
    for server in servers:
        with server:
            pass

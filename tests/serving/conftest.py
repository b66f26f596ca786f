"""Servers that the tests share, and what ends what a test started."""

from __future__ import annotations

import subprocess
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
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this machine that vouches for itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key), "-out", str(cert), *names]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl on this machine to make a certificate with")
    return cert, key


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

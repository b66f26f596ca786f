"""A RabbitMQ broker of the tests' own: its folder, node name and ports are theirs, and it ends with them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""Of Debian's package; the one on the path changes user and folder."""
START_S = 180.0


def missing() -> str | None:
    """Why there can be no broker here."""
    if not SERVER.exists():
        return "rabbitmq-server is not installed"
    return None if shutil.which("epmd") else "Erlang's port mapper is not installed"


class Broker:
    """A broker, and the port mapper that it needs; both are child processes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plugins").write_text("[].")
        self.port, dist_port, epmd_port = _free_ports(3)
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
        self._log = folder / "stdout"
        self._environment = os.environ | {
            "HOME": str(folder), "ERL_EPMD_PORT": str(epmd_port), "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_PORT": str(self.port), "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1", "RABBITMQ_DIST_PORT": str(dist_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"), "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"), "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_CONFIG_FILE": str(folder / "none"), "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1",
        }  # fmt: skip
        self._epmd = subprocess.Popen(["epmd", "-port", str(epmd_port)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def version(self) -> str:
        """As its banner has it."""
        return next(line.split("RabbitMQ ")[1].strip() for line in self._log.read_text().splitlines() if "RabbitMQ " in line)

    def start(self) -> None:
        """Start it, with the data that it had before, and wait until it takes connections."""
        with self._log.open("wb") as log:
            command = ["sh", str(SERVER)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=self._environment, start_new_session=True
            )  # fmt: skip
        end = time.monotonic() + START_S
        while "Starting broker... completed" not in self._log.read_text(errors="replace"):
            if self._process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise RuntimeError(f"the broker did not start: {self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it, and what it started; its data stay."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)
            self._process.wait()

    def close(self) -> None:
        """End everything."""
        self.stop()
        self._epmd.terminate()
        self._epmd.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports

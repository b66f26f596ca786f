"""One server of the comparison as a process tree: started until its first right answer, stopped while others are measured, its CPU and memory read."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import zoo
from contestants import Contestant, Wire, close_enough, free_port, reference

HERE = Path(__file__).parent
START_TIMEOUT_S, END_TIMEOUT_S = 300.0, 15.0
NUM_BODIES = 16
"""Different requests that the load consists of."""


class Failed(Exception):
    """The server did not start, or answered wrongly."""


class Running:
    """A started server.

    Raises:
        Failed: it ended, or gave no right answer in time.
    """

    def __init__(self, contestant: Contestant, model: str, *, peers: Path, folder: Path) -> None:
        self.contestant, self.entry = contestant, zoo.ZOO[model]
        self._inputs, self._outputs = reference(folder)
        self._port = free_port()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the server
        self.bodies = tempfile.TemporaryDirectory()
        command = [sys.executable, "-I", str(HERE / "subreaper.py"), *contestant.command(peers, folder, self._port)]
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | contestant.settings(model, folder, self._port)
        began = time.monotonic()
        self._process = subprocess.Popen(command, env=variables, stdout=self._log, stderr=subprocess.STDOUT, cwd=self.bodies.name)
        try:
            self._wait()
            self.start_s = time.monotonic() - began
            self._check()
        except BaseException:
            self.end()
            raise
        self._write_bodies()

    # --- answers -----------------------------------------------------------------------------

    def _wait(self) -> None:
        """Ask until the first right answer."""
        end = time.monotonic() + START_TIMEOUT_S
        wire = self.contestant.wires["json"]
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException, Failed):
                self._ask(wire, 0, timeout_s=5.0)
                return
            if self._process.poll() is not None:
                raise Failed(f"it ended with code {self._process.returncode}: {self.last_words()}")
            if time.monotonic() > end:
                raise Failed(f"no right answer within {START_TIMEOUT_S:g} s: {self.last_words()}")
            time.sleep(0.02)

    def _check(self) -> None:
        """Compare what it answers to every sample, singly and to many at once, with what the model gives."""
        for name, wire in self.contestant.wires.items():
            with ThreadPoolExecutor(16) as pool:
                try:
                    for index in range(4):
                        self._ask(wire, index)
                    list(pool.map(lambda index: self._ask(wire, index), range(len(self._inputs))))  # noqa: B023  # done before the next wire
                except (OSError, http.client.HTTPException, Failed) as error:
                    raise Failed(f"{name}: {error or type(error).__name__}") from None

    def _ask(self, wire: Wire, index: int, *, timeout_s: float = 60.0) -> None:
        """Send one sample and compare the answer."""
        headers, body = wire.encode(self.entry, self._inputs[index])
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout_s)
        try:
            connection.request("POST", wire.path.format(model=self.entry.name), body, headers | self.contestant.headers())
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise Failed(f"{response.status} {answer[:200].decode('utf-8', 'replace')}")
        try:
            got = wire.decode(self.entry, {name.lower(): value for name, value in response.headers.items()}, answer)
        except (ValueError, LookupError, TypeError) as error:
            raise Failed(f"an answer that is not understood ({error}): {answer[:200]!r}") from None
        if not close_enough(got, self._outputs[index]):
            raise Failed(f"a wrong answer to sample {index}: {got[:4].tolist()} instead of {self._outputs[index][:4].tolist()}")

    def ask_again(self) -> None:
        """One more request of each wire; its answer is compared, too."""
        for wire in self.contestant.wires.values():
            self._ask(wire, 0)

    def last_words(self) -> str:
        """The end of what it printed."""
        self._log.seek(0)
        lines = [line for line in self._log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return " / ".join(lines[-3:])[-400:]

    # --- load --------------------------------------------------------------------------------

    def _write_bodies(self) -> None:
        """Whole HTTP requests, a folder for each wire, for wrk to read."""
        for name, wire in self.contestant.wires.items():
            folder = Path(self.bodies.name) / name
            folder.mkdir()
            for index in range(NUM_BODIES):
                headers, body = wire.encode(self.entry, self._inputs[index])
                headers |= self.contestant.headers() | {"Host": f"127.0.0.1:{self._port}", "Content-Length": str(len(body))}
                head = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
                (folder / str(index)).write_bytes(f"POST {wire.path.format(model=self.entry.name)} HTTP/1.1\r\n{head}\r\n".encode() + body)

    def load(self, wire: str, connections: int, seconds: int) -> dict[str, Any]:
        """Closed loop of wrk over so many connections.

        Returns:
            What ``load.lua`` prints, and ``cpu_s``: of the server's tree, not of wrk.
        """
        command = [
            "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(HERE / "load.lua"), f"http://127.0.0.1:{self._port}",
            "--", str(Path(self.bodies.name) / wire), str(NUM_BODIES),
        ]  # fmt: skip
        before = self.cpu_s()
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
        cpu_s = self.cpu_s() - before
        if done.returncode:
            raise RuntimeError(f"wrk failed: {done.stderr.strip()[-300:]}")
        return json.loads(done.stdout.strip().splitlines()[-1]) | {"cpu_s": cpu_s}

    # --- the tree ----------------------------------------------------------------------------

    def _tree(self) -> list[psutil.Process]:
        """Everything below the subreaper, which is no part of the server."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid).children(recursive=True)
        return []

    def cpu_s(self) -> float:
        """Seconds of processor time so far, of the processes that live and of those that ended and were waited for."""
        total = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def pss_bytes(self) -> int:
        """Memory, pages that processes share counted once."""
        total = 0
        for process in self._tree():
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
                total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total

    def stop(self) -> None:
        """Keep it from running while another is measured."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.contestant.may_stop:
            for process in self._tree():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def end(self) -> None:
        """End the tree, with force where it takes long."""
        self.go_on()
        tree = self._tree()
        if self._process.poll() is None:
            self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_TIMEOUT_S)
        for process in {*tree, *self._tree()}:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_TIMEOUT_S)
        self._process.kill()
        self._process.wait()
        self.bodies.cleanup()


def check_tools() -> None:
    """Say what is missing before anything is started."""
    import shutil

    if shutil.which("wrk") is None:
        raise SystemExit("wrk is needed to load the servers: install it from the system's packages")

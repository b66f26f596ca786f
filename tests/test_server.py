"""The Jupyter server's half of the panel: a real server asked by real clients, and the feed on a machine that was recorded."""

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
import textwrap
import time
import types
import urllib.error
import urllib.request

import psutil
import pytest
from jsonschema import Draft202012Validator
from labserver import TOKEN, running_lab
from tornado.httpclient import HTTPClientError
from tornado.websocket import websocket_connect

from aimass_lab import __version__
from aimass_lab.frontends.live import LiveFeed
from aimass_lab.readings.kernels import ProcessTrees
from aimass_lab.records import Check, Comparison, History, Live, any_from_json, from_json
from aimass_lab.schemas import FOLDER
from aimass_lab.store import Store

BASE = "/user/a%40b/"
"""As behind a hub; nvdashboard's charts stayed empty there for years."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a Jupyter server with two runs in its history."""
    folder = tmp_path_factory.mktemp("server")
    store = Store(folder / ".history.db")
    for passed in (True, False):
        store.add("check", Check(subject="<b>x</b>", passed=passed), model="net", summary="a line")
    with running_lab(folder, module="jupyter_server", base_url=BASE, panel=True) as address:
        yield address


PACE = '{"interval": 0.5}'


def ask(url, *, method="GET", token=TOKEN):
    headers = {"Authorization": f"token {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method, headers=headers), timeout=30) as answer:
            return answer.status, answer.read().decode(), answer.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers["Content-Type"]


def test_the_history_is_listed_and_shown(server):
    status, text, _ = ask(f"{server}aimass-lab/runs?limit=1")
    assert status == 200
    assert [run.id for run in from_json(text, History).runs] == [2]
    assert any_from_json(ask(f"{server}aimass-lab/runs/1")[1]) == Check(subject="<b>x</b>", passed=True)
    status, page, kind = ask(f"{server}aimass-lab/runs/1/page")
    assert (status, kind) == (200, "text/html; charset=UTF-8")
    assert "&lt;b&gt;x" in page
    assert "<b>x" not in page


def test_two_runs_are_compared(server):
    comparison = from_json(ask(f"{server}aimass-lab/compare?before=1&after=2")[1], Comparison)
    assert (comparison.before.id, comparison.after.id) == (1, 2)
    assert ask(f"{server}aimass-lab/compare/page?before=1&after=2")[0] == 200


@pytest.mark.parametrize(
    ("path", "method", "status", "says"),
    [
        ("runs/77", "GET", 404, "there is no run 77"),
        ("runs?limit=many", "GET", 400, "limit='many'"),
        ("compare?before=1", "GET", 400, "after=None"),
        ("services/1", "DELETE", 404, "process"),
        ("document/page?path=nothing.json", "GET", 400, "cannot be opened"),
        ("document/page?path=.history.db", "GET", 400, "cannot be opened"),
    ],
)
def test_a_refusal_says_what_was_wrong(server, path, method, status, says):
    answered, text, _ = ask(f"{server}aimass-lab/{path}", method=method)
    assert answered == status
    assert says in json.loads(text)["message"]


@pytest.mark.parametrize(
    ("path", "method"), [("runs", "GET"), ("runs/1", "GET"), ("runs/1/page", "GET"), ("compare", "GET"), ("document/page", "GET"), ("services/1", "DELETE")]
)
def test_every_address_asks_for_a_token(server, path, method):
    assert ask(f"{server}aimass-lab/{path}", method=method, token=None)[0] == 403


def test_jupyters_own_check_finds_every_endpoint_authenticated():
    script = """
    import sys, warnings
    from jupyter_server.serverapp import ServerApp
    from jupyter_server.utils import JupyterServerAuthWarning
    app = ServerApp(allow_root=True, allow_unauthenticated_access=False, jpserver_extensions={"aimass_lab": True}, reraise_server_extension_failures=True)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        app.initialize(argv=[], find_extensions=False, new_httpserver=False)
    assert "aimass_lab" in app.web_app.settings, "it was not loaded"
    sys.exit("\\n".join(str(w.message) for w in found if issubclass(w.category, JupyterServerAuthWarning)) or None)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


async def frames(url, send, *, count=2):
    """The first frames; fewer where the server closes the socket before."""
    socket = await websocket_connect(url)
    await socket.write_message(send)
    found, closed = [], False
    while not closed:
        frame = await asyncio.wait_for(socket.read_message(), 60)
        closed = frame is None
        if not closed and len(found) < count:
            found.append(frame)
        if len(found) == count:
            socket.close()
    socket.close()  # the server's end of it is not ours
    return found


def test_live_readings_come_at_the_pace_that_was_asked_for(server):
    url = f"{server.replace('http', 'ws')}aimass-lab/live"
    with pytest.raises(HTTPClientError, match="403"):
        asyncio.run(frames(url, PACE))
    first, second = asyncio.run(frames(f"{url}?token={TOKEN}", PACE))
    Draft202012Validator(json.loads((FOLDER / "live.schema.json").read_text())).validate(json.loads(first))
    live, later = from_json(first, Live), from_json(second, Live)
    assert (live.version, live.newest_run) == (__version__, 2)
    assert later.readings.taken_at > live.readings.taken_at
    assert live.readings.memory.machine_total_bytes.value == psutil.virtual_memory().total
    assert len(asyncio.run(frames(f"{url}?token={TOKEN}", '{"interval": "often"}', count=9))) < 9  # closed, and the server lives
    assert ask(f"{server}aimass-lab/runs")[0] == 200


def test_the_server_never_loads_torch():
    script = "import sys, aimass_lab.frontends.server, aimass_lab.frontends.layouts; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split() == ["False", "False"]


# --- the feed ------------------------------------------------------------------------------------


class Listener:
    def __init__(self, delay_s=0.0):
        self.heard, self.delay_s = [], delay_s

    async def write_message(self, text):
        self.heard.append(from_json(text, Live))
        await asyncio.sleep(self.delay_s)


class App:
    """What the feed needs of Jupyter's server: one kernel, which is this process, and one that runs elsewhere."""

    log = logging.getLogger("test")

    def __init__(self, pid):
        local = types.SimpleNamespace(kernel_name="python3", execution_state="busy", provisioner=types.SimpleNamespace(pid=pid))
        remote = types.SimpleNamespace(kernel_name="far", execution_state="idle", provisioner=types.SimpleNamespace())
        kernels = {"one": local, "two": remote}
        self.kernel_manager = types.SimpleNamespace(list_kernel_ids=lambda: list(kernels), get_kernel=kernels.__getitem__)
        self.session_manager = self

    async def list_sessions(self):
        return [{"kernel": {"id": "one"}, "path": "work/net.ipynb"}]


class NothingServed:
    def find(self):
        return ()


async def listen(feed, listeners, *, until):
    for listener in listeners:
        feed.join(listener)
        feed.pace(listener, 0.0)  # too fast: the shortest interval holds
    for _ in range(600):
        if until():
            break
        await asyncio.sleep(0.05)
    for listener in listeners:
        feed.leave(listener)
    heard = [len(listener.heard) for listener in listeners]
    await asyncio.sleep(1.2)
    assert [len(listener.heard) for listener in listeners] == heard, "nobody listens any more, so nothing is read"


def test_a_kernel_is_measured_and_one_that_runs_elsewhere_says_so():
    child = subprocess.Popen([sys.executable, "-c", "import time\nwhile True: time.perf_counter()"])
    with contextlib.ExitStack() as stack:
        stack.callback(child.wait)
        stack.callback(child.kill)
        quick, slow = Listener(), Listener(delay_s=3600)
        asyncio.run(listen(LiveFeed(App(child.pid), NothingServed()), [quick, slow], until=lambda: len(quick.heard) >= 3))
    assert len(slow.heard) == 1, "one that does not keep up misses frames"
    local, remote = quick.heard[-1].kernels
    assert (local.path, local.busy, local.num_processes) == ("work/net.ipynb", True, 1)
    assert 0.02 < local.cpu.value < 1.2
    assert 2**20 < local.memory_bytes.value < 2**28
    assert (remote.pid, remote.cpu, remote.path) == (None, None, None)
    assert "missing:kernel.process" in {note.code for note in quick.heard[-1].notes}


def test_a_process_that_ended_takes_nothing():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert ProcessTrees().read(done.pid) == (frozenset(), None, None)


def test_children_count_with_their_parent():
    script = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); print(p.pid, flush=True); p.wait()"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        grandchild = psutil.Process(int(parent.stdout.readline()))
        trees = ProcessTrees(clock=time.perf_counter)
        family, cpu, memory = trees.read(parent.pid)
        alone = psutil.Process(parent.pid).memory_full_info().pss
        grandchild.kill()
    assert (family, cpu) == ({parent.pid, grandchild.pid}, None)  # a rate needs two looks
    assert memory.value > alone

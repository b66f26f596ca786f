"""A JupyterLab of its own for browser tests: nothing of the person's settings, and the panel as it lies in this checkout."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path

import nbformat

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]
BUILT = Path(__file__).parents[1] / "aimass_lab" / "labextension"
TOKEN = "t"
PATIENCE_MS = 120_000
"""Of a machine that is busy with something else; nothing ends by a time."""


def write_notebook(path, cells):
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)"}  # without one, JupyterLab asks which it should be
    cells = [nbformat.v4.new_code_cell(textwrap.dedent(cell).strip()) for cell in cells]
    nbformat.write(nbformat.v4.new_notebook(metadata={"kernelspec": kernel}, cells=cells), path)


@contextlib.contextmanager
def running_lab(folder, *, module="jupyterlab", base_url="/", panel=False, environment=None, **settings):
    """Run a server on the notebooks in `folder`; yields its address, which ends with the base URL.

    `settings` are written for plugins by their names: ``{"aimass-lab:panel": {...}}``.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(folder / f".{name.lower()}") for name in ("CONFIG", "DATA", "RUNTIME")}
    more = {"IPYTHONDIR": folder / ".ipython", "JUPYTERLAB_SETTINGS_DIR": folder / ".settings", "JUPYTERLAB_WORKSPACES_DIR": folder / ".workspaces"}
    own |= {name: str(path) for name, path in more.items()}
    environment = {**os.environ, **own, "AIMASS_STORE": str(folder / ".history.db"), **(environment or {})}
    options = {
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.base_url": base_url,
        "ServerApp.root_dir": folder,
        "ServerApp.jpserver_extensions": f"aimass_lab={panel}",
        "IdentityProvider.token": TOKEN,
        "LabApp.news_url": None,
        "LabApp.extension_manager": "readonly",
        "LabApp.expose_app_in_browser": True,
        "JupyterNotebookApp.expose_app_in_browser": True,
    }
    if panel:  # as it was built here, whatever is installed
        extensions = folder / ".extensions"
        extensions.mkdir()
        (extensions / "aimass-lab").symlink_to(BUILT, target_is_directory=True)
        options["LabServerApp.extra_labextensions_path"] = extensions
        options["LabApp.extra_labextensions_path"] = options["JupyterNotebookApp.extra_labextensions_path"] = extensions
    silent = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}  # or it asks, over the page
    for plugin, values in (silent | settings).items():
        package, name = plugin.split(":")
        path = folder / ".settings" / package / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    command = [sys.executable, "-m", module, "--no-browser", "--allow-root", *(f"--{name}={value}" for name, value in options.items())]
    address = f"http://127.0.0.1:{port}{base_url}"
    with (folder / ".lab.log").open("w") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as process:
        try:
            wait_for(f"{address}api/status?token={TOKEN}", folder / ".lab.log")
            yield address
            wait_for_kernels(address)
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()  # its kernels end with it


@contextlib.contextmanager
def running_notebook(folder, cells):
    """A JupyterLab with one notebook in `folder`; yields the notebook's address."""
    write_notebook(folder / "first.ipynb", cells)
    with running_lab(folder) as address:
        yield f"{address}lab/tree/first.ipynb?token={TOKEN}&reset"


@contextlib.contextmanager
def opened(address, *, height=1600):
    """The notebook in a browser, its kernel ready; what went wrong on the page and what was asked of others is kept on it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": height})
        page.set_default_timeout(PATIENCE_MS)
        page.errors, page.foreign, page.sockets = [], [], []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("websocket", lambda socket: page.sockets.append(socket))
        own = address.split("/lab/")[0].split("/notebooks/")[0]
        page.on("request", lambda request: None if request.url.startswith((own, "data:", "blob:")) else page.foreign.append(request.url))
        page.goto(address, timeout=120_000)
        wait_idle(page)
        yield page
        browser.close()


def wait_for_kernels(address):
    """Let no kernel be on its way: JupyterLab, if it is told to end while it starts one, waits for that, and does not end."""
    for _ in range(100):
        if all(kernel["execution_state"] != "starting" for kernel in json.loads(ask_server(f"{address}api/kernels"))):
            return
        time.sleep(0.1)


def close_kernels(address):
    """End every kernel of the server: what a file of tests leaves behind."""
    for session in json.loads(ask_server(f"{address}api/sessions")):
        ask_server(f"{address}api/sessions/{session['id']}", method="DELETE")


def ask_server(url, *, method="GET"):
    with urllib.request.urlopen(urllib.request.Request(url, method=method, headers={"Authorization": f"token {TOKEN}"}), timeout=60) as response:
        return response.read().decode()


def wait_for(url, log):
    for _ in range(240):
        try:
            with urllib.request.urlopen(url, timeout=2) as response:
                if json.load(response):
                    return
        except OSError:
            time.sleep(0.25)
    raise AssertionError(f"JupyterLab did not start: {Path(log).read_text()[-2000:]}")


def command(page, name, **arguments):
    """Start a command of JupyterLab without waiting for its end: some end only when a person answers a dialog."""
    page.evaluate("([name, args]) => { window.jupyterapp.commands.execute(name, args); }", [name, arguments])


def wait_idle(page):
    page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=PATIENCE_MS)


def ask(page, code):
    """Run code in the kernel as a front-end does, and give what it prints."""
    return page.evaluate(
        """async code => {
          const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
          const future = kernel.requestExecute({code, store_history: false});
          let out = '';
          future.onIOPub = m => { if (m.header.msg_type === 'stream') out += m.content.text; if (m.header.msg_type === 'error') out += m.content.evalue; };
          await future.done;
          return out.trim();
        }""",
        code,
    )


def contrast(page, selector):
    """WCAG contrast of an element's text against what lies behind it."""
    return page.evaluate(
        """selector => {
          const parse = c => c.match(/[0-9.]+/g).map(Number);
          const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const element = document.querySelector(selector);
          let behind = element, color = [255, 255, 255];
          for (; behind; behind = behind.parentElement) {
            const c = parse(getComputedStyle(behind).backgroundColor);
            if (c.length === 3 || c[3] === 1) { color = c; break; }
          }
          const [a, b] = [light(parse(getComputedStyle(element).color)), light(color)];
          return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        }""",
        selector,
    )


def shoot(page, name, selector=None):
    """Keep a picture of the page, or of one part of it, where ``AIMASS_SCREENSHOTS`` asks for pictures."""
    if folder := os.environ.get("AIMASS_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (page.locator(selector).first if selector else page).screenshot(path=Path(folder) / f"{name}.png")


def theme(page, name):
    command(page, "apputils:change-theme", theme=name)
    page.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=name, timeout=30_000)  # one that does not exist is never reached

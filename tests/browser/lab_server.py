"""A JupyterLab of its own and a real browser, for tests that do what a person does."""

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


@contextlib.contextmanager
def jupyterlab(folder, cells):
    """A JupyterLab with one notebook in `folder`; gives its address."""
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)"}  # without one, JupyterLab asks which it should be
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel}, cells=[nbformat.v4.new_code_cell(textwrap.dedent(cell).strip()) for cell in cells])
    nbformat.write(notebook, folder / "first.ipynb")
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')  # or it asks, over the page
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    environment = {**os.environ, **own, "AIMASS_STORE": str(folder / "history.db"), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
    options = {
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": folder,
        "IdentityProvider.token": "t",
        "LabApp.news_url": None,
        "LabApp.extension_manager": "readonly",
        "LabApp.expose_app_in_browser": True,
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", *(f"--{name}={value}" for name, value in options.items())]
    with (folder / "lab.log").open("w") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/api/status?token=t", folder / "lab.log")
            yield f"http://127.0.0.1:{port}/lab/tree/first.ipynb?token=t&reset"
        finally:
            process.terminate()
            process.wait(timeout=20)


def wait_for(url, log):
    for _ in range(240):
        try:
            with urllib.request.urlopen(url, timeout=2) as response:
                if json.load(response):
                    return
        except OSError:
            time.sleep(0.25)
    raise AssertionError(f"JupyterLab did not start: {Path(log).read_text()[-2000:]}")


@contextlib.contextmanager
def opened(address, *, height=1600):
    """The notebook in a browser, its kernel ready; what went wrong on the page and what was asked of others is kept on it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": height})
        page.errors, page.foreign = [], []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        own = address.split("/lab/")[0]
        page.on("request", lambda request: None if request.url.startswith((own, "data:", "blob:")) else page.foreign.append(request.url))
        page.goto(address)
        kernel_ready(page)
        yield page
        browser.close()


def kernel_ready(page):
    page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=120_000)


def command(page, name, **arguments):
    """Start a command of JupyterLab without waiting for its end: some end only when a person answers a dialog."""
    page.evaluate("([name, args]) => { window.jupyterapp.commands.execute(name, args); }", [name, arguments])


def theme(page, name):
    command(page, "apputils:change-theme", theme=name)
    page.wait_for_function("light => document.body.dataset.jpThemeLight === light", arg=str("Light" in name).lower(), timeout=20_000)

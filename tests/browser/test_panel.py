"""The side panel in a real browser, behind a base URL: what it shows, what its buttons do, and both themes."""

import json
import os
import re
from pathlib import Path

import pytest
from labserver import BUILT, CHROMIUM, PATIENCE_MS, ask, command, contrast, opened, shoot, theme, wait_idle

from aimass_lab import __version__
from aimass_lab.records import Check, to_json
from aimass_lab.serving.launch import start
from aimass_lab.store import Store
from tests.serving.servers import write_linear

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine, and no right to install it"),
    pytest.mark.skipif(not BUILT.exists(), reason="the panel was not built: there is no Node.js here"),
]
PANEL = "#aimass-lab-panel"
GIB = 2**30
MODEL = """
import torch
from torch import nn
model = nn.Linear(64, 8).eval()
x = torch.randn(4, 64)
%load_ext aimass_lab
"""


@pytest.fixture(scope="module")
def runs(jupyter):
    """Two runs of the history and a saved record, which were there before the panel."""
    record = Check(subject="net <i>1</i>", passed=True)
    (jupyter.folder / "saved.aimass.json").write_text(to_json(record))
    store = Store(jupyter.folder / ".history.db")
    return [store.add("check", Check(subject="net", passed=passed), model="net", summary="one line") for passed in (True, False)]


@pytest.fixture(scope="module")
def address(notebook):
    return notebook([MODEL, "y = model(x)"])


@pytest.fixture(scope="module")
def page(runs, address):
    """The notebook with the panel open; no page error and no request that leaves the server is let pass."""
    with opened(address, height=1100) as page:
        command(page, "aimass-lab:open-panel")
        yield page
        assert page.errors == []
        assert page.foreign == []


def says(page, text, selector=PANEL):
    page.wait_for_function("([s, t]) => document.querySelector(s)?.innerText.includes(t)", arg=[selector, text])


def fall_silent(page):
    """Let the page believe that it is hidden; it closes its socket."""
    live = [socket for socket in page.sockets if "aimass-lab/live" in socket.url and not socket.is_closed()]
    assert len(live) == 1
    with live[0].expect_event("close"):
        page.evaluate(
            "() => { Object.defineProperty(document, 'hidden', {value: true, configurable: true}); document.dispatchEvent(new Event('visibilitychange')) }"
        )


def wake(page):
    page.evaluate("() => { delete document.hidden; document.dispatchEvent(new Event('visibilitychange')) }")


def test_it_lives_behind_a_base_url_and_says_what_is_not_there(page):
    says(page, "Processor")
    says(page, "panel.ipynb")
    says(page, "AIMass Lab is not loaded in this kernel")
    page.wait_for_function("() => document.querySelectorAll('.jp-aimass-Chart-line').length >= 2")
    says(page, "GPU: ")  # there is one, or the reason why there is none
    says(page, "CPU ", ".jp-aimass-Status")


def test_a_kernel_tells_of_its_models_and_a_click_leaves_a_line_of_code(page):
    page.locator(".jp-CodeCell .cm-content").first.click()
    command(page, "notebook:run-cell")
    says(page, "Linear")
    page.get_by_role("button", name="Profile", exact=True).click()
    page.wait_for_selector(".jp-OutputArea-output .aimass")
    cells = page.evaluate("() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells.map(c => c.getSource())")
    assert cells[1] == "%aimass profile model x"
    says(page, "p50", ".jp-aimass-Result")
    shoot(page, "panel-notebook")


def test_a_cell_is_profiled_by_its_button_and_stays_as_it_was(page):
    page.locator(".jp-CodeCell .cm-content").last.click()
    page.locator(".jp-cell-toolbar [data-command='aimass-lab:profile-cell']").last.click()
    says(page, "Profile of a cell", ".jp-CodeCell:last-child .jp-OutputArea, .jp-Cell:last-of-type .jp-OutputArea")
    cell = "window.jupyterapp.shell.currentWidget.content.widgets.at(-1).model"
    page.wait_for_function(f"() => {cell}.executionCount === 3")  # it is set when the kernel's reply arrives, after the output
    assert page.evaluate(f"() => {cell}.sharedModel.getSource()") == "y = model(x)"


def test_a_model_can_be_profiled_from_the_menu_of_the_right_button_and_only_a_model(page):
    line = page.locator(".jp-CodeCell .cm-line", has_text="y = model(x)").last
    line.scroll_into_view_if_needed()
    box = line.bounding_box()
    character = box["height"] * 0.45
    for column, there in ((6, 1), (0.5, 0)):
        page.mouse.click(box["x"] + column * character + 6, box["y"] + box["height"] / 2, button="right")
        page.wait_for_selector(".lm-Menu")
        assert page.locator(".lm-Menu-itemLabel", has_text="Profile the Model model").count() == there
        page.keyboard.press("Escape")


def test_a_command_is_in_the_palette_the_menus_and_the_launcher_and_has_a_shortcut(page):
    command(page, "apputils:activate-command-palette")
    page.locator("#modal-command-palette input").fill("AIMass")
    found = page.locator("#modal-command-palette .lm-CommandPalette-itemLabel")
    found.first.wait_for()
    assert {"AIMass Lab Panel", "Profile This Cell", "Read the History Again"} <= set(found.all_inner_texts())
    page.keyboard.press("Escape")
    for menu, entry in (("View", "AIMass Lab Panel"), ("Run", "Profile This Cell")):
        page.locator(".lm-MenuBar-itemLabel", has_text=re.compile(f"^{menu}$")).click()
        page.locator(".lm-Menu-itemLabel", has_text=entry).wait_for()
        page.keyboard.press("Escape")
    count = "window.jupyterapp.shell.currentWidget.content.activeCell.model.executionCount"
    page.locator(".jp-CodeCell .cm-content").last.click()
    before = page.evaluate(count)
    page.keyboard.press("Control+Alt+p")
    page.wait_for_function(f"n => {count} > n", arg=before)
    command(page, "launcher:create")
    page.locator(".jp-LauncherCard", has_text="AIMass Lab Panel").wait_for()


def test_stop_ends_what_is_running_and_keeps_what_was_found(page):
    command(page, "docmanager:open", path="panel.ipynb")
    page.wait_for_function("() => window.jupyterapp.shell.currentWidget.context?.path === 'panel.ipynb'")
    page.evaluate(
        """() => {
          const notebook = window.jupyterapp.shell.currentWidget.content;
          notebook.activeCellIndex = notebook.model.sharedModel.cells.length - 1;
          notebook.activeCell.model.sharedModel.setSource('%aimass profile model x --seconds 15');
        }"""
    )
    command(page, "notebook:run-cell")
    running = f"{PANEL} .jp-aimass-Running"
    says(page, "timing batch", running)
    page.locator(running).get_by_role("button", name="Stop").click()
    page.wait_for_selector(running, state="detached")
    page.locator(".jp-OutputArea", has_text="the profile was interrupted").wait_for()
    page.evaluate("() => window.jupyterapp.shell.currentWidget.content.activeCell.model.sharedModel.setSource('y = model(x)')")


def test_a_bundle_that_is_served_is_listed_and_stopped_when_the_person_means_it(page, tmp_path):
    server = start(write_linear(tmp_path / "linear-bundle"), grpc_port=None)
    try:
        entry = page.locator(f"{PANEL} li", has_text="linear-bundle")
        entry.wait_for()
        assert server.url in entry.inner_text()
        entry.get_by_role("button", name="Stop").click()
        dialog = page.locator(".jp-Dialog", has_text="Stop serving linear-bundle?")
        dialog.get_by_role("button", name="Cancel").click()
        dialog.wait_for(state="detached")
        assert server.exit_code is None
        entry.get_by_role("button", name="Stop").click()
        dialog.get_by_role("button", name="Stop").click()
        entry.wait_for(state="detached")
        assert server.wait() == 0
    finally:
        server.stop()


def test_halves_of_different_versions_say_so(page):
    tell = "import aimass_lab.frontends.kernel as half; half.__version__ = '{}'"
    ask(page, tell.format("0.0.9"))
    says(page, f"Versions differ: panel {__version__}, Jupyter server {__version__}, kernel 0.0.9. Install the same one everywhere")
    ask(page, tell.format(__version__))
    page.wait_for_function("panel => !document.querySelector(panel).innerText.includes('Versions differ')", arg=PANEL)


def test_a_gpus_memory_is_shown_by_whose_it_is(page, jupyter):
    """By a driver that stands in: see `driver/pynvml.py`."""

    def use(*processes):
        (jupyter.folder / ".gpu.next").write_text(json.dumps(processes))
        (jupyter.folder / ".gpu.next").replace(jupyter.gpu)  # at once: the server may be reading it

    kernel = int(ask(page, "import os; print(os.getpid())"))
    use([kernel, 5 * GIB, 30], [os.getpid(), 2 * GIB, 0])
    fall_silent(page)  # who looks again finds the driver
    wake(page)
    says(page, "Recorded GPU")
    table = page.get_by_label("Whose memory of GPU 0 it is")
    own = Path("/proc/self/comm").read_text().strip()
    assert [row.split("\t")[:3] for row in table.locator("tbody").inner_text().splitlines()] == [
        ["panel.ipynb", "5.00 GiB", "30 %"], [own, "2.00 GiB", "–"], ["the driver, and what it does not list", "13.0 GiB", ""], ["free", "60.0 GiB", ""]
    ]  # fmt: skip
    assert "5.00 GiB" in page.locator("table[aria-label='Kernels']").inner_text()
    shoot(page, "panel-gpu", PANEL)
    use([kernel, None, 30])
    says(page, "processes memory: the driver keeps no account of single processes here")


def test_runs_are_opened_and_compared(page, runs):
    says(page, "one line")
    for number in runs:
        page.locator(".jp-aimass-Runs").get_by_label(f"Pick run {number} for a comparison").check()
    page.get_by_role("button", name=f"Compare {runs[0]} with {runs[1]}").click()
    says(page, f"Run {runs[0]} and run {runs[1]}", ".jp-aimass-Page")
    shoot(page, "panel-compare")


def test_a_saved_record_opens_in_a_viewer(page):
    command(page, "docmanager:open", path="saved.aimass.json")
    says(page, "Check of net <i>1</i>", ".jp-Document .jp-aimass-Page")
    assert page.evaluate("() => window.jupyterapp.shell.currentWidget.context.path") == "saved.aimass.json"


@pytest.mark.parametrize("name", ["JupyterLab Dark", "JupyterLab Dark High Contrast", "JupyterLab Light"])
def test_the_panel_is_readable_in_every_theme_and_axe_finds_nothing(page, name):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    theme(page, name)
    for selector in (".jp-aimass-Section h3", ".jp-aimass-Small", ".jp-aimass-Remark", ".jp-aimass-Chart output", ".jp-aimass-Button"):
        assert contrast(page, f"{PANEL} {selector}") >= 4.5, selector
    for part in (PANEL, ".jp-aimass-Status"):
        found = axe.Axe().run(page, context=part).response["violations"]
        assert [(v["id"], [node["html"][:160] for node in v["nodes"]][:4]) for v in found] == []
    shoot(page, f"panel-{name.removeprefix('JupyterLab ').replace(' ', '-').lower()}")


def test_a_hidden_panel_and_page_are_silent(page):
    says(page, "Processor")
    fall_silent(page)
    count = "() => document.querySelector('.jp-aimass-Chart output').innerText + document.querySelectorAll('polyline')[0].getAttribute('points')"
    before, opened_until_then = page.evaluate(count), len(page.sockets)
    page.wait_for_timeout(1500)  # three times the interval
    assert (page.evaluate(count), len(page.sockets)) == (before, opened_until_then)
    wake(page)
    page.wait_for_function(f"before => ({count})() !== before", arg=before)
    assert "aimass-lab/live" in page.sockets[-1].url


def test_after_a_reload_the_panel_is_back_and_finds_its_kernel(page, address):
    page.goto(address.removesuffix("&reset"))
    wait_idle(page)
    says(page, "Linear")
    says(page, "profile", ".jp-aimass-Result")


def test_nothing_but_what_the_person_set_is_in_the_settings(jupyter, page):
    written = {path.stem for path in (jupyter.folder / ".settings").rglob("*.jupyterlab-settings")}
    assert written == {"notification", "panel", "themes"}  # ours for this server, and the themes that the tests chose


def test_settings_are_described_and_kept(page):
    values = page.evaluate("async () => JSON.stringify((await window.jupyterapp.serviceManager.settings.fetch('aimass-lab:panel')).schema.properties)")
    assert set(json.loads(values)) == {"interval", "windowMinutes", "historyLength", "statusBar"}


def test_notebook_7_has_it_too(page, address):
    """The other front-end, which has neither a status bar nor a launcher, on the same kernel."""
    other = page.context.browser.new_page(viewport={"width": 1400, "height": 1000})
    other.set_default_timeout(PATIENCE_MS)
    other.goto(address.replace("/lab/tree/", "/notebooks/"))
    wait_idle(other)
    command(other, "aimass-lab:open-panel")
    says(other, "Processor")
    says(other, "Linear")
    other.locator(".jp-CodeCell .cm-content").last.click()
    other.locator(".jp-cell-toolbar [data-command='aimass-lab:profile-cell']").last.click()
    says(other, "Profile of a cell", ".jp-Cell:last-of-type .jp-OutputArea")
    shoot(other, "panel-notebook-7")
    other.close()

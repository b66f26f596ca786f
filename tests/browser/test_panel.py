"""The side panel in a real browser, behind a base URL: what it shows, what its buttons do, and both themes."""

import json
import os
from pathlib import Path

import pytest
from labserver import BUILT, CHROMIUM, FLAGS, TOKEN, command, running_lab, theme, wait_idle, write_notebook

from aimass_lab.records import Check, to_json
from aimass_lab.store import Store

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine, and no right to install it"),
    pytest.mark.skipif(not BUILT.exists(), reason="the panel was not built: there is no Node.js here"),
]
PANEL = "#aimass-lab-panel"
MODEL = """
import torch
from torch import nn
model = nn.Linear(64, 8).eval()
x = torch.randn(4, 64)
%load_ext aimass_lab
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("panel")
    write_notebook(folder / "first.ipynb", [MODEL, "y = model(x)"])
    record = Check(subject="net <i>1</i>", passed=True)
    (folder / "saved.aimass.json").write_text(to_json(record))
    for passed in (True, False):
        Store(folder / ".history.db").add("check", Check(subject="net", passed=passed), model="net", summary="one line")
    with running_lab(folder, panel=True, base_url="/user/a%40b/", **{"aimass-lab:panel": {"interval": 0.5}}) as address:
        yield address


@pytest.fixture(scope="module")
def page(address):
    """The notebook with the panel open; no page error and no request that leaves the server is let pass."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1100})
        page.wrong = []
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith((address, "data:", "blob:")) else page.wrong.append(request.url))
        page.goto(f"{address}lab/tree/first.ipynb?token={TOKEN}&reset")
        wait_idle(page)
        command(page, "aimass-lab:open-panel")
        yield page
        assert page.wrong == []
        browser.close()


def says(page, text, selector=PANEL, timeout=20_000):
    page.wait_for_function("([s, t]) => document.querySelector(s)?.innerText.includes(t)", arg=[selector, text], timeout=timeout)


def shoot(page, name):
    if folder := os.environ.get("AIMASS_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"panel-{name}.png")


def test_it_lives_behind_a_base_url_and_says_what_is_not_there(page):
    says(page, "Processor")
    says(page, "first.ipynb")
    says(page, "AIMass Lab is not loaded in this kernel")
    page.wait_for_function("() => document.querySelectorAll('.jp-aimass-Chart-line').length >= 2", timeout=30_000)
    says(page, "GPU: ")  # there is one, or the reason why there is none
    says(page, "CPU ", ".jp-aimass-Status")


def test_a_kernel_tells_of_its_models_and_a_click_leaves_a_line_of_code(page):
    page.locator(".jp-CodeCell .cm-content").first.click()
    command(page, "notebook:run-cell")
    says(page, "Linear")
    page.get_by_role("button", name="Profile", exact=True).click()
    page.wait_for_selector(".jp-OutputArea-output .aimass", timeout=20_000)
    cells = page.evaluate("() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells.map(c => c.getSource())")
    assert cells[1] == "%aimass profile model x"
    says(page, "p50", ".jp-aimass-Result")
    shoot(page, "notebook")


def test_a_cell_is_profiled_by_its_button_and_stays_as_it_was(page):
    page.locator(".jp-CodeCell .cm-content").last.click()
    page.locator(".jp-cell-toolbar [data-command='aimass-lab:profile-cell']").last.click()
    says(page, "Profile of a cell", ".jp-CodeCell:last-child .jp-OutputArea, .jp-Cell:last-of-type .jp-OutputArea", timeout=20_000)
    cell = "window.jupyterapp.shell.currentWidget.content.widgets.at(-1).model"
    page.wait_for_function(f"() => {cell}.executionCount === 3", timeout=20_000)  # it is set when the kernel's reply arrives, after the output
    assert page.evaluate(f"() => {cell}.sharedModel.getSource()") == "y = model(x)"


def test_a_model_can_be_profiled_from_the_menu_of_the_right_button_and_only_a_model(page):
    line = page.locator(".jp-CodeCell .cm-line", has_text="y = model(x)").last
    box = line.bounding_box()
    character = box["height"] * 0.45
    for column, there in ((6, 1), (0.5, 0)):
        page.mouse.click(box["x"] + column * character + 6, box["y"] + box["height"] / 2, button="right")
        page.wait_for_selector(".lm-Menu", timeout=20_000)
        assert page.locator(".lm-Menu-itemLabel", has_text="Profile the Model model").count() == there
        page.keyboard.press("Escape")


def test_runs_are_opened_and_compared(page):
    says(page, "one line")
    runs = page.locator(".jp-aimass-Runs")
    for number in ("1", "2"):
        runs.get_by_label(f"Pick run {number} for a comparison").check()
    page.get_by_role("button", name="Compare 1 with 2").click()
    says(page, "Run 1 and run 2", ".jp-aimass-Page")
    shoot(page, "compare")


def test_a_saved_record_opens_in_a_viewer(page):
    command(page, "docmanager:open", path="saved.aimass.json")
    says(page, "Check of net <i>1</i>", ".jp-Document .jp-aimass-Page")
    assert page.evaluate("() => window.jupyterapp.shell.currentWidget.context.path") == "saved.aimass.json"


@pytest.mark.parametrize("name", ["JupyterLab Dark", "JupyterLab Light"])
def test_the_panel_is_readable_in_both_themes(page, name):
    theme(page, name)
    page.wait_for_timeout(300)
    for selector in (".jp-aimass-Section h3", ".jp-aimass-Small", ".jp-aimass-Remark", ".jp-aimass-Chart output", ".jp-aimass-Button"):
        assert contrast(page, f"{PANEL} {selector}") >= 4.5, selector
    shoot(page, name.split()[1].lower())


def test_a_hidden_panel_and_page_are_silent(page):
    says(page, "Processor")
    sockets = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    page.evaluate(
        "() => { Object.defineProperty(document, 'hidden', {value: true, configurable: true}); document.dispatchEvent(new Event('visibilitychange')) }"
    )
    page.wait_for_timeout(1500)
    count = "() => document.querySelector('.jp-aimass-Chart output').innerText + document.querySelectorAll('polyline')[0].getAttribute('points')"
    before = page.evaluate(count)
    page.wait_for_timeout(2500)
    assert page.evaluate(count) == before
    page.evaluate("() => { delete document.hidden; document.dispatchEvent(new Event('visibilitychange')) }")
    page.wait_for_function(f"before => ({count})() !== before", arg=before, timeout=30_000)
    assert [url for url in sockets if "aimass-lab/live" in url]


def test_after_a_reload_the_panel_is_back_and_finds_its_kernel(page, address):
    page.goto(f"{address}lab/tree/first.ipynb")
    wait_idle(page)
    says(page, "Linear")
    says(page, "profile", ".jp-aimass-Result")


def contrast(page, selector):
    from test_lab import contrast as of

    return of(page, selector)


def test_settings_are_described_and_kept(page):
    values = page.evaluate("async () => JSON.stringify((await window.jupyterapp.serviceManager.settings.fetch('aimass-lab:panel')).schema.properties)")
    assert set(json.loads(values)) == {"interval", "windowMinutes", "historyLength", "statusBar"}


def test_notebook_7_has_it_too(page, tmp_path):
    """The other front-end, which has neither a status bar nor a launcher."""
    write_notebook(tmp_path / "first.ipynb", [MODEL, "y = model(x)"])
    with running_lab(tmp_path, module="notebook", panel=True) as address:
        other = page.context.browser.new_page(viewport={"width": 1400, "height": 1000})
        other.goto(f"{address}notebooks/first.ipynb?token={TOKEN}")
        wait_idle(other)
        command(other, "aimass-lab:open-panel")
        says(other, "Processor")
        command(other, "notebook:run-all-cells")
        says(other, "Linear", timeout=60_000)
        other.locator(".jp-cell-toolbar [data-command='aimass-lab:profile-cell']").last.click()
        says(other, "Profile of a cell", ".jp-Cell:last-of-type .jp-OutputArea", timeout=60_000)
        shoot(other, "notebook-7")
        other.close()

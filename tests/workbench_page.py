"""The workbench in a browser, as tests drive it: its kernel, its views, and what must hold of each of them."""

import contextlib
import os
from pathlib import Path

import pytest
from labserver import theme
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

THEMES = ("JupyterLab Light", "JupyterLab Dark", "JupyterLab Dark High Contrast")
WIDTHS = (1400, 800)
"""Of the window; JupyterLab's side bar and the notebook's margins leave 968 and 368 of them to a panel."""
BEYOND = """() => {
  const edge = document.querySelector('.aw').getBoundingClientRect().right + 1;
  const parts = [...document.querySelectorAll('.aw *')].filter(part => !part.closest('.aw-scroll, .aw-file, .aw-unseen'));
  return parts.filter(part => part.getBoundingClientRect().right > edge).map(part => part.outerHTML.slice(0, 80));
}"""
"""What reaches over the panel's right edge, outside of what scrolls."""
TINY = """() => [...document.querySelectorAll('.aw-plot text')].filter(text => {
  const plot = text.closest('svg');
  return parseFloat(getComputedStyle(text).fontSize) * plot.getBoundingClientRect().width / plot.viewBox.baseVal.width < 9;
}).map(text => text.textContent)"""
"""Words of plots that are drawn smaller than 9 pixels."""


def quiet(page):
    """Wait until nothing runs beside the notebook."""
    page.wait_for_function("() => document.querySelector('.aw') && !document.querySelector('.aw-job progress')")


def open_view(page, name):
    page.locator(".aw-tab", has_text=name).click()
    page.wait_for_selector(f".aw-tab[aria-selected=true]:text-is('{name}')")


def line_of_code(page):
    return page.locator("code.aw-code").inner_text()


def check_looks(page, view, name, folder):
    """In a theme: axe finds nothing, and at no width anything reaches over the edge or is too small to read; leaves screenshots where they are asked for."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    theme(page, name)
    open_view(page, view)
    found = axe.Axe().run(page, context=".aw").response["violations"]
    found = [(v["id"], [node["html"][:160] for node in v["nodes"]][:4]) for v in found]
    assert not found, found
    pictures = Path(os.environ.get("AIMASS_SCREENSHOTS", folder))
    pictures.mkdir(parents=True, exist_ok=True)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 1900})
        with contextlib.suppress(PlaywrightTimeoutError):  # what is wrong is told below
            page.wait_for_function(f"({BEYOND})().length + ({TINY})().length === 0", timeout=20_000)
        page.locator(".aw").screenshot(path=pictures / f"workbench-{view.lower()}-{name.replace('JupyterLab ', '').replace(' ', '-').lower()}-{width}.png")
        wrong = page.evaluate(BEYOND) + page.evaluate(TINY)
        assert not wrong, (width, wrong)
    page.set_viewport_size({"width": 1400, "height": 1900})

"""A person's first minute: JupyterLab in a real browser, in the light and the dark theme."""

import os
from pathlib import Path

import pytest
from labserver import CHROMIUM, command, contrast, opened, theme

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine, and no right to install it"),
]
CELLS = (
    """
    import torch
    from torch import nn
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)).eval()
    x = torch.randn(4, 64)
    """,
    "%load_ext aimass_lab\n%aimass profile model x --seconds 1",
    "%aimass trial model none --seconds 0.5",
    "%aimass plan model --rate 200 --p99 50ms",
)


@pytest.fixture(scope="module")
def lab(notebook):
    return notebook(CELLS)


@pytest.fixture(scope="module")
def page(lab):
    """The notebook, open and run."""
    with opened(lab) as page:
        command(page, "notebook:run-all-cells")
        page.wait_for_function("() => document.querySelectorAll('.jp-OutputArea-output .aimass').length >= 3")
        yield page


@pytest.mark.parametrize("name", ["JupyterLab Light", "JupyterLab Dark"])
def test_results_are_readable_in_both_themes(page, name, tmp_path):
    theme(page, name)
    for selector in (".aimass h4", ".aimass .lead", ".aimass .facts .name", ".aimass .facts .value", ".aimass td", ".aimass .src"):
        assert contrast(page, selector) >= 4.5, selector
    folder = Path(os.environ.get("AIMASS_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    for i, card in enumerate(page.query_selector_all(".jp-OutputArea-output .aimass")):
        card.screenshot(path=folder / f"{name.split()[1].lower()}-{i}.png")
    assert list(folder.glob("*.png"))


def test_no_cell_failed_and_every_result_says_where_it_comes_from(page):
    assert page.query_selector_all(".jp-OutputArea-output[data-mime-type*='error']") == []
    words = {element.inner_text().strip() for element in page.query_selector_all(".aimass .src")}
    assert "measured" in words


def test_wide_tables_scroll_instead_of_breaking_the_page(page):
    page.set_viewport_size({"width": 700, "height": 1000})
    page.wait_for_function("() => [...document.querySelectorAll('.aimass')].every(e => e.getBoundingClientRect().right <= window.innerWidth + 2)")
    page.set_viewport_size({"width": 1400, "height": 1600})


def test_a_saved_notebook_shows_its_results_without_a_kernel(page, lab):
    command(page, "docmanager:save")
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")
    command(page, "kernelmenu:shutdown")
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.sessionContext.session")
    page.goto(lab)
    page.wait_for_function(f"() => document.querySelectorAll('.jp-OutputArea-output .aimass').length >= {len(CELLS) - 1}")
    page.wait_for_selector("#jupyterlab-splash", state="detached")
    assert contrast(page, ".aimass .name") >= 4.5  # the style came along

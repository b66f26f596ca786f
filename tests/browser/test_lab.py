"""A person's first minute: JupyterLab in a real browser, in the light and the dark theme."""

import os
from pathlib import Path

import pytest
from labserver import CHROMIUM, command, opened, running_notebook, theme

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
def lab(tmp_path_factory):
    """A JupyterLab of its own, with one notebook; gives its address."""
    with running_notebook(tmp_path_factory.mktemp("lab"), CELLS) as address:
        yield address


@pytest.fixture(scope="module")
def page(lab):
    """The notebook, open and run."""
    with opened(lab) as page:
        command(page, "notebook:run-all-cells")
        page.wait_for_function("() => document.querySelectorAll('.jp-OutputArea-output .aimass').length >= 3", timeout=60_000)
        yield page


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
    page.wait_for_timeout(500)
    too_wide = page.evaluate("() => [...document.querySelectorAll('.aimass')].filter(e => e.getBoundingClientRect().right > window.innerWidth + 2).length")
    page.set_viewport_size({"width": 1400, "height": 1600})
    assert too_wide == 0


def test_a_saved_notebook_shows_its_results_without_a_kernel(page, lab):
    command(page, "docmanager:save")
    page.wait_for_timeout(1500)
    command(page, "kernelmenu:shutdown")
    page.goto(lab)
    page.wait_for_function(f"() => document.querySelectorAll('.jp-OutputArea-output .aimass').length >= {len(CELLS) - 1}", timeout=60_000)
    page.wait_for_timeout(500)
    assert contrast(page, ".aimass .name") >= 4.5  # the style came along

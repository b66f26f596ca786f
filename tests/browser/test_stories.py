"""The stories come out as told, on the digits model; how long each step took is printed, with its target (``pytest -rP``), and never judged here."""

import pytest
from labserver import BUILT, CHROMIUM, opened, shoot, wait_idle, write_notebook
from stories import DIGITS, PATIENCE_MS, STORIES, Walk

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine, and no right to install it"),
    pytest.mark.skipif(not BUILT.exists(), reason="the panel was not built: there is no Node.js here"),
]


@pytest.fixture(scope="module")
def walk(jupyter, notebook):
    address = notebook([])
    with opened(address, height=1400) as page:
        page.set_default_timeout(PATIENCE_MS)
        yield Walk(page, jupyter.folder, address, DIGITS, brisk=True)
        assert page.errors == []
        assert page.foreign == []


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_the_story_comes_out_as_told(walk, story):
    for step in story(walk):
        print(f"{step.what}: {step.seconds:.2f} s{'' if step.target_s is None else f', target {step.target_s:g} s'}")
    shoot(walk.page, f"story-{story.__name__}")


def test_the_first_three_come_out_in_notebook_7_too(walk):
    write_notebook(walk.folder / "stories-7.ipynb", [])
    page = walk.page.context.browser.new_page(viewport={"width": 1400, "height": 1400})
    page.set_default_timeout(PATIENCE_MS)
    page.goto(walk.address.replace("/lab/tree/stories.ipynb", "/notebooks/stories-7.ipynb"))
    wait_idle(page)
    for story in STORIES[:3]:
        story(Walk(page, walk.folder, walk.address, DIGITS, brisk=True))
    page.close()

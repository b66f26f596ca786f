"""Takes README's pictures again, in a real JupyterLab: ``python tests/pictures.py [trial workbench panel]`` (``make pictures``).

It wants the machine for itself: what other work disturbs is called noisy, in a picture too. It needs Chromium, and the panel built.
"""

from __future__ import annotations

import base64
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labserver import TOKEN, ask, command, opened, running_lab, theme, write_notebook
from stories import DIGITS, PANEL, PATIENCE_MS, Walk

IMAGES = Path(__file__).parents[1] / "notebooks" / "images"
DARK, LIGHT = "JupyterLab Dark", "JupyterLab Light"
WIDE, TALL = 980, 940
"""Of a view of the workbench, in pixels."""
TARGET = "rate=400, p99='50ms'"
SETUP = """
%load_ext aimass_lab
import aimass_lab
from aimass_lab import Study
from aimass_lab.frontends.widgets.panel import open_panels
study = Study(model, x, **data)
tagger = nn.Sequential(nn.EmbeddingBag(4000, 32), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 9))
"""


def main(names: Sequence[str]) -> None:
    wanted = list(names) or ["trial", "workbench", "panel"]
    with tempfile.TemporaryDirectory(prefix="aimass-pictures-") as made:
        folder = Path(made)
        for name in ("digits", "sentences"):
            write_notebook(folder / f"{name}.ipynb", [])
        with (
            running_lab(folder, panel=True, **{"aimass-lab:panel": {"interval": 1.0, "windowMinutes": 1}}) as address,
            opened(f"{address}lab/tree/digits.ipynb?token={TOKEN}&reset", height=2400) as page,
        ):
            page.set_default_timeout(PATIENCE_MS)
            walk = Walk(page, folder, address, DIGITS)
            walk.run(DIGITS.make)
            walk.run(SETUP)
            for name in wanted:
                PICTURES[name](walk)
                print(f"{IMAGES / name}.png, noisy: {len(re.findall('noisy', page.locator('.jp-Notebook').inner_text()))}")


def trial(walk: Walk) -> None:
    """A trial that was slower, with its causes; and a bundle that keeps its promises."""
    page = walk.page
    walk.run("study.trial('int8_dynamic', batch=32, seconds=8)")
    theme(page, LIGHT)
    first = shot(page, page.locator(".jp-Notebook-cell").last)
    walk.run(f"_ = study.bundle(out='digits-bundle', {TARGET})")
    walk.run("%aimass check digits-bundle --seconds 5")
    theme(page, DARK)
    second = shot(page, page.locator(".jp-Notebook-cell").last)
    compose(page, "trial", [first, second], down=True)


def workbench(walk: Walk) -> None:
    """Two views of the workbench: a plan, and the spec."""
    page = walk.page
    walk.run(f"_ = study.plan({TARGET}, price={{'cpu': 0.10}})")
    walk.run("study.workbench(view='plan')")
    page.wait_for_selector(".aw .aw-six")
    theme(page, LIGHT)
    first = view(page)
    ask(page, f"_ = study.spec({TARGET}, format='kubernetes(scaler=keda)')")
    page.locator(".aw-tab", has_text="Ship").click()
    page.wait_for_selector("[data-number=memory_bytes]")
    theme(page, DARK)
    compose(page, "workbench", [first, view(page)])


def panel(walk: Walk) -> None:
    """The side panel while a search runs, and what it shows of the machine."""
    page = walk.page
    if not (walk.folder / "digits-bundle").exists():
        walk.run("%aimass bundle study --rate 400 --p99 50ms --out digits-bundle")
    walk.run("%aimass serve digits-bundle --port 0 --grpc-port 0")
    command(page, "aimass-lab:open-panel")
    page.wait_for_selector(f"{PANEL} .jp-aimass-Chart-line")
    for batch in (1, 32, 4):  # something for the charts to show
        walk.run(f"%aimass profile study --batch {batch} --seconds 6")
        page.wait_for_timeout(4000)
    theme(page, DARK)
    second = sections(page, "Machine", "Kernels", "Being served", "History")
    theme(page, LIGHT)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:insert-cell-below'); }")
    page.evaluate(
        "() => { window.jupyterapp.shell.currentWidget.content.activeCell.model.sharedModel.setSource('%aimass search study --max-drop 0.05 --seconds 25'); }"
    )
    command(page, "notebook:run-cell")
    page.wait_for_function("panel => document.querySelector(`${panel} .jp-aimass-Running`)?.innerText.includes('best so far')", arg=PANEL)
    first = sections(page, "Notebook")
    page.wait_for_selector(f"{PANEL} .jp-aimass-Running", state="detached")
    compose(page, "panel", [first, second])


PICTURES = {"trial": trial, "workbench": workbench, "panel": panel}


def shot(page: Any, part: Any) -> bytes:
    """A part of the page as a picture."""
    part.scroll_into_view_if_needed()
    page.mouse.move(0, 0)
    return bytes(part.screenshot())


def view(page: Any) -> bytes:
    """The top of the workbench."""
    page.locator(".aw").last.evaluate("panel => panel.scrollIntoView({ block: 'start' })")
    box = page.locator(".aw").last.bounding_box()
    return bytes(page.screenshot(clip={"x": box["x"], "y": box["y"], "width": min(WIDE, box["width"]), "height": min(TALL, box["height"])}))


def sections(page: Any, *titles: str) -> bytes:
    """These sections of the side panel, the others folded away."""
    page.evaluate(
        """([panel, titles]) => {
          for (const one of document.querySelectorAll(`${panel} details`)) {
            one.style.display = titles.includes(one.querySelector('h3').textContent) ? '' : 'none';
          }
        }""",
        [PANEL, titles],
    )
    page.wait_for_timeout(1500)  # one reading in these colours
    box = page.locator(PANEL).bounding_box()
    height = page.evaluate("panel => [...document.querySelectorAll(`${panel} details`)].reduce((sum, one) => sum + one.offsetHeight, 0)", PANEL)
    taken = page.screenshot(clip={"x": box["x"], "y": box["y"], "width": box["width"], "height": min(box["height"], height, TALL)})
    page.evaluate("panel => { for (const one of document.querySelectorAll(`${panel} details`)) one.style.display = ''; }", PANEL)
    return bytes(taken)


def compose(page: Any, name: str, pictures: Sequence[bytes], *, down: bool = False) -> None:
    """Set pictures side by side, or one below the other, and keep them under `name`."""
    other = page.context.browser.new_page(viewport={"width": 2400, "height": 2400})
    images = "".join(f'<img src="data:image/png;base64,{base64.b64encode(one).decode()}">' for one in pictures)
    place = "display: inline-flex; align-items: flex-start; " + ("flex-direction: column" if down else "gap: 16px")
    other.set_content(f'<div style="{place}">{images}</div>')
    other.wait_for_function("() => [...document.images].every(image => image.complete)")
    other.locator("div").screenshot(path=IMAGES / f"{name}.png")
    other.close()


if __name__ == "__main__":
    main(sys.argv[1:])

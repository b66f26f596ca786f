"""The workbench as a person uses it: clicked, dragged, driven by the keyboard, saved, opened again without a kernel."""

import json

import pytest
from labserver import CHROMIUM, ask, command, opened
from workbench_page import THEMES, check_looks, open_view, quiet

from aimass_lab.frontends.widgets.source import script
from aimass_lab.units import format_quantity, format_share

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine, and no right to install it"),
]
LARGEST_PICTURE = 200_000
VIEW = "application/vnd.jupyter.widget-view+json"
CELLS = (
    """
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    torch.manual_seed(0)
    images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 16

    class DigitsCNN(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU())
            self.head = nn.Sequential(nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

        def forward(self, image):
            return self.head(self.features(image))

    model, x = DigitsCNN().train(), images[:4]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    %load_ext aimass_lab
    from aimass_lab import Study
    study = Study(model, x)
    """,
    "study.workbench()",
)


@pytest.fixture(scope="module")
def page(lab):
    """The panel, open, with nothing known yet; the tests below go on with what the ones before have found."""
    with opened(lab, height=1900) as page:
        command(page, "notebook:run-all-cells")
        page.wait_for_selector(".aw .aw-empty")
        yield page


def test_nothing_known_says_what_to_do_and_a_click_does_it_beside_the_notebook(page):
    assert "Nothing is measured yet" in page.locator(".aw .aw-empty").inner_text()
    page.locator(".aw .aw-primary").click()
    assert page.locator("code.aw-code").inner_text() == "study.profile()"
    page.wait_for_selector(".aw-columns")
    quiet(page)
    assert ask(page, "print([type(r).__name__ for r in study.results], model.training)") == "['Profile'] True"
    assert ask(page, "print(all(torch.equal(before[n], t) for n, t in model.state_dict().items()))") == "True"


def test_a_chosen_module_is_marked_in_every_view_of_it(page):
    page.locator(".aw-section", has_text="Roofline").locator(".aw-primary").click()
    page.wait_for_selector(".aw-dot")
    page.locator("tbody .aw-pick[data-module='features.4']").first.click()
    marked = page.locator(".aw-selected[data-row='features.4']")
    assert {marked.nth(i).evaluate("node => node.closest('section').querySelector('h3').textContent") for i in range(marked.count())} >= {
        "Time by module", "Shares", "Roofline",
    }  # fmt: skip
    assert page.locator(".aw-section h4").inner_text() == "features.4"
    assert "Conv2d" in page.locator(".aw-pairs").inner_text()
    assert page.locator("code.aw-code").inner_text() == '[m for m in study.results[0].modules if m.name == "features.4"]'
    assert ask(page, '[m] = [m for m in study.results[0].modules if m.name == "features.4"]; print(m.type)') == "Conv2d"
    page.locator("g[data-row='head.1']").first.click()
    assert page.locator(".aw-section h4").inner_text() == "head.1"


def test_the_keyboard_reaches_everything(page):
    first = page.locator("tbody .aw-pick").first
    first.focus()
    stops = page.evaluate(
        "() => [...document.querySelectorAll('.aw tbody:has(.aw-pick)')].map(body => body.querySelectorAll('.aw-pick[tabindex=\"0\"]').length)"
    )
    assert set(stops) == {1}  # of however many layers: the arrow keys go to the others
    page.keyboard.press("End")
    assert page.evaluate("() => [...document.querySelector('.aw tbody').querySelectorAll('.aw-pick')].at(-1) === document.activeElement")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.dataset.module") == page.locator(".aw-section tbody tr.aw-selected").first.get_attribute("data-row")
    page.locator(".aw-tab[aria-selected=true]").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".aw-tab[aria-selected=true]:text-is('What-if')")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(".aw-tab[aria-selected=true]:text-is('Profile')")
    page.keyboard.press("End")
    page.wait_for_selector(".aw-tab[aria-selected=true]:text-is('Ship')")
    page.keyboard.press("Home")
    page.wait_for_selector(".aw-tab[aria-selected=true]:text-is('Profile')")


def test_the_table_is_searched_and_sorted(page):
    page.locator(".aw input[type=search]").fill("linear")
    rows = page.locator(".aw-section", has_text="Time by module").locator("tbody tr")
    assert rows.count() == 2
    page.locator(".aw input[type=search]").fill("")
    page.locator("th[data-sort=own] button").click()
    own = page.evaluate("() => [...document.querySelectorAll('tr[data-row] .aw-bar')].map(bar => parseFloat(bar.style.width))")
    assert own == sorted(own, reverse=True)
    assert page.locator("th[data-sort=own]").get_attribute("aria-sort") == "descending"


def test_a_line_becomes_a_cell_and_a_cell_appears_in_the_panel(page):
    cells = page.locator(".jp-Notebook .jp-Cell").count()
    page.locator(".aw-codebar button", has_text="Insert cell").click()
    page.wait_for_function("n => document.querySelectorAll('.jp-Notebook .jp-Cell').length === n + 1", arg=cells)
    sources = page.evaluate("() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells.map(cell => cell.source)")
    assert sources[2] == page.evaluate("() => document.querySelector('code.aw-code').textContent")
    ask(page, "_ = study.demand(batch=2)")
    page.wait_for_selector(".aw-section:has(h3:text('Roofline')) .aw-primary")  # the newest demand is for another batch than the profile
    ask(page, "_ = study.demand()")
    page.wait_for_selector(".aw-dot")


def test_curves_follow_the_hand_while_the_kernel_is_busy(page, folder):
    open_view(page, "What-if")
    page.locator(".aw .aw-primary").click()
    page.wait_for_selector(".aw-drag")
    quiet(page)
    kernel = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel"
    until = "import time, pathlib\\nwhile not pathlib.Path('enough').exists(): time.sleep(0.02)"
    page.evaluate(f'() => {{ window.slept = {kernel}.requestExecute({{code: "{until}"}}).done; }}')
    page.wait_for_function(f"() => {kernel}.status === 'busy'")
    try:
        box = page.locator(".aw-drag").first.bounding_box()
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
        page.mouse.down()
        seen = []
        for step in range(5):
            page.mouse.move(box["x"] + (0.5 + 0.08 * step) * box["width"], box["y"] + 0.5 * box["height"])
            seen.append((page.locator(".aw-four b").nth(0).inner_text(), page.locator("code.aw-code").inner_text()))
        assert page.evaluate(f"() => {kernel}.status") == "busy"
        assert len(set(seen)) == len(seen)
        page.mouse.up()
    finally:
        (folder / "enough").touch()
    page.evaluate("() => window.slept")


def test_where_it_is_let_go_it_is_measured_and_the_dot_lands_beside_the_prediction(page):
    page.wait_for_function("() => document.querySelectorAll('.aw-drag')[0].querySelectorAll('.aw-measured').length >= 2")
    quiet(page)
    assert page.locator(".aw-lead").inner_text().startswith("Batch ")
    assert "the band" in page.locator(".aw-lead").inner_text()
    kinds = ask(page, "print([type(r).__name__ for r in study.results[-3:]], len(study.results[-3].points))")
    assert kinds == "['Prediction', 'Profile', 'Prediction'] 1"
    assert ask(page, "print(model.training, all(torch.equal(before[n], t) for n, t in model.state_dict().items()))") == "True True"


def test_a_cell_comes_first_and_the_measurement_goes_on_after_it(page):
    quiet(page)  # what was let go before may still be predicted
    number = int(ask(page, "print(len(study.results))"))
    page.locator(".aw input[type=number]").first.fill("3")
    page.keyboard.press("Tab")
    page.wait_for_selector(".aw-job progress")
    for _ in range(5):
        assert ask(page, "print(model.training, len(model._forward_hooks))") == "True 0"
        page.wait_for_timeout(200)
    quiet(page)
    assert ask(page, f"print(len(study.results) - {number}, study.results[-2].batch_size)") == "3 3"


def measure_beside(page, seconds):
    """Begin a profile that has something to keep, and has long to go, when this returns."""
    ask(page, f"from aimass_lab.frontends.widgets.panel import open_panels\n_ = open_panels()[0].run('study.profile(seconds={seconds}, batch=64)')")
    page.wait_for_function("() => /timing batch (?!64)/.test(document.querySelector('.aw-job')?.textContent)")  # so 64, which comes first, is timed


def test_the_kernels_interrupt_stops_what_runs_beside_it(page):
    measure_beside(page, 12)
    command(page, "notebook:interrupt-kernel")
    quiet(page)
    assert "was stopped" in page.locator(".aw-jobs").inner_text()
    assert ask(page, "print('W-INTERRUPTED' in [note.code for note in study.results[-1].notes], model.training)") == "True True"


def test_the_stop_button_of_what_runs_stops_it_alone(page):
    number = int(ask(page, "print(len(study.results))"))
    ask(page, "_ = open_panels()[0].run('study.profile(seconds=60, batch=64)'); _ = open_panels()[0].run('study.demand(batch=5)')")
    page.locator(".aw-job", has=page.locator("progress"), has_text="seconds=60").get_by_role("button", name="stop").click()
    quiet(page)
    assert ask(page, f"print([r.batch_size for r in study.results[{number}:]][-1], model.training)") == "5 True"


def test_a_line_that_fails_says_why(page):
    ask(page, "from aimass_lab.frontends.widgets.panel import open_panels\n_ = open_panels()[0].run('study.profile(batch=0)', 'study.demand()')")
    page.wait_for_selector(".aw-failed")
    assert "batch" in page.locator(".aw-failed").inner_text()
    quiet(page)


def test_figures_are_written_as_the_kernel_writes_them(page):
    units = ("s", "B", "item/s", "FLOP", "FLOP/s", "FLOP/B", "B/s", "ratio")
    values = [(v * f, unit) for v in (1, 1.2345, 12.345, 999.9, 0.05) for f in (1e-7, 1e-3, 1, 1e4, 1e7, 1e10) for unit in units] + [(3.21e-7, "USD/item")]
    program = f"{script().split('const $dom')[0]} export const answer = {json.dumps(values)}.map(([value, unit]) => $format.quantity(value, unit));"
    answer = "async text => (await import(URL.createObjectURL(new Blob([text], {type: 'text/javascript'})))).answer"
    assert page.evaluate(answer, program) == [format_quantity(value, unit) for value, unit in values]
    shares = (0, 0.0002, 0.043, 0.0996, 0.498, 0.992, 0.99996, 1, 1.3, -0.12)
    program = f"{script().split('const $dom')[0]} export const answer = {json.dumps(shares)}.map($format.percent);"
    assert page.evaluate(answer, program) == [format_share(share) for share in shares]


@pytest.mark.parametrize("name", THEMES)
@pytest.mark.parametrize("view", ["Profile", "What-if"])
def test_axe_finds_nothing_and_nothing_is_cut_off(page, name, view, tmp_path):
    check_looks(page, view, name, tmp_path)


def test_what_is_saved_is_a_picture_that_needs_no_kernel(page, lab, folder):
    open_view(page, "Profile")
    command(page, "docmanager:save")
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")
    outputs = [output for cell in json.loads((folder / "first.ipynb").read_text())["cells"] for output in cell.get("outputs", ()) if "data" in output]
    pictures = ["".join(output["data"]["text/html"]) for output in outputs]
    assert not any(VIEW in output["data"] for output in outputs)
    assert len(pictures) == 1
    assert "<svg" in pictures[0]
    assert len(pictures[0].encode()) < LARGEST_PICTURE
    assert "<script" not in pictures[0]
    assert "<button" not in pictures[0]
    live = page.locator(".aw .aw-tabs")
    assert live.count() == 1  # the one on the page stayed alive


def test_a_panel_that_is_opened_again_moves_and_leaves_nothing_behind(page):
    ask(
        page, "import gc, threading\nfrom aimass_lab.frontends.widgets import Panel\nfrom IPython.display import display\nother = Study(model, x, name='other')"
    )
    count = "_ = gc.collect(); print(len([w for w in gc.get_objects() if issubclass(type(w), Panel)]), len(open_panels()), threading.active_count())"
    ask(page, "display(other.workbench())")
    before = ask(page, count)
    assert before.split()[:2] == ["2", "2"]
    for _ in range(100):
        ask(page, "display(other.workbench())")
    assert ask(page, count) == before


def test_nothing_was_asked_of_other_machines_and_nothing_broke(page):
    assert page.foreign == []
    assert page.errors == []


def test_without_a_kernel_the_picture_stands(page, lab):
    command(page, "kernelmenu:shutdown")
    page.goto(lab)
    page.wait_for_selector(".aw-picture .aw-plot")
    assert page.locator(".aw-tabs").count() == 0
    assert "not found" not in page.locator(".jp-Notebook").inner_text()

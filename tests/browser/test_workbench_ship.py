"""Plan, Ship and sequence lengths in the workbench, as a person uses them; one notebook and one browser for all tests, which go on from each other."""

import json

import pytest
from labserver import CHROMIUM, ask, command, opened
from plans import LADDER, MODEL, target
from workbench_page import THEMES, check_looks, line_of_code, open_view

from aimass_lab.frontends.widgets.source import script
from aimass_lab.planning import make_plan
from aimass_lab.records import to_json

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine, and no right to install it"),
]
PATIENCE_MS = 240_000
LARGEST_PICTURE = 200_000
VIEW = "application/vnd.jupyter.widget-view+json"
CELLS = (
    """
    import torch
    from torch import nn

    torch.set_num_threads(1)  # two wait for each other at every operator where other work has a core, and no plan is feasible then
    torch.manual_seed(0)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(100, 32)
            self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
            self.head = nn.Linear(32, 100)

        def forward(self, tokens):
            return self.head(self.layer(self.embed(tokens)))

    %load_ext aimass_lab
    import aimass_lab
    from aimass_lab import Study
    from aimass_lab.frontends.widgets.panel import open_panels
    study = Study(Tokens().eval(), torch.randint(0, 100, (4, 16)), name="Tokens")
    other = Study(nn.Linear(8, 8), torch.randn(4, 8), name="Linear")
    _ = study.profile(seconds=0.5)
    """,
    'study.workbench(view="plan")',
)


@pytest.fixture(scope="module")
def page(lab):
    with opened(lab, height=2400) as page:
        page.set_default_timeout(PATIENCE_MS)
        command(page, "notebook:run-all-cells")
        page.wait_for_selector(".aw .aw-empty")
        yield page


def section(page, title):
    return page.locator(".aw-section", has=page.locator("h3", has_text=title)).last


def done(page, text):
    """Wait until a line has been run beside the notebook; the kernel is not asked, because a cell would take the place of what runs."""
    page.wait_for_function("text => document.querySelector('.aw-unseen').textContent.replace(/^(.*\\)): (done|failed|stopped).*$/s, '$1') === text", arg=text)
    assert f"{text}: done" in page.locator(".aw-unseen").text_content()


def test_a_plan_is_made_by_a_click_and_is_a_line_of_code(page):
    page.locator(".aw .aw-empty .aw-primary").click()
    assert line_of_code(page) == 'study.plan(rate=100, p99="100ms")'
    page.wait_for_selector(".aw-lead.aw-good, .aw-lead.aw-bad")
    kind = ask(page, "plan = study.results[-1]; print(type(plan).__name__, plan.target.requests_per_s.value, plan.target.latency_p99.value)")
    assert kind == "Plan 100.0 0.1"
    assert page.locator(".aw-four .aw-fact").first.locator("b").inner_text().startswith(ask(page, "print(f'{plan.replicas.value:g} replica')"))


def test_a_drag_reads_the_last_plan_while_the_kernel_is_busy_and_plans_anew_where_it_is_let_go(page, folder):
    kernel = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel"
    held = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.05)"
    page.evaluate(f"code => {{ window.held = {kernel}.requestExecute({{code}}).done; }}", held)
    page.wait_for_function(f"() => {kernel}.status === 'busy'")
    box = page.locator(".aw-drag").first.bounding_box()
    try:
        page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.5 * box["height"])
        page.mouse.down()
        seen = []
        for step in range(4):
            page.mouse.move(box["x"] + (0.4 + 0.1 * step) * box["width"], box["y"] + 0.5 * box["height"])
            seen.append((page.locator(".aw-four .aw-number").nth(1).inner_text(), line_of_code(page)))
        assert page.evaluate(f"() => {kernel}.status") == "busy"
        assert len(set(seen)) == len(seen)
        page.mouse.up()
    finally:
        (folder / "go").touch()
    asked = line_of_code(page)
    page.evaluate("() => window.held")
    done(page, asked)
    assert ask(page, f"plan = study.results[-1]; print(plan == {asked})") == "True"
    page.wait_for_selector(".aw-lead.aw-good, .aw-lead.aw-bad")


def test_what_is_read_off_a_plan_is_what_a_plan_finds(page):
    """The browser's arithmetic against the simulation: at other rates and targets as many replicas, or one more or fewer at the border."""
    plan = json.loads(to_json(make_plan(MODEL, {"cpu": LADDER}, target(2_000, 0.060))))
    cases = [(rate, target) for rate in (300, 4000, 20_000) for target in (0.06, 0.12)]
    program = f"{script().split('const $policies')[0]} export const fewest = $loads.fewest, loadsOf = $loads.loadsOf;"
    read = page.evaluate(
        """async ([text, plan, cases]) => {
          const {fewest, loadsOf} = await import(URL.createObjectURL(new Blob([text], {type: 'text/javascript'})));
          return cases.map(([rate, target]) => fewest(loadsOf(plan), rate, target));
        }""",
        [program, plan, cases],
    )
    for (rate, p99), found in zip(cases, read, strict=True):
        planned = make_plan(MODEL, {"cpu": LADDER}, target(rate, p99)).replicas.value
        assert planned <= found + 1 + 0.1 * planned  # another batching may need fewer, never many more
        assert found <= 2 * planned + 1


def test_a_plan_made_in_a_cell_moves_the_controls(page):
    ask(page, "_ = study.plan(rate=77, p99='5s', burst=3)")
    page.wait_for_function("() => document.querySelector('.aw input[aria-label=\"requests per second, typed\"]').value === '77'")
    assert line_of_code(page).startswith('study.plan(rate=77, p99="5000ms", burst=3')


def test_prices_cost_and_a_budget_that_binds(page):
    page.locator("input[aria-label^='requests per second, typed']").fill("100000")
    page.locator("input[aria-label^='price of a replica on cpu']").fill("0.5")
    page.keyboard.press("Tab")
    done(page, line_of_code(page))
    page.wait_for_function("() => document.querySelector('.aw-four').textContent.includes('USD/h')")
    page.locator("label", has_text="budget, USD per hour").locator("input").fill("0.6")
    page.keyboard.press("Tab")
    done(page, line_of_code(page))
    page.wait_for_selector(".aw-lead.aw-bad")
    assert "budget" in page.locator(".aw-lead.aw-bad").inner_text()
    assert line_of_code(page) == 'study.plan(rate=100000, p99="5000ms", burst=3, price={"cpu": 0.5}, budget=0.6)'
    ask(page, "_ = study.plan(rate=20, p99='5s', price={'cpu': 0.5})")
    page.wait_for_selector(".aw-lead.aw-good")
    count = int(ask(page, "print(int(study.results[-1].replicas.value))"))  # more than one where this machine is slow
    assert (f"{count - 1}, one fewer" if count > 1 else "Nothing that was considered is cheaper") in section(page, "Why not cheaper").inner_text()


def test_scaling_and_turns_are_offered_as_lines_and_drawn_once_they_are_known(page):
    section(page, "Scaling policies").locator("button", has_text="Compare").click()
    assert line_of_code(page) == 'study.scale(p99="5000ms", rate=20, seconds=1200, price=0.5)'
    done(page, line_of_code(page))
    page.wait_for_selector(".aw-ring")
    section(page, "Turns on the device").locator("button", has_text="Run in turn").click()
    assert line_of_code(page) == 'study.rotate(beside=(other,), policy=("fcfs", "round_robin"), load=0.5, seconds=2)'
    done(page, line_of_code(page))
    page.wait_for_selector("path.aw-turn-1")
    assert section(page, "Turns on the device").locator(".aw-choice button").count() == 2
    assert ask(page, "print([type(r).__name__ for r in study.results[-2:]])") == "['ScalePlan', 'Rotation']"


def test_every_number_of_a_spec_says_where_it_comes_from(page):
    open_view(page, "Ship")
    page.locator(".aw .aw-primary", has_text="Write the spec").click()
    page.wait_for_selector("[data-number=memory_bytes]")
    page.locator("[data-number=memory_bytes]").click()
    shown = page.locator(".aw-provenance").inner_text()
    assert ask(page, "spec = study.results[-1]; print(spec.memory_bytes.method)") in shown
    assert page.locator("[data-number=memory_bytes]").get_attribute("aria-expanded") == "true"
    assert ask(page, f"print({line_of_code(page)} == spec.memory_bytes)") == "True"
    assert page.locator("[data-number]").count() == int(ask(page, "from aimass_lab.spec import spec_numbers; print(len(list(spec_numbers(spec))))"))
    codes = ask(page, "print([f['code'] for f in open_panels()[0].facts['export']['findings']])")
    assert str(section(page, "Findings").locator("tbody th").all_inner_texts()) == codes


def test_formats_have_their_options(page):
    page.locator("summary", has_text="Options of kubernetes").click()
    page.locator("select[aria-label='scaler of kubernetes']").select_option("keda")
    assert line_of_code(page) == 'study.spec(rate=20, p99="5000ms", format="kubernetes(scaler=keda)")'
    page.locator(".aw .aw-primary", has_text="Write the spec").click()
    done(page, line_of_code(page))
    page.wait_for_selector("h3:text-is('Files for kubernetes(scaler=keda)')")
    page.locator("select[aria-label=file]").select_option(label="scaled-object.yaml")
    assert "kind: ScaledObject" in page.locator(".aw-file").inner_text()


def test_a_bundle_is_written_and_its_promises_fill_in_while_they_are_proved(page):
    page.locator("button", has_text="Write only").click()
    assert line_of_code(page).startswith('study.bundle(out="tokens-bundle", rate=20, p99="5000ms"')
    done(page, line_of_code(page))
    page.wait_for_selector("[data-promise=latency_p99]")
    assert "NOT PROVED YET" in section(page, "Promises").inner_text()
    page.evaluate(
        """() => {
          window.words = new Set();
          const note = () => document.querySelectorAll('[data-promise] .aw-state').forEach(one => window.words.add(one.textContent));
          new MutationObserver(note).observe(document.querySelector('.aw-body'), {childList: true, subtree: true, characterData: true});
        }"""
    )
    ask(page, "_ = open_panels()[0].run('aimass_lab.check(\"tokens-bundle\", seconds=2)')")
    page.wait_for_function("() => /^(PASS|FAIL|NOT JUDGED)/.test([...document.querySelectorAll('.aw-lead')].at(-1).textContent)")
    words = set(page.evaluate("() => [...window.words]"))
    assert {"to come", "measuring"} <= words
    verdict = ask(page, "print({True: 'PASS', False: 'FAIL', None: 'NOT JUDGED'}[study.results[-1].passed])")
    assert section(page, "Promises").locator(".aw-lead").inner_text().startswith(verdict)
    states = ask(page, "print([{True: 'PASS', False: 'FAIL', None: 'NOT JUDGED'}[p.passed] for p in study.results[-1].promises])")
    assert str(page.locator("[data-promise] .aw-state").all_inner_texts()) == states


def test_lengths_follow_the_hand_and_a_new_one_is_followed_over_shapes(page):
    open_view(page, "What-if")
    section(page, "Sequence length").locator(".aw-primary").click()
    assert line_of_code(page) == "study.demand(length=(2, 4, 8, 16, 32, 64, 128))"
    page.wait_for_selector("input[aria-label='sequence length']")
    page.locator("input[aria-label='sequence length, typed']").fill("48")
    page.keyboard.press("Tab")
    assert line_of_code(page) == "study.demand(length=(48,))"
    done(page, line_of_code(page))
    assert ask(page, "print([p.length for p in study.results[-1].by_length], study.results[-1].by_length[0].latency is not None)") == "[48] True"
    section(page, "Generating").locator("button", has_text="Estimate").click()
    done(page, line_of_code(page))
    page.wait_for_function("() => document.querySelector('.aw-body').textContent.includes('time to the first token')")


@pytest.mark.parametrize("name", THEMES)
def test_axe_finds_nothing_and_nothing_is_cut_off(page, name, tmp_path):
    for view in ("Plan", "Ship", "What-if"):
        check_looks(page, view, name, tmp_path)


def test_what_is_saved_is_a_picture_that_needs_no_kernel(page, folder):
    open_view(page, "Plan")
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")  # to its end: the file may have been saved before, on its own
    outputs = [output for cell in json.loads((folder / "first.ipynb").read_text())["cells"] for output in cell.get("outputs", ()) if "data" in output]
    assert not any(VIEW in output["data"] for output in outputs)
    (picture,) = ["".join(output["data"]["text/html"]) for output in outputs]
    assert len(picture.encode()) < LARGEST_PICTURE
    for gone in ("<script", "<button", "<input", "<select"):
        assert gone not in picture
    for kept in ("Why not cheaper", 'aw-turn-1"', 'class="aw-provenance"', "data-promise", "Sequence length"):
        assert kept in picture


def test_nothing_was_asked_of_other_machines_and_nothing_broke(page):
    assert page.foreign == []
    assert page.errors == []

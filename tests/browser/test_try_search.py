"""Trying and searching as a person does: a form, a click, a verdict; limits, a front that grows, a winner as code."""

import json

import pytest
from labserver import CHROMIUM, PATIENCE_MS, ask, command, opened
from workbench_page import THEMES, check_looks, line_of_code, open_view, quiet

from aimass_lab.frontends.lines import read_line
from aimass_lab.frontends.widgets.source import script
from aimass_lab.headlines import format_number
from aimass_lab.records import Prediction, TrialResult, from_json

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine, and no right to install it"),
]
LARGEST_PICTURE = 200_000
CELLS = (
    """
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    torch.manual_seed(0)
    data = load_digits()
    images, labels = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(data.target)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[:1200]), labels[:1200]).backward()
        optimizer.step()
    x = images[:4]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def accuracy(outputs, wanted):
        return (outputs.argmax(1) == wanted).float().mean().item()

    %load_ext aimass_lab
    from aimass_lab import Study
    study = Study(model, x, data=(images[1500:], labels[1500:]), metric=accuracy, name="digits")
    """,
    "study.workbench(view='try')",
)


@pytest.fixture(scope="module")
def page(lab):
    """The panel, open at Try, with nothing known yet; the tests below go on with what the ones before have found."""
    with opened(lab, height=1900) as page:
        page.set_default_timeout(2 * PATIENCE_MS)  # a search takes its time
        command(page, "notebook:run-all-cells")
        page.wait_for_selector(".aw-compose")
        yield page


def add(page, technique):
    page.get_by_label("add a step").select_option(technique)
    page.wait_for_selector(f".aw-chip[aria-pressed=true]:text('{technique}')")


def checked(page, text):
    page.wait_for_function("text => document.querySelector('.aw-check').textContent.includes(text)", arg=text)


# --- try


def test_a_form_is_made_of_the_techniques_own_fields_and_writes_the_line(page):
    add(page, "low_rank")
    told = json.loads(
        ask(page, "import json; from aimass_lab.options import describe_options; from aimass_lab.compression.base import TECHNIQUES\n"
            "print(json.dumps([option.name for option in describe_options(TECHNIQUES['low_rank'])]))")
    )  # fmt: skip
    assert page.locator(".aw-step .aw-option label").all_text_contents() == told
    page.get_by_label("ratio of low_rank").fill("0.5")
    assert line_of_code(page) == 'study.trial("low_rank(ratio=0.5)")'
    page.get_by_label("ranks of low_rank").select_option("uniform")
    page.get_by_label("activation_aware of low_rank").uncheck()
    assert page.locator(".aw-chip").inner_text() == "low_rank(ratio=0.5,ranks=uniform,activation_aware=false)"
    page.get_by_label("activation_aware of low_rank").check()
    page.get_by_label("ranks of low_rank").select_option("energy")
    assert page.locator(".aw-chip").inner_text() == "low_rank(ratio=0.5)"
    checked(page, "can be tried")


def test_bounds_order_and_what_is_lacking_are_said_before_anything_runs(page):
    page.get_by_label("ratio of low_rank").fill("2")
    checked(page, "ratio 2.0 of low_rank is not above 0 and below 1")
    page.get_by_label("ratio of low_rank").fill("0.5")
    add(page, "int8_dynamic")
    page.get_by_role("button", name="Earlier").click()
    checked(page, "low_rank cannot follow int8_dynamic")
    page.get_by_role("button", name="Later").click()
    checked(page, "can be tried")
    assert line_of_code(page) == 'study.trial("low_rank(ratio=0.5) + int8_dynamic")'
    add(page, "recover")
    checked(page, "recover cannot follow")
    page.get_by_role("button", name="Remove").click()
    checked(page, "can be tried")
    assert ask(page, "print(len(study.results))") == "0"


def test_what_is_predicted_of_a_recipe_stands_apart_before_it_is_tried(page):
    page.get_by_role("button", name="Profile and predict").click()
    page.wait_for_selector(".aw-foreseen")
    quiet(page)
    record = from_json(ask(page, "from aimass_lab.records import to_json; print(to_json(study.results[-1]))"), Prediction)
    assert (record.technique, record.points[0].basis) == ("low_rank(ratio=0.5) + int8_dynamic", "effect")
    said = page.get_by_role("group", name="predicted, before it is tried").inner_text()
    for number in (record.speedup, record.points[0].latency, record.weight_bytes):
        assert format_number(number) in said
    assert "measured" not in page.locator(".aw-foreseen .aw-src").all_inner_texts()
    assert line_of_code(page) == 'study.trial("low_rank(ratio=0.5) + int8_dynamic")'
    page.get_by_role("button", name="Remove").click()
    add(page, "onnxruntime")
    page.wait_for_selector(".aw-unforeseen:has-text('Not predicted: onnxruntime leaves the model to another runtime')")
    page.get_by_role("button", name="Remove").click()
    add(page, "int8_dynamic")
    page.wait_for_selector(".aw-foreseen")
    quiet(page)


def test_a_try_gives_a_card_beside_the_original_and_leaves_the_model_alone(page):
    page.get_by_label("batch sizes, with commas").fill("4, 32")
    page.get_by_label("seconds to compare").fill("0.6")
    assert line_of_code(page) == 'study.trial("low_rank(ratio=0.5) + int8_dynamic", batch=(4, 32), seconds=0.6)'
    page.get_by_role("button", name="Try it", exact=True).click()
    page.wait_for_selector(".aw-card-name")
    quiet(page)
    assert page.locator(".aw-card-name").inner_text() == "low_rank(ratio=0.5) + int8_dynamic"
    record = json.loads(ask(page, "print(to_json(study.results[-1]))"))
    assert page.locator(".aw-lead").inner_text().lower() == f"{record['recommendation']}.".lower()
    assert page.locator(".aw-tag").inner_text() == record["verdict"]
    assert page.locator(".aw-reasons li").all_inner_texts() == record["reasons"]
    assert page.locator(".aw-whisker").count() == 3  # one in the table of tries, one a batch size
    page.get_by_role("group", name="batch size of the table").get_by_role("button", name="32").click()
    assert "batch 32" in page.get_by_role("region", name="original and copy side by side").locator("thead").inner_text()
    assert ask(page, "print(model.training, all(torch.equal(before[n], t) for n, t in model.state_dict().items()))") == "True True"


def test_the_prediction_stands_beside_what_was_measured(page):
    rows = page.get_by_role("region", name="predicted, then measured").locator("tbody tr").all_inner_texts()
    said = {row.split("\t")[0]: row.split("\t")[-1] for row in rows}
    assert {"speed-up, batch 4", "latency, batch 4", "weights in memory"} <= set(said)
    trial = from_json(ask(page, "print(to_json(study.results[-1]))"), TrialResult)
    said_before = "[r for r in study.results if getattr(r, 'technique', None) == study.results[-1].setting.recipe.name]"
    effect = from_json(ask(page, f"print(to_json({said_before}[-1]))"), Prediction)
    low, high = effect.speedup.interval
    assert said["speed-up, batch 4"] == ("inside" if low <= trial.speedup.value <= high else "outside")


def test_the_worst_samples_are_pictures_with_the_classes_of_both(page):
    ask(page, "_ = study.trial('unstructured_pruning(sparsity=0.95)', seconds=0.3)")
    page.locator(".aw-pick", has_text="unstructured_pruning").click()
    assert page.locator(".aw-card-name").inner_text() == "unstructured_pruning(sparsity=0.95)"
    fields = "[s.index, s.class_original, s.class_variant, s.same_class, int(labels[1500 + s.index])]"
    worst = json.loads(ask(page, f"print(json.dumps([{fields} for s in study.results[-1].worst_samples]))"))
    assert not all(same for *_, same, _ in worst)
    page.wait_for_function("n => document.querySelectorAll('.aw-sample').length === n", arg=6)
    for shown, (index, original, variant, same, label) in zip(page.locator(".aw-sample").all_inner_texts(), worst, strict=False):
        assert f"#{index} " in shown
        assert (f"class {original} in both" if same else f"class {original} → {variant}") in shown
        assert f"label {label}" in shown
    pixels = page.evaluate(
        """async () => {
          const image = document.querySelector('.aw-image');
          await image.decode();
          const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight), pen = canvas.getContext('2d');
          pen.drawImage(image, 0, 0);
          return [...pen.getImageData(0, 0, canvas.width, canvas.height).data].filter((_, i) => i % 4 === 0);
        }"""
    )
    drawn = f"s = images[1500 + {worst[0][0]}, 0]; print(json.dumps(((s - s.min()) / (s.max() - s.min()) * 255).round().int().flatten().tolist()))"
    assert pixels == json.loads(ask(page, drawn))


def test_several_tries_stand_side_by_side_and_the_chosen_copy_is_code_that_runs(page):
    rows = page.get_by_role("region", name="tried so far").locator("tbody tr")
    assert rows.count() == 2
    rows.locator(".aw-pick", has_text="low_rank").click()
    line = line_of_code(page)
    assert line == 'study.variant("low_rank(ratio=0.5) + int8_dynamic")(x)'
    assert ask(page, f"print(tuple(({line}).shape))") == "(4, 10)"
    assert rows.locator("xpath=self::tr[contains(@class, 'aw-selected')]").count() == 1


def test_undo_releases_the_copy_and_it_can_be_made_again(page):
    page.get_by_label("release low_rank(ratio=0.5) + int8_dynamic").click()
    page.wait_for_selector(".aw-table .aw-hint:text('released')")
    quiet(page)
    assert line_of_code(page) == 'study.release("low_rank(ratio=0.5) + int8_dynamic")'
    assert ask(page, "print(study.variants.names)") == "('unstructured_pruning(sparsity=0.95)',)"
    page.get_by_label("try low_rank(ratio=0.5) + int8_dynamic again").wait_for()
    page.get_by_role("button", name="put low_rank(ratio=0.5) + int8_dynamic into the form").click()
    assert page.locator(".aw-chip").all_inner_texts() == ["low_rank(ratio=0.5)", "int8_dynamic"]


def test_a_recipe_that_is_not_possible_fails_with_its_cause(page):
    page.get_by_label("batch sizes, with commas").fill("0")
    page.get_by_role("button", name="Try it", exact=True).click()
    page.wait_for_selector(".aw-failed")
    assert "batch size" in page.locator(".aw-failed").inner_text()
    page.get_by_label("batch sizes, with commas").fill("4")


# --- search


def test_a_search_keeps_limits_and_its_front_grows_while_it_runs(page):
    open_view(page, "Search")
    assert line_of_code(page) == "study.search()"
    page.get_by_label("max drop").fill("0.05")
    page.locator(".aw-compose summary").click()
    for name, text in {"recipe": "none; unstructured_pruning(sparsity=0.97); bf16", "runtime": "eager", "batch": "4", "trials": "4", "seconds": "50"}.items():
        page.get_by_label(name, exact=True).fill(text)
    page.get_by_label("sampler", exact=True).select_option("grid")
    recipes = '("none", "unstructured_pruning(sparsity=0.97)", "bf16")'
    line = f'study.search(max_drop=0.05, recipe={recipes}, runtime=("eager",), batch=(4,), trials=4, seconds=50, sampler="grid")'
    assert line_of_code(page) == line
    page.evaluate(
        """() => {
          window.grew = [];
          window.waited = 0;
          const look = () => {
            const points = document.querySelectorAll('.aw-candidate').length;
            if (document.querySelector('.aw-job progress') && points !== window.grew.at(-1)) window.grew.push(points);
            if (points && document.querySelector('.aw-job .aw-hint')?.textContent === 'waits') window.waited += 1;
          };
          new MutationObserver(look).observe(document.querySelector('.aw'), {childList: true, subtree: true});
        }"""
    )
    page.get_by_role("button", name="start the search").click()
    page.wait_for_selector(".aw-candidate")
    page.get_by_role("button", name="stop the search").wait_for()
    quiet(page)
    page.get_by_role("button", name="start the search").wait_for()
    record = json.loads(ask(page, "print(to_json(study.results[-1]))"))
    assert len(record["candidates"]) == 3
    assert len(page.evaluate("() => window.grew")) >= 2  # it was drawn with fewer settings than there are now
    assert page.evaluate("() => window.waited") == 0  # what the panel tells the kernel, its picture above all, takes the place of no work
    assert page.locator(".aw-candidate").count() == sum(c["status"] == "measured" for c in record["candidates"])
    assert [limit["name"] for limit in record["limits"]] == ["drop"]


def test_the_winner_is_code_and_what_lost_and_what_binds_is_said(page):
    record = json.loads(ask(page, "print(to_json(study.results[-1]))"))
    assert record["best"] is not None  # the original itself is within the limits
    assert page.locator(".aw-star").count() == 1
    said = page.locator(".aw-why").inner_text()
    for text in (record["limits"][0]["text"], *(record[name]["text"] for name in ("runner_up", "refused") if record[name])):
        assert text in said
    recipe = ask(page, f"print(study.results[-1].candidates[{record['best']}].setting.recipe.name)")
    lines = page.locator(".aw-listing").inner_text().splitlines()
    assert f'"{recipe}"' in lines[0]
    assert lines[-1] == f'study.variant("{recipe}")'
    rows = page.get_by_role("region", name="settings that were tried").locator("tbody tr")
    assert rows.count() == sum(c["status"] != "failed" for c in record["candidates"])


def test_hovering_and_choosing_are_linked_between_plot_and_table(page):
    page.locator(".aw-candidate[data-candidate='1']").hover(force=True)
    page.wait_for_selector("tr.aw-selected[data-candidate='1']")
    page.locator("tr[data-candidate='2'] .aw-pick").click()
    page.wait_for_selector(".aw-candidate.aw-chosen[data-candidate='2']")
    recipe = ask(page, "print(study.results[-1].candidates[2].setting.recipe.name)")
    assert line_of_code(page).splitlines()[0].startswith(f'study.trial("{recipe}"')


def test_a_limit_is_dragged_and_moved_by_keys_and_stands_in_the_line(page):
    handle = page.get_by_role("slider", name="limit of metric lost")
    handle.focus()
    page.keyboard.press("End")
    assert "max_drop" not in line_of_code(page)
    assert page.locator(".aw-candidate.aw-out").count() == 0
    box = page.locator(".aw-scatter").bounding_box()
    knob = handle.locator(".aw-knob").bounding_box()
    page.mouse.move(knob["x"] + knob["width"] / 2, knob["y"] + knob["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.3 * box["width"], knob["y"] + knob["height"] / 2, steps=4)
    page.mouse.up()
    asked = float(page.get_by_label("max drop").input_value())
    assert f"max_drop={asked:g}" in line_of_code(page)
    beyond = ask(page, f"print(sum(c.numbers['drop'].value > {asked} for c in study.results[-1].candidates if 'drop' in c.numbers))")
    assert page.locator(".aw-candidate.aw-out").count() == int(beyond) > 0
    page.get_by_label("up", exact=True).select_option("size")
    page.get_by_role("slider", name="limit of on disk").wait_for()


def test_what_a_stopped_search_found_is_kept(page):
    for name, text in {"trials": "", "seconds": "900", "recipe": "none; unstructured_pruning", "batch": "1, 2, 4, 8, 16, 32, 64"}.items():
        page.get_by_label(name, exact=True).fill(text)
    number = int(ask(page, "print(len(study.results))"))
    page.get_by_role("button", name="start the search").click()
    page.wait_for_selector(".aw-job progress")
    page.wait_for_function("() => /^[1-9] of .* measured; it goes on/.test(document.querySelector('.aw-lead .aw-hint').textContent)")
    page.get_by_role("button", name="stop the search").click()
    quiet(page)
    found = ask(page, f"print(len(study.results) - {number}, study.results[-1].stopped, len(study.results[-1].candidates) > 0)")
    assert found == "1 interrupted True"
    assert "interrupted" in page.locator(".aw-lead").inner_text()


# --- both


def test_lines_of_magic_and_of_python_are_read_as_the_same_calls(page):
    recipe = "low_rank(ratio=0.5) + int8_dynamic"
    calls = [
        ("trial", {"batch": [1, 8], "seconds": 2, "threads": None}, [recipe]),
        ("search", {"max_drop": 0.01, "p99": "20ms", "recipe": [recipe, "none"], "resume": True}, []),
        ("search", {"resume": False}, []),
        ("release", {}, [recipe]),
    ]
    styles = [{"style": "python", "name": "study"}, {"style": "magic", "name": "model"}]
    cases = [[style, *call] for call in calls for style in styles]
    program = f"{script().replace('export default', 'const widget =')} export const answer = {json.dumps(cases)}.map((one) => $code.lineOf(...one));"
    written = page.evaluate("async text => (await import(URL.createObjectURL(new Blob([text], {type: 'text/javascript'})))).answer", program)
    for python, magic in zip(written[::2], written[1::2], strict=True):
        (verb, values), (same, read) = read_line(python), read_line(magic)
        assert same is verb
        expected = {parameter.name: parameter.default for parameter in verb.parameters} | values
        assert read == expected


@pytest.mark.parametrize("name", THEMES)
@pytest.mark.parametrize("view", ["Try", "Search"])
def test_axe_finds_nothing_and_nothing_is_cut_off(page, name, view, tmp_path):
    check_looks(page, view, name, tmp_path)


def test_what_is_saved_is_a_picture_of_both_that_needs_no_kernel(page, lab, folder):
    command(page, "docmanager:save")
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")
    cells = json.loads((folder / "first.ipynb").read_text())["cells"]
    (picture,) = ["".join(output["data"]["text/html"]) for cell in cells for output in cell.get("outputs", ()) if "data" in output]
    assert len(picture.encode()) < LARGEST_PICTURE
    assert not any(part in picture for part in ("<script", "<button", "<input", "<select"))
    command(page, "kernelmenu:shutdown")
    page.goto(lab)
    page.wait_for_selector(".aw-picture .aw-scatter")
    assert page.locator(".aw-picture .aw-picture-head").all_inner_texts() == ["Profile", "Try", "Search"]  # it was profiled for the prediction
    assert page.locator(".aw-picture .aw-image").first.evaluate("image => image.naturalWidth") == 8
    assert page.locator(".aw-picture .aw-whisker").count() > 0
    assert page.foreign == []
    assert page.errors == []

"""Magic, command line and Python: the same verbs, the same records, the same help, errors that help."""

import itertools
import json
import os
import signal
import subprocess
import sys
import urllib.request
from types import SimpleNamespace

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from jsonschema import Draft202012Validator

from aimass_lab import Study, Workload, to_frames
from aimass_lab.errors import InputError
from aimass_lab.frontends.arguments import all_verbs
from aimass_lab.frontends.cli import main
from aimass_lab.frontends.locate import locate_workload
from aimass_lab.frontends.render import render_html, render_text
from aimass_lab.records import RECORDS, Check, Demand, Profile, Record, Run, any_from_json, json_schema, to_json
from aimass_lab.store import Store
from aimass_lab.verbs import NOT_ASKED


@pytest.fixture
def shell():
    """A real IPython with the extension loaded."""
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "aimass_lab")
    yield shell
    shell.run_line_magic("unload_ext", "aimass_lab")
    shell.reset(new_session=False)
    InteractiveShell.clear_instance()


@pytest.fixture
def net(model_file):
    return locate_workload(f"{model_file}:make")


def run(shell, code):
    """Run a cell; return its result, and what it printed."""
    with capture_output() as captured:
        outcome = shell.run_cell(code)
    return outcome, captured.stdout + captured.stderr


def aimass(*words, cwd=None):
    """Run the command line in a process of its own."""
    return subprocess.run([sys.executable, "-m", "aimass_lab", *words], capture_output=True, text=True, cwd=cwd, env=dict(os.environ))


# --- the same thing, three ways -----------------------------------------------------------


@pytest.mark.parametrize("words", [["--batch", "8"], ["--batch", "8", "--device", "l4"]], ids=["here", "elsewhere"])
def test_demand_is_the_same_record_from_magic_command_line_and_python(shell, model_file, capsys, words):
    workload = locate_workload(f"{model_file}:make")
    device = words[-1] if "--device" in words else None
    python = Study(workload).demand(batch=8, device=device)

    assert main(["demand", f"{model_file}:make", *words, "--json"]) == 0
    command = any_from_json(capsys.readouterr().out)

    shell.user_ns["net"], shell.user_ns["x"] = workload.model, workload.call.args[0]
    magic, _ = run(shell, f"%aimass demand net x {' '.join(words)}")

    def comparable(record):
        # A variable's name is what the notebook calls the model. The latency here, and what follows from it, rests on rates
        # that are measured again while the machine is busy; that of another device is plain arithmetic.
        data = json.loads(to_json(record).replace('"name": "net"', '"name": "Net"'))
        if device is None:
            data["latency"] = data["latency"]["method"]
            for part in (*data["operators"], *data["modules"], *data["lines"]):
                part.pop("time_share", None)
                part.pop("bound", None)
        return data

    assert comparable(python) == comparable(command) == comparable(magic.result)


@pytest.mark.parametrize("verb", list(all_verbs()), ids=lambda v: v.name)
def test_help_is_the_same_text_on_the_command_line_and_in_the_notebook(shell, verb, capsys):
    assert main([verb.name, "--help"]) == 0
    command = capsys.readouterr().out
    _, magic = run(shell, f"%aimass {verb.name}?")
    strip = lambda text: " ".join(text.replace("[MODEL]", "MODEL").split())  # noqa: E731
    assert strip(command) == strip(magic)
    assert verb.summary in command
    assert all(parameter.help.split(".")[0][:30] in strip(command) for parameter in verb.parameters)


def test_python_has_every_option_of_the_command_line():
    import inspect

    for verb in all_verbs():
        names = set(inspect.signature(verb.function).parameters) - NOT_ASKED
        assert names == {parameter.name for parameter in verb.parameters}


# --- the command line -----------------------------------------------------------------------


def test_every_measuring_verb_prints_records_that_fit_the_published_schemas(model_file, tmp_path):
    reference = f"{model_file}:make"
    for words in (["profile", reference, "--seconds", "0.5"], ["demand", reference], ["trial", reference, "none", "--seconds", "0.3"]):
        done = aimass(*words, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        data = json.loads(done.stdout)
        kind = next(k for k in RECORDS if k.__struct_config__.tag == data["record"])
        Draft202012Validator(json_schema(kind)).validate(data)


def test_fields_that_scripts_rely_on(model_file, capsys):
    reference = f"{model_file}:make"
    promised = {
        ("demand",): ("flops", "weight_bytes", "activation_peak_bytes", "peak_memory_bytes", "request_bytes", "response_bytes"),
        ("profile", "--seconds", "0.3"): ("latency_p50", "latency_p99", "throughput", "peak_memory_bytes"),
        ("trial", "none", "--seconds", "0.3"): ("size_bytes", "stored_bytes", "fidelity"),
        ("plan", "--rate", "400", "--p99", "500ms"): ("replicas", "max_batch_size", "latency_p99", "utilization"),
    }
    for (verb, *words), fields in promised.items():
        positional = [w for w in words if verb == "trial"][:1]
        assert main([verb, reference, *positional, *[w for w in words if w not in positional], "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        for field in fields:
            assert {"value", "unit", "source"} <= set(data[field]), (verb, field)
        if verb == "trial":
            assert data["verdict"] in ("faster", "no gain", "slower", "mixed", "cannot tell", "not equivalent")
            assert data["recommended"] in (True, False)
            assert [len(point["speedup"]["interval"]) for point in data["points"]] == [2]
        if verb == "plan":
            assert data["feasible"] is True
            assert data["device"] == "cpu"


def test_a_model_in_a_package_is_found(model_file, tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text("")
    (tmp_path / "shop" / "net.py").write_text(model_file.read_text())
    done = aimass("demand", "shop.net:make", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["flops"]["value"] == 4 * 2 * (8 * 32 + 32 * 4)


def test_a_factory_may_give_a_study_of_which_everything_but_the_store_is_taken(model_file, capsys):
    reference = f"{model_file}:studied"
    workload = locate_workload(reference)
    assert (workload.name, workload.data is not None, workload.train is not None) == ("studied", True, True)
    assert main(["trial", reference, "bf16", "--seconds", "0.3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metric_variant"]["value"] == 1
    assert main(["cold", reference, "--factory", reference, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["load_time"]["method"] == f"running {reference}"
    assert [run.verb for run in Store().runs(limit=5, model="studied")] == ["cold", "trial"]
    assert Store(model_file.with_name("own.db")).runs(limit=5) == ()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("{file}:nothing", "there is no function 'nothing'"),
        ("{file}:number", "there is no function 'number'"),
        ("{file}:broken", "raised KeyError: 'weights.pt'"),
        ("{file}:wrong", "gave a Net"),
        ("{file}", "does not name a model"),
        ("nowhere.py:make", "there is no file 'nowhere.py'"),
        ("no.such.module:make", "there is no module 'no.such.module'"),
    ],
)
def test_a_wrong_model_name_is_answered_with_what_to_do(reference, message, model_file, capsys):
    assert main(["demand", reference.format(file=model_file)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "help: " in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "--rate", "fast", "--p99", "50ms"], "'fast' is not a rate"),
        (["plan", "--rate", "400", "--p99", "soon"], "'soon' is not a time"),
        (["plan", "--rate", "400", "--p99", "20"], "'20' could be 20ms or 20s: give it with its unit"),
        (["allocate", "--rate", "Net=400", "--p99", "Net=20"], "'20' could be 20ms or 20s: give it with its unit"),
        (["search", "--p99", "20"], "'20' could be 20ms or 20s: give it with its unit"),
        (["plan", "--rate", "400"], "--p99"),
        (["profile", "--batch", "many"], "'many' is not a whole number"),
        (["profile", "--batch", "0"], "batch size 0"),
        (["profile", "--device", "h200-sxm"], "is not attached"),
        (["demand", "--device", "h201"], "no device called 'h201'"),
        (["trial", "int9"], "no technique called 'int9'"),
        (["trial", "bf16", "--option", "bits"], "is not of the form name=value"),
        (["spec", "--rate", "1", "--p99", "1s", "--format", "helm9"], "no exporter called 'helm9'"),
        (["bundle", "--out", "x", "--rate", "4"], "rate and p99 belong together"),
        (["spec"], "nothing is planned yet"),
        (["scale", "--p99", "200ms"], "by a rate, rates to jump between (mmpp), a timetable or a trace, and none was given"),
        (["plan", "--rate", "4", "--p99", "1s", "--price", "0.1"], "--price NAME=0.1"),
        (["profiel"], "did you mean 'profile'?"),
    ],
)
def test_wrong_options_are_answered_with_their_value(words, message, model_file, capsys):
    verb, *rest = words
    model = [] if verb == "profiel" else [f"{model_file}:make"]
    assert main([verb, *model, *rest]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "help"),
    [
        (["plan", "--ratee", "4", "--rate", "4", "--p99", "1s"], "did you mean '--rate'? aimass plan MODEL --rate RATE --p99 P99 [OPTIONS]"),
        (["plan", "--p9=1s", "--rate", "4", "--p99", "1s"], "did you mean '--p99'? aimass plan MODEL --rate RATE --p99 P99 [OPTIONS]"),
        (["plan", "--ratee", "4", "--p99", "1s"], "did you mean '--rate'? aimass plan MODEL --rate RATE --p99 P99 [OPTIONS]"),
        (["plan", "--rate", "4"], "aimass plan MODEL --rate RATE --p99 P99 [OPTIONS]"),
        (["profile", "--batch", "many"], "aimass profile MODEL [OPTIONS]"),
    ],
)
def test_what_is_wrong_with_an_option_is_not_pushed_out_of_sight_by_all_there_are(words, help, model_file, capsys):
    assert main([words[0], f"{model_file}:make", *words[1:]]) == 2
    message, line = capsys.readouterr().err.splitlines()
    assert message.startswith("error: ")
    assert line == f"help: {help}; aimass {words[0]} --help lists all options"


def test_history_and_compare_need_neither_model_nor_device(model_file, capsys):
    for _ in range(2):
        main(["profile", f"{model_file}:make", "--seconds", "0.3"])
    capsys.readouterr()
    assert main(["history", "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["verb"] for run in runs] == ["profile", "profile"]
    model_file.unlink()
    assert main(["compare", str(runs[1]["id"]), str(runs[0]["id"])]) == 0
    assert "latency_p50" in capsys.readouterr().out
    assert main(["show", str(runs[0]["id"]), "--json"]) == 0
    assert isinstance(any_from_json(capsys.readouterr().out), Profile)


def test_runs_of_different_verbs_cannot_be_compared(model_file, capsys):
    main(["demand", f"{model_file}:make"])
    main(["profile", f"{model_file}:make", "--seconds", "0.3"])
    assert main(["compare", "1", "2"]) == 2
    assert "compare two runs of the same verb" in capsys.readouterr().err


def test_an_infeasible_plan_is_an_answer_and_a_failed_exit(model_file, capsys):
    assert main(["plan", f"{model_file}:make", "--rate", "100", "--p99", "1ns"]) == 1
    assert "not feasible" in capsys.readouterr().out


# --- the notebook ---------------------------------------------------------------------------


def test_the_last_model_is_remembered(shell, net):
    shell.user_ns["net"], shell.user_ns["x"] = net.model, net.call.args[0]
    run(shell, "%aimass demand net x")
    again, _ = run(shell, "%aimass demand --batch 16")
    assert again.result.batch_size == 16
    other, _ = run(shell, "%aimass demand net")
    assert other.result.batch_size == 4


def test_the_same_inputs_go_on_and_others_begin_anew(shell, net):
    shell.user_ns.update(net=net.model, x=net.call.args[0], y=net.call.args[0][:2])
    run(shell, "%aimass trial net x none --seconds 0.3")
    magics = shell.magics_manager.registry["AimassMagics"]
    first = magics._last
    run(shell, "%aimass demand net x")
    assert magics._last is first
    assert magics._last.variants.names == ("none",)
    outcome, _ = run(shell, "%aimass demand net y")
    assert magics._last is not first
    assert outcome.result.batch_size == 2


def test_a_study_or_a_workload_can_be_named(shell, net):
    shell.user_ns["study"], shell.user_ns["work"] = Study(net), Workload(net.model, net.call.args[0], name="work")
    for name in ("study", "work"):
        outcome, _ = run(shell, f"%aimass demand {name}")
        assert isinstance(outcome.result, Demand)
    assert len(shell.user_ns["study"].results) == 1
    magics = shell.magics_manager.registry["AimassMagics"]
    first = magics._last
    run(shell, "%aimass demand work")
    assert magics._last is first
    shell.user_ns["work"] = Workload(net.model, net.call.args[0][:1], name="work")  # the same model, other inputs
    outcome, _ = run(shell, "%aimass demand work")
    assert outcome.result.batch_size == 1


def test_a_model_and_its_inputs_may_be_attributes(shell, net):
    shell.user_ns["pipeline"] = SimpleNamespace(model=net.model, batch=SimpleNamespace(x=net.call.args[0]))
    outcome, _ = run(shell, "%aimass demand pipeline.model pipeline.batch.x")
    assert outcome.result.batch_size == 4
    again, _ = run(shell, "%aimass demand pipeline.model --batch 2")
    assert again.result.batch_size == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("%aimass demand", "no model was named"),
        ("%aimass demand nothing", "there is no variable 'nothing'"),
        ("%aimass demand text", "is a str, not a model"),
        ("%aimass demand net", "nothing is known yet about the inputs of 'net'"),
        ("%aimass demand net gen", "a generator can be read only once"),
        ("%aimass demand net arr", "torch.from_numpy"),
        ("%aimass demand net rows", "cannot be used"),
        ("%aimass trial net", "'net' is a model, and there is no technique"),
        ("%aimass monitor nowhere", "nothing answers at nowhere/metrics"),
        ("%aimass demand net y", "there is no variable 'y'"),
        ("%aimass demand net x[:2]", "there is no variable 'x[:2]'"),
        ("%aimass demand net x --batch", "expected one argument"),
        ("%aimass demand 'net", "the line cannot be read"),
        ("%aimass fly net x", "no verb called 'fly'"),
    ],
)
def test_mistakes_in_a_cell_are_answered_and_the_kernel_lives(shell, net, line, message):
    shell.user_ns.update(net=net.model, x=net.call.args[0], text="hi", gen=(i for i in range(3)), arr=net.call.args[0].numpy(), rows=[1.0, 2.0])
    outcome, output = run(shell, line)
    assert not outcome.success
    assert message in output
    assert "Traceback" not in output
    after, _ = run(shell, "1 + 1")
    assert after.result == 2


def test_a_cell_is_profiled_once_and_its_variables_stay(shell, net):
    shell.user_ns.update(net=net.model, x=net.call.args[0], count=[])
    outcome, output = run(shell, "%%aimass profile\ncount.append(1)\ny = net(x)\nprint('hello')")
    assert outcome.result.__class__.__name__ == "CellProfile"
    assert shell.user_ns["count"] == [1]
    assert shell.user_ns["y"].shape == (4, 4)
    assert "hello" in output
    assert {module.type for module in outcome.result.modules} >= {"Net", "Linear"}


def test_a_cell_that_raises_fails_under_the_profiler_too(shell):
    outcome, output = run(shell, "%%aimass profile\n1 / 0")
    assert not outcome.success
    assert "ZeroDivisionError" in output


def test_a_terminal_shows_the_result_and_nothing_before_it(shell, net):
    shell.user_ns["study"] = study = Study(net)
    outcome, output = run(shell, "%aimass profile study --seconds 0.3")
    assert outcome.result is study.results[-1]
    assert output.strip().startswith(("Out", "Profile of"))
    assert "parameters" not in output
    assert "timing batch" not in output


def test_json_is_printed_and_nothing_is_displayed(shell, net):
    shell.user_ns["study"] = Study(net)
    outcome, output = run(shell, "%aimass demand study --json")
    assert outcome.result is None
    assert isinstance(any_from_json(output), Demand)


def test_unloading_takes_the_magic_away(shell):
    shell.run_line_magic("unload_ext", "aimass_lab")
    _, output = run(shell, "%aimass history")
    assert "not found" in output
    shell.run_line_magic("load_ext", "aimass_lab")


# --- what is shown --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def some_records(tmp_path_factory):
    """One real record of most kinds."""
    path = tmp_path_factory.mktemp("records") / "net.py"
    import textwrap

    from model_file import MODEL_FILE

    path.write_text(textwrap.dedent(MODEL_FILE))
    study = Study(locate_workload(f"{path}:judged"), store=path.parent / "history.db")
    records = [study.profile(seconds=0.3), study.demand(), study.trial("none", seconds=0.3), study.plan(rate=400, p99="500ms"), study.plan(rate=1, p99="1ns")]
    records += [study.spec(rate=400, p99="500ms"), study.search(recipe=("none", "channels_last"), seconds=2)]
    store = Store(path.parent / "history.db")
    from aimass_lab.comparison import compare_records
    from aimass_lab.records import History

    study.profile(seconds=0.3)
    runs = store.runs()
    first = next(run for run in reversed(runs) if run.verb == "profile")
    return [*records, History(store="s", runs=runs), compare_records(store.get(first.id), store.get(runs[0].id))]


def test_text_and_html_say_the_same(some_records):
    from aimass_lab.headlines import format_number

    num_compared = 0
    for record in some_records:
        text, html = render_text(record), render_html(record)
        assert len(text.splitlines()) > 2
        for number in [v for name in record.__struct_fields__ if (v := getattr(record, name)).__class__.__name__ == "Number"]:
            shown = format_number(number)
            if " " in shown:  # a figure without a unit may stand in one of them as a part of another
                assert (shown in text) == (shown.replace("&", "&amp;") in html), (type(record), shown)
                num_compared += 1
        assert "<script" not in html
        assert "http" not in html.replace("http://127", "").replace("https://json-schema", "") or "spec" in type(record).__name__.lower()
        assert len(html) < 100_000
    assert num_compared > 10


def test_what_is_shown_is_escaped():
    from aimass_lab.records import History

    run = Run(id=1, verb="demand", model="<img src=x onerror=alert(1)>", model_digest="d", taken_at="now", summary="a & b")
    html = render_html(History(store="s", runs=(run,)))
    assert "<img" not in html
    assert "a &amp; b" in html


def test_notebooks_show_every_kind_of_record(shell, some_records):
    for record in some_records:
        data, _ = shell.display_formatter.format(record)
        assert {"text/html", "text/plain"} <= set(data)
        assert data["text/plain"] == render_text(record)


def test_tables_become_data_frames(some_records):
    frames = to_frames(some_records[0])
    ladder = frames["By batch size"]
    assert 4 in set(ladder["batch"])
    assert (ladder["p50 (s)"] > 0).all()
    with pytest.raises(InputError, match="has no table"):
        to_frames(next(r for r in some_records if type(r).__name__ == "ServingSpec"))


def test_charts_are_drawn_for_those_that_have_a_shape(some_records):
    from aimass_lab import chart

    drawn = {type(record).__name__: chart(record) for record in some_records if type(record).__name__ in ("Profile", "Plan", "SearchResult")}
    profile = next(record for record in some_records if isinstance(record, Profile))
    latency = drawn["Profile"].data[0]
    assert list(latency.x) == [point.batch_size for point in profile.ladder]
    assert list(latency.y) == pytest.approx([point.latency_p50.value * 1e3 for point in profile.ladder])
    with pytest.raises(InputError, match="there is no chart of a Demand"):
        chart(next(record for record in some_records if isinstance(record, Demand)))


def test_torch_is_not_needed_to_show_a_record(some_records, tmp_path):
    path = tmp_path / "record.json"
    path.write_text(to_json(some_records[0]))
    code = (
        f"import sys; from aimass_lab.records import any_from_json; from aimass_lab.frontends.render import render_text;"
        f"render_text(any_from_json(open({str(path)!r}).read())); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


# --- serving --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """One bundle, without the time it takes to measure what it could promise."""
    import torch

    from aimass_lab import write_bundle

    folder = tmp_path_factory.mktemp("served") / "bundle"
    torch.manual_seed(0)
    write_bundle(folder, Workload(torch.nn.Linear(8, 3), torch.randn(4, 8), name="linear"), calibrate=False)
    return folder


def ready(url):
    with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=10) as response:
        return response.status == 200


def test_a_bundle_is_served_from_the_command_line_until_it_is_ended(bundle):
    command = [sys.executable, "-m", "aimass_lab", "serve", str(bundle), "--port", "0", "--grpc-port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            service = json.loads("".join(itertools.takewhile("}\n".__ne__, process.stdout)) + "}")
            assert service["record"] == "service"
            assert ready(service["url"])
            # Not SIGINT: where the tests run in the background, it is ignored from the start.
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
    with pytest.raises(OSError, match="refused"):
        ready(service["url"])


def test_a_bundle_is_served_from_a_notebook_and_stops_with_the_extension(shell, bundle):
    outcome, _ = run(shell, f"%aimass serve {bundle} --port 0 --grpc-port 0")
    assert ready(outcome.result.url)
    shell.run_line_magic("unload_ext", "aimass_lab")
    with pytest.raises(OSError, match="refused"):
        ready(outcome.result.url)
    shell.run_line_magic("load_ext", "aimass_lab")


def test_what_is_no_bundle_is_not_served(tmp_path, capsys):
    assert main(["serve", str(tmp_path)]) == 2
    assert "help: " in capsys.readouterr().err
    assert main(["check", str(tmp_path / "nothing")]) == 2
    assert "there is nothing at" in capsys.readouterr().err


def test_print_shows_a_record_as_the_command_line_does(capsys):
    record = Check(subject="net", passed=True)
    assert Study
    print(record)
    assert capsys.readouterr().out == render_text(record) + "\n"
    assert f"{record}" != repr(record)

    class Part(Record):
        """Nothing lays it out."""

        size: int

    assert str(Part(size=3)) == repr(Part(size=3))


def test_records_alone_load_no_front_end():
    make = "from aimass_lab.records import Check; import sys; record = Check(subject='net', passed=True); loaded = 'aimass_lab.frontends' in sys.modules; "
    for first, then in (("", "str(record) == repr(record)"), ("import aimass_lab; aimass_lab.check; ", "str(record).startswith('Check of net')")):
        subprocess.run([sys.executable, "-c", f"{first}{make}assert {then} and not loaded"], check=True)

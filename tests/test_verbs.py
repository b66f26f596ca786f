"""What a verb is asked in Python: read as text would be, and refused by name and value before anything is done."""

import contextlib
import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from aimass_lab import Study
from aimass_lab.errors import InputError
from aimass_lab.frontends.arguments import all_verbs
from aimass_lab.verbs import VERBS, Amount, Count, Part, Seconds, Seed, verb

OPTIONS = [pytest.param(verb, parameter, id=f"{verb.name}-{parameter.name}") for verb in all_verbs() for parameter in verb.parameters]


@pytest.mark.parametrize(("verb", "parameter"), [param for param in OPTIONS if not param.values[1].names_model])
def test_no_verb_begins_with_nonsense(verb, parameter):
    """Without a study, which it would need as soon as it began."""
    study = (object(),) if verb.of_study else ()
    for nonsense in (object(), b"x", math.nan, "" if parameter.multiple == "pairs" else {}):
        with pytest.raises(InputError, match=f"{parameter.name}: ") as caught:
            verb.function(*study, **{parameter.name: nonsense})
        assert repr(nonsense) in caught.value.message


@pytest.fixture
def asked():
    """A verb that gives back what it was asked."""

    @verb
    def ask_back(
        *,
        counts: tuple[Count, ...] = (),
        share: Part = 1.0,
        price: Amount | None = None,
        seconds: Seconds = 1.0,
        out: str = "",
        seed: Seed = 0,
        flag: bool = False,
    ):
        """Give back what was asked.

        Args:
            counts: Some.
            share: Of it.
            price: Of it.
            seconds: Of time.
            out: Where to.
            seed: Of the lots.
            flag: Whether.
        """
        return counts, share, price, seconds, out, flag

    yield ask_back
    del VERBS["ask_back"]


def test_what_is_asked_in_python_is_read_as_on_the_command_line(asked):
    assert asked() == ((), 1.0, None, 1.0, "", False)
    assert asked(counts=3, seconds="50ms") == ((3,), 1.0, None, 0.05, "", False)
    assert asked(counts=["3", np.int64(4)], share="0.5", price=0, flag=True) == ((3, 4), 0.5, 0.0, 1.0, "", True)
    assert asked(out=Path("here"))[4] == Path("here")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("counts", 0, "counts: 0 is not a whole number of at least 1"),
        ("counts", (2, 2.5), "counts: 2.5 is not a whole number of at least 1"),
        ("counts", True, "counts: True is not a whole number"),
        ("counts", None, "counts: None is not a whole number"),
        ("share", 1.5, "share: 1.5 is not a number above 0 and at most 1"),
        ("price", -1, "price: -1 is not a number of at least 0"),
        ("price", 10**400, "is not a number of at least 0"),
        ("seconds", "soon", "seconds: 'soon' is not a time"),
        ("out", 3, "out: 3 is not text"),
        ("counts", 10**30, "is more than 1,000,000,000"),
        ("price", 1e300, "is not a number of at least 0 and at most 1e+12"),
        ("seconds", 1e300, "is longer than 1e+09 s"),
        ("seed", -1, "seed: -1 is not a whole number from 0 to 4294967295"),
        ("flag", "yes", "flag: 'yes' is not True or False"),
    ],
)
def test_what_is_refused_is_named_with_its_value(asked, option, value, message):
    with pytest.raises(InputError) as caught:
        asked(**{option: value})
    assert message in caught.value.message


class Meeting(nn.Module):
    """Waits a moment, once, for somebody else to call it at the same time."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        with contextlib.suppress(threading.BrokenBarrierError):
            MEETING.wait(0.5)
            MET.append(threading.current_thread().name)
        return self.layer(x)


MEETING, MET = threading.Barrier(2), []


def test_two_verbs_at_once_take_turns(tmp_path):
    """Also those of two studies of one model; it is left as it was."""
    model = Meeting()
    studies = [Study(model, torch.ones(2, 4), store=tmp_path / "history.db") for _ in range(2)]
    threads = [threading.Thread(target=study.profile, kwargs={"seconds": 0.1}) for study in studies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(study.results) for study in studies] == [1, 1]
    assert not MET
    assert model.training
    assert model.layer.training


def test_values_by_name_may_be_numbers():
    """As they are on the command line: texts, which whoever knows what they are reads."""
    study = Study(nn.Linear(4, 4), torch.ones(2, 4))
    with pytest.raises(InputError, match="quota of 'a'|'-1'"):
        study.allocate(rate={"Linear": 5}, p99={"Linear": 0.5}, quota={"a": -1})
    with pytest.raises(InputError, match="job 'a'|'-1'"):
        study.schedule(job={"a": -1})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plan", {"rate": 400}), ("spec", {"rate": 400}), ("bundle", {"rate": 400, "out": "never"}), ("rehearse", {"rate": 400}), ("scale", {"rate": 400}),
        ("search", {}), ("allocate", {"rate": {"Linear": 400}}), ("schedule", {"rate": {"Linear": 400}, "job": {"a": "batch(items=1)"}}),
    ],
)  # fmt: skip
def test_a_bare_p99_of_one_and_more_is_asked_back_by_every_verb(name, options):
    """Nobody is given 20 s who said 20 and meant milliseconds."""
    study = Study(nn.Linear(4, 4), torch.ones(2, 4))
    for given in ({"Linear": 20}, {"Linear": "20"}) if isinstance(options.get("rate"), dict) else (20, 20.0, "20"):
        with pytest.raises(InputError, match=r"20(\.0)?'? could be 20ms or 20s: give it with its unit"):
            getattr(study, name)(p99=given, **options)
    assert not study.results


def test_a_p99_with_its_unit_goes_from_plan_to_spec_and_a_bare_part_of_a_second_stays_one(tmp_path):
    study = Study(nn.Linear(4, 4), torch.ones(2, 4), store=tmp_path / "history.db")
    assert study.plan(rate=2, p99=0.5).target.latency_p99.value == 0.5
    assert study.plan(rate=2, p99="20s").target.latency_p99.value == 20
    assert study.spec().latency_p99_target.value == 20


@pytest.mark.parametrize(
    ("name", "args", "options", "message"),
    [
        ("demand", (), {"devize": "cpu"}, r"^demand\(\) has no argument 'devize'\nhelp: did you mean 'device'\? there are: .*device"),
        (
            "bundle",
            ("digits",),
            {},
            r"^bundle\(\) takes its options by name, and got 'digits' without one\nhelp: write bundle\(out=\.\.\.\); there are: ",
        ),
        ("demand", (8,), {}, r"^demand\(\) takes its options by name, and got 8 without one\nhelp: write demand\(batch=\.\.\.\); there are: batch, "),
        ("trial", ("bf16", 8), {}, r"^trial\(\) takes its options by name, and got 8 without one\nhelp: write trial\(batch=\.\.\.\); there are: technique, "),
        ("trial", ("bf16",), {"technique": "bf16"}, r"^trial\(\): multiple values for argument 'technique'\nhelp: there are: technique, "),
        ("trial", (), {}, r"missing 1 required positional argument: 'technique'"),
    ],
)
def test_an_argument_that_a_verb_does_not_take_is_named_and_what_it_takes(name, args, options, message):
    study = Study(nn.Linear(4, 4), torch.ones(2, 4))
    with pytest.raises(TypeError, match=message):
        getattr(study, name)(*args, **options)
    assert not study.results

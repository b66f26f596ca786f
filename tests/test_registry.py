"""Families: found by their folder, one name once, unknown names answered with the known."""

import sys

import pytest

from aimass_lab.compression.base import TECHNIQUES
from aimass_lab.errors import OTHER_WORDS, UnknownNameError
from aimass_lab.export import EXPORTERS
from aimass_lab.export.jobs import JOB_EXPORTERS
from aimass_lab.frontends.arguments import all_verbs
from aimass_lab.registry import Registry
from aimass_lab.samplers.base import SAMPLERS
from aimass_lab.scaling.base import SCALERS
from aimass_lab.scheduling.base import POLICIES


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    folder = tmp_path / "shapes_family"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "base.py").write_text("from aimass_lab.registry import Registry\nSHAPES = Registry('shape', 'shapes_family')\n")
    (folder / "round.py").write_text("from .base import SHAPES\n@SHAPES.register('round')\ndef f(): return 'o'\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [n for n in sys.modules if n.startswith("shapes_family")]:
        del sys.modules[name]


def test_adding_a_member_is_adding_a_file(shapes):
    (shapes / "square.py").write_text("from .base import SHAPES\n@SHAPES.register('square')\ndef f(): return '#'\n")
    from shapes_family.base import SHAPES

    assert list(SHAPES) == ["round", "square"]
    assert SHAPES["square"]() == "#"


def test_a_second_member_of_the_same_name_is_refused(shapes):
    (shapes / "wheel.py").write_text("from .base import SHAPES\n@SHAPES.register('round')\ndef f(): return '@'\n")
    from shapes_family.base import SHAPES

    with pytest.raises(ValueError, match="two shapes are called 'round'"):
        list(SHAPES)


def test_an_unknown_name_is_answered_with_the_known(shapes):
    from shapes_family.base import SHAPES

    with pytest.raises(UnknownNameError) as caught:
        SHAPES["rond"]
    assert "no shape called 'rond'" in str(caught.value)
    assert "did you mean 'round'?" in str(caught.value)


@pytest.mark.parametrize(("name", "near"), [("L4", "l4"), ("int8", "int8_dynamic"), ("Profile", "profile")])
def test_a_name_in_other_letters_or_begun_is_answered_with_the_nearest(name, near):
    assert f"did you mean {near!r}?" in str(UnknownNameError("thing", name, ["bf16", "int8_dynamic", "int8_static", "l4", "profile"]))


@pytest.mark.parametrize(("family", "said", "meant"), [(EXPORTERS, "k8s", "kubernetes"), (TECHNIQUES, "prune", "channel_pruning")])
def test_what_people_call_it_elsewhere_is_answered_with_our_name(family, said, meant):
    with pytest.raises(UnknownNameError, match=f"did you mean '{meant}'"):
        family[said]


def test_every_other_word_leads_to_a_name_that_there_is():
    names = {*(verb.name for verb in all_verbs()), *EXPORTERS, *TECHNIQUES}
    assert set(OTHER_WORDS.values()) <= names
    assert not names & set(OTHER_WORDS)


@pytest.mark.parametrize("family", [TECHNIQUES, EXPORTERS, JOB_EXPORTERS, SAMPLERS, SCALERS, POLICIES], ids=lambda family: family.kind)
def test_every_family_of_ours_has_members(family: Registry):
    assert len(family) >= 2
    assert all(family[name] for name in family)


def test_a_family_that_was_found_by_half_is_found_again(shapes):
    """As an interrupt leaves it, or another thread that asks meanwhile finds it."""
    (shapes / "square.py").write_text("import sys\nif not vars(sys).pop('interrupted', False):\n    sys.interrupted = True\n    raise KeyboardInterrupt\n"
                                      "from .base import SHAPES\n@SHAPES.register('square')\ndef f(): return '#'\n")  # fmt: skip
    from shapes_family.base import SHAPES

    with pytest.raises(KeyboardInterrupt):
        list(SHAPES)
    assert list(SHAPES) == ["round", "square"]

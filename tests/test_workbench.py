"""The kernel's side of the workbench: what its views say of themselves, and what they are sent."""

import re
from typing import get_args

from aimass_lab.frontends.widgets import source
from aimass_lab.frontends.widgets.facts.base import FACTS
from aimass_lab.records import RECORDS
from aimass_lab.study.showing import View


def said(view, what):
    """What a view's module says of itself, as source.py reads it."""
    (found,) = re.findall(rf"^  {what}: (.*),$", source._read(view), re.M)
    return re.findall(r'"([^"]*)"', found)


def test_the_verb_knows_every_view_and_no_other():
    assert tuple(name for view in source.VIEWS for name in said(view, "name")) == get_args(View)


def test_views_draw_records_and_facts_that_there_are():
    tags = {str(kind.__struct_config__.tag) for kind in RECORDS}
    assert set(source.shown_kinds()) <= tags
    for view in source.VIEWS:
        assert said(view, "kinds"), f"{view} draws no record, so a picture would never hold it"
        assert set(said(view, "facts")) <= set(FACTS)
    assert {fact for view in source.VIEWS for fact in said(view, "facts")} == set(FACTS)


def test_the_program_is_one_text_in_which_nothing_is_imported():
    assert not re.findall(r"^\s*import ", source.script(), re.M)
    for view in source.VIEWS:
        assert f"const ${view.removesuffix('.js')} = " in source.script()

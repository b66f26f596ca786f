"""Turns a result into text for terminals and into HTML for notebooks; both say the same."""

from __future__ import annotations

from dataclasses import replace
from html import escape

from ..headlines import format_interval, format_number
from ..records import Number, Record
from ..units import format_share
from .layouts import lay_out
from .page import Cell, Page, Share, Table, number_in

STYLE = """
.aimass{--good:#1a7f37;--bad:#c62828;--warn:#9a6700;font-family:var(--jp-ui-font-family,system-ui,sans-serif);font-size:13px;line-height:1.45;
color:var(--jp-ui-font-color1,inherit);max-width:60rem}
.aimass h4{margin:.1rem 0 .3rem;font-size:1.05em;font-weight:600}
.aimass .lead{margin:.1rem 0 .6rem;padding:.35rem .6rem;border-left:3px solid currentColor;background:var(--jp-layout-color2,rgba(128,128,128,.12))}
.aimass .good{border-left-color:var(--good)}.aimass .bad{border-left-color:var(--bad)}.aimass .warn{border-left-color:var(--warn)}
.aimass table{border-collapse:collapse;margin:.2rem 0 .7rem;font-size:12px;color:inherit}
.aimass th,.aimass td{text-align:left!important;padding:.12rem .7rem .12rem 0;border:0;white-space:nowrap;vertical-align:baseline}
.aimass th{font-weight:600;color:var(--jp-ui-font-color2,inherit)}
.aimass tbody tr{background:transparent!important}
.aimass td.wide{white-space:normal;min-width:16rem}
.aimass .num{font-variant-numeric:tabular-nums}
.aimass th.num,.aimass td.num{text-align:right!important}
.aimass caption{text-align:left;font-weight:600;white-space:nowrap;color:var(--jp-ui-font-color1,inherit)}
.aimass .band{color:var(--jp-ui-font-color2,inherit);font-size:.92em;white-space:nowrap}
.aimass .src{font-size:.82em;padding:0 .3em;border-radius:3px;border:1px solid currentColor;margin-left:.1em;white-space:nowrap;
color:var(--jp-ui-font-color2,inherit)}
.aimass .bar{display:inline-block;height:.65em;background:var(--jp-brand-color1,#1976d2);margin-right:.4em;vertical-align:baseline}
.aimass .facts{columns:2 22rem;column-gap:2.5rem;margin:0 0 .6rem!important;padding:0!important;list-style:none}
.aimass .facts li{break-inside:avoid;display:flex;gap:.8rem;justify-content:space-between;margin:0;
border-bottom:1px solid var(--jp-border-color2,rgba(128,128,128,.25));padding:.1rem 0}
.aimass .facts .name{color:var(--jp-ui-font-color2,inherit);white-space:nowrap}
.aimass .facts .value{text-align:right;overflow-wrap:anywhere}
.aimass .facts .figure{white-space:nowrap}
.aimass .remarks{margin:.2rem 0 .5rem!important;padding:0!important;list-style:none}
.aimass .remarks li{margin:.15rem 0!important;padding-left:.6rem;border-left:3px solid var(--jp-border-color2,rgba(128,128,128,.25))}
.aimass .wide-table{overflow-x:auto}
.aimass td:is(.good,.bad,.warn){font-weight:600}.aimass td.good{color:var(--good)}.aimass td.bad{color:var(--bad)}.aimass td.warn{color:var(--warn)}
.aimass summary{cursor:pointer;font-weight:600;font-size:12px;margin:.1rem 0 .3rem}
.aimass pre{font-size:11.5px;max-height:22rem;overflow:auto;background:var(--jp-layout-color2,rgba(128,128,128,.12));padding:.5rem}
.aimass .note{color:var(--jp-ui-font-color2,inherit);overflow-wrap:anywhere}.aimass .doubt{color:var(--warn)}.aimass .wrong{color:var(--bad)}
.aimass .note b{font-weight:600}
[data-jp-theme-light=false] .aimass{--good:#57ab5a;--bad:#f47067;--warn:#d4a72c}
"""

LONGEST_LINE = 36
"""Of a cell's text, in characters; what is longer runs over several lines."""

_TONES = {"PASS": "good", "FAIL": "bad", "NOT JUDGED": "warn", "W-": "warn", "E-": "bad"}
_NOTES = {"W-": " doubt", "E-": " wrong"}
_SOURCE_WORDS = {"user": "given", "measured": "measured", "estimated": "predicted", "datasheet": "datasheet", "assumed": "assumed"}


def source_word(number: Number) -> str:
    """How far a number can be trusted, in one word; a derived one is called by its weakest input."""
    return _SOURCE_WORDS[number.weakest_source] + {"ok": "", "noisy": ", noisy", "extrapolated": ", extrapolated"}[number.quality]


def render_text(record: Record) -> str:
    """Lay `record` out for a terminal."""
    return page_text(lay_out(record))


def render_plain(record: Record) -> str:
    """What a command prints: files as they are, so that they can be piped on; else the same as `render_text`."""
    listing = lay_out(record).listing
    return "\n---\n".join(text.rstrip() for _, text in listing) if listing else render_text(record)


def render_html(record: Record) -> str:
    """Lay `record` out for a notebook: self-contained, no script, follows JupyterLab's theme."""
    return page_html(lay_out(record))


# --- text --------------------------------------------------------------------------------


def page_text(page: Page) -> str:
    """A page for a terminal."""
    blocks = [f"{page.title}\n{page.headline}"]
    facts = [(name, _text_fact(value)) for name, value in page.facts if value is not None]
    if facts:
        width = max(len(name) for name, _ in facts)
        blocks.append("\n".join(f"  {name:<{width}}  {value}" for name, value in facts))
    blocks += [_text_table(table) for table in page.tables if table.rows]
    if page.remarks:
        blocks.append("\n".join(page.remarks))
    if page.notes:
        blocks.append("\n".join(f"{code}: {text}" for code, text in page.notes))
    blocks += [f"# {name}\n{text.rstrip()}" for name, text in page.listing]
    return "\n\n".join(blocks)


def _text_fact(value: Cell) -> str:
    if number := number_in(value):
        return "  ".join(part for part in (_cell(value), _band(value), source_word(number)) if part)
    return str(value)


def _cell(value: Cell) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Number):
        return format_number(value)
    if isinstance(value, Share):
        return format_share(value.number.value)
    return "–" if value is None else str(value)


def _band(value: Cell) -> str:
    """``[11.9, 12.8] ms``, ``[4.1, 5.0] %``; nothing where there is no interval, or one without a width."""
    number = number_in(value)
    if number is None or number.interval is None or number.interval[0] == number.interval[1]:
        return ""
    if isinstance(value, Share):
        low, high = (format_share(end).removesuffix(" %") for end in number.interval)
        return f"[{low}, {high}] %"
    return format_interval(number)


def _without_empty(table: Table) -> Table:
    """Without columns that no row fills."""
    kept = [i for i in range(len(table.columns)) if any(row[i] is not None for row in table.rows)]
    return replace(
        table,
        columns=tuple(table.columns[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in table.rows),
        bar=kept.index(table.bar) if table.bar in kept else None,
    )


def _text_table(table: Table) -> str:
    table = _without_empty(table)
    grid = [list(table.columns), *(list(map(_cell, row)) for row in table.rows)]
    widths = [max(len(row[i]) for row in grid) for i in range(len(table.columns))]
    lines = ["  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in grid]
    return f"{table.title}\n" + "\n".join(lines)


# --- HTML --------------------------------------------------------------------------------


def page_html(page: Page) -> str:
    """A page for a notebook."""
    parts = [f"<h4>{escape(page.title)}</h4>", f'<div class="lead {page.tone}">{escape(page.headline)}</div>']
    facts = [
        f'<li><span class="name">{_html_label(name)}</span><span class="value">{_html_fact(value)}</span></li>'
        for name, value in page.facts
        if value is not None
    ]
    if facts:
        parts.append(f'<ul class="facts">{"".join(facts)}</ul>')
    parts += [_html_table(table) for table in page.tables if table.rows]
    if page.remarks:
        parts.append(f'<ul class="remarks">{"".join(f"<li>{escape(remark)}</li>" for remark in page.remarks)}</ul>')
    parts += [f'<div class="note{_NOTES.get(code[:2], "")}"><b>{escape(code)}</b>: {escape(text)}</div>' for code, text in page.notes]
    parts += [f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>" for name, text in page.listing]
    return f'<div class="aimass"><style>{STYLE}</style>{"".join(parts)}</div>'


def _html_label(name: str) -> str:
    indented = name.startswith("  ")
    return ("&emsp;" if indented else "") + escape(name.strip())


def _html_fact(value: Cell) -> str:
    number = number_in(value)
    if number is None:
        return escape(str(value))
    parts = (("figure", _cell(value)), ("band", _band(value)), ("src", source_word(number)))
    spans = " ".join(f'<span class="{kind}">{escape(text)}</span>' for kind, text in parts if text)
    return f'<span title="{escape(_provenance(value, number))}">{spans}</span>'


def _html_cell(value: Cell, right: bool, bar: bool) -> str:
    text, number = _cell(value), number_in(value)
    kind = "num" if right else "wide" if len(text) > LONGEST_LINE else _tone(text)
    attributes = f' class="{kind}"' if kind else ""
    if number is None:
        return f"<td{attributes}>{escape(text)}</td>"
    drawn = f'<span class="bar" style="width:{60 * max(0.0, min(1.0, number.value)):.1f}px"></span>' if bar else ""
    return f'<td{attributes} title="{escape(_provenance(value, number))}">{drawn}{escape(text)}</td>'


def _html_table(table: Table) -> str:
    """Columns of numbers stand to the right, so that their digits do; bars begin at the left."""
    table = _without_empty(table)
    right = [i != table.bar and _holds_numbers([row[i] for row in table.rows]) for i in range(len(table.columns))]
    head = "".join(f"<th{' class=num' if right[i] else ''}>{escape(column)}</th>" for i, column in enumerate(table.columns))
    rows = "".join("<tr>" + "".join(_html_cell(cell, right[i], i == table.bar) for i, cell in enumerate(row)) + "</tr>" for row in table.rows)
    caption = "" if table.folded else f"<caption>{escape(table.title)}</caption>"
    grid = f'<div class="wide-table"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return f"<details><summary>{escape(table.title)}</summary>{grid}</details>" if table.folded else grid


def _tone(text: str) -> str:
    """Of a verdict, or of the code of a finding: the same colours as in the workbench."""
    return _TONES.get(text) or _TONES.get(text[:2] if text.isupper() else "", "")


def _holds_numbers(cells: list[Cell]) -> bool:
    return any(isinstance(cell, Number | Share | int) for cell in cells) and not any(isinstance(cell, str) and cell for cell in cells)


def _provenance(value: Cell, number: Number) -> str:
    parts = [f"{source_word(number)}: {number.method}"]
    if number.interval and number.interval_kind:
        parts.append(f"{_band(value)} is the {number.interval_kind}")
    if number.n:
        parts.append(f"n = {number.n}")
    if number.environment:
        parts.append(f"environment {number.environment}")
    return "; ".join(parts)

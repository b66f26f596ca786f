"""Turns a result into text for terminals and into HTML for notebooks; both say the same."""

from __future__ import annotations

from html import escape

from ..headlines import format_interval, format_number
from ..records import Number, Record
from .layouts import lay_out
from .page import Cell, Page, Table

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
.aimass td.num{font-variant-numeric:tabular-nums}
.aimass .band{color:var(--jp-ui-font-color2,inherit);font-size:.92em;white-space:nowrap}
.aimass .src{font-size:.82em;padding:0 .3em;border-radius:3px;border:1px solid currentColor;margin-left:.35em;white-space:nowrap;
color:var(--jp-ui-font-color2,inherit)}
.aimass .bar{display:inline-block;height:.65em;background:var(--jp-brand-color1,#1976d2);margin-right:.4em;vertical-align:baseline}
.aimass .facts{columns:2;column-gap:2.5rem;margin:0 0 .6rem!important;padding:0!important;list-style:none}
.aimass .facts li{break-inside:avoid;display:flex;gap:.8rem;justify-content:space-between;margin:0;
border-bottom:1px solid var(--jp-border-color2,rgba(128,128,128,.25));padding:.1rem 0}
.aimass .facts .name{color:var(--jp-ui-font-color2,inherit);white-space:nowrap}
.aimass .facts .value{text-align:right;overflow-wrap:anywhere}
.aimass .wide-table{overflow-x:auto}
.aimass summary{cursor:pointer;font-weight:600;font-size:12px;margin:.1rem 0 .3rem}
.aimass pre{font-size:11.5px;max-height:22rem;overflow:auto;background:var(--jp-layout-color2,rgba(128,128,128,.12));padding:.5rem}
.aimass .note{color:var(--jp-ui-font-color2,inherit)}.aimass .doubt{color:var(--warn)}
[data-jp-theme-light=false] .aimass{--good:#57ab5a;--bad:#f47067;--warn:#d4a72c}
@media (max-width:50rem){.aimass .facts{columns:1}}
"""

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
    if isinstance(value, Number):
        parts = [format_number(value), format_interval(value), source_word(value)]
        return "  ".join(part for part in parts if part)
    return str(value)


def _text_cell(value: Cell) -> str:
    if isinstance(value, Number):
        return format_number(value)
    return "–" if value is None else str(value)


def _text_table(table: Table) -> str:
    grid = [list(table.columns), *([_text_cell(cell) for cell in row] for row in table.rows)]
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
    parts += [f"<div>{escape(remark)}</div>" for remark in page.remarks]
    parts += [f'<div class="note{" doubt" if code.startswith(("W-", "E-")) else ""}">{escape(code)}: {escape(text)}</div>' for code, text in page.notes]
    parts += [f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>" for name, text in page.listing]
    return f'<div class="aimass"><style>{STYLE}</style>{"".join(parts)}</div>'


def _html_label(name: str) -> str:
    indented = name.startswith("  ")
    return ("&emsp;" if indented else "") + escape(name.strip())


def _html_fact(value: Cell) -> str:
    if not isinstance(value, Number):
        return escape(str(value))
    band = format_interval(value)
    band_html = f' <span class="band">{escape(band)}</span>' if band else ""
    return f'<span title="{escape(_provenance(value))}">{escape(format_number(value))}{band_html}<span class="src">{escape(source_word(value))}</span></span>'


def _html_cell(value: Cell, bar: bool) -> str:
    if isinstance(value, Number):
        drawn = f'<span class="bar" style="width:{60 * max(0.0, min(1.0, value.value)):.1f}px"></span>' if bar else ""
        return f'<td class="num" title="{escape(_provenance(value))}">{drawn}{escape(format_number(value))}</td>'
    text = "–" if value is None else str(value)
    return f"<td{' class=wide' if len(text) > 60 else ''}>{escape(text)}</td>"


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join("<tr>" + "".join(_html_cell(cell, i == table.bar) for i, cell in enumerate(row)) + "</tr>" for row in table.rows)
    caption = "" if table.folded else f"<caption style='text-align:left;font-weight:600'>{escape(table.title)}</caption>"
    grid = f'<div class="wide-table"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return f"<details><summary>{escape(table.title)}</summary>{grid}</details>" if table.folded else grid


def _provenance(number: Number) -> str:
    parts = [f"{source_word(number)}: {number.method}"]
    if number.interval and number.interval_kind:
        parts.append(f"{format_interval(number)} is the {number.interval_kind}")
    if number.n:
        parts.append(f"n = {number.n}")
    if number.environment:
        parts.append(f"environment {number.environment}")
    return "; ".join(parts)

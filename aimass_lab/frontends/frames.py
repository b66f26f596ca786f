"""The tables of a record as pandas data frames, to go on computing with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InputError
from ..records import Number, Record
from .layouts import lay_out
from .page import Cell, Share, number_in

if TYPE_CHECKING:
    from pandas import DataFrame


def to_frames(record: Record) -> dict[str, DataFrame]:
    """Every table that is shown of `record`, by its title; numbers in SI units, the unit in the column's name.

    Raises:
        InputError: the record has no table.
    """
    from pandas import DataFrame

    frames = {}
    for table in lay_out(record).tables:
        units = [next((number.unit for row in table.rows if (number := number_in(row[i]))), None) for i in range(len(table.columns))]
        names = [f"{column} ({unit})" if unit else column for column, unit in zip(table.columns, units, strict=True)]
        frames[table.title] = DataFrame([[_plain(cell) for cell in row] for row in table.rows], columns=names)
    if not frames:
        raise InputError(f"a {type(record).__name__} has no table", help="its fields are numbers: record.latency_p99.value")
    return frames


def _plain(cell: Cell) -> str | float | None:
    if isinstance(cell, Share):
        return cell.number.value
    return cell.value if isinstance(cell, Number) else cell

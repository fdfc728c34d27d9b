"""Printing of rows: a table for people, JSON for programs."""

import json
from collections.abc import Mapping, Sequence

import click

Value = str | int | float | bool | None | Sequence["Value"] | Mapping[str, "Value"]
Row = dict[str, Value]


def print_rows(rows: Sequence[Row], columns: Sequence[str], as_json: bool) -> None:
    """Print `columns` of rows as a table, or whole rows as JSON."""
    if as_json:
        print_json(rows)
    else:
        click.echo(table(rows, columns))


def print_json(value: object) -> None:
    """Print a value as JSON, two spaces a level."""
    click.echo(json.dumps(value, indent=2))


def table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Format `columns` of rows as aligned text with a heading; a missing value is a dash."""
    lines = [list(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def facts(row: Row) -> str:
    """Format one row as a line for each value; a missing value is a dash."""
    width = max(len(name) for name in row)
    return "\n".join(f"{name.ljust(width)}  {_cell(value)}" for name, value in row.items())


def _cell(value: Value) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)

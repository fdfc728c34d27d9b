"""Printing of rows: a table for people, JSON for programs, CSV for spreadsheets."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import click

Value = str | int | float | bool | None | Sequence["Value"] | Mapping[str, "Value"]
Row = dict[str, Value]
Form = Literal["json", "csv"] | None  # None: a table

_Command = TypeVar("_Command", bound=Callable[..., Any])


def listing(command: _Command) -> _Command:
    """Give a command that prints rows its options --json and --csv; they come as `form`."""
    for form, words in (("csv", "Print CSV, with a heading."), ("json", "Print JSON.")):
        command = click.option(f"--{form}", "form", flag_value=form, help=words)(command)
    return command


def print_rows(rows: Sequence[Row], columns: Sequence[str], form: Form) -> None:
    """Print `columns` of rows as a table, or whole rows as JSON or CSV."""
    if form == "json":
        print_json(rows)
    elif form == "csv":
        click.echo(comma_separated(rows, columns), nl=False)
    else:
        click.echo(table(rows, columns))


def comma_separated(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Format whole rows as CSV (RFC 4180 with line feeds): `columns` first; a list or a mapping is JSON text."""
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([_csv_cell(row.get(name)) for name in names])
    return text.getvalue()


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


def printable(text: str) -> str:
    """Escape what is no visible character: a reason with a line feed must not look like a row of its own."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _cell(value: Value) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    return printable(",".join(map(str, value)) if isinstance(value, list) else str(value))


def _csv_cell(value: Value) -> Value:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value

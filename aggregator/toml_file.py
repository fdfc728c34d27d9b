"""TOML files become typed values, and a mistake in one becomes one sentence.

msgspec checks types and bounds; both stand in the annotations of the target type, a Struct or a dataclass. Its own
sentences name neither the file, nor the value, nor the nearest known key, so `from_table` writes better ones.
"""

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog
from msgspec import inspect

from aggregator.errors import AggregatorError

log = structlog.get_logger()

T = TypeVar("T")
Table = dict[str, object]

# "Expected `int` >= 1 - at `$.driver.threads`": the path is missing for a mistake in the top-level table itself.
_MESSAGE = re.compile(r"(?P<complaint>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_TOML_NAMES = {"object": "a table", "array": "a list"}  # msgspec names types as JSON does


def read_toml(path: Path, if_missing: str, refusal: type[AggregatorError]) -> Table:
    """Parse a TOML file.

    Args:
        path: The file.
        if_missing: The sentence for a file that does not exist.
        refusal: The error to raise.

    Raises:
        AggregatorError: Of the class `refusal`, if there is no such file or it is no TOML in UTF-8.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise refusal(if_missing) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise refusal(f"{path} is no TOML: {error}") from None


def rename_old_keys(table: Table, renamed: Mapping[str, str], where: str, refusal: type[AggregatorError]) -> None:
    """Move values that stand under the key of an earlier version to the key of today, in place, with a warning.

    Args:
        table: The parsed file.
        renamed: Old key to new key, both of one table; dots separate table and key.
        where: The file, for the warning and the refusal.
        refusal: The error to raise.

    Raises:
        AggregatorError: Of the class `refusal`, if a table holds both keys, because one value would be lost.
    """
    for old, new in renamed.items():
        *sections, old_key = old.split(".")
        new_key = new.rpartition(".")[2]
        owner: object = table
        for section in sections:
            owner = owner.get(section) if isinstance(owner, dict) else None
        if not isinstance(owner, dict) or old_key not in owner:
            continue
        if new_key in owner:  # neither of two values may win silently
            raise refusal(f"{where}: {old!r} is the old name of {new!r}, and both are there; remove {old!r}")
        owner[new_key] = owner.pop(old_key)
        log.warning("old key accepted", file=where, key=old, write_instead=new)


def from_table(
    kind: type[T],
    table: Table,
    where: str,
    refusal: type[AggregatorError],
    given: Mapping[str, object] | None = None,
) -> T:
    """Build a Struct or dataclass, nested ones included, from a TOML table; absent keys take their defaults.

    An integer is taken where a float is expected; nothing else is converted.

    Args:
        kind: The type to build.
        table: The parsed file.
        where: The file, for the refusals.
        refusal: The error to raise.
        given: Values that the program supplies and the file must not, by key or table.key. They are passed as they are.

    Raises:
        AggregatorError: Of the class `refusal`, naming `where` and the key, for a key that is unknown (with the nearest
            known one) or missing, a value of another type, or a value out of its bounds.
    """
    supplied = given or {}
    _refuse_unknown_keys(inspect.type_info(kind), table, "", where, refusal, supplied.keys())
    values = dict(table)
    for path, value in supplied.items():
        section, _, key = path.rpartition(".")
        nested = values.get(section, {})
        if not section:
            values[key] = value
        elif isinstance(nested, dict):  # else msgspec refuses it below
            values[section] = nested | {key: value}
    try:
        return msgspec.convert(values, kind, builtin_types=(bytes,), dec_hook=_convert_path)
    except msgspec.ValidationError as error:
        raise refusal(f"{where}: {_sentence(error, kind, values)}") from None


def present(kind: inspect.Type) -> inspect.Type:
    """Return the type of a table that may be absent; any other type as it is."""
    if isinstance(kind, inspect.UnionType):
        tables = [kind for kind in kind.types if isinstance(kind, inspect.StructType | inspect.DataclassType)]
        return tables[0] if len(tables) == 1 else kind
    return kind


def nearest(name: str, known: Collection[str]) -> str:
    """Describe the known names for a misspelt one: '; did you mean ...?', or else the list of all."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(sorted(known))}"


def _convert_path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"Expected `str`, got `{type(value).__name__}`")


def _refuse_unknown_keys(
    kind: inspect.Type, table: object, path: str, where: str, refusal: type[AggregatorError], given: Collection[str]
) -> None:
    # msgspec itself can refuse unknown keys of a Struct, but ignores those of a dataclass, whatever they are.
    kind = present(kind)
    if not isinstance(kind, inspect.StructType | inspect.DataclassType) or not isinstance(table, dict):
        return
    fields = {field.name: field.type for field in kind.fields if f"{path}{field.name}" not in given}
    for key, value in table.items():
        if key not in fields:
            place = f"{where}: {path[:-1]}" if path else where
            raise refusal(f"{place}: unknown key {key!r}{nearest(key, fields)}")
        _refuse_unknown_keys(fields[key], value, f"{path}{key}.", where, refusal, given)


def _sentence(error: msgspec.ValidationError, kind: type, values: Table) -> str:
    """Write what msgspec found wrong as one sentence with the key, what was expected and what was there."""
    match = _MESSAGE.fullmatch(str(error))
    # Both groups of the pattern may be empty, so it matches every text.
    assert match is not None
    complaint, path = match["complaint"], match["path"] or ""
    missing = re.fullmatch(r"Object missing required field `(\w+)`", complaint)
    if missing:
        return f"{path}: {missing[1]!r} is missing" if path else f"{missing[1]!r} is missing"
    if isinstance(error.__cause__, ValueError):  # of a Struct's own __post_init__, which begins with the field's name
        return f"{path}.{complaint}"
    expected, value = _at(inspect.type_info(kind), values, path)
    mismatch = re.fullmatch(r"Expected `([^`]+)`, got `([^`]+)`", complaint)
    if mismatch:
        wanted = _TOML_NAMES.get(mismatch[1], mismatch[1])
        shown = f" {value!r}" if isinstance(value, str | int | float) else ""
        return f"{path}: expected {wanted}, got {type(value).__name__}{shown}"
    if isinstance(expected, inspect.EnumType):
        return f"{path}: expected one of {', '.join(member.value for member in expected.cls)}, got {value!r}"
    if isinstance(expected, inspect.IntType | inspect.FloatType):
        return f"{path}: expected {expected.ge}..{expected.le}, got {value}"
    return f"{path}: {complaint}, got {value!r}"


def _at(kind: inspect.Type, value: object, path: str) -> tuple[inspect.Type, object]:
    """Follow a path such as `metrics[0]` or `driver.threads` to the type and the value that stand there."""
    # An item of a list has an index in the path, an entry of a table its key.
    for name, index in re.findall(r"(\w+)|\[(\d+)\]", path):
        kind = present(kind)
        if index and isinstance(kind, inspect.VarTupleType | inspect.CollectionType) and isinstance(value, list):
            kind, value = kind.item_type, value[int(index)]
        elif name and isinstance(kind, inspect.StructType | inspect.DataclassType) and isinstance(value, dict):
            kind, value = next(field.type for field in kind.fields if field.name == name), value[name]
    return kind, value

"""Settings in TOML: one dataclass a file, one a section, read strictly, every mistake one sentence.

Types and bounds stand beside the fields, and msgspec checks them. An unknown key is refused with the nearest known one:
a mistyped key would otherwise keep its default silently, such as a limit that the hospital believes to be set.
"""

import difflib
import re
import tomllib
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec
from msgspec import inspect

from site_client.errors import ConfigRefused

_T = TypeVar("_T")


def read_text(path: Path) -> str:
    """Read a file of settings.

    Raises:
        ConfigRefused: The file cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigRefused(f"{path} cannot be read ({error.strerror}); give the file with --config") from error
    except UnicodeDecodeError:
        raise ConfigRefused(f"{path} is not UTF-8; save it as UTF-8") from None


def parse_settings(
    kind: type[_T],
    text: str,
    base: Path,
    file: str,
    *,
    translate: Callable[[dict[str, Any]], None] = lambda table: None,
) -> _T:
    """Read and check settings.

    Args:
        kind: The dataclass of the whole file. Its fields that are dataclasses are sections.
        text: TOML.
        base: The folder that relative paths start from.
        file: The file's name, for the message.
        translate: Rewrites spellings of older versions in the table, before keys and values are checked.

    Raises:
        ConfigRefused: The text cannot be used. The message names the key, what was expected and what was there.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigRefused(f"{file} is not TOML: {error}") from error
    translate(table)
    _refuse_unknown_keys(kind, table, file)
    for item in fields(kind):  # type: ignore[arg-type]  # the kind of a file is a dataclass
        if item.name not in table and item.default is MISSING and item.default_factory is MISSING:
            raise ConfigRefused(f"{file}: {item.name} is missing; deploy/{file} shows every key")
    try:
        return msgspec.convert(table, kind, dec_hook=lambda _kind, value: base / value)  # only paths need it
    except msgspec.ValidationError as error:
        raise _refusal(error, table, kind, file) from None  # msgspec's own message may repeat a password


def _refuse_unknown_keys(kind: type, table: dict[str, Any], file: str, prefix: str = "") -> None:
    """Refuse a key that `kind` does not have; msgspec would ignore it."""
    sections = get_type_hints(kind)
    for key, value in table.items():
        if key not in sections:
            nearest = difflib.get_close_matches(key, sections, n=1, cutoff=0.0)[0]
            raise ConfigRefused(f"{file}: {prefix}{key} is unknown; nearest is {prefix}{nearest}")
        if isinstance(value, dict) and is_dataclass(sections[key]):
            # A section's type is the class itself, which get_type_hints has resolved.
            _refuse_unknown_keys(sections[key], value, file, f"{key}.")


def _refusal(error: msgspec.ValidationError, table: dict[str, Any], kind: Any, file: str) -> ConfigRefused:
    """Return the sentence about a value of the wrong type or out of range."""
    path = re.search(r"`\$\.([a-z_.]+)", str(error))
    # Every key of the settings is lower case, and the top of a TOML document is a table: the error is below it.
    assert path is not None
    value: Any = table
    is_secret = False
    for name in path[1].rstrip(".").split("."):
        is_secret = next(not item.repr for item in fields(kind) if item.name == name)
        kind, value = get_type_hints(kind, include_extras=True)[name], value[name]
    if is_dataclass(kind):  # what stands in its place may hold the proxy's password: it is not repeated
        return ConfigRefused(f"{file}: {path[1]} is a table, [{path[1]}]")
    got = "" if is_secret else f", got {value!r}"
    return ConfigRefused(f"{file}: {path[1]} is {_expected(inspect.type_info(kind))}{got}")


def _expected(info: inspect.Type) -> str:
    """Return the expectation of a type, in words for a person."""
    match info:
        case inspect.IntType():
            return f"a whole number from {info.ge} to {info.le}"
        case inspect.FloatType():
            return f"a number from {info.ge:g} to {info.le:g}"
        case inspect.LiteralType():
            return f"one of {', '.join(map(str, info.values))}"
        case inspect.EnumType():
            return f"one of {', '.join(info.cls)}"
        case inspect.VarTupleType():
            return f"a list, each item {_expected(info.item_type)}"
        case inspect.BoolType():
            return "true or false"
        case inspect.DictType():
            return f"a table, each value {_expected(info.value_type)}"
        case inspect.CustomType():
            return "a path"
    return "text"

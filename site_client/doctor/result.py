"""What a check says: one line. No patient value, no secret, no path of an image can be in it."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TypeAlias


class Color(StrEnum):
    GREEN = "green"
    RED = "red"
    GREY = "grey"  # not looked at; `found` says why


@dataclass(frozen=True)
class CheckResult:
    """One check. `fix` is what a person here has to do; empty unless red, or grey with something to be had.

    local: the words quote what others wrote (a file's name, an issuer); they are shown here and kept out of a bundle.
    """

    check: str
    color: Color
    found: str
    fix: str = ""
    local: bool = False


Check: TypeAlias = Callable[[], Iterable[CheckResult]]


def green(check: str, found: str) -> CheckResult:
    return CheckResult(check, Color.GREEN, found)


def red(check: str, found: str, fix: str, *, local: bool = False) -> CheckResult:
    return CheckResult(check, Color.RED, found, fix, local)


def grey(check: str, why: str, fix: str = "") -> CheckResult:
    return CheckResult(check, Color.GREY, why, fix)


def carry_out(checks: dict[str, Check]) -> Iterator[CheckResult]:
    """Every line of every check. One that fails in a way nobody foresaw is red and stops no other; the exception's
    text stays out, for it may hold anything."""
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:
            yield red(name, f"the check itself failed ({type(error).__name__})", "Report it, with the bundle")


def to_json_line(line: CheckResult) -> str:
    return json.dumps(asdict(line))


def from_json_line(text: str) -> CheckResult:
    """Errors: ValueError, TypeError, KeyError when it is not such a line."""
    record = json.loads(text)
    return CheckResult(record["check"], Color(record["color"]), record["found"], record["fix"], record["local"])

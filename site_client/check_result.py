"""The result of a check: one line. It holds no patient value, no secret and no path of an image."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from site_client.typed_json import decode, encode


class Color(StrEnum):
    """The verdict of a check."""

    GREEN = "green"
    AMBER = "amber"  # works now, and needs a person all the same
    RED = "red"
    GREY = "grey"  # not checked; `found` holds the reason


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        check: Its name.
        color: Its verdict.
        found: The fact, in words.
        fix: What a person here has to do; empty for green.
        local: The words quote text of others (a file's name, an issuer): shown here, kept out of a bundle.
    """

    check: str
    color: Color
    found: str
    fix: str = ""
    local: bool = False


Check: TypeAlias = Callable[[], Iterable[CheckResult]]


def green(check: str, found: str) -> CheckResult:
    """Return a passed check."""
    return CheckResult(check, Color.GREEN, found)


def amber(check: str, found: str, fix: str) -> CheckResult:
    """Return a check that passed, and will fail or mislead unless a person does something."""
    return CheckResult(check, Color.AMBER, found, fix)


def red(check: str, found: str, fix: str, *, local: bool = False) -> CheckResult:
    """Return a failed check."""
    return CheckResult(check, Color.RED, found, fix, local)


def grey(check: str, reason: str, fix: str = "") -> CheckResult:
    """Return a check that was not made."""
    return CheckResult(check, Color.GREY, reason, fix)


def carry_out(checks: dict[str, Check]) -> Iterator[CheckResult]:
    """Yield every result of every check.

    A check that raises is red and stops no other. The exception's text stays out: it may quote a file of the export.
    """
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:
            yield red(name, f"the check itself failed ({type(error).__name__})", "Report it, with the bundle")


def to_json_line(result: CheckResult) -> str:
    """Return the result as one line of JSON, from a half to the command."""
    return encode(result).decode()


def from_json_line(text: str) -> CheckResult:
    """Read a line of `to_json_line`.

    Raises:
        ValueError: `text` is no such line.
    """
    return decode(CheckResult, text, whole=True)

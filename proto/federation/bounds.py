"""Bounds of a plan's fields. A value outside of them is refused by the field's name, with what was expected."""

import math

from federation.errors import PlanRefused


def check_whole(field: str, value: int, low: int, high: int) -> None:
    """Refuses anything but an int from `low` to `high`.

    Raises:
        PlanRefused: The value is something else.
    """
    if type(value) is not int or not low <= value <= high:
        raise PlanRefused(field, f"expected a whole number from {low} to {high}, got {value!r}")


def check_real(field: str, value: float, low: float, high: float, ends: str) -> None:
    """Refuses anything but a float in an interval.

    NaN fails every comparison. -0.0 is refused because it would be a second way to write 0.

    Args:
        field: Name of the field.
        value: Its value.
        low: Lower end.
        high: Upper end.
        ends: "[]", "(]" or "[)" as in mathematics; "0" means that the value must be 0, because it is not used.

    Raises:
        PlanRefused: The value is something else.
    """
    inside = {
        "[]": low <= value <= high,
        "(]": low < value <= high,
        "[)": low <= value < high,
        "0": value == 0.0,
    }[ends]
    if type(value) is not float or not inside or math.copysign(1.0, value) < 0:
        wanted = "0, for this kind does not use it" if ends == "0" else f"a number in {ends[0]}{low}, {high}{ends[1]}"
        raise PlanRefused(field, f"expected {wanted}, got {value!r}")


def check_length(field: str, value: bytes, size: int) -> None:
    """Refuses bytes of another length.

    Raises:
        PlanRefused: The length is another.
    """
    if len(value) != size:
        raise PlanRefused(field, f"expected {size} bytes, got {len(value)}")

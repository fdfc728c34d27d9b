"""The power-of-two pieces in which a vector is padded and rotated."""

from typing import Final

_ONE_PIECE_MAX: Final = 4096


def pieces_of(parameters: int) -> tuple[int, ...]:
    """Returns the lengths of the pieces in coordinates, largest first; none without parameters.

    Up to 4096 parameters: one piece. Beyond: greedily the next power of two above what is left if that pads by
    at most a twentieth of d, else the one below it; none smaller than about d/40. So padding costs at most 5 %.
    """
    if parameters <= _ONE_PIECE_MAX:
        return (_power_above(parameters),) if parameters else ()
    slack = parameters // 20
    smallest = _power_above(slack + 1) // 2
    pieces: list[int] = []
    left = parameters
    while left > 0:
        above = max(_power_above(left), smallest)
        pieces.append(above if above - left <= slack else above // 2)
        left -= pieces[-1]
    return tuple(pieces)


def _power_above(number: int) -> int:
    """Smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()

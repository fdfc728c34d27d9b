"""Durations and sizes in words, for pages and commands."""


def duration(seconds: float) -> str:
    """Write seconds in their two largest units: 12 s, 3 min 4 s, 2 h 5 min, 3 d 4 h."""
    # A clock that was set back makes negative ages; zero is the least wrong thing to show.
    whole = max(0, round(seconds))
    for size, unit, below, below_unit in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit} {rest} {below_unit}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def size(count: int) -> str:
    """Write a number of bytes in SI units, as networks count them."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 1000:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} TB"

"""The numbers of a figure, which are None where there are too few patients."""

from site_client.inference.intervals import Difference, Estimate


def value_of(figure: Estimate | Difference) -> float:
    assert figure.value is not None, figure.reason
    return figure.value


def bounds_of(figure: Estimate | Difference) -> tuple[float, float, float]:
    """The lower end of the interval, the value, the upper end."""
    assert figure.low is not None
    assert figure.high is not None
    return figure.low, value_of(figure), figure.high

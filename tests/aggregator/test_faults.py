"""How long a site sits out, and that no silence can keep a consortium from its minimum."""

from aggregator.runs.faults import PROVEN_ROUNDS, SILENT_ROUNDS_MAX, participants, sits_out_until
from aggregator.states import FaultKind
from aggregator.store.fault_rows import FaultInRound

SITES = ["a", "b", "c", "d"]


def silent(*rounds: int) -> list[FaultInRound]:
    return [FaultInRound(number, FaultKind.SILENT) for number in rounds]


def test_once_silent_is_an_accident() -> None:
    assert sits_out_until(silent(4, 4, 4), ()) == 0  # three attempts of one round


def test_silence_in_rounds_in_a_row_costs_one_two_four_rounds_and_never_more_than_the_most() -> None:
    assert [sits_out_until(silent(*range(1, count + 1)), ()) - count for count in (2, 3, 4, 5)] == [1, 2, 4, 8]
    assert sits_out_until(silent(*range(1, 40)), ()) == 39 + SILENT_ROUNDS_MAX


def test_an_upload_in_a_published_sum_ends_the_series() -> None:
    assert sits_out_until(silent(1, 2, 4), completed={3}) == 0
    assert sits_out_until(silent(1, 2, 4, 5), completed={3}) == 6


def test_a_proven_fault_costs_eight_rounds_then_sixteen_and_no_good_deed_takes_it_back() -> None:
    once = [FaultInRound(3, FaultKind.BAD_DEALING)]
    assert sits_out_until(once, completed={9}) == 3 + PROVEN_ROUNDS
    assert sits_out_until([*once, FaultInRound(12, FaultKind.SPOILED_SUM)], ()) == 12 + 2 * PROVEN_ROUNDS


def test_who_sits_out_is_offered_nothing() -> None:
    faults = {"d": [FaultInRound(3, FaultKind.BAD_SHARES)], "c": silent(3)}
    assert participants(SITES, 4, 3, faults, {}) == ["a", "b", "c"]
    assert participants(SITES, 12, 3, faults, {}) == SITES


def test_silence_is_forgiven_below_the_minimum_and_a_proven_fault_is_not() -> None:
    faults = {"c": silent(1, 2), "d": silent(1, 2)}
    assert participants(SITES, 3, 2, faults, {}) == ["a", "b"]
    assert participants(SITES, 3, 3, faults, {}) == SITES
    proven = {"d": [FaultInRound(2, FaultKind.BAD_SHARES)]}
    assert participants(SITES, 3, 4, proven, {}) == ["a", "b", "c"]


def test_silence_of_a_site_without_which_no_cohort_can_form_is_forgiven() -> None:
    """The members of a sum on a model confirm on it only all together."""
    faults = {"c": [FaultInRound(2, FaultKind.BAD_SHARES)], "d": silent(1, 2)}
    assert participants(SITES, 3, 2, faults, {}) == ["a", "b"]
    assert participants(SITES, 3, 2, faults, {}, needed={"a", "c", "d"}) == ["a", "b", "d"]

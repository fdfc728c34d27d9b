"""A difference of two sums is never counted as one of more hospitals than it is, also when some have new names."""

from federation.two_sums import told_apart
from hypothesis import given
from hypothesis import strategies as st

HOSPITALS = range(8)


@given(
    earlier=st.frozensets(st.sampled_from(HOSPITALS)),
    later=st.frozensets(st.sampled_from(HOSPITALS)),
    renamed=st.frozensets(st.sampled_from(HOSPITALS)),
    left=st.frozensets(st.sampled_from(HOSPITALS)),
)
def test_names_count_for_no_more_hospitals_than_the_sums_differ_by(
    earlier: frozenset[int], later: frozenset[int], renamed: frozenset[int], left: frozenset[int]
) -> None:
    later -= left
    before = {hospital: f"old-{hospital}" for hospital in HOSPITALS}
    after = {hospital: f"new-{hospital}" if hospital in renamed else before[hospital] for hospital in HOSPITALS}
    listed = {after[hospital] for hospital in HOSPITALS if hospital not in left}
    names = {after[hospital] for hospital in later}, {before[hospital] for hospital in earlier}
    counted = told_apart(*names, listed)
    assert counted <= len(later ^ earlier)
    if not renamed and not left:
        assert counted == len(later ^ earlier)

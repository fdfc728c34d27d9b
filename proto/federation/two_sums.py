"""By how many hospitals two sums on one model differ at least. Their difference is what those few have said.

Aggregator and sites count alike: a round whose set a site does not confirm would wait for nothing.
"""

from collections.abc import Set as AbstractSet


def told_apart(members: AbstractSet[str], earlier: AbstractSet[str], counted: AbstractSet[str]) -> int:
    """Count the hospitals that are surely in one of two sums only.

    A hospital may have got another name between the sums. Then its part is in both, under the old name and the new one,
    and neither of the names counts. So each name of the earlier sum that has gone takes one new name along.

    Args:
        members: Names in the later sum.
        earlier: Names in the earlier sum.
        counted: Names that count now: of the roster, or those of it that a site knows.
    """
    differing = len((members ^ earlier) & counted)
    gone, new = earlier - members - counted, (members - earlier) & counted
    return differing - min(len(gone), len(new))

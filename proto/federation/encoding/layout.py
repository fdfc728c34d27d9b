"""Where everything lies in an upload: header words first, then the vector's lanes. Pure arithmetic on a plan.

A vector of d parameters is padded and rotated in power-of-two pieces, quantized to b bits a coordinate, and packed into
lanes of a 64-bit word wide enough for the sum over the largest cohort, so that no cohort can make a lane overflow.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from federation.errors import EncodingRefused
from federation.labels import BINS, LABELS, SIDES
from federation.plan import TrainingPlan
from federation.vocabulary import Metric

HISTOGRAM_SHAPE = (len(LABELS), len(SIDES), BINS)
HISTOGRAM_WORDS = math.prod(HISTOGRAM_SHAPE)
HEADER_WORDS = 4 + HISTOGRAM_WORDS

# Range of the quantizer in standard deviations of a rotated coordinate, by bits: wider loses to coarser steps,
# narrower to clipped tails.
_RANGE_SIGMAS = {4: 2.5, 5: 3.0, 6: 3.0, 8: 4.0}
_ONE_PIECE_MAX = 4096


@dataclass(frozen=True)
class Layout:
    """The shape of one round's upload. Build it with `of`.

    parameters: length d of the vector; 0 in an evaluation-only round, whose upload is header words only.
    """

    parameters: int
    bits: int
    members_max: int
    clip_norm: float
    weight_cap: int
    rotation_seed: bytes
    metrics: frozenset[Metric]

    @classmethod
    def of(cls, plan: TrainingPlan, parameters: int) -> "Layout":
        """Returns the layout of a round.

        Args:
            plan: The plan of the run.
            parameters: plan.manifest.size, or 0 for the evaluation-only round.

        Raises:
            EncodingRefused: `parameters` is any other number.
        """
        if parameters not in (0, plan.manifest.size):
            raise EncodingRefused(f"expected {plan.manifest.size} parameters (or 0 to evaluate), got {parameters}")
        layout = cls(
            parameters=parameters,
            bits=plan.encoding.bits,
            members_max=plan.cohort.maximum,
            clip_norm=plan.encoding.clip_norm,
            weight_cap=plan.encoding.weight_cap,
            rotation_seed=plan.encoding.rotation_seed,
            metrics=frozenset(plan.metrics),
        )
        # A lane is as wide as the largest sum it can hold (lane_width); 500 members of 8 bits need 17 of 64 bits.
        assert layout.members_max * layout.level_max < 2**layout.lane_width <= 2**64
        return layout

    @classmethod
    def of_round(cls, plan: TrainingPlan, round_number: int) -> "Layout":
        """Layout of that round of the plan: header words alone in the evaluation-only round."""
        return cls.of(plan, 0 if plan.evaluates_only(round_number) else plan.manifest.size)

    @property
    def level_max(self) -> int:
        """Highest level of one site's coordinate; the lowest is 0."""
        return (1 << self.bits) - 1

    @property
    def lane_width(self) -> int:
        """Bits of a lane of an upload."""
        return self.width_for(self.members_max)

    @property
    def range(self) -> float:
        """Largest coordinate after rotation that is not clipped: c * clip_norm / sqrt(d)."""
        return _RANGE_SIGMAS[self.bits] * self.clip_norm / math.sqrt(self.parameters)

    @cached_property
    def pieces(self) -> tuple[int, ...]:
        """Lengths of the rotated pieces, powers of two, largest first; empty without parameters.

        Up to 4096 parameters: one piece. Beyond: greedily the next power of two above what is left if that pads by
        at most a twentieth of d, else the one below it; none smaller than about d/40. So padding costs at most 5 %.
        """
        if self.parameters <= _ONE_PIECE_MAX:
            return (_power_above(self.parameters),) if self.parameters else ()
        slack = self.parameters // 20
        smallest = _power_above(slack + 1) // 2
        pieces: list[int] = []
        left = self.parameters
        while left > 0:
            above = max(_power_above(left), smallest)
            pieces.append(above if above - left <= slack else above // 2)
            left -= pieces[-1]
        return tuple(pieces)

    @property
    def coordinates(self) -> int:
        """Length of the padded, rotated vector."""
        return sum(self.pieces)

    @property
    def words(self) -> int:
        """Length of an upload in uint64 words, header included."""
        return HEADER_WORDS + self.vector_words_for(self.members_max)

    @property
    def bytes(self) -> int:
        """Length of an upload on the wire."""
        return 8 * self.words

    def width_for(self, members: int) -> int:
        """Bits that hold the sum of `members` levels."""
        return (members * self.level_max).bit_length()

    def vector_words_for(self, members: int) -> int:
        """Words of the vector when lanes are just wide enough for `members`."""
        lanes = 64 // self.width_for(members)
        return -(-self.coordinates // lanes)

    def sum_bytes_for(self, members: int) -> int:
        """Length of a published sum of `members` uploads."""
        return 8 * (HEADER_WORDS + self.vector_words_for(members))

    def check_members(self, members: int) -> None:
        """Checks that 1 <= members <= members_max.

        Raises:
            EncodingRefused: `members` is outside that range.
        """
        if not 1 <= members <= self.members_max:
            raise EncodingRefused(f"expected 1 to {self.members_max} members, got {members}")


def _power_above(number: int) -> int:
    """Smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()

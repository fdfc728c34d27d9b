"""The places of all values in an upload: header words first, then the vector's lanes. Pure arithmetic on a plan.

A vector of d parameters is padded and rotated in power-of-two pieces, quantized to b bits a coordinate, and packed into
lanes of a 64-bit word wide enough for the sum over the largest cohort, so that no cohort can make a lane overflow.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

from federation.errors import EncodingRefused
from federation.gate import Gate
from federation.labels import BINS, LABELS, SIDES
from federation.limits import COHORT_MIN
from federation.pieces import pieces_of
from federation.plan import TrainingPlan
from federation.privacy import GradientNoise, Privacy, gradient_noise
from federation.vocabulary import Metric

COUNT_MAX = 2**32  # of one member, where a plan sets no cap
HISTOGRAM_SHAPE = (len(LABELS), len(SIDES), BINS)
HISTOGRAM_WORDS = math.prod(HISTOGRAM_SHAPE)
HEADER_WORDS = 4 + HISTOGRAM_WORDS
COMPARISON_WORDS = 4 * (1 + len(LABELS))  # behind them, under a plan with a gate: of losses and of each label

# Range of the quantizer in standard deviations of a rotated coordinate, by bits: wider loses to coarser steps,
# narrower to clipped tails.
_RANGE_SIGMAS = {4: 2.5, 5: 3.0, 6: 3.0, 8: 4.0}


@dataclass(frozen=True)
class Layout:
    """The shape of one round's upload. Build it with `of`.

    Attributes:
        parameters: Length d of the vector; 0 in an evaluation-only round, whose upload is header words only.
        bits: Bits of a quantized coordinate, without noise.
        members_max: Most members of a cohort.
        clip_norm: Largest L2 norm of an update.
        weight_cap: Studies beyond which a site's weight does not grow.
        rotation_seed: 32 bytes.
        metrics: Of the plan, or of this round.
        count_cap: Most examples of a member, and most slices of one label and truth.
        members_min: Fewest members of a cohort.
        privacy: Of the plan; None for a plan without noise.
        gate: Of the plan; None for a plan without one.
    """

    parameters: int
    bits: int
    members_max: int
    clip_norm: float
    weight_cap: int
    rotation_seed: bytes
    metrics: frozenset[Metric]
    count_cap: int = COUNT_MAX
    members_min: int = COHORT_MIN
    privacy: Privacy | None = None
    gate: Gate | None = None

    @classmethod
    def of(cls, plan: TrainingPlan, parameters: int) -> "Layout":
        """Returns the layout of a round.

        Args:
            plan: The plan of the run.
            parameters: plan.moving.size, or 0 for the evaluation-only round.

        Raises:
            EncodingRefused: `parameters` is any other number.
        """
        if parameters not in (0, plan.moving.size):
            raise EncodingRefused(f"expected {plan.moving.size} parameters (or 0 to evaluate), got {parameters}")
        layout = cls(
            parameters=parameters,
            bits=plan.encoding.bits,
            members_max=plan.cohort.maximum,
            clip_norm=plan.encoding.clip_norm,
            weight_cap=plan.encoding.weight_cap,
            rotation_seed=plan.encoding.rotation_seed,
            metrics=frozenset(plan.metrics),
            count_cap=plan.encoding.count_cap or COUNT_MAX,
            members_min=plan.cohort.minimum,
            privacy=plan.privacy,
            gate=plan.gate,
        )
        # A lane is as wide as the largest sum it can hold (lane_width); 500 members of 8 bits need 17 of 64 bits.
        assert layout.members_max * layout.level_max < 2**layout.lane_width <= 2**64
        return layout

    @classmethod
    def of_round(cls, plan: TrainingPlan, round_number: int) -> "Layout":
        """Returns the layout of that round of the plan: header words alone in the evaluation-only round."""
        layout = cls.of(plan, 0 if plan.evaluates_only(round_number) else plan.moving.size)
        if plan.privacy is None or plan.privacy.evaluates(round_number, plan.rounds):
            return layout
        return replace(layout, metrics=layout.metrics - {Metric.HISTOGRAMS})

    @cached_property
    def gradient(self) -> GradientNoise | None:
        """Steps and noise of a private round's vector; None in a round without noise, or without a vector."""
        return None if self.privacy is None or not self.parameters else gradient_noise(self.privacy, self.coordinates)

    @cached_property
    def level_max(self) -> int:
        """Highest level of one site's coordinate, in whole steps; the lowest is 0."""
        if self.gradient is not None:
            return self.gradient.level_max(self.members_min, self.members_max)
        return (1 << self.bits) - 1

    @property
    def lane_width(self) -> int:
        """Width of a lane of an upload, in bits."""
        return self.width_for(self.members_max)

    @property
    def range(self) -> float:
        """Largest rotated coordinate that is not clipped, without noise: c * clip_norm / sqrt(d)."""
        return _RANGE_SIGMAS[self.bits] * self.clip_norm / math.sqrt(self.parameters)

    @cached_property
    def pieces(self) -> tuple[int, ...]:
        """Lengths of the rotated pieces in coordinates, powers of two, largest first; empty without parameters."""
        return pieces_of(self.parameters)

    @property
    def coordinates(self) -> int:
        """Length of the padded, rotated vector, at most 1.05 d beyond 4096 parameters."""
        return sum(self.pieces)

    @property
    def header_words(self) -> int:
        """Length of the header in uint64 words."""
        return HEADER_WORDS + (0 if self.gate is None else COMPARISON_WORDS)

    @property
    def words(self) -> int:
        """Length of an upload in uint64 words, header included."""
        return self.header_words + self.vector_words_for(self.members_max)

    @property
    def bytes(self) -> int:
        """Length of an upload on the wire, in bytes."""
        return 8 * self.words

    def width_for(self, members: int) -> int:
        """Returns the number of bits that hold the sum of `members` levels."""
        return (members * self.level_max).bit_length()

    def vector_words_for(self, members: int) -> int:
        """Returns the uint64 words of the vector when lanes are just wide enough for `members`."""
        # A lane never crosses words: the bits that are left over at the top stay 0 and are checked.
        lanes = 64 // self.width_for(members)
        return -(-self.coordinates // lanes)

    def sum_bytes_for(self, members: int) -> int:
        """Returns the length of a published sum of `members` uploads, in bytes."""
        return 8 * (self.header_words + self.vector_words_for(members))

    def check_members(self, members: int) -> None:
        """Checks that 1 <= members <= members_max.

        Raises:
            EncodingRefused: `members` is outside that range.
        """
        if not 1 <= members <= self.members_max:
            raise EncodingRefused(f"expected 1 to {self.members_max} members, got {members}")

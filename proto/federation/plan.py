"""A training plan: everything a hospital agrees to. Every bound of plan.proto is checked here, once, for both sides.

A `TrainingPlan` that exists is within its bounds: building one from a file or from the wire checks the same lines.
Its digest is SHA-256 over its canonical bytes, which are also what the custodian signs.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cached_property
from hashlib import sha256
from typing import Final, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf.message import Message

from federation.bounds import check_length, check_real, check_whole
from federation.errors import ManifestMismatch, PlanRefused
from federation.gate import Gate
from federation.limits import COHORT_MAX, COHORT_MIN
from federation.manifest import Manifest
from federation.moving import MovingPart
from federation.pieces import pieces_of
from federation.privacy import TAIL_MAX, Privacy, check_budgets, gradient_noise, histogram_noise
from federation.release import Release, ReleaseLevel
from federation.signing import Signer, sign, verify
from federation.v1 import plan_pb2
from federation.vocabulary import Metric
from federation.wire import parse, serialize

SCHEMA = 1
_DOMAIN = "hemofed plan v1"
_NAME = re.compile(r"[A-Za-z0-9 ._-]{1,64}")
_ARCHITECTURE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class ServerKind(StrEnum):
    """The server optimizer: how the mean update moves the model. plan.toml uses these names."""

    FEDAVG = "fedavg"
    FEDAVGM = "fedavgm"
    FEDADAM = "fedadam"
    FEDYOGI = "fedyogi"

    @property
    def number(self) -> plan_pb2.ServerOptimizer.Kind.ValueType:
        """The enumerator on the wire."""
        return plan_pb2.ServerOptimizer.Kind.Value(self.name)


class Trainable(StrEnum):
    """The groups of tensors that training moves. Each includes the one before; the registry of the sites names them."""

    HEADS = "heads"
    READER = "reader"
    NORMS = "norms"
    ALL = "all"

    @property
    def number(self) -> plan_pb2.LocalTraining.Trainable.ValueType:
        """The enumerator on the wire."""
        return plan_pb2.LocalTraining.Trainable.Value(self.name)


@dataclass(frozen=True)
class Inputs:
    """Size of the network's input. The fields are those of plan.proto, with plan.toml's defaults.

    A slice has `image_size_px` pixels a side, a study at most `slices_max` slices.
    """

    image_size_px: int = 256
    slices_max: int = 64

    def __post_init__(self) -> None:
        check_whole("inputs.image_size_px", self.image_size_px, 64, 512)
        if self.image_size_px % 32:
            raise PlanRefused("inputs.image_size_px", f"expected a multiple of 32, got {self.image_size_px}")
        check_whole("inputs.slices_max", self.slices_max, 8, 400)


@dataclass(frozen=True)
class LocalTraining:
    """Training at a site in one round. The fields are those of plan.proto, with plan.toml's defaults.

    `proximal_mu` is that of FedProx (Li et al., MLSys 2020, eq. 2). `gradient_norm_max` is an L2 norm.
    `heads_rate`, `reader_rate` and `trunk_rate` are factors on `learning_rate`.
    """

    epochs: int = 1
    learning_rate: float = 0.0003
    weight_decay: float = 0.0001
    proximal_mu: float = 0.0
    studies_per_step: int = 1
    studies_min: int = 32
    slices_per_study: int = 0
    trainable: Trainable = Trainable.ALL
    warm_up_steps: int = 5
    heads_rate: float = 1.0
    reader_rate: float = 1.0
    trunk_rate: float = 1.0
    ema_decay: float = 0.0
    gradient_norm_max: float = 1.0
    patience: int = 0

    def __post_init__(self) -> None:
        check_whole("training.epochs", self.epochs, 1, 100)
        check_real("training.learning_rate", self.learning_rate, 0.0, 1.0, "(]")
        check_real("training.weight_decay", self.weight_decay, 0.0, 1.0, "[]")
        check_real("training.proximal_mu", self.proximal_mu, 0.0, 10.0, "[]")
        check_whole("training.studies_per_step", self.studies_per_step, 1, 64)
        check_whole("training.studies_min", self.studies_min, 1, 1_000_000)
        check_whole("training.slices_per_study", self.slices_per_study, 0, 400)
        check_whole("training.warm_up_steps", self.warm_up_steps, 0, 10_000)
        for name in ("heads_rate", "reader_rate", "trunk_rate"):
            check_real(f"training.{name}", getattr(self, name), 0.0, 100.0, "(]")
        check_real("training.ema_decay", self.ema_decay, 0.0, 1.0, "[)")
        check_real("training.gradient_norm_max", self.gradient_norm_max, 0.0, 1000.0, "(]")
        check_whole("training.patience", self.patience, 0, 100)


@dataclass(frozen=True)
class ServerOptimizer:
    """The step on the mean update. Fields that `kind` does not use must be 0, so that one behavior has one plan.

    `beta1`, `beta2` and `tau` are those of Reddi et al., ICLR 2021, algorithm 2; `federation.chain` has the formulas.
    """

    kind: ServerKind = ServerKind.FEDAVG
    learning_rate: float = 1.0
    beta1: float = 0.0
    beta2: float = 0.0
    tau: float = 0.0

    def __post_init__(self) -> None:
        check_real("server.learning_rate", self.learning_rate, 0.0, 10.0, "(]")
        adaptive = self.kind in (ServerKind.FEDADAM, ServerKind.FEDYOGI)
        check_real("server.beta1", self.beta1, 0.0, 1.0, "[)" if self.kind is not ServerKind.FEDAVG else "0")
        check_real("server.beta2", self.beta2, 0.0, 1.0, "[)" if adaptive else "0")
        check_real("server.tau", self.tau, 0.0, 1.0, "(]" if adaptive else "0")


@dataclass(frozen=True)
class CohortBounds:
    """Number of sites in one sum. The fields are those of plan.proto, with plan.toml's defaults."""

    minimum: int = 3
    target: int = 3
    maximum: int = 64

    def __post_init__(self) -> None:
        check_whole("cohort.maximum", self.maximum, COHORT_MIN, COHORT_MAX)
        check_whole("cohort.minimum", self.minimum, COHORT_MIN, self.maximum)
        check_whole("cohort.target", self.target, self.minimum, self.maximum)


@dataclass(frozen=True)
class Deadlines:
    """Deadlines of a round in seconds. The fields are those of plan.proto, with plan.toml's defaults."""

    training_s: int = 259_200
    phase_s: int = 600
    grace_s: int = 0

    def __post_init__(self) -> None:
        check_whole("deadlines.training_s", self.training_s, 10, 2_592_000)
        check_whole("deadlines.phase_s", self.phase_s, 2, 86_400)
        if self.grace_s:
            check_whole("deadlines.grace_s", self.grace_s, 60, 2_592_000)


@dataclass(frozen=True)
class Encoding:
    """Clipping, quantization, weights of an update. The fields are those of plan.proto, with plan.toml's defaults.

    `clip_norm` is an L2 norm. A coordinate is quantized to `bits` bits. `weight_cap` counts studies, `count_cap` the
    examples of a member and its slices of one label and truth. `rotation_seed` has 32 bytes.
    """

    clip_norm: float = 1.0
    bits: int = 6
    weight_cap: int = 1000
    rotation_seed: bytes = b""  # the default is refused
    count_cap: int = 10_000

    def __post_init__(self) -> None:
        check_real("encoding.clip_norm", self.clip_norm, 0.0, 1000.0, "(]")
        if self.bits not in (4, 5, 6, 8):
            raise PlanRefused("encoding.bits", f"expected 4, 5, 6 or 8, got {self.bits}")
        check_whole("encoding.weight_cap", self.weight_cap, 1, 1_000_000)
        check_length("encoding.rotation_seed", self.rotation_seed, 32)
        if self.count_cap != 0:
            check_whole("encoding.count_cap", self.count_cap, 16, 1_000_000)


@dataclass(frozen=True)
class TrainingPlan:
    """A plan within its bounds; plan.proto explains every field.

    `run_id` has 16 bytes, `initial_model_digest` 32. `moving_tensors` are indices into the manifest, ascending; empty
    if all tensors move.

    Raises:
        PlanRefused: A value is out of its bounds. The error names the field and the bounds.
    """

    run_id: bytes
    name: str
    purpose: str
    architecture: str
    manifest: Manifest
    initial_model_digest: bytes
    rounds: int
    inputs: Inputs
    training: LocalTraining
    server: ServerOptimizer
    cohort: CohortBounds
    deadlines: Deadlines
    encoding: Encoding
    metrics: tuple[Metric, ...]
    origin: str = ""
    privacy: Privacy | None = None
    moving_tensors: tuple[int, ...] = ()
    gate: Gate | None = None
    release: Release | None = None

    def __post_init__(self) -> None:
        check_length("run_id", self.run_id, 16)
        if not _NAME.fullmatch(self.name):
            raise PlanRefused("name", f"expected 1 to 64 of A-Z a-z 0-9 space . _ -, got {self.name[:80]!r}")
        for field, text in (("purpose", self.purpose), ("origin", self.origin)):
            if len(text) > 500 or not text.isprintable():
                raise PlanRefused(field, f"expected up to 500 printable characters, got {len(text)}")
        if not _ARCHITECTURE.fullmatch(self.architecture):
            raise PlanRefused(
                "architecture", f"expected a registry name such as 'densenet121-gru', got {self.architecture[:80]!r}"
            )
        check_length("initial_model_digest", self.initial_model_digest, 32)
        check_whole("rounds", self.rounds, 1, 1000)
        numbers = [metric.number for metric in self.metrics]
        if numbers != sorted(set(numbers)):
            raise PlanRefused("metrics", "expected each metric at most once, in the order of plan.proto")
        self._check_moving()
        if self.privacy is not None:
            self._check_private(self.privacy)
        if self.gate is not None and (self.privacy is not None or Metric.HISTOGRAMS not in self.metrics):
            raise PlanRefused("gate", "expected a plan with the metric 'histograms' and without [privacy], got another")

    @classmethod
    def from_bytes(cls, data: bytes) -> "TrainingPlan":
        """Parses the canonical bytes of a plan.

        Raises:
            Malformed: The bytes are not a canonical Plan.
            PlanRefused: A value is out of its bounds.
        """
        return _of_message(parse(plan_pb2.Plan, data))

    def to_bytes(self) -> bytes:
        """Returns the canonical bytes. The custodian signs them, and the digest is over them."""
        return serialize(_to_message(self))

    @cached_property
    def digest(self) -> bytes:
        """32 bytes, SHA-256 over `to_bytes()`."""
        return sha256(self.to_bytes()).digest()

    @cached_property
    def moving(self) -> MovingPart:
        """The part of the flat vector f32[d] that moves."""
        return MovingPart.of(self.manifest, self.moving_tensors)

    @property
    def evaluation_round(self) -> int:
        """Number of the evaluation-only round, which judges the last model and trains nothing."""
        return self.rounds + 1

    def evaluates_only(self, round_number: int) -> bool:
        """Whether this round is evaluation-only. A run whose last round was abandoned repeats it under a new number."""
        return round_number > self.rounds

    def _check_moving(self) -> None:
        if (self.training.trainable is Trainable.ALL) != (not self.moving_tensors):
            raise PlanRefused(
                "moving_tensors", "expected places of tensors exactly when training.trainable is not 'all'"
            )
        _ = self.moving  # refuses places that are none

    def _check_private(self, privacy: Privacy) -> None:
        """Refuse what a private round does not use, and a plan that spends more than its budgets."""
        if Metric.LOSS in self.metrics:
            raise PlanRefused("metrics", "expected no 'loss' in a private plan: it would leave without noise")
        for section, used in ((self.training, _USED_TRAINING), (self.encoding, _USED_ENCODING)):
            for field in fields(section):
                if field.name not in used and getattr(section, field.name) != field.default:
                    name = f"{'training' if section is self.training else 'encoding'}.{field.name}"
                    raise PlanRefused(
                        name, f"expected its default {field.default}, for a private round does not use it"
                    )
        pieces = pieces_of(self.moving.size)
        check_budgets(privacy, self.rounds, sum(pieces), histograms=Metric.HISTOGRAMS in self.metrics)
        most = self.cohort.maximum * gradient_noise(privacy, sum(pieces)).level_max(
            self.cohort.minimum, self.cohort.maximum
        )
        # The inverse rotation adds up twice as much over a piece: int32 levels, float64 sums. Both have to be exact.
        if most >= 2**31 or 2 * most * pieces[0] >= 2**53:
            raise PlanRefused("privacy.noise_multiplier", "expected noise that a lane can hold; lower it or batch_max")
        for noise, name in (
            (gradient_noise(privacy, sum(pieces)).noise, "noise_multiplier"),
            (histogram_noise(privacy), "validation_multiplier"),
        ):
            if noise.tail_max(self.cohort.minimum, self.cohort.maximum) > TAIL_MAX:
                raise PlanRefused(f"privacy.{name}", f"expected shares of noise up to {TAIL_MAX}, got larger; lower it")


# Of a private plan; every other field of these sections keeps its default.
_USED_TRAINING = frozenset({"studies_min", "slices_per_study", "trainable"})
_USED_ENCODING = frozenset({"rotation_seed"})

Member = TypeVar("Member", ServerKind, Trainable, Metric, ReleaseLevel)
Section = TypeVar(
    "Section", Inputs, LocalTraining, ServerOptimizer, CohortBounds, Deadlines, Encoding, Privacy, Gate, Release
)


def sign_plan(plan: TrainingPlan, custodian: Signer) -> plan_pb2.SignedPlan:
    """Serializes a plan and signs the bytes with Ed25519 (RFC 8032): 64 bytes over a domain and the plan."""
    data = plan.to_bytes()
    return plan_pb2.SignedPlan(plan=data, signature=sign(custodian, _DOMAIN, data))


def verify_plan(signed: plan_pb2.SignedPlan, custodian: Ed25519PublicKey) -> TrainingPlan:
    """Checks the custodian's signature, then parses the plan. No byte is parsed before.

    Raises:
        BadSignature: The custodian did not sign these bytes.
        Malformed: The bytes are not a canonical Plan.
        PlanRefused: A value is out of its bounds.
    """
    verify(custodian, _DOMAIN, signed.plan, signed.signature)
    return TrainingPlan.from_bytes(signed.plan)


def _of_message(message: plan_pb2.Plan) -> TrainingPlan:
    if message.schema != SCHEMA:
        raise PlanRefused("schema", f"expected {SCHEMA}, got {message.schema}; a newer hemofed may read it")
    _check_present(message)
    try:
        manifest = Manifest.of_message(message.manifest)
    except ManifestMismatch as error:
        raise PlanRefused("manifest", str(error)) from error
    return TrainingPlan(
        run_id=message.run_id,
        name=message.name,
        purpose=message.purpose,
        architecture=message.architecture,
        manifest=manifest,
        initial_model_digest=message.initial_model_digest,
        rounds=message.rounds,
        inputs=_section_of(Inputs, message.inputs),
        training=_section_of(LocalTraining, message.training),
        server=_section_of(ServerOptimizer, message.server),
        cohort=_section_of(CohortBounds, message.cohort),
        deadlines=_section_of(Deadlines, message.deadlines),
        encoding=_section_of(Encoding, message.encoding),
        metrics=tuple(_member(Metric, "metrics", number) for number in message.metrics),
        origin=message.origin,
        privacy=_section_of(Privacy, message.privacy) if message.HasField("privacy") else None,
        moving_tensors=tuple(message.moving_tensors),
        gate=_section_of(Gate, message.gate) if message.HasField("gate") else None,
        release=_section_of(Release, message.release) if message.HasField("release") else None,
    )


def _check_present(message: plan_pb2.Plan) -> None:
    # An absent part would read as one of zeros, and be refused by the name of a field that is not in the file.
    present = {field.name for field, _ in message.ListFields()}
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and field.name not in present and field.name not in _MAY_BE_ABSENT:
            raise PlanRefused(field.name, "expected this part of the plan, got none")


def _section_of(kind: type[Section], message: Message) -> Section:
    """A part of the plan. Dataclass and message have the same field names; a test holds them equal."""
    optional = {field.name for field in message.DESCRIPTOR.fields if field.has_presence}
    absent = {name for name in optional if not message.HasField(name)}
    values = {field.name: getattr(message, field.name) for field in fields(kind) if field.name not in absent}
    for field in fields(kind):
        # One behavior has one plan: without this rule a default could be written in two ways.
        if field.name in optional - absent and values[field.name] == field.default:
            raise PlanRefused(f"training.{field.name}", f"expected no value for the default {field.default}, got it")
    if kind is ServerOptimizer:
        values["kind"] = _member(ServerKind, "server.kind", values["kind"])
    if kind is LocalTraining:
        values["trainable"] = _member(Trainable, "training.trainable", values["trainable"])
    if kind is Release:
        values["level"] = _member(ReleaseLevel, "release.level", values["level"])
        values["measurements"] = tuple(values["measurements"])
    return kind(**values)


def _section_message(section: Section) -> Message:
    message = _MESSAGES[type(section)]()
    for field in fields(section):
        value = getattr(section, field.name)
        optional = message.DESCRIPTOR.fields_by_name[field.name].has_presence
        if isinstance(value, tuple):
            getattr(message, field.name).extend(value)
        elif not optional or value != field.default:
            setattr(
                message, field.name, value.number if isinstance(value, ServerKind | Trainable | ReleaseLevel) else value
            )
    return message


def _member(kind: type[Member], field: str, number: int) -> Member:
    for member in kind:
        if member.number == number:
            return member
    raise PlanRefused(field, f"expected a number of {', '.join(kind)}, got {number}")


def _to_message(plan: TrainingPlan) -> plan_pb2.Plan:
    message = plan_pb2.Plan(
        schema=SCHEMA,
        run_id=plan.run_id,
        name=plan.name,
        purpose=plan.purpose,
        architecture=plan.architecture,
        manifest=plan.manifest.to_message(),
        initial_model_digest=plan.initial_model_digest,
        rounds=plan.rounds,
        metrics=[metric.number for metric in plan.metrics],
        origin=plan.origin,
        moving_tensors=plan.moving_tensors,
    )
    for name in _SECTIONS:
        section = getattr(plan, name)
        if section is not None:
            getattr(message, name).CopyFrom(_section_message(section))
    return message


_MAY_BE_ABSENT: Final = ("privacy", "gate", "release")
_SECTIONS: Final = ("inputs", "training", "server", "cohort", "deadlines", "encoding", *_MAY_BE_ABSENT)
_MESSAGES: dict[type, Callable[..., Message]] = {
    Inputs: plan_pb2.Inputs,
    LocalTraining: plan_pb2.LocalTraining,
    ServerOptimizer: plan_pb2.ServerOptimizer,
    CohortBounds: plan_pb2.Cohort,
    Deadlines: plan_pb2.Deadlines,
    Encoding: plan_pb2.Encoding,
    Privacy: plan_pb2.Privacy,
    Gate: plan_pb2.Gate,
    Release: plan_pb2.Release,
}

"""federation.plan: every bound of plan.proto, at both of its ends, from Python and from the wire."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation.errors import BadSignature, Malformed, PlanRefused
from federation.plan import (
    LocalTraining,
    ServerKind,
    ServerOptimizer,
    Trainable,
    TrainingPlan,
    sign_plan,
    verify_plan,
)
from federation.v1 import plan_pb2
from federation.vocabulary import Metric
from federation.wire import serialize
from hypothesis import given
from hypothesis import strategies as st

Make = Callable[..., TrainingPlan]

WITHIN: list[tuple[str, list[Any]]] = [
    ("name", ["a", "A run_1.2-x", "x" * 64]),
    ("purpose", ["", "Ä" * 500]),
    ("architecture", ["lite", "densenet121-gru"]),
    ("rounds", [1, 1000]),
    ("inputs.image_size_px", [64, 96, 512]),
    ("inputs.slices_max", [8, 400]),
    ("training.epochs", [1, 100]),
    ("training.learning_rate", [1e-12, 1.0]),
    ("training.weight_decay", [0.0, 1.0]),
    ("training.proximal_mu", [0.0, 10.0]),
    ("training.studies_per_step", [1, 64]),
    ("training.studies_min", [1, 1_000_000]),
    ("training.slices_per_study", [0, 1, 400]),
    ("training.trainable", [Trainable.ALL]),
    ("training.warm_up_steps", [0, 5, 10_000]),
    ("training.heads_rate", [1e-3, 1.0, 100.0]),
    ("training.reader_rate", [1e-3, 1.0, 100.0]),
    ("training.trunk_rate", [1e-3, 1.0, 100.0]),
    ("training.ema_decay", [0.0, 0.999]),
    ("training.gradient_norm_max", [1e-3, 1.0, 1000.0]),
    ("training.patience", [0, 100]),
    ("origin", ["", "Ä" * 500]),
    ("server.learning_rate", [1e-9, 10.0]),
    ("cohort.minimum", [3, 8]),
    ("cohort.target", [3, 64]),
    ("cohort.maximum", [8, 500]),
    ("deadlines.training_s", [10, 2_592_000]),
    ("deadlines.phase_s", [2, 86_400]),
    ("deadlines.grace_s", [0, 60, 2_592_000]),
    ("encoding.clip_norm", [1e-6, 1000.0]),
    ("encoding.bits", [4, 5, 6, 8]),
    ("encoding.weight_cap", [1, 1_000_000]),
    ("encoding.count_cap", [0, 16, 1_000_000]),
    ("metrics", [(), (Metric.LOSS,), (Metric.HISTOGRAMS,)]),
]
NAN, INF = float("nan"), float("inf")
OUTSIDE: list[tuple[str, list[Any]]] = [
    ("run_id", [b"", bytes(15), bytes(17)]),
    ("name", ["", "x" * 65, "tab\t", "new\nline", "Müller", "a/b"]),
    ("purpose", ["x" * 501, "two\nlines", "bell\x07", "\u202eright to left"]),
    ("architecture", ["", "Lite", "torch.nn.Linear", "-x", "x" * 65]),
    ("initial_model_digest", [b"", bytes(31), bytes(33)]),
    ("rounds", [0, 1001, True]),
    ("inputs.image_size_px", [0, 32, 65, 100, 544]),
    ("inputs.slices_max", [7, 401]),
    ("training.epochs", [0, 101]),
    ("training.learning_rate", [0.0, -0.1, 1.0000001, NAN, INF]),
    ("training.weight_decay", [-1e-9, -0.0, 1.1, NAN]),
    ("training.proximal_mu", [-1.0, 10.1, NAN]),
    ("training.studies_per_step", [0, 65]),
    ("training.studies_min", [0, 1_000_001]),
    ("training.slices_per_study", [401]),
    ("training.warm_up_steps", [10_001]),
    ("training.heads_rate", [0.0, 100.1, NAN]),
    ("training.reader_rate", [0.0, -1.0, INF]),
    ("training.trunk_rate", [0.0, 1]),
    ("training.ema_decay", [1.0, -0.0, NAN]),
    ("training.gradient_norm_max", [0.0, 1000.1]),
    ("training.patience", [101]),
    ("origin", ["x" * 501, "two\nlines"]),
    ("server.learning_rate", [0.0, 10.1, NAN]),
    ("server.beta1", [0.5]),
    ("server.beta2", [0.5]),
    ("server.tau", [0.5]),
    ("cohort.minimum", [2, 9]),
    ("cohort.target", [2, 65]),
    ("cohort.maximum", [2, 7, 501]),
    ("deadlines.training_s", [9, 2_592_001]),
    ("deadlines.phase_s", [1, 86_401]),
    ("deadlines.grace_s", [1, 59, 2_592_001]),
    ("encoding.clip_norm", [0.0, -1.0, 1000.1, NAN, INF]),
    ("encoding.bits", [0, 1, 3, 7, 9, 16]),
    ("encoding.count_cap", [1, 15, 1_000_001]),
    ("encoding.weight_cap", [0, 1_000_001]),
    ("encoding.rotation_seed", [b"", bytes(31), bytes(33)]),
    ("metrics", [(Metric.HISTOGRAMS, Metric.LOSS), (Metric.LOSS, Metric.LOSS)]),
]


def _cases(table: list[tuple[str, list[Any]]]) -> list[pytest.ParameterSet]:
    return [pytest.param(field, value, id=f"{field}={value!r:.20}") for field, values in table for value in values]


@pytest.mark.parametrize(("field", "value"), _cases(WITHIN))
def test_a_value_within_its_bounds_travels_unchanged(make_plan: Make, field: str, value: object) -> None:
    plan = make_plan(**{field: value})
    assert TrainingPlan.from_bytes(plan.to_bytes()) == plan


@pytest.mark.parametrize(("field", "value"), _cases(OUTSIDE))
def test_a_value_outside_its_bounds_is_refused_by_name(make_plan: Make, field: str, value: object) -> None:
    with pytest.raises(PlanRefused) as refused:
        make_plan(**{field: value})
    part = field.split(".")[0]
    assert refused.value.field.startswith(part)


@pytest.mark.parametrize(("field", "value"), _cases(OUTSIDE))
def test_the_same_values_are_refused_on_the_wire(make_plan: Make, field: str, value: Any) -> None:
    message = plan_pb2.Plan.FromString(make_plan().to_bytes())
    *parts, name = field.split(".")
    holder = getattr(message, parts[0]) if parts else message
    if name == "metrics":
        del message.metrics[:]
        message.metrics.extend(metric.number for metric in value)
    else:
        setattr(holder, name, int(value) if value is True else value)
    if value is True:
        return  # the wire has no booleans to confuse with whole numbers
    with pytest.raises(PlanRefused):
        TrainingPlan.from_bytes(serialize(message))


def test_the_table_of_bounds_covers_every_field_of_the_plan(make_plan: Make) -> None:
    # test_privacy.py, test_moving.py, test_gate.py and test_sealed_plan.py have the last four.
    elsewhere = {"manifest", "server.kind", "training.trainable", "privacy", "moving_tensors", "gate", "release"}
    named = {field for field, _ in OUTSIDE} | elsewhere
    plan = make_plan()
    for field in fields(TrainingPlan):
        inner = getattr(plan, field.name)
        parts = [field.name]
        if hasattr(inner, "__dataclass_fields__") and field.name != "manifest":
            parts = [f"{field.name}.{one.name}" for one in fields(inner)]
        assert set(parts) <= named


@pytest.mark.parametrize(
    ("kind", "beta1", "beta2", "tau"),
    [
        (ServerKind.FEDAVG, 0.0, 0.0, 0.0),
        (ServerKind.FEDAVGM, 0.9, 0.0, 0.0),
        (ServerKind.FEDAVGM, 0.0, 0.0, 0.0),
        (ServerKind.FEDADAM, 0.9, 0.99, 1e-3),
        (ServerKind.FEDYOGI, 0.0, 0.0, 1.0),
    ],
)
def test_a_server_optimizer_with_the_values_its_kind_uses_is_accepted(
    make_plan: Make, kind: ServerKind, beta1: float, beta2: float, tau: float
) -> None:
    plan = make_plan(server=ServerOptimizer(kind, 1.0, beta1, beta2, tau))
    assert TrainingPlan.from_bytes(plan.to_bytes()) == plan


@pytest.mark.parametrize(
    ("kind", "beta1", "beta2", "tau", "field"),
    [
        (ServerKind.FEDAVGM, 1.0, 0.0, 0.0, "server.beta1"),
        (ServerKind.FEDAVGM, -0.1, 0.0, 0.0, "server.beta1"),
        (ServerKind.FEDAVGM, 0.9, 0.1, 0.0, "server.beta2"),
        (ServerKind.FEDAVGM, 0.9, 0.0, 0.1, "server.tau"),
        (ServerKind.FEDADAM, 0.9, 1.0, 0.1, "server.beta2"),
        (ServerKind.FEDADAM, 0.9, 0.9, 0.0, "server.tau"),
        (ServerKind.FEDYOGI, 0.9, 0.9, 1.1, "server.tau"),
    ],
)
def test_a_server_optimizer_with_other_values_is_refused(
    kind: ServerKind, beta1: float, beta2: float, tau: float, field: str
) -> None:
    with pytest.raises(PlanRefused) as refused:
        ServerOptimizer(kind, 1.0, beta1, beta2, tau)
    assert refused.value.field == field


@pytest.mark.parametrize("change", ["schema", "kind", "unknown kind", "metric", "manifest", "no manifest", "tensor"])
def test_wire_values_that_python_cannot_even_hold_are_refused(make_plan: Make, change: str) -> None:
    message = plan_pb2.Plan.FromString(make_plan().to_bytes())
    if change == "schema":
        message.schema = 2
    elif change == "kind":
        message.server.kind = plan_pb2.ServerOptimizer.KIND_UNSPECIFIED
    elif change == "unknown kind":
        # The stub allows the known enumerators only; the wire carries any number.
        message.server.kind = 77  # type: ignore[assignment]
    elif change == "metric":
        message.metrics[0] = plan_pb2.METRIC_UNSPECIFIED
    elif change == "manifest":
        del message.manifest.tensors[:]
    elif change == "no manifest":
        message.ClearField("manifest")
    elif change == "tensor":
        message.manifest.tensors[0].shape[0] = 0
    with pytest.raises((PlanRefused, Malformed)):
        TrainingPlan.from_bytes(serialize(message))


def test_every_field_of_local_training_has_its_namesake_on_the_wire() -> None:
    assert {field.name for field in fields(LocalTraining)} == set(plan_pb2.LocalTraining.DESCRIPTOR.fields_by_name)


@given(data=st.data())
def test_a_changed_plan_is_refused_or_is_openly_another_plan(make_plan: Make, data: st.DataObject) -> None:
    original = make_plan().to_bytes()
    changed = bytearray(original)
    changed[data.draw(st.integers(0, len(original) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        plan = TrainingPlan.from_bytes(bytes(changed))
    except (Malformed, PlanRefused):
        return
    assert plan.to_bytes() == bytes(changed)
    assert plan.digest != make_plan().digest


def test_a_signed_plan_opens_with_the_custodians_key(make_plan: Make, custodian: Ed25519PrivateKey) -> None:
    plan = make_plan()
    opened = verify_plan(sign_plan(plan, custodian), custodian.public_key())
    assert opened == plan
    assert opened.digest == plan.digest
    assert opened.evaluation_round == plan.rounds + 1


def test_a_plan_signed_by_another_key_is_refused(make_plan: Make, custodian: Ed25519PrivateKey) -> None:
    signed = sign_plan(make_plan(), Ed25519PrivateKey.generate())
    with pytest.raises(BadSignature):
        verify_plan(signed, custodian.public_key())


@pytest.mark.parametrize("field", ["plan", "signature"])
def test_a_flipped_bit_in_a_signed_plan_is_refused(make_plan: Make, custodian: Ed25519PrivateKey, field: str) -> None:
    signed = sign_plan(make_plan(), custodian)
    changed = bytearray(getattr(signed, field))
    changed[-1] ^= 1
    setattr(signed, field, bytes(changed))
    with pytest.raises(BadSignature):
        verify_plan(signed, custodian.public_key())


def test_a_signature_over_the_bare_bytes_is_refused(make_plan: Make, custodian: Ed25519PrivateKey) -> None:
    data = make_plan().to_bytes()
    with pytest.raises(BadSignature):
        verify_plan(plan_pb2.SignedPlan(plan=data, signature=custodian.sign(data)), custodian.public_key())


def test_a_signed_plan_that_is_not_canonical_is_refused(make_plan: Make, custodian: Ed25519PrivateKey) -> None:
    data = make_plan().to_bytes() + b"\xf8\x7c\x01"
    signature = custodian.sign(b"hemofed plan v1\x00" + data)
    with pytest.raises(Malformed):
        verify_plan(plan_pb2.SignedPlan(plan=data, signature=signature), custodian.public_key())


def test_a_plan_without_the_later_training_fields_equals_one_of_defaults_to_the_byte(
    make_plan: Make,
) -> None:
    message = plan_pb2.Plan.FromString(make_plan().to_bytes())
    later = ("trainable", "warm_up_steps", "heads_rate", "reader_rate", "trunk_rate", "ema_decay", "gradient_norm_max")
    assert not {field.name for field, _ in message.training.ListFields()} & {*later, "patience"}
    training = TrainingPlan.from_bytes(serialize(message)).training
    assert training == LocalTraining(1, 1e-3, 0.01, 0.0, 2, 32)
    assert (training.trainable, training.warm_up_steps, training.trunk_rate) == (Trainable.ALL, 5, 1.0)


@pytest.mark.parametrize(("field", "default"), [("warm_up_steps", 5), ("trunk_rate", 1.0), ("gradient_norm_max", 1.0)])
def test_a_default_that_is_spelt_out_on_the_wire_is_refused(make_plan: Make, field: str, default: float) -> None:
    message = plan_pb2.Plan.FromString(make_plan().to_bytes())
    setattr(message.training, field, default)
    with pytest.raises(PlanRefused, match=f"training.{field}: expected no value for the default"):
        TrainingPlan.from_bytes(serialize(message))


def test_an_unknown_group_of_tensors_is_refused(make_plan: Make) -> None:
    message = plan_pb2.Plan.FromString(make_plan().to_bytes())
    message.training.trainable = 9  # type: ignore[assignment]
    with pytest.raises((PlanRefused, Malformed)):
        TrainingPlan.from_bytes(serialize(message))

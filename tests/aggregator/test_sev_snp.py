"""aggregator.sev_snp: reports of a chip of our own making, and of a real one where HEMOFED_REAL_DATA leads to it."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from federation.release import Release, ReleaseLevel
from federation.v1.rounds_pb2 import SnpEvidence
from federation.vocabulary import EvidenceRefusal

from aggregator.sev_snp import REPORT_BYTES, AttestationRefused, verify_snp
from tests.snp_chip import MEASUREMENT, Chip, maker, release

DATA, NOW = bytes(range(64)), datetime(2026, 12, 1, tzinfo=UTC)
REAL = Path(os.environ.get("HEMOFED_REAL_DATA", "")) / "sev_snp_report"


def refusal(evidence: SnpEvidence, asked: Release | None = None, data: bytes = DATA, now: datetime = NOW) -> str:
    """The reason; empty when the evidence suffices."""
    try:
        verify_snp(evidence, asked or release(), data, now)
    except AttestationRefused as refused:
        return refused.reason.value
    return ""


def test_a_fresh_report_of_the_plan_s_machine_suffices() -> None:
    assert refusal(Chip()(DATA)) == ""
    assert refusal(Chip()(DATA), release(measurements=("00" * 48, MEASUREMENT.hex()))) == ""
    assert refusal(Chip()(DATA), release(boot_loader_min=3, snp_min=8, microcode_min=200)) == ""
    assert refusal(Chip(version=3, family=0x19)(DATA)) == ""


@pytest.mark.parametrize(
    ("chip", "reason"),
    [
        pytest.param(lambda: Chip(measurement=bytes(48)), "MEASUREMENT", id="another image"),
        pytest.param(lambda: Chip(policy=0xB0000), "DEBUG", id="debugging allowed"),
        pytest.param(lambda: Chip(policy=0x70000), "DEBUG", id="migration allowed"),
        pytest.param(lambda: Chip(vmpl=1), "VMPL", id="a lower privilege"),
        pytest.param(lambda: Chip(tcb=(3, 0, 7, 200)), "TCB", id="firmware other than certified"),
        pytest.param(lambda: Chip(certified_tcb=(3, 0, 9, 200)), "TCB", id="a certificate of other firmware"),
        pytest.param(lambda: Chip(flags=1 << 2), "FORM", id="signed by a key of a cloud"),
        pytest.param(lambda: Chip(version=1), "FORM", id="a report of an earlier form"),
        pytest.param(lambda: Chip(version=3, family=0x1A), "FORM", id="a processor with another TCB"),
        pytest.param(lambda: Chip(made_by=maker("another maker")), "CHAIN", id="another maker"),
    ],
)
def test_a_machine_that_is_not_as_the_plan_asks_is_refused_by_reason(chip: Callable[[], Chip], reason: str) -> None:
    assert refusal(chip()(DATA)) == reason


@pytest.mark.parametrize("floor", ["boot_loader_min", "tee_min", "snp_min", "microcode_min"])
def test_firmware_below_the_floor_of_the_plan_is_refused(floor: str) -> None:
    assert refusal(Chip()(DATA), release(**{floor: 201})) == "TCB"


def test_a_report_for_something_else_is_refused() -> None:
    assert refusal(Chip()(bytes(64))) == "BINDING"


def test_a_chain_that_is_not_valid_today_is_refused() -> None:
    for now in (datetime(2025, 12, 31, tzinfo=UTC), datetime(2030, 1, 2, tzinfo=UTC)):
        assert refusal(Chip()(DATA), now=now) == "CHAIN"


def test_a_report_by_another_chip_s_key_is_refused() -> None:
    evidence, other = Chip()(DATA), Chip()(DATA)
    evidence.report = other.report
    assert refusal(evidence) == "SIGNATURE"


def test_a_made_up_chain_under_the_name_of_the_true_one_is_refused() -> None:
    """The root is pinned by its digest, so a root of the same name is another one."""
    true, made_up = Chip()(DATA), Chip(made_by=maker("another maker"))(DATA)
    for changed in ({"vcek": made_up.vcek, "report": made_up.report}, {"ask": made_up.ask, "vcek": made_up.vcek}):
        evidence = SnpEvidence.FromString(true.SerializeToString())
        for name, value in changed.items():
            setattr(evidence, name, value)
        assert refusal(evidence) == "CHAIN"
    assert refusal(made_up, release(root=sha256(true.ark).hexdigest())) == "CHAIN"


def test_anything_that_is_no_evidence_is_refused_and_raises_nothing_else() -> None:
    true = Chip()(DATA)
    for field in ("report", "vcek", "ask", "ark"):
        for value in (b"", b"\x00", getattr(true, field)[:-1], getattr(true, field) + b"\x00", b"\xff" * REPORT_BYTES):
            evidence = SnpEvidence.FromString(true.SerializeToString())
            setattr(evidence, field, value)
            assert refusal(evidence), field


def flipped(evidence: SnpEvidence, field: str, bit: int) -> SnpEvidence:
    changed = SnpEvidence.FromString(evidence.SerializeToString())
    data = bytearray(getattr(evidence, field))
    data[bit // 8] ^= 1 << bit % 8
    setattr(changed, field, bytes(data))
    return changed


def test_a_flipped_bit_anywhere_in_the_report_is_refused() -> None:
    """Each third byte, one bit of each. The bits of the real report are flipped one and all, where there is one."""
    true = Chip()(DATA)
    for place in range(0, REPORT_BYTES, 3):
        assert refusal(flipped(true, "report", 8 * place + place % 8)), f"byte {place:#x}"


@pytest.fixture
def real() -> tuple[SnpEvidence, Release, bytes]:
    """The recorded report of a Milan machine, its chain, and the plan that fits it."""
    if not REAL.is_dir():
        pytest.skip("HEMOFED_REAL_DATA leads to no sev_snp_report")
    report = bytes.fromhex((REAL / "report_milan.hex").read_text())
    ask, ark = (
        x509.load_pem_x509_certificate((REAL / name).read_bytes()).public_bytes(Encoding.DER)
        for name in ("ask.pem", "ark.pem")
    )
    evidence = SnpEvidence(report=report, vcek=(REAL / "vcek_milan.der").read_bytes(), ask=ask, ark=ark)
    plan = Release(ReleaseLevel.CVM, sha256(ark).hexdigest(), (report[0x90:0xC0].hex(),), 3, 0, 8, 115)
    return evidence, plan, report[0x50:0x90]


@pytest.mark.real_data
def test_the_recorded_report_of_a_real_chip_suffices_under_its_own_plan_only(
    real: tuple[SnpEvidence, Release, bytes],
) -> None:
    evidence, plan, data = real
    assert refusal(evidence, plan, data) == ""
    assert refusal(evidence, plan, DATA) == EvidenceRefusal.BINDING
    higher = Release(ReleaseLevel.CVM, plan.root, plan.measurements, 3, 0, 8, 116)
    assert refusal(evidence, higher, data) == EvidenceRefusal.TCB


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_flipped_bit_anywhere_in_the_recorded_report_or_its_chain_is_refused(
    real: tuple[SnpEvidence, Release, bytes],
) -> None:
    evidence, plan, data = real
    for field in ("report", "vcek", "ask", "ark"):
        for bit in range(8 * len(getattr(evidence, field))):
            assert refusal(flipped(evidence, field, bit), plan, data), f"bit {bit} of {field}"

"""Settings of one site, read from site.toml. deploy/site.toml documents every key, its default, unit and consequence.

An unknown key, a missing one, a wrong type or a value out of range stops the start with one sentence. Types and bounds
stand beside the fields, and msgspec checks them. Relative paths are relative to the folder of the file.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

import structlog
from federation.labels import LABELS
from federation.limits import COHORT_MAX, COHORT_MIN, SLOW_CHUNK_BYTES, is_site_name
from federation.vocabulary import Metric
from msgspec import Meta

from site_client.errors import ConfigRefused
from site_client.toml_settings import parse_settings, read_text
from site_client.windows import WindowRefused, parse_days, parse_window

DEFAULT_FILE = Path("/etc/hemofed/site.toml")
NOT_CONFIGURED = "not configured yet: edit site.toml"
_FILE: Final = "site.toml"
_EXAMPLE_NAME = "example-hospital"  # of the site.toml that the package installs
_COLUMN_MEANINGS = (*LABELS, "study", "slice", "accession", "reader", "date")  # as ingest/labels/spelling.py names them
_log = structlog.get_logger()

Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=86_400)]
Gibibytes: TypeAlias = Annotated[float, Meta(ge=0, le=100_000)]


@dataclass(frozen=True)
class AggregatorAddress:
    """Addresses of the consortium's aggregator, and the proxy in between."""

    address: str = ""  # host:port of the mutual-TLS listener; the agent does not start without
    enrolment_address: str = ""  # host:port of the enrolment listener; "": the one given to join
    # http://[user:password@]host:port; "": direct. The password must reach no repr and no refusal.
    proxy: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        """Check the form of the addresses."""
        for name, value in (("address", self.address), ("enrolment_address", self.enrolment_address)):
            _require(not value or is_host_port(value), f"aggregator.{name} is host:port, got {value!r}")
        if self.proxy:
            _check_proxy(self.proxy)


@dataclass(frozen=True)
class FoldersSettings:
    """Folders. The agent uses <state>/agent and the spool; the trainer uses all others."""

    state: Path = Path("/var/lib/hemofed")
    spool: Path = Path("/var/lib/hemofed/spool")
    export: Path = Path("/srv/hemofed/export")
    labels: tuple[Path, ...] = ()
    cache: Path = Path("/var/cache/hemofed")
    opt_outs: tuple[Path, ...] = ()

    @property
    def agent(self) -> Path:
        """State of the agent: keys, roster, ledger, rounds, models."""
        return self.state / "agent"

    @property
    def trainer(self) -> Path:
        """State of the trainer: catalog, checkpoints."""
        return self.state / "trainer"


@dataclass(frozen=True)
class PolicySettings:
    """The limits that this hospital sets. They can only tighten those of a plan."""

    plan_approval: Literal["ask", "automatic"] = "ask"
    cohort_min: Annotated[int, Meta(ge=COHORT_MIN, le=COHORT_MAX)] = COHORT_MIN
    roster_approval: Literal["ask", "wait"] = "ask"
    roster_wait_days: Annotated[int, Meta(ge=0, le=365)] = 14  # with roster_approval = "wait"
    studies_min: Annotated[int, Meta(ge=1, le=1_000_000)] = 32
    metrics: tuple[Metric, ...] = tuple(Metric)
    transfer_windows: tuple[str, ...] = ()  # in the syntax of windows.py; none: always
    bandwidth_kib_s: Annotated[int, Meta(ge=0, le=10_000_000)] = 0  # 0: no limit
    metered: Literal["wait", "ignore"] = "wait"
    metered_unknown: Literal["transfer", "wait"] = "transfer"
    epsilon_max: Annotated[float, Meta(ge=0, le=1_000)] = 0.0  # of a patient, over all runs; 0: no limit
    delta: Annotated[float, Meta(ge=1e-12, le=1e-3)] = 1e-6  # with which `epsilon_max` holds
    privacy_required: bool = False  # decline a plan whose sum has no noise
    dry_run: bool = False

    def __post_init__(self) -> None:
        """Check the windows."""
        _check_windows("policy.transfer_windows", self.transfer_windows)


@dataclass(frozen=True)
class IngestSettings:
    """Reading of the export. ingest/rules.py fixes all other criteria."""

    settle_s: Seconds = 60.0
    slices_min: Annotated[int, Meta(ge=3, le=100)] = 12
    lossy: bool = False
    no_contrast: tuple[str, ...] = ()
    head_words: tuple[str, ...] = ()
    elsewhere_words: tuple[str, ...] = ()
    soft_kernels: tuple[str, ...] = ()
    bone_kernels: tuple[str, ...] = ()
    patient_tag: str = "0010,0020"  # the attribute that tells patients apart

    def __post_init__(self) -> None:
        """Check the form of the attribute."""
        _require(
            bool(re.fullmatch(r"[0-9A-Fa-f]{4},[0-9A-Fa-f]{4}", self.patient_tag)),
            f'ingest.patient_tag is an attribute such as "0010,0020", got {self.patient_tag!r}',
        )


@dataclass(frozen=True)
class LabelsSettings:
    """Reading of the label tables."""

    readers: Literal["agree", "majority", "any"] = "agree"
    addenda: Literal["conflict", "last"] = "conflict"
    columns: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the meanings of columns."""
        for meaning in self.columns.values():
            _require(
                meaning in _COLUMN_MEANINGS,
                f"labels.columns gives each column a meaning, one of {', '.join(_COLUMN_MEANINGS)}, got {meaning!r}",
            )


@dataclass(frozen=True)
class TrainingSettings:
    """Resources of the trainer."""

    threads: Annotated[int, Meta(ge=0, le=1024)] = 0  # 0: as many as there are cores
    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: Annotated[int, Meta(ge=1, le=16)] = 1
    validation_fraction: Annotated[float, Meta(ge=0.05, le=0.5)] = 0.2
    cache_max_gib: Annotated[float, Meta(ge=0.1, le=100_000)] = 50.0

    @property
    def cache_max_bytes(self) -> int:
        """`cache_max_gib` in bytes."""
        return int(self.cache_max_gib * (1 << 30))


@dataclass(frozen=True)
class IdleSettings:
    """The limits within which the trainer may train.

    Shares are 0..1; 1 switches that gate off, as 0 does for idle times and GiB.
    """

    foreign_cpu_max: Share = 0.25
    memory_pressure_max: Share = 0.1
    io_pressure_max: Share = 0.5
    memory_free_min_gib: Gibibytes = 1.0
    disk_free_min_gib: Gibibytes = 2.0
    temperature_max_c: Annotated[float, Meta(ge=30, le=150)] = 90.0
    user_idle_min_s: Seconds = 300.0
    remote_idle_min_s: Seconds = 300.0
    bare_sessions: Literal["pause", "ignore"] = "pause"
    gpu_others: Literal["compute", "any", "ignore"] = "compute"
    battery: Literal["pause", "ignore"] = "pause"
    exclusive_programs: tuple[str, ...] = ()
    windows: tuple[str, ...] = ()
    blackout: tuple[str, ...] = ()
    start_delay_s: Seconds = 60.0
    calm_s: Seconds = 600.0
    release_s: Seconds = 120.0

    def __post_init__(self) -> None:
        """Check windows and days."""
        _check_windows("idle.windows", self.windows)
        for text in self.blackout:
            try:
                parse_days(text)
            except WindowRefused as error:
                raise ConfigRefused(f"site.toml: idle.blackout: {error}") from error


@dataclass(frozen=True)
class AgentSettings:
    """The times at which the agent polls, and the silences after which it acts."""

    poll_min_s: Annotated[float, Meta(ge=0.01, le=60)] = 0.2
    poll_max_s: Seconds = 600.0
    trainer_silent_s: Annotated[float, Meta(ge=5, le=86_400)] = 180.0
    stall_s: Annotated[float, Meta(ge=5, le=3_600)] = 60.0
    payloads_mib: Annotated[int, Meta(ge=0, le=1_000_000)] = 256
    snp_certificates: Path = Path("/etc/hemofed/snp")

    def __post_init__(self) -> None:
        """Check the two bounds of a pause against each other."""
        _require(
            self.poll_min_s <= self.poll_max_s,
            f"agent.poll_max_s is at least agent.poll_min_s = {self.poll_min_s:g}, got {self.poll_max_s:g}",
        )


@dataclass(frozen=True)
class SiteSettings:
    """All of site.toml."""

    name: str
    aggregator: AggregatorAddress = field(default_factory=AggregatorAddress)
    folders: FoldersSettings = field(default_factory=FoldersSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    ingest: IngestSettings = field(default_factory=IngestSettings)
    labels: LabelsSettings = field(default_factory=LabelsSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    idle: IdleSettings = field(default_factory=IdleSettings)
    agent: AgentSettings = field(default_factory=AgentSettings)

    @property
    def is_example(self) -> bool:
        """Whether this is still the site.toml that the package installs."""
        return self.name == _EXAMPLE_NAME

    def __post_init__(self) -> None:
        """Check the name, and bounds that span two sections."""
        _require(
            is_site_name(self.name),
            f"name is 1 to 32 of a-z, 0-9 and inner hyphens, as in the invitation, got {self.name[:80]!r}",
        )
        # A piece is handed over whole: at a lower bandwidth each would look like a stalled transfer, without end.
        chunk_kib, bandwidth_kib_s = SLOW_CHUNK_BYTES // 1024, self.policy.bandwidth_kib_s
        _require(
            bandwidth_kib_s == 0 or chunk_kib / bandwidth_kib_s <= self.agent.stall_s / 2,
            f"policy.bandwidth_kib_s = {bandwidth_kib_s} moves a chunk of {chunk_kib} KiB in "
            f"{chunk_kib / max(1, bandwidth_kib_s):.0f} s, and agent.stall_s gives up on it; raise either until a "
            "chunk takes half of stall_s at most",
        )


def load(path: Path) -> SiteSettings:
    """Read and check a site.toml.

    Raises:
        ConfigRefused: The file cannot be read or used.
    """
    return parse(read_text(path), path.parent)


def parse(text: str, base: Path) -> SiteSettings:
    """Read and check the text of a site.toml.

    Args:
        text: TOML.
        base: The folder that relative paths start from.

    Raises:
        ConfigRefused: The text cannot be used. The message names the key, what was expected and what was there.
    """
    # Before the check of keys and values, which know only the present spelling.
    return parse_settings(SiteSettings, text, base, _FILE, translate=_translate_old_spellings)


def _translate_old_spellings(table: dict[str, Any]) -> None:
    """Read names of metrics in upper case, as version 0.1.0 wrote them, with one warning."""
    policy = table.get("policy")
    metrics = policy.get("metrics") if isinstance(policy, dict) else None
    old = {metric.name: metric.value for metric in Metric}
    if not isinstance(metrics, list) or not any(isinstance(name, str) and name in old for name in metrics):
        return
    policy["metrics"] = [old.get(name, name) if isinstance(name, str) else name for name in metrics]  # type: ignore[index]  # a dict, or `metrics` would be None
    _log.warning("old spelling read", key="policy.metrics", fix="write the metrics in lower case, as in plan.toml")


def _check_proxy(proxy: str) -> None:
    """Refuse a proxy that gRPC would ignore. No message repeats it: it may hold a password."""
    try:
        parts = urlsplit(proxy)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigRefused("site.toml: aggregator.proxy is http://[user:password@]host:port") from None
    # gRPC ignores an https:// proxy silently and dials directly.
    _require(parts.scheme == "http", "aggregator.proxy begins with http:// (https:// proxies do not work)")
    _require(bool(host and port), "aggregator.proxy is http://[user:password@]host:port")


def _check_windows(key: str, windows: tuple[str, ...]) -> None:
    for text in windows:
        try:
            parse_window(text)
        except WindowRefused as error:
            raise ConfigRefused(f"site.toml: {key}: {error}") from error


def is_host_port(value: str) -> bool:
    """Whether `value` is host:port, with brackets around an IPv6 address."""
    host, _, port = value.rpartition(":")
    return bool(re.fullmatch(r"[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]", host)) and port.isdigit() and 0 < int(port) < 65536


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ConfigRefused(f"site.toml: {sentence}")

"""site.toml -> Settings. deploy/site.toml documents every key, its default, its unit and what follows from it.

An unknown key, a missing one, a wrong type or a value out of range stops the start with one sentence. Relative paths
are relative to the folder of the file.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from federation.limits import SLOW_PIECE_BYTES, is_site_name

from site_client.errors import ConfigRefused
from site_client.windows import WindowRefused, parse_window

DEFAULT_FILE = Path("/etc/hemofed/site.toml")
_EXAMPLE_NAME = "example-hospital"  # of the site.toml that the package installs
NOT_CONFIGURED = "not configured yet: edit site.toml"
_T = TypeVar("_T")
_WORDS: dict[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
METRICS = ("HISTOGRAMS", "LOSS")  # federation.v1 Metric names


@dataclass(frozen=True)
class AggregatorSettings:
    """Where the consortium's aggregator is, and how to get there."""

    address: str = ""  # host:port of the mutual-TLS listener; the agent does not start without
    enrolment_address: str = ""  # host:port of the enrolment listener; "": the one given to join
    proxy: str = field(default="", repr=False)  # http://[user:password@]host:port; "": direct

    def __post_init__(self) -> None:
        for name, value in (("address", self.address), ("enrolment_address", self.enrolment_address)):
            _require(not value or _is_host_port(value), f"aggregator.{name} is host:port, got {value!r}")
        if self.proxy:
            parts = urlsplit(self.proxy)
            # gRPC ignores an https:// proxy without a word and dials directly.
            _require(parts.scheme == "http", "aggregator.proxy begins with http:// (https:// proxies do not work)")
            _require(bool(parts.hostname and parts.port), "aggregator.proxy is http://[user:password@]host:port")


@dataclass(frozen=True)
class FoldersSettings:
    """Where things are. The agent uses <state>/agent and the spool; the trainer everything else."""

    state: Path = Path("/var/lib/hemofed")
    spool: Path = Path("/var/lib/hemofed/spool")
    export: Path = Path("/srv/hemofed/export")
    labels: tuple[Path, ...] = ()
    cache: Path = Path("/var/cache/hemofed")

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
    """What this hospital allows. It can only tighten what a plan says."""

    plan_approval: Literal["ask", "automatic"] = "ask"
    cohort_min: int = 3
    studies_min: int = 32
    metrics: tuple[str, ...] = METRICS
    transfer_windows: tuple[str, ...] = ()  # in the syntax of windows.py; none: always
    bandwidth_kib_s: int = 0  # 0: no limit
    metered: Literal["wait", "ignore"] = "wait"
    metered_unknown: Literal["transfer", "wait"] = "transfer"
    epsilon_max: float = 0.0  # of the differential privacy a plan must promise; 0: none asked for
    dry_run: bool = False

    def __post_init__(self) -> None:
        _between("policy.cohort_min", self.cohort_min, 3, 500)
        _between("policy.studies_min", self.studies_min, 1, 1_000_000)
        for name in self.metrics:
            _require(name in METRICS, f"policy.metrics holds names of {', '.join(METRICS)}, got {name!r}")
        for window in self.transfer_windows:
            _window("policy.transfer_windows", window)
        _between("policy.bandwidth_kib_s", self.bandwidth_kib_s, 0, 10_000_000)
        _between("policy.epsilon_max", self.epsilon_max, 0, 1_000)


@dataclass(frozen=True)
class IngestSettings:
    """How the export is read. Everything else about what fits is fixed in ingest/rules.py."""

    settle_s: float = 60.0
    slices_min: int = 12
    lossy: bool = False

    def __post_init__(self) -> None:
        _between("ingest.settle_s", self.settle_s, 0, 86_400)
        _between("ingest.slices_min", self.slices_min, 3, 100)


@dataclass(frozen=True)
class TrainingSettings:
    """What the trainer may use."""

    threads: int = 0  # 0: as many as there are cores
    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: int = 1
    validation_fraction: float = 0.2
    cache_max_gib: float = 50.0

    def __post_init__(self) -> None:
        _between("training.threads", self.threads, 0, 1024)
        _between("training.processes", self.processes, 1, 16)
        _between("training.validation_fraction", self.validation_fraction, 0.05, 0.5)
        _between("training.cache_max_gib", self.cache_max_gib, 0.1, 100_000)

    @property
    def cache_max_bytes(self) -> int:
        return int(self.cache_max_gib * (1 << 30))


@dataclass(frozen=True)
class IdleSettings:
    """When the trainer may train. Shares are 0..1; 1 switches that gate off, as 0 does for idle times and GiB."""

    foreign_cpu_max: float = 0.25
    memory_pressure_max: float = 0.1
    io_pressure_max: float = 0.5
    memory_free_min_gib: float = 1.0
    disk_free_min_gib: float = 2.0
    temperature_max_c: float = 90.0
    user_idle_min_s: float = 300.0
    remote_idle_min_s: float = 300.0
    gpu_others: Literal["compute", "any", "ignore"] = "compute"
    battery: Literal["pause", "ignore"] = "pause"
    exclusive_programs: tuple[str, ...] = ()
    windows: tuple[str, ...] = ()
    blackout: tuple[str, ...] = ()
    start_delay_s: float = 60.0
    calm_s: float = 600.0
    release_s: float = 120.0

    def __post_init__(self) -> None:
        for name in ("foreign_cpu_max", "memory_pressure_max", "io_pressure_max"):
            _between(f"idle.{name}", getattr(self, name), 0, 1)
        for name in ("user_idle_min_s", "remote_idle_min_s", "start_delay_s", "calm_s", "release_s"):
            _between(f"idle.{name}", getattr(self, name), 0, 86_400)
        for name in ("memory_free_min_gib", "disk_free_min_gib"):
            _between(f"idle.{name}", getattr(self, name), 0, 100_000)
        _between("idle.temperature_max_c", self.temperature_max_c, 30, 150)
        for window in self.windows:
            _window("idle.windows", window)
        for text in self.blackout:
            _require(_is_days(text), f"idle.blackout holds days, 2026-12-24..2027-01-01, got {text!r}")


@dataclass(frozen=True)
class AgentSettings:
    """How the agent paces itself."""

    poll_min_s: float = 0.2
    poll_max_s: float = 600.0
    trainer_silent_s: float = 180.0
    stall_s: float = 60.0
    payloads_mib: int = 256

    def __post_init__(self) -> None:
        _between("agent.poll_min_s", self.poll_min_s, 0.01, 60)
        _between("agent.poll_max_s", self.poll_max_s, self.poll_min_s, 86_400)
        _between("agent.trainer_silent_s", self.trainer_silent_s, 5, 86_400)
        _between("agent.stall_s", self.stall_s, 5, 3_600)
        _between("agent.payloads_mib", self.payloads_mib, 0, 1_000_000)


@dataclass(frozen=True)
class SiteSettings:
    """A whole site.toml."""

    name: str
    aggregator: AggregatorSettings = field(default_factory=AggregatorSettings)
    folders: FoldersSettings = field(default_factory=FoldersSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    ingest: IngestSettings = field(default_factory=IngestSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    idle: IdleSettings = field(default_factory=IdleSettings)
    agent: AgentSettings = field(default_factory=AgentSettings)

    @property
    def is_example(self) -> bool:
        """Nobody has edited the site.toml that the package installs."""
        return self.name == _EXAMPLE_NAME

    def __post_init__(self) -> None:
        _require(
            is_site_name(self.name),
            f"name is 1 to 32 of a-z, 0-9 and inner hyphens, as in the invitation, got {self.name[:80]!r}",
        )
        piece_kib = SLOW_PIECE_BYTES // 1024  # no larger one leaves or comes at such a pace
        chunk_s = piece_kib / (self.policy.bandwidth_kib_s or math.inf)
        _require(
            chunk_s <= self.agent.stall_s / 2,
            f"policy.bandwidth_kib_s = {self.policy.bandwidth_kib_s} moves a piece of {piece_kib} KiB in "
            f"{chunk_s:.0f} s, and agent.stall_s gives up on it; raise either until a piece takes half of stall_s at "
            "most",
        )


def load(path: Path) -> SiteSettings:
    """Reads and checks a site.toml."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigRefused(f"{path} cannot be read ({error.strerror}); give the file with --config") from error
    return parse(text, path.parent)


def parse(text: str, base: Path) -> SiteSettings:
    """Checks the text of a site.toml; `base` is the folder its relative paths start from."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigRefused(f"site.toml is not TOML: {error}") from error
    return _section(SiteSettings, table, "", base)


def _section(cls: type[_T], table: Mapping[str, Any], prefix: str, base: Path) -> _T:
    hints = get_type_hints(cls)
    _refuse_unknown(table, list(hints), prefix)
    values = {}
    for key in fields(cls):  # type: ignore[arg-type]  # only the dataclasses above are passed
        if key.name in table:
            values[key.name] = _value(hints[key.name], table[key.name], prefix + key.name, base)
        elif key.default is MISSING and key.default_factory is MISSING:
            raise ConfigRefused(f"site.toml: {prefix}{key.name} is missing; deploy/site.toml shows every key")
    return cls(**values)


def _refuse_unknown(table: Mapping[str, Any], known: list[str], prefix: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise ConfigRefused(f"site.toml: {prefix}{key} is unknown; nearest is {prefix}{near[0]}")


def _value(kind: Any, value: Any, name: str, base: Path) -> Any:
    if get_origin(kind) is Literal:
        _require(value in get_args(kind), f"{name} is one of {', '.join(get_args(kind))}, got {value!r}")
        return value
    if get_origin(kind) is tuple:
        _require(isinstance(value, list), f"{name} is a list, got {value!r}")
        return tuple(_value(get_args(kind)[0], item, name, base) for item in value)
    if kind is Path:
        _require(isinstance(value, str), f"{name} is a path, got {value!r}")
        return base / value
    if kind is float and type(value) is int:
        return float(value)
    if kind in (str, int, float, bool):
        _require(type(value) is kind, f"{name} is {_WORDS[kind]}, got {value!r}")
        return value
    _require(isinstance(value, dict), f"{name} is a table, [{name}]")
    return _section(kind, value, f"{name}.", base)


def _window(name: str, text: str) -> None:
    try:
        parse_window(text)
    except WindowRefused as error:
        raise ConfigRefused(f"site.toml: {name}: {error}") from error


def _between(name: str, value: float, low: float, high: float) -> None:
    _require(low <= value <= high, f"{name} is from {low} to {high}, got {value}")


def _is_host_port(value: str) -> bool:
    host, _, port = value.rpartition(":")
    return bool(re.fullmatch(r"[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]", host)) and port.isdigit() and 0 < int(port) < 65536


def _is_days(text: str) -> bool:
    first, dots, last = text.partition("..")
    try:
        return date.fromisoformat(first) <= date.fromisoformat(last if dots else first)
    except ValueError:
        return False


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ConfigRefused(f"site.toml: {sentence}")

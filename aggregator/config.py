"""aggregator.toml as typed settings. `deploy/aggregator.toml` is the commented reference; a test compares the two.

Every key has a default, so an empty file is valid. A key nobody knows stops the start, with the nearest one that
exists: a misspelt `enrollment_open = false` must not leave the door open.
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, get_args, get_origin, get_type_hints

from aggregator.errors import AggregatorError, ConfigRefused

Section = TypeVar("Section")


@dataclass(frozen=True)
class ListenSettings:
    """Where the aggregator can be reached. An address is host:port; port 0 lets the system choose."""

    sites: str = "0.0.0.0:8443"  # mutual TLS; sites dial in from outside, so every interface
    enrolment: str = "0.0.0.0:8444"  # server TLS, only Join, Challenge, Recover; "" closes it
    dashboard: str = "127.0.0.1:8080"
    host_names: tuple[str, ...] = ()  # what sites dial; into the server certificate beside localhost and 127.0.0.1
    threads: int = 32  # calls served at once on each gRPC listener
    answer_hold_ms: int = 500  # how long a Poll may be held during masking before "nothing yet"


@dataclass(frozen=True)
class StateSettings:
    """What must survive a restart."""

    folder: Path = Path("/var/lib/hemofed-aggregator")  # CA, custodian key, blobs, and the database unless below
    database: str = ""  # SQLAlchemy URL; "" is hub.sqlite in the folder
    blob_max_mib: int = 512  # largest model or upload accepted


@dataclass(frozen=True)
class EnrolmentSettings:
    """How hospitals become sites and stay ones."""

    invitation_hours: int = 24
    certificate_days: int = 30
    recoveries: int = 5  # times a site may come back with its signing key after its certificate ran out
    retry_after_s: int = 15  # how often a pending site asks again


@dataclass(frozen=True)
class PacingSettings:
    """When a site is told to poll again. Jittered by a quarter up and down."""

    idle_s: float = 300.0
    training_s: float = 60.0
    masking_s: float = 1.0
    paused_s: float = 300.0  # the run is paused


@dataclass(frozen=True)
class DriverSettings:
    """The loop that steps due rounds."""

    threads: int = 1
    interval_s: float = 0.5  # between two looks for due rounds
    lease_s: float = 120.0  # a driver that died leaves its round to the next after this long
    abandoned_in_a_row_max: int = 3  # then the run is paused and says why
    aggregation_threads: int = 0  # for unmasking; 0 is one a core


@dataclass(frozen=True)
class MetricsSettings:
    """What the opened histograms are turned into."""

    positives_min: int = 10  # fewer positives or negatives than this: AUC and calibration of that label are not shown


@dataclass(frozen=True)
class DashboardSettings:
    """The web pages."""

    enabled: bool = True
    session_hours: int = 12
    failed_logins_max: int = 5  # then that name waits, whoever asks
    failed_logins_wait_s: int = 300


@dataclass(frozen=True)
class AggregatorSettings:
    listen: ListenSettings = field(default_factory=ListenSettings)
    state: StateSettings = field(default_factory=StateSettings)
    enrolment: EnrolmentSettings = field(default_factory=EnrolmentSettings)
    pacing: PacingSettings = field(default_factory=PacingSettings)
    driver: DriverSettings = field(default_factory=DriverSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    dashboard: DashboardSettings = field(default_factory=DashboardSettings)

    @property
    def database_url(self) -> str:
        return self.state.database or f"sqlite:///{self.state.folder.absolute() / 'hub.sqlite'}"


def load_settings(path: Path) -> AggregatorSettings:
    """Read aggregator.toml.

    Raises: ConfigRefused for a file that is missing or no TOML, an unknown key, a wrong type or a value out of range.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigRefused(f"no settings at {path}; copy deploy/aggregator.toml there or pass --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigRefused(f"{path} is no TOML: {error}") from None
    settings = from_table(AggregatorSettings, table, str(path), ConfigRefused)
    _check_ranges(settings)
    return settings


def from_table(kind: type[Section], table: Mapping[str, object], where: str, refusal: type[AggregatorError]) -> Section:
    """Fill a dataclass (nested ones too) from a TOML table; absent keys take the dataclass's defaults.

    Raises: `refusal` naming `where` and the key: unknown (with the nearest known one), missing without default, or of
    another type than the field's. An integer is taken where a float is expected; nothing else is converted.
    """
    hints = get_type_hints(kind)
    unknown = sorted(set(table) - set(hints))
    if unknown:
        raise refusal(f"{where}: unknown key {unknown[0]!r}{nearest(unknown[0], hints)}")
    values = {key: _typed(hints[key], value, f"{where}: {key}", refusal) for key, value in table.items()}
    for missing in sorted(set(required_keys(kind)) - set(values)):
        raise refusal(f"{where}: {missing!r} is missing")
    return kind(**values)


def nearest(name: str, known: Mapping[str, object]) -> str:
    """A hint for a misspelling: '; did you mean ...?', or the list of what there is."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(sorted(known))}"


def required_keys(kind: type[object]) -> list[str]:
    """Names of the fields without a default."""
    # `kind` is a dataclass at every call: Settings, the plan file's tables, and what is nested in them.
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    return [f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]


def _typed(kind: type[object], value: object, where: str, refusal: type[AggregatorError]) -> object:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise refusal(f"{where}: expected a table, got {type(value).__name__}")
        return from_table(kind, value, where, refusal)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise refusal(f"{where}: expected a list, got {type(value).__name__}")
        return tuple(_typed(get_args(kind)[0], item, where, refusal) for item in value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise refusal(f"{where}: expected {kind.__name__}, got {type(value).__name__} {value!r}")
    return value


def _check_ranges(settings: AggregatorSettings) -> None:
    bounds: tuple[tuple[str, float, float, float], ...] = (
        ("listen.threads", settings.listen.threads, 4, 1024),
        ("listen.answer_hold_ms", settings.listen.answer_hold_ms, 0, 10_000),
        ("state.blob_max_mib", settings.state.blob_max_mib, 1, 65_536),
        ("enrolment.invitation_hours", settings.enrolment.invitation_hours, 1, 720),
        ("enrolment.certificate_days", settings.enrolment.certificate_days, 1, 90),
        ("enrolment.recoveries", settings.enrolment.recoveries, 0, 1000),
        ("enrolment.retry_after_s", settings.enrolment.retry_after_s, 1, 3600),
        ("pacing.idle_s", settings.pacing.idle_s, 0.1, 86_400),
        ("pacing.training_s", settings.pacing.training_s, 0.1, 86_400),
        ("pacing.masking_s", settings.pacing.masking_s, 0.05, 60),
        ("pacing.paused_s", settings.pacing.paused_s, 0.1, 86_400),
        ("driver.threads", settings.driver.threads, 1, 64),
        ("driver.interval_s", settings.driver.interval_s, 0.05, 60),
        ("driver.lease_s", settings.driver.lease_s, 5, 86_400),
        ("driver.abandoned_in_a_row_max", settings.driver.abandoned_in_a_row_max, 1, 100),
        ("driver.aggregation_threads", settings.driver.aggregation_threads, 0, 1024),
        ("metrics.positives_min", settings.metrics.positives_min, 1, 1_000_000),
        ("dashboard.session_hours", settings.dashboard.session_hours, 1, 720),
        ("dashboard.failed_logins_max", settings.dashboard.failed_logins_max, 1, 1000),
        ("dashboard.failed_logins_wait_s", settings.dashboard.failed_logins_wait_s, 1, 86_400),
    )
    for key, value, lowest, highest in bounds:
        if not lowest <= value <= highest:
            raise ConfigRefused(f"{key}: expected {lowest}..{highest}, got {value}")
    for key in ("sites", "enrolment", "dashboard"):
        _check_address(f"listen.{key}", getattr(settings.listen, key), may_be_empty=key == "enrolment")


def _check_address(key: str, address: str, *, may_be_empty: bool) -> None:
    if not address and may_be_empty:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise ConfigRefused(f"{key}: expected host:port, got {address!r}")

"""aggregator.toml as typed settings. `deploy/aggregator.toml` is the commented reference; a test compares the two.

Every key has a default, so an empty file is valid. An unknown key stops the start, with the nearest known one: a
misspelt `enrolment = ""` must not leave the enrolment listener on.
"""

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from aggregator.errors import ConfigRefused
from aggregator.toml_file import from_table, read_toml, rename_old_keys

# Keys of version 0.1.0 that have another name today. Files with the old one are read, with a warning.
RENAMED = {"driver.opening_threads": "driver.aggregation_threads"}

DAY_S = 86_400
PORT_MAX = 65_535


class ListenSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The addresses of the aggregator. An address is host:port; port 0 lets the system choose."""

    sites: str = "0.0.0.0:8443"  # mutual TLS; sites dial in from outside, so every interface
    enrolment: str = "0.0.0.0:8444"  # server TLS, only Join, Challenge, Recover; "" closes it
    dashboard: str = "127.0.0.1:8080"
    health: str = ""  # /healthz, /readyz, /metrics without a log-in; "" closes it
    host_names: tuple[str, ...] = ()  # what sites dial; into the server certificate beside localhost and 127.0.0.1
    # Calls of sites served at once; the enrolment listener has an eighth. A call takes one when it is here whole.
    threads: Annotated[int, Meta(ge=4, le=1024)] = 8
    # A Poll may be held this long during masking before the answer "nothing yet".
    answer_hold_ms: Annotated[int, Meta(ge=0, le=10_000)] = 500

    def __post_init__(self) -> None:
        for key in ("sites", "enrolment", "dashboard", "health"):
            address: str = getattr(self, key)
            host, _, port = address.rpartition(":")
            closed = key in ("enrolment", "health") and not address
            if not closed and (not host or not port.isdigit() or int(port) > PORT_MAX):
                raise ValueError(f"{key}: expected host:port, got {address!r}")


class LimitsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits on callers: the most that they may hold at once, and for how long.

    A connection is a stranger's until a call on it is authenticated. An address is an IPv4 address, or the /64 of an
    IPv6 address.
    """

    connections: Annotated[int, Meta(ge=16, le=65_536)] = 2048  # of the sites' listener; strangers get half of them
    enrolment_connections: Annotated[int, Meta(ge=16, le=65_536)] = 1024  # half for one address is the most
    dashboard_connections: Annotated[int, Meta(ge=4, le=65_536)] = 64
    # Strangers' of one address, on each gRPC listener. Hospitals behind one proxy share it while they connect.
    connections_per_address: Annotated[int, Meta(ge=4, le=65_536)] = 512
    # An agent needs one, and a second one while its first is dead and not yet noticed.
    connections_per_site: Annotated[int, Meta(ge=2, le=1024)] = 4
    calls_per_connection: Annotated[int, Meta(ge=2, le=1024)] = 8
    calls_per_site: Annotated[int, Meta(ge=2, le=1024)] = 8
    calls_per_address: Annotated[int, Meta(ge=1, le=1024)] = 16  # of hosts without a certificate
    handshake_s: Annotated[float, Meta(ge=1, le=3600)] = 30.0  # from the first packet to an authenticated call
    message_s: Annotated[float, Meta(ge=1, le=3600)] = 60.0  # from the beginning of a call to its first whole message
    progress_s: Annotated[float, Meta(ge=1, le=3600)] = 60.0  # between two messages of a transfer
    request_s: Annotated[float, Meta(ge=1, le=3600)] = 15.0  # for a request to the dashboard and its answer
    log_lines_per_minute: Annotated[int, Meta(ge=1, le=100_000)] = 60  # with the same event


class StateSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The folder and database that survive a restart."""

    folder: Path = Path("/var/lib/hemofed-aggregator")  # CA, blobs, and the database unless below
    database: str = ""  # SQLAlchemy URL; "" is hub.sqlite in the folder
    blob_max_mib: Annotated[int, Meta(ge=1, le=65_536)] = 512  # largest model or upload accepted


class EnrolmentSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Enrolment of sites, and the life of their certificates."""

    invitation_hours: Annotated[int, Meta(ge=1, le=720)] = 24
    # A stolen key is worth something until its certificate expires, so the upper bound is low.
    certificate_days: Annotated[int, Meta(ge=1, le=90)] = 30
    # Times a site may come back with its signing key after its certificate has expired.
    recoveries: Annotated[int, Meta(ge=0, le=1000)] = 5
    retry_after_s: Annotated[int, Meta(ge=1, le=3600)] = 15  # how often a pending site asks again


class PacingSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The times after which a site is told to poll again. They are jittered by a quarter up and down."""

    idle_s: Annotated[float, Meta(ge=0.1, le=DAY_S)] = 300.0
    training_s: Annotated[float, Meta(ge=0.1, le=DAY_S)] = 60.0
    masking_s: Annotated[float, Meta(ge=0.05, le=60)] = 1.0
    paused_s: Annotated[float, Meta(ge=0.1, le=DAY_S)] = 300.0  # the run is paused


class DriverSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The loop that steps due rounds."""

    threads: Annotated[int, Meta(ge=1, le=64)] = 1
    interval_s: Annotated[float, Meta(ge=0.05, le=60)] = 0.5  # between two looks for due rounds
    # A driver that died leaves its round to the next after this long. A lease shorter than one stage of an aggregation
    # would let two drivers compute the same sum.
    lease_s: Annotated[float, Meta(ge=5, le=DAY_S)] = 120.0
    abandoned_in_a_row_max: Annotated[int, Meta(ge=1, le=100)] = 3  # then the run is paused and says why
    aggregation_threads: Annotated[int, Meta(ge=0, le=1024)] = 0  # 0 is one a core


class MetricsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Figures made from the decoded histograms."""

    # A label with fewer positives or negatives shows neither AUC nor calibration: they would say more about the few
    # patients than about the model.
    positives_min: Annotated[int, Meta(ge=1, le=1_000_000)] = 10


class HealthSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits beyond which the service calls itself not ready, or dead."""

    disk_free_min_mib: Annotated[int, Meta(ge=1, le=1 << 30)] = 1024  # in the state folder
    driver_silent_max_s: Annotated[int, Meta(ge=5, le=DAY_S)] = 120  # a step of an aggregation takes seconds


class DashboardSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The web pages."""

    enabled: bool = True
    session_hours: Annotated[int, Meta(ge=1, le=720)] = 12
    # Wrong passwords in a row for one name from one address, after which that address has to wait.
    failed_logins_max: Annotated[int, Meta(ge=1, le=1000)] = 5
    failed_logins_wait_s: Annotated[int, Meta(ge=1, le=DAY_S)] = 300


class AlertSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ways on which people are told of conditions that need them, and when a condition is one."""

    mail_to: tuple[str, ...] = ()  # none: no mail
    mail_from: str = "hemofed-aggregator@localhost"
    smtp: str = "127.0.0.1:25"
    smtp_security: Literal["none", "starttls", "tls"] = "none"
    smtp_user: str = ""  # "" logs in nowhere
    smtp_password_file: str = ""
    webhook: str = ""  # "": none
    webhook_secret_file: str = ""  # "": not signed
    silent_hours: Annotated[int, Meta(ge=1, le=8760)] = 24
    disk_free_mib: Annotated[int, Meta(ge=1, le=1 << 30)] = 5120
    remind_hours: Annotated[int, Meta(ge=1, le=8760)] = 24

    def __post_init__(self) -> None:
        host, _, port = self.smtp.rpartition(":")
        if not host or not port.isdigit() or int(port) > PORT_MAX:
            raise ValueError(f"smtp: expected host:port, got {self.smtp!r}")
        if self.webhook and not self.webhook.startswith(("https://", "http://")):
            raise ValueError("webhook: expected an address that begins with https://, got another text")
        for address in (*self.mail_to, self.mail_from):
            if not address.isprintable() or "@" not in address:
                raise ValueError(f"mail: expected an address such as it@hospital.example, got {address!r}")
        if self.smtp_user and self.smtp_security == "none":
            raise ValueError("smtp_user: expected smtp_security starttls or tls, so that no password goes in clear")


class AggregatorSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings, one attribute a table of aggregator.toml."""

    listen: ListenSettings = ListenSettings()
    limits: LimitsSettings = LimitsSettings()
    state: StateSettings = StateSettings()
    enrolment: EnrolmentSettings = EnrolmentSettings()
    pacing: PacingSettings = PacingSettings()
    driver: DriverSettings = DriverSettings()
    metrics: MetricsSettings = MetricsSettings()
    health: HealthSettings = HealthSettings()
    dashboard: DashboardSettings = DashboardSettings()
    alerts: AlertSettings = AlertSettings()

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL of the database."""
        return self.state.database or f"sqlite:///{self.state.folder.absolute() / 'hub.sqlite'}"


def load_settings(path: Path) -> AggregatorSettings:
    """Read aggregator.toml.

    Raises:
        ConfigRefused: For a file that is missing or no TOML, an unknown key, a wrong type or a value out of range.
    """
    if_missing = f"no settings at {path}; copy deploy/aggregator.toml there or pass --config"
    table = read_toml(path, if_missing, ConfigRefused)
    rename_old_keys(table, RENAMED, str(path), ConfigRefused)
    return from_table(AggregatorSettings, table, str(path), ConfigRefused)

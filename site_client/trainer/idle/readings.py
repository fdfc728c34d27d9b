"""Signals: the gate's knowledge of the machine at one moment. Each is a value, or unknown with the reason."""

from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Final, TypeAlias, TypeVar

from federation.vocabulary import StateReason

from site_client.records import AwareTime

T = TypeVar("T")
NEVER_S: Final = float("inf")  # no person is logged in, so there never was a last touch


@dataclass(frozen=True)
class Unknown:
    """A signal that could not be read. `why` is a clause for people and holds no value of a person's."""

    why: str


Reading: TypeAlias = T | Unknown
_NOT_READ: Final = Unknown("not read yet")


@dataclass(frozen=True)
class GpuUse:
    """Numbers of foreign processes on the GPUs that training may use."""

    compute: int
    graphics: int


@dataclass(frozen=True)
class OperatorPause:
    """A pause by `hemofed-site pause`. `until` None: until `resume`. `after_round`: the job in progress may end."""

    until: AwareTime | None
    after_round: bool = False


@dataclass(frozen=True)
class LoginSession:
    """A session of a person, as logind has it. No name of a person is read.

    Attributes:
        id: As `loginctl` lists it.
        is_remote: It comes over the network.
        terminal: Such as "pts/0"; empty without one.
        has_screen: It is a graphical one.
        idle_s: Seconds since its last touch.
    """

    id: str
    is_remote: bool
    terminal: str
    has_screen: bool
    idle_s: float

    @property
    def is_bare(self) -> bool:
        """Whether no person can type in it: an ssh tunnel, a copy, a mounted folder."""
        return self.is_remote and not self.terminal and not self.has_screen

    @property
    def words(self) -> str:
        """A clause by which a person finds the session."""
        if self.is_bare:
            return (
                f"session {self.id}, which has no terminal (an ssh tunnel?): "
                'idle.bare_sessions = "ignore" leaves it out'
            )
        return f"session {self.id}" + f" on {self.terminal}" * bool(self.terminal)


@dataclass(frozen=True)
class Signals:
    """One sample of the machine. Shares are 0..1, of the whole machine or of wall time."""

    foreign_cpu: Reading[float] = _NOT_READ  # share of all cores that is used, less hemofed's own use
    memory_pressure: Reading[float] = _NOT_READ  # share of time in which others' tasks stalled for memory
    io_pressure: Reading[float] = _NOT_READ  # ... for I/O
    memory_free_gib: Reading[float] = _NOT_READ
    gpu: Reading[GpuUse] = _NOT_READ
    user_idle_s: Reading[float] = _NOT_READ  # since the last touch at the console; NEVER_S: no session there
    remote_idle_s: Reading[float] = _NOT_READ  # ... in a remote session
    on_battery: Reading[bool] = _NOT_READ
    on_ups: Reading[bool] = _NOT_READ
    temperature_c: Reading[float] = _NOT_READ  # of the hottest thermal zone
    disk_free_gib: Reading[float] = _NOT_READ  # the smaller of state's and cache's disk
    programs: Reading[frozenset[str]] = _NOT_READ  # which of the exclusive programs are running
    operator: OperatorPause | None = None
    sessions: tuple[LoginSession, ...] = ()  # from which the two idle times come, in the order of logind

    def unknown(self) -> dict[str, Unknown]:
        """Lists the unknown signals by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Unknown)}


@dataclass(frozen=True)
class Moment:
    """`wall`: aware, in the zone of the windows. `elapsed_s`: monotonic; durations never use the wall clock."""

    wall: datetime
    elapsed_s: float


@dataclass(frozen=True)
class PauseReason:
    """One reason to pause, and a clause about it for a person."""

    reason: StateReason
    words: str = field(compare=False)

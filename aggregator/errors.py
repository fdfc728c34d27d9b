"""Everything the aggregator refuses, as one tree.

AggregatorError
├── ConfigRefused        aggregator.toml: unknown key, wrong type, out of range
├── PlanFileRefused      plan.toml or the model file that goes with it
├── StateFolderRefused   `init` twice, or another command before `init`
├── NotFound             no such site, run, round, model or blob
├── WrongState           what was asked does not fit the state it is in
│   ├── LostRace         somebody else changed the row first (retryable: read again)
│   └── RunInProgress    a second run while one is running or paused
├── Denied               the caller may not do this; the answer says no more than it must
│   ├── NotEnrolled      certificate unknown or expired, or its site not approved
│   ├── SiteRevoked      the certificate is ours, but the coordinator revoked its site
│   ├── SiteLeft         the certificate is ours, but its site has left for good
│   └── JoinDenied       token unknown, used, expired; keys that do not prove possession
├── MessageRefused       a well-formed message that this round, phase or site does not expect
├── Busy                 too many transfers at once (retryable)
└── BlobRefused          bytes that do not fit what was offered
    ├── OffsetRefused    a chunk at the wrong offset; `held_bytes` says the right one (retryable)
    └── DigestRefused    the bytes do not hash to their name; they were discarded (retryable)

`retryable` is a property of the class: whether the same caller may hope for another answer without a person acting.
"""

from typing import ClassVar


class AggregatorError(Exception):
    """One clear sentence: what was expected, what came, what to do."""

    retryable: ClassVar[bool] = False


class ConfigRefused(AggregatorError):
    """The settings file cannot be used as it stands."""


class PlanFileRefused(AggregatorError):
    """plan.toml, or its model file, cannot become a plan."""


class StateFolderRefused(AggregatorError):
    """The state folder is not what the command needs."""


class NotFound(AggregatorError):
    """Nothing of that name."""


class WrongState(AggregatorError):
    """The thing exists, but in a state that does not allow this."""


class LostRace(WrongState):
    """The guarded UPDATE changed no row: another process was first, or the state was never the expected one."""

    retryable = True


class RunInProgress(WrongState):
    """One run at a time may be RUNNING or PAUSED."""


class Denied(AggregatorError):
    """The caller may not do this."""


class NotEnrolled(Denied):
    """No active site holds this certificate."""


class SiteRevoked(Denied):
    """The coordinator revoked the site; only the coordinator can invite it again."""


class SiteLeft(Denied):
    """The site said farewell; only a new invitation brings it back."""


class JoinDenied(Denied):
    """The joining or recovering host did not prove what it must."""


class MessageRefused(AggregatorError):
    """The message does not fit the round, the phase or the site it names."""


class Busy(AggregatorError):
    """As many calls that last are in progress as may be; the caller comes back shortly, and resumes."""

    retryable = True


class BlobRefused(AggregatorError):
    """The bytes do not fit what was offered."""


class OffsetRefused(BlobRefused):
    """A chunk does not begin where the held bytes end; go on at `held_bytes`."""

    retryable = True

    def __init__(self, message: str, held_bytes: int) -> None:
        super().__init__(message)
        self.held_bytes = held_bytes


class DigestRefused(BlobRefused):
    """All bytes arrived and hash to something else; nothing of them was kept."""

    retryable = True

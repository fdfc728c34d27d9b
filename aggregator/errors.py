"""Everything that the aggregator refuses, as one tree.

AggregatorError
├── ConfigRefused        aggregator.toml: unknown key, wrong type, out of range
├── PlanFileRefused      plan.toml or the model file that goes with it
├── StateFolderRefused   `init` twice, another command before `init`, or an unusable CA
├── RequestRefused       a file of another kind than the one expected between aggregator and custodian
├── CustodianRefused     the custodian's folder, passphrase or token is not usable as asked
├── AuditBroken          the audit trail is not the one that was written
├── PartEnded            a part of the running service has ended by itself
├── NotFound             no such site, run, round, model or blob
│   └── BlobDamaged      its bytes on the aggregator's disk are no longer those that were stored
├── WrongState           what was asked does not fit the state it is in
│   ├── LostRace         another process changed the row first
│   └── RunInProgress    a second run while one is running or paused
├── Denied               the caller may not do this; the answer says no more than it must
│   ├── NotEnrolled      certificate unknown or expired, or its site not approved
│   ├── SiteRevoked      the certificate is ours, but the coordinator revoked its site
│   ├── NotAllowed       the person's role does not allow it
│   ├── SiteLeft         the certificate is ours, but its site has left for good
│   └── JoinDenied       token unknown, used, expired; keys that do not prove possession
├── MessageRefused       a well-formed message that this round, phase or site does not expect
├── SumRefused           a recovered sum that leads to no model
├── Busy                 the site has had its share of a minute
└── BlobRefused          bytes that do not fit what was offered
    ├── OffsetRefused    a chunk at the wrong offset; `held_bytes` says the right one
    └── DigestRefused    the bytes do not hash to their name; they were discarded

`rpc.call_guard` says which status code a site gets for each, and so whether it tries again.
"""


class AggregatorError(Exception):
    """The root. Its text is one sentence: what was expected, what came, what to do."""


class ConfigRefused(AggregatorError):
    """The settings file cannot be used as it stands."""


class PlanFileRefused(AggregatorError):
    """plan.toml, or its model file, cannot become a plan."""


class StateFolderRefused(AggregatorError):
    """The state folder is not what the command needs."""


class RequestRefused(AggregatorError):
    """The file is not of the kind that this command takes."""


class CustodianRefused(AggregatorError):
    """The custodian's key cannot be made, unlocked or used as asked."""


class AuditBroken(AggregatorError):
    """A row of the audit trail was changed, put in or taken out."""


class PartEnded(AggregatorError):
    """The service cannot do its work without the part that has ended; a supervisor starts it again."""


class NotFound(AggregatorError):
    """There is nothing of that name."""


# A NotFound: nothing of that name can be had, now or later. Whose disk it is belongs into its sentence.
class BlobDamaged(NotFound):
    """The aggregator's disk returns other bytes than were stored."""


class WrongState(AggregatorError):
    """The thing exists, but in a state that does not allow this."""


# A WrongState: where nothing tells the two apart, trying again blindly would be wrong.
class LostRace(WrongState):
    """The guarded UPDATE changed no row: another process was first, or the state was never the expected one."""


class RunInProgress(WrongState):
    """One run at a time may be RUNNING or PAUSED."""


# The caller may be a stranger, so no sentence of these tells which names, tokens or certificates exist.
class Denied(AggregatorError):
    """The caller may not do this."""


class NotAllowed(Denied):
    """The person is known, and another role is needed."""


class NotEnrolled(Denied):
    """No active site holds this certificate."""


class SiteRevoked(Denied):
    """The coordinator revoked the site; only the coordinator can invite it again."""


class SiteLeft(Denied):
    """The site left for good; only a new invitation brings it back."""

    def __init__(self, message: str, site: str) -> None:
        super().__init__(message)
        self.site = site


class JoinDenied(Denied):
    """The joining or recovering host did not prove what it must."""


class MessageRefused(AggregatorError):
    """The message does not fit the round, the phase or the site it names."""


class SumRefused(AggregatorError):
    """The sum was recovered, and so many honest members cannot have made it; its words are kept for the sites."""

    def __init__(self, why: str, blob: bytes, size_bytes: int, members: int) -> None:
        self.blob = blob  # its digest
        self.size_bytes = size_bytes
        self.members = members
        super().__init__(f"the sum of {members} uploads was refused: {why}")


class Busy(AggregatorError):
    """The caller has had its share for now; it comes back shortly."""


class BlobRefused(AggregatorError):
    """The bytes do not fit what was offered."""


class OffsetRefused(BlobRefused):
    """A chunk does not begin where the held bytes end; continue at `held_bytes`."""

    def __init__(self, message: str, held_bytes: int) -> None:
        super().__init__(message)
        # Apart from the text, so that a caller in this process need not parse it.
        self.held_bytes = held_bytes


class DigestRefused(BlobRefused):
    """All bytes arrived and hash to something else; none was kept."""

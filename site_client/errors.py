"""What can go wrong at a site.

SiteError
├── ConfigRefused      site.toml is not what it has to be; the start stops
├── InUse              another process has what one alone may have; it may let go of it (retryable)
├── SpoolRefused       a record in the spool is not what its schema says
├── IdentityRefused    keys, certificates or a roster that must not be used
├── LinkError
│   ├── Unreachable    no answer; trying again later may help (retryable)
│   │   └── ProxyRefused   the proxy answered CONNECT with something else than 200; carries its status
│   └── Refused        the aggregator said no, and will say no again
├── EgressRefused      the guard did not let a message leave
├── LedgerBroken       the egress ledger's chain does not verify; nothing leaves until a person has looked
├── StepRefused        the aggregator asked for something this site must not do
├── ModelMismatch      a model does not have the digest it was announced with
├── UnknownArchitecture         the plan names a network this version does not have
├── WeightsRefused     a file of published weights is not that of the architecture, or would run code
├── CheckpointRefused  a checkpoint is broken, or of another round, model, data set or configuration
├── RanksApart         the processes of one training are not at the same place; it has to be started anew
├── TrainingFailed     the training diverged, or a job could not be done
├── EvaluationRefused  a model, a split or answers that cannot be judged as they are
└── IngestError        the export, its labels or the catalog cannot be used as they are
    ├── SeriesUnreadable   a series that was ready is no longer what it was; carries the reason's code
    ├── LabelsRefused      a label file that cannot be understood without guessing
    └── DatasetGone        the dataset a round is pinned to is no longer kept

Every message says what was expected, what was there, and what to do. No message carries a patient's value, a value out
of a DICOM header, or the path of an image.
"""


class SiteError(Exception):
    """The root. `retryable`: the same call may succeed later without anybody changing anything."""

    retryable = False


class ConfigRefused(SiteError):
    """site.toml has an unknown key, a missing one, or a value out of range."""


class InUse(SiteError):
    """A state folder or the egress ledger belongs to another process for as long as that runs."""

    retryable = True


class SpoolRefused(SiteError):
    """A record in the spool does not follow its schema, or its bytes do not have the digest it names."""


class IdentityRefused(SiteError):
    """A key, certificate, token or roster is missing or must not be trusted."""


class LinkError(SiteError):
    """A call to the aggregator did not succeed."""


class Unreachable(LinkError):
    """No answer, or one that asks to come back later."""

    retryable = True


class ProxyRefused(Unreachable):
    """The proxy did not open a way. `status` is its HTTP status, 0 when it gave none."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Refused(LinkError):
    """The aggregator refused the call, and the same call will be refused again. `code` is the gRPC status name."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class EgressRefused(SiteError):
    """The guard did not let a message leave this site."""


class LedgerBroken(SiteError):
    """An entry of the egress ledger was changed, removed or reordered. `seq` is the first that does not verify."""

    def __init__(self, message: str, seq: int) -> None:
        super().__init__(message)
        self.seq = seq


class StepRefused(SiteError):
    """The aggregator asked for something that would break what this site promises to its patients."""


class ModelMismatch(SiteError):
    """A downloaded or computed model does not have the announced digest."""


class UnknownArchitecture(SiteError):
    """The plan names a network this version does not have."""


class WeightsRefused(SiteError):
    """A file of published weights has other tensors than the architecture, or cannot be read without running code."""


class CheckpointRefused(SiteError):
    """A checkpoint cannot be read, or belongs to another round, base model, data set or configuration."""


class RanksApart(SiteError):
    """One of several processes that train together has failed, or is elsewhere than the others."""


class TrainingFailed(SiteError):
    """The training did not end with finite numbers, or its inputs do not fit the plan."""


class EvaluationRefused(SiteError):
    """A model, a split of patients, or a set of answers and labels cannot be judged as it is."""


class IngestError(SiteError):
    """The export, the site secret or the catalog cannot be used as it is."""


class SeriesUnreadable(IngestError):
    """A series that the catalog found ready changed or cannot be decoded. `code` is a name of ingest's Reason."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class LabelsRefused(IngestError):
    """A label file cannot be understood without guessing. The message names line and column, never a cell."""


class DatasetGone(IngestError):
    """The dataset that a round was pinned to is no longer kept; the round has to be declined."""


class PhantomRefused(SiteError):
    """A synthetic set was asked for that cannot be made, or a folder to write it to that is not empty."""

"""All errors of a site.

SiteError
├── ConfigRefused          site.toml is not as deploy/site.toml describes it; the start stops
├── InUse                  another process holds the state folder or the ledger, and may end (retryable)
├── SpoolRefused           a record in the spool does not follow its schema
├── StateRefused           a small file of the state folder is damaged
│   └── StateUnreadable    it cannot be read: its owner, its mode, or its disk
├── IdentityRefused        a key, certificate or roster is missing or must not be trusted
├── LinkError              a call to the aggregator did not succeed
│   ├── Unreachable        no answer; a later try may succeed (retryable)
│   │   └── ProxyRefused   the proxy answered CONNECT with another status than 200; carries that status
│   └── Refused            the aggregator refused the call, and will refuse it again; carries the gRPC status
├── ArchiveError           the archive's DICOMweb server gave no answer that can be used (retryable)
├── EvidenceMissing        this machine cannot make the evidence that a plan asks for before it releases a key
├── EgressRefused          the guard did not let a message leave
├── LedgerBroken           a ledger's chain does not verify; carries the first bad entry
├── StepRefused            the aggregator asked for a step that this site must not take
├── ModelMismatch          a model does not have the announced digest
├── ModelDamaged           a model or sum was damaged on the way or on a disk; it is fetched again (retryable)
├── UnknownArchitecture    the plan names a network that this version does not have
├── WeightsRefused         a file of published weights is not that of the architecture, or would run code
├── BundleRefused          a model cannot be packed as it is, or a bundle must not be trusted
├── CheckpointRefused      a checkpoint is broken, or of another round, model, dataset or configuration
├── RanksApart             the processes of one training have diverged; it has to start again
├── TrainingFailed         the training diverged, or a job could not be done
├── EvaluationRefused      a model, a split or a set of answers cannot be evaluated as it is
│   └── NothingUsable      a folder has no study that a command could use; its exit status is 2
├── IngestError            the export, its labels or the catalog cannot be used as they are
│   ├── SeriesUnreadable   a series that was ready has changed; carries the reason's code
│   ├── LabelsRefused      a label file cannot be understood without guessing
│   ├── OptOutsUnreadable  the list of patients who opted out cannot be read, so nothing may be trained on
│   └── DatasetGone        the dataset of a round is no longer kept
└── PhantomRefused         a synthetic dataset that cannot be made

Every message says what was expected, what was there, and what to do. No message holds a patient's value, a value of a
DICOM header, or the path of an image.

`bus.BusError` and `windows.WindowRefused` are no part of the tree: their callers turn each into a signal that is
unknown, or into ConfigRefused.
"""

import errno
import os


class SiteError(Exception):
    """The root. `retryable`: the same call may succeed later although no person changed anything."""

    retryable = False


class ConfigRefused(SiteError):
    """site.toml has an unknown key, a missing one, or a value out of range."""


class InUse(SiteError):
    """Another process holds a state folder or the egress ledger for as long as it runs."""

    retryable = True


class SpoolRefused(SiteError):
    """A record in the spool does not follow its schema, or its bytes do not have the digest it names."""


class StateRefused(SiteError):
    """A small file of the state folder is damaged, or was written by a newer version."""


class StateUnreadable(StateRefused):
    """A small file of the state folder cannot be read: its owner, its mode, or its disk."""

    @classmethod
    def of(cls, name: str, error: OSError) -> "StateUnreadable":
        """Return the error about the file `name`, without the path that an OSError repeats."""
        why = os.strerror(error.errno or errno.EIO).lower()
        return cls(
            f"{name} in the state folder cannot be read ({why}); see that the folder belongs to the service's user, "
            "as in docs/HOSPITAL.md, and that its disk is in order"
        )


class IdentityRefused(SiteError):
    """A key, certificate, token or roster is missing or must not be trusted."""


class LinkError(SiteError):
    """A call to the aggregator did not succeed."""


class Unreachable(LinkError):
    """No answer, or one that asks to come back later."""

    retryable = True


class ProxyRefused(Unreachable):
    """The proxy refused CONNECT. `status` is its HTTP status, 0 when it gave none."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Refused(LinkError):
    """The aggregator refused the call, and will refuse it again. `code` is the gRPC status name."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class ArchiveError(SiteError):
    """The hospital's archive gave the receiver no answer that can be used. The message quotes none of it."""

    retryable = True


class EvidenceMissing(SiteError):
    """This machine cannot make the evidence that a plan asks for."""


class EgressRefused(SiteError):
    """The guard did not let a message leave this site."""


class LedgerBroken(SiteError):
    """An entry of the egress or the privacy ledger was changed, removed or reordered. `seq` is the first bad entry."""

    def __init__(self, message: str, seq: int) -> None:
        super().__init__(message)
        self.seq = seq


class StepRefused(SiteError):
    """The aggregator asked for a step that would break a promise of this site to its patients."""


class ModelMismatch(SiteError):
    """A downloaded or computed model does not have the announced digest."""


class ModelDamaged(SiteError):
    """A model or sum was damaged on the way or on a disk. It is dropped here, and the next turn fetches it again."""

    retryable = True


class UnknownArchitecture(SiteError):
    """The plan names a network that this version does not have."""


class WeightsRefused(SiteError):
    """A file of published weights has other tensors than the architecture, or cannot be read without running code."""


class BundleRefused(SiteError):
    """A model cannot be packed, lost too much by it, or a bundle is damaged, of another signer or another version."""


class CheckpointRefused(SiteError):
    """A checkpoint cannot be read, or belongs to another round, base model, dataset or configuration."""


class RanksApart(SiteError):
    """One of several processes that train together has failed, or has other weights than the rest."""


class TrainingFailed(SiteError):
    """The training did not end with finite numbers, or its inputs do not fit the plan."""


class EvaluationRefused(SiteError):
    """A model, a split of patients, or a set of answers and labels cannot be evaluated as it is."""


class NothingUsable(EvaluationRefused):
    """No study that was given can be used. Commands end with exit status 2."""


class IngestError(SiteError):
    """The export, the site secret or the catalog cannot be used as it is."""


class SeriesUnreadable(IngestError):
    """A series that was ready in the catalog has changed or cannot be decoded. `code` is a name of ingest's Reason."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class LabelsRefused(IngestError):
    """A label file cannot be understood without guessing. The message names line and column, never a cell."""


class OptOutsUnreadable(IngestError):
    """The list of patients who opted out cannot be read as a whole. The message names no entry of it."""


class DatasetGone(IngestError):
    """The dataset that a round began with is no longer kept; the round has to be declined."""


class PhantomRefused(SiteError):
    """A synthetic dataset cannot be made as asked for, or its folder is not empty."""

"""What secure aggregation refuses, one type a reason.

SecaggError
├── MalformedValue         a value has the wrong length, type or encoding; nothing was learnt from it
├── AdvertisementRefused   keys phase: forged, foreign, duplicate or weak keys (.site says whose)
├── CohortRefused          shares phase: the cohort as a whole is not one this member may join
├── ShareRefused           a ciphertext that does not decrypt, or a share outside the field (.site says whose)
├── UploadRefused          a second vector, a second digest, or a claim that nobody signed
├── ConfirmationRefused    confirm and reveal phases: the set of uploads, or the signatures on it
├── OutOfOrder             a step that this member's phase does not allow
├── BelowThreshold         fewer than t members or shares: the attempt ends, nothing is recovered
├── Unrecoverable             t shares are there, yet no t of them give the secret (.about, .suspects)
└── SnapshotRefused        saved member state that is torn, altered or of another version

None is worth repeating with the same input. `BelowThreshold` and `Unrecoverable` end the attempt at the aggregator; at
a member every refusal means: take no further step in this attempt, and overwrite its state file. No message holds a
secret.
"""


class SecaggError(Exception):
    """Base of everything this package refuses."""


class MalformedValue(SecaggError):
    """A value has the wrong length, type or encoding."""


class AdvertisementRefused(SecaggError):
    """One member's advertised keys are not acceptable."""

    def __init__(self, site: str, reason: str) -> None:
        self.site = site
        super().__init__(f"advertisement of {site!r} refused: {reason}")


class CohortRefused(SecaggError):
    """The cohort shown is not one this member may join."""


class ShareRefused(SecaggError):
    """A share dealt or revealed by `site` is not acceptable."""

    def __init__(self, site: str, reason: str) -> None:
        self.site = site
        super().__init__(f"share from {site!r} refused: {reason}")


class UploadRefused(SecaggError):
    """An upload would use a mask twice, or its claim is not signed by its member."""


class ConfirmationRefused(SecaggError):
    """The set of uploads shown, or the signatures on it, are not acceptable."""


class OutOfOrder(SecaggError):
    """A member was asked for a step that its phase does not allow."""


class BelowThreshold(SecaggError):
    """Fewer members or shares than the threshold: this attempt recovers nothing."""

    def __init__(self, what: str, have: int, need: int) -> None:
        self.have = have
        self.need = need
        super().__init__(f"{what}: {have}, the threshold is {need}; this attempt recovers nothing")


class Unrecoverable(SecaggError):
    """Enough shares arrived, but no subset of them gives the secret of `about`.

    suspects: the dealer `about`, who may have dealt inconsistent shares, and everyone who revealed one of them.
    """

    def __init__(self, about: str, suspects: tuple[str, ...]) -> None:
        self.about = about
        self.suspects = suspects
        super().__init__(
            f"the secret of {about!r} does not follow from any choice of the {len(suspects)} shares tried: either "
            f"{about!r} dealt inconsistent shares or too many revealers altered theirs; abandon the round"
        )


class SnapshotRefused(SecaggError):
    """Saved member state is torn, altered or of another version."""

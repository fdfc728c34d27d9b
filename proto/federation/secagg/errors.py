"""The refusals of secure aggregation, one type a reason.

SecaggError
├── MalformedValue         a value has the wrong length, type or encoding; nothing was learnt from it
├── AdvertisementRefused   keys phase: forged, foreign, duplicate or weak keys (.site says whose)
├── CohortRefused          shares phase: the cohort as a whole is not one this member may join
├── ShareRefused           dealt shares that the dealer did not sign, or a revealed share it did not deal (.site: whose)
├── ComplaintRefused       a complaint that its member did not sign
├── UploadRefused          a second vector, a second digest, or a claim that is not signed
├── ConfirmationRefused    confirm and reveal phases: the set of uploads, or the signatures on it
├── OutOfOrder             a step that this member's phase does not allow
├── BelowThreshold         fewer than t members or shares: the attempt ends, nothing is recovered
├── Unrecoverable          t shares that their dealer signed give no secret: the dealer lied (.about)
├── EvidenceRefused        evidence against a dealer that proves nothing (.dealer)
└── SnapshotRefused        saved member state that is torn, altered or of another version

None is worth repeating with the same input. `BelowThreshold` and `Unrecoverable` end the attempt at the aggregator; at
a member every refusal means: take no further step in this attempt, and overwrite its state file. No message holds a
secret.
"""

from collections.abc import Sequence


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
    """Shares dealt or revealed by `site` are not acceptable."""

    def __init__(self, site: str, reason: str) -> None:
        self.site = site
        super().__init__(f"share from {site!r} refused: {reason}")


class ComplaintRefused(SecaggError):
    """A complaint about a dealer that its member did not sign."""


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
    """The shares of a secret of `about` give no secret, though its dealer signed the digest of each.

    The digests, the signatures and the revealed shares prove that `about` dealt shares of no polynomial.
    """

    def __init__(self, about: str, revealers: Sequence[str]) -> None:
        self.about = about
        self.revealers = tuple(revealers)  # of the shares that were put together
        super().__init__(f"the shares that {about!r} dealt and signed give no secret of its; it is excluded")


class EvidenceRefused(SecaggError):
    """Evidence against a dealer that proves nothing."""

    def __init__(self, dealer: str, why: str) -> None:
        self.dealer = dealer
        super().__init__(f"the evidence against {dealer!r} is refused: {why}")


class SnapshotRefused(SecaggError):
    """Saved member state is torn, altered or of another version."""

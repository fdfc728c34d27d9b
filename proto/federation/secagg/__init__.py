"""Secure aggregation: members hand over vectors so that only their sum can be recovered.

Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth: "Practical Secure Aggregation for
Privacy-Preserving Machine Learning", CCS 2017, figure 4 with the parts for an active adversary, on the complete graph.
Arrays and bytes in, arrays and bytes out: no network, no files, no clock; numpy and `cryptography` only.

Read in this order; each file says which attack each of its checks stops:

    transcript   what is named, digested, signed: ctx, uctx, statements; t
    secret       types of secrets
    keys         the primitives: X25519, ML-KEM-768, HKDF, AES-256-GCM, Ed25519
    shamir       t-of-n sharing
    masks        AES-256-CTR keystreams on uint64 words
    cohort       1 keys: who may take part; shards of a large cohort
    state        what a member remembers, as canonical bytes
    member       2 shares, 3 upload, 4 confirm, 5 reveal, at a site
    recovery     the aggregator's end
    evidence     that a member dealt shares of no secret, for every member to check

The promise, against an aggregator that lies as it likes together with fewer than a third of a cohort: of the honest
members' words it learns nothing but their sum over one set U3 of at least t = ⌊2n/3⌋ + 1 members. It rests on the
roster (authentic signing keys), on X25519 or ML-KEM-768 (either may be broken), HKDF-SHA256, AES-256 as a generator
and with GCM as an authenticated cipher, Ed25519, and on the caller saving a member's state before it speaks.
Not promised: that the sum is meaningful (a member can add anything), or that a round ends (anyone can be silent). A
member that deals garbage is found by complaints (`proven_dealers`), or when shares are revealed at the latest. A dealer
that few members complain about opens their shares (`verify_opened`), so that no member's silence can end a round.
"""

from federation.secagg.cohort import (
    Cohort,
    check_distinct,
    complaints_max,
    out_of_reach,
    proven_dealers,
    split,
    verify_advertisement,
    verify_claim,
    verify_cohort,
    verify_complaint,
    verify_confirmation,
    verify_dealt,
    verify_opened,
)
from federation.secagg.errors import (
    AdvertisementRefused,
    BelowThreshold,
    CohortRefused,
    ComplaintRefused,
    ConfirmationRefused,
    EvidenceRefused,
    MalformedValue,
    OutOfOrder,
    SecaggError,
    ShareRefused,
    SnapshotRefused,
    Unrecoverable,
    UploadRefused,
)
from federation.secagg.evidence import BadDealing, verify_bad_dealing
from federation.secagg.masks import Words
from federation.secagg.member import MEMBERS_MIN, Member
from federation.secagg.recovery import Answer, Dealt, Opened, recover_masks, unmask, verify_answer, with_opened
from federation.secagg.state import Phase
from federation.secagg.transcript import (
    Advertisement,
    CohortContext,
    Context,
    DealtShares,
    OpenedShares,
    RevealedShare,
    ShareKind,
    cohort_context,
    context,
    threshold,
)

__all__ = [
    "MEMBERS_MIN",
    "Advertisement",
    "AdvertisementRefused",
    "Answer",
    "BadDealing",
    "BelowThreshold",
    "Cohort",
    "CohortContext",
    "CohortRefused",
    "ComplaintRefused",
    "ConfirmationRefused",
    "Context",
    "Dealt",
    "DealtShares",
    "EvidenceRefused",
    "MalformedValue",
    "Member",
    "Opened",
    "OpenedShares",
    "OutOfOrder",
    "Phase",
    "RevealedShare",
    "SecaggError",
    "ShareKind",
    "ShareRefused",
    "SnapshotRefused",
    "Unrecoverable",
    "UploadRefused",
    "Words",
    "check_distinct",
    "cohort_context",
    "complaints_max",
    "context",
    "out_of_reach",
    "proven_dealers",
    "recover_masks",
    "split",
    "threshold",
    "unmask",
    "verify_advertisement",
    "verify_answer",
    "verify_bad_dealing",
    "verify_claim",
    "verify_cohort",
    "verify_complaint",
    "verify_confirmation",
    "verify_dealt",
    "verify_opened",
    "with_opened",
]

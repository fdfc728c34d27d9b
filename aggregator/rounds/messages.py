"""The one place where rows become messages, and messages become values of `federation.secagg`."""

from federation.secagg import RevealedShare, ShareKind
from federation.v1 import rounds_pb2, secagg_pb2
from federation.v1.blobs_pb2 import RoundRef

from aggregator.errors import MessageRefused
from aggregator.store.tables import Round


def round_ref(row: Round) -> RoundRef:
    """Name the round in its current attempt."""
    return RoundRef(run_id=row.run_id, round=row.number, attempt=row.attempt)


def published_sum(row: Round) -> rounds_pb2.PublishedSum:
    """Describe the sum of a round and the model it led to; without a model for a refused sum.

    Raises:
        ValueError: For a round without a sum.
    """
    if row.sum_blob is None or row.sum_size_bytes is None or row.members is None:
        raise ValueError(f"round {row.number} is {row.state} and has no sum")
    blob = rounds_pb2.BlobRef(digest=row.sum_blob, size_bytes=row.sum_size_bytes)
    return rounds_pb2.PublishedSum(round=row.number, sum=blob, members=row.members, model_digest=row.next_model or b"")


def reveals(message: secagg_pb2.RevealMessage) -> dict[str, RevealedShare]:
    """Return the share that the message reveals about each site.

    Raises:
        MessageRefused: For a share that does not say of which secret it is.
    """
    if any(share.kind == secagg_pb2.RevealedShare.KIND_UNSPECIFIED for share in message.shares):
        raise MessageRefused("expected SEED or MASK_KEY as the kind of every revealed share, got none")
    return {share.about_site: RevealedShare(ShareKind(share.kind), share.share) for share in message.shares}

"""The blobs that a site may send, and those that it may read. `store.blobs` moves the bytes.

A site sends the one upload that a cohort member owes the current attempt, of exactly the size the plan implies. It
reads models and published sums of runs in which it has a seat. Uploads are in a folder of their own; no call reads one.
"""

from dataclasses import dataclass
from typing import BinaryIO

from federation.encoding import Layout
from federation.limits import DIGEST_BYTES
from federation.v1.blobs_pb2 import BlobOffer

from aggregator.context import AppContext
from aggregator.errors import MessageRefused, NotFound, WrongState
from aggregator.runs.plans import plan_of
from aggregator.states import RoundState, SeatState
from aggregator.store import round_rows, run_rows
from aggregator.store.blobs import UploadProgress
from aggregator.store.tables import Round, Seat
from aggregator.store.traffic import SeatKey

_SENDS = (SeatState.SHARED, SeatState.UPLOADED)


@dataclass(frozen=True)
class ExpectedUpload:
    """An upload that its site may send now."""

    digest: bytes
    size_bytes: int
    seat: SeatKey


def offer(app: AppContext, site: str, message: BlobOffer) -> UploadProgress:
    """Say how much of the member's upload is here. The first offer in an attempt names the digest to expect.

    Raises:
        NotFound: When the site has no seat in the round.
        WrongState: When no upload of the site is expected now.
        MessageRefused: For another size than the plan's, a digest of another member, or a second upload.
        BlobRefused: See `Blobs.offer`.
    """
    ref = message.round
    if len(message.digest) != DIGEST_BYTES:
        raise MessageRefused(f"expected a digest of {DIGEST_BYTES} bytes, got {len(message.digest)}")
    with app.store.write() as session:
        run, row, seat = round_rows.lock(session, ref.run_id, ref.round, site)
        _expect_turn(row, seat, ref.attempt)
        size_bytes = Layout.of_round(plan_of(run), row.number).bytes
        if message.size_bytes != size_bytes:
            raise MessageRefused(
                f"expected an upload of {size_bytes} bytes by the plan, got an offer of {message.size_bytes}"
            )
        # Two seats with one blob: what is left over of the one would be deleted, and with it the upload of the other.
        owners = {(owner.round_id, owner.site) for owner in round_rows.upload_seats(session, message.digest)}
        if owners - {(row.id, site)}:
            raise MessageRefused("another upload has this digest; masked words are never the same twice")
        before = seat.upload_digest
        if before != message.digest:
            if seat.state is SeatState.UPLOADED:
                raise MessageRefused("this member's upload was accepted already; it cannot change")
            round_rows.expect_upload(session, row.id, site, message.digest)
    # The upload of an attempt that failed. After the commit: before it, a crash would leave a seat without its blob.
    if before not in (None, message.digest):
        app.uploads.drop(before)
    return app.uploads.offer(message.digest, size_bytes)


def expected(app: AppContext, site: str, digest: bytes) -> ExpectedUpload:
    """Return the upload of that digest, if `site` offered it and may send it now.

    Raises:
        MessageRefused: When the site offered no such upload.
        WrongState: When its phase is over.
    """
    with app.store.read() as session:
        for seat in round_rows.upload_seats(session, digest):
            if seat.site == site:
                row = round_rows.by_id(session, seat.round_id)
                _expect_turn(row, seat, row.attempt)
                layout = Layout.of_round(plan_of(run_rows.get(session, row.run_id)), row.number)
                return ExpectedUpload(digest, layout.bytes, SeatKey(row.run_id, row.number, site))
    raise MessageRefused("expected chunks of an offered upload; offer it first")


def readable(app: AppContext, site: str, digest: bytes) -> tuple[BinaryIO, SeatKey]:
    """Open a model or published sum for reading, and return the seat that its bytes count for.

    Raises:
        NotFound: When there is no such blob, or only in runs without this site. The sentence is the same.
    """
    # A digest is no secret, so knowing one gives no right to the blob: the site must have a seat in a run that has it.
    with app.store.read() as session:
        run_ids = {model.run_id for model in run_rows.model_blobs(session, digest)}
        run_ids |= {row.run_id for row in round_rows.publishes_sum(session, digest)}
        for run_id in run_ids:
            number = round_rows.newest_seat(session, run_id, site)
            if number is not None:
                return app.blobs.open(digest), SeatKey(run_id, number, site)
    raise NotFound("no model or published sum of that digest in a run of this site")


def _expect_turn(row: Round, seat: Seat, attempt: int) -> None:
    # Outside its turn a site could fill the disk: each upload is as large as the model.
    if row.state is not RoundState.UPLOAD or attempt != row.attempt or seat.state not in _SENDS:
        raise WrongState(f"no upload of this site is expected in attempt {row.attempt}, {row.state}; poll")

"""The release of a content key to a site of the run: for its enrolled key, or against evidence for a key it has drawn.

    level none   one call: the content key, encrypted to the sealing key of the site's enrolment
    level cvm    the first call gets a nonce; the second brings a report bound to nonce, site, plan, model and a key
                 drawn for this one release, and gets the content key encrypted to it, or a reason of a closed list

A nonce is no row: its MAC proves it. It may be answered again while it lives, as after a lost reply; the answer goes to
the very key that the report is bound to.
"""

import structlog
from federation.release import ReleaseLevel, report_data
from federation.sealed_model import model_name
from federation.sealing import wrap_content_key
from federation.v1 import rounds_pb2
from federation.vocabulary import EvidenceRefusal

from aggregator.context import AppContext
from aggregator.errors import JoinDenied, NotFound, WrongState
from aggregator.runs.plans import plan_of
from aggregator.sev_snp import AttestationRefused
from aggregator.sites.proofs import challenge_ends_at, make_challenge
from aggregator.store import Change, record, round_rows, run_rows, site_rows
from aggregator.store.traffic import SeatKey

log = structlog.get_logger()

OUTCOMES_MAX = 100_000  # remembered, so that a repeated call adds no audit row


def release_key(
    app: AppContext, site: str, request: rounds_pb2.ReleaseRequest
) -> tuple[rounds_pb2.ReleaseReply, SeatKey]:
    """Answer one request, and return the seat that its bytes count for.

    Raises:
        NotFound: When no such model is in a run of this site. The sentence is the same for each cause.
        WrongState: When the models of the run are not sealed.
        StateFolderRefused: When the secret of the content keys is gone.
        SealRefused: When the receiver's key is none.
    """
    refusal = "no model of that digest in a run of this site"
    with app.store.read() as session:
        try:
            run = run_rows.by_plan(session, request.plan_digest)
            run_rows.model_by_digest(session, run.run_id, request.model_digest)
        except NotFound:
            raise NotFound(refusal) from None
        number = round_rows.newest_seat(session, run.run_id, site)
        receiver_key = site_rows.get(session, site).sealing_key
    if number is None:
        raise NotFound(refusal)
    release, seat = plan_of(run).release, SeatKey(run.run_id, number, site)
    if release is None:
        raise WrongState("expected a run whose plan has a release level, got one whose models are not sealed")
    name = model_name(request.plan_digest, request.model_digest)
    if release.level is ReleaseLevel.CVM:
        if not request.HasField("snp"):
            nonce = make_challenge(app.content_keys.challenge_key, site, app.clock(), app.random)
            return rounds_pb2.ReleaseReply(nonce=nonce), seat
        try:
            _check_fresh(app, site, request.nonce)
            receiver_key = request.receiver_key
            bound_to = report_data(request.nonce, receiver_key, site, name)
            app.verify_evidence(request.snp, release, bound_to, app.clock())
        except AttestationRefused as refused:
            _audit(app, site, request.model_digest, f"refused: {refused.reason}")
            return rounds_pb2.ReleaseReply(refusal=refused.reason.number), seat
        _audit(app, site, request.model_digest, "released")
    content_key = app.content_keys.of(request.plan_digest, request.model_digest)
    return rounds_pb2.ReleaseReply(wrapped_key=wrap_content_key(content_key, site.encode(), receiver_key, name)), seat


def _check_fresh(app: AppContext, site: str, nonce: bytes) -> None:
    try:
        ends_at = challenge_ends_at(app.content_keys.challenge_key, site, nonce)
    except JoinDenied:
        raise AttestationRefused(EvidenceRefusal.STALE) from None
    if not app.clock() < ends_at:
        raise AttestationRefused(EvidenceRefusal.STALE)


def _audit(app: AppContext, site: str, model_digest: bytes, outcome: str) -> None:
    """Record an outcome once a process: a site that repeats its call must not fill the audit."""
    if (site, model_digest, outcome) in app.release_outcomes or len(app.release_outcomes) >= OUTCOMES_MAX:
        return
    app.release_outcomes.add((site, model_digest, outcome))
    why = f"key of model {model_digest.hex()[:16]} {outcome}"
    with app.store.write() as session:
        record(session, Change(app.clock(), f"site:{site}", f"site:{site}", why), None, "evidence judged")
    log.info("evidence judged", site=site, model=model_digest.hex()[:16], outcome=outcome)

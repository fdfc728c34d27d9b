"""Certificates of models: each member of a round signs the model that it computed from the published sum.

With the signatures of t members, a site that did not take part can believe a whole model without trust in the
aggregator. The aggregator only collects them.
"""

from typing import Literal

from federation.certificate import ModelCertificate
from federation.v1 import rounds_pb2 as pb
from sqlalchemy.orm import Session

from aggregator.context import AppContext
from aggregator.errors import MessageRefused
from aggregator.sites.roster import in_force, roster_of
from aggregator.states import RoundState
from aggregator.store import masking_rows, round_rows
from aggregator.store.tables import ModelVersion, Round, Run, Seat


def accept_model_signature(app: AppContext, site: str, message: pb.ModelSignature) -> Literal["accepted"]:
    """Keep a member's signature over the model that its round led to.

    Raises:
        NotFound: When the site has no seat in the round.
        MessageRefused: When the round led to no new model, or the site is not in its sum.
        CertificateRefused: When the signature does not hold.
    """
    with app.store.write() as session:
        run, row, seat = round_rows.lock(session, message.round.run_id, message.round.round, site)
        if row.state is not RoundState.PUBLISHED or row.next_model == row.base_model:
            raise MessageRefused("expected a signature over the model of a round that published one")
        if seat.model_signature is None:
            # Of the roster that the cohort was frozen with: a later one may lack members.
            keys = roster_of(session, row.roster_epoch).signing_keys
            _certificate(session, run, row).check_signature(site, message.signature, keys)
            masking_rows.keep_model_signature(session, row.id, site, message.signature)
        elif seat.model_signature != message.signature:
            raise MessageRefused("another signature of this member over the model was accepted; it cannot change")
    return "accepted"


def certificate_of(session: Session, run: Run, model: ModelVersion) -> pb.ModelCertificate | None:
    """Return the certificate of a model; None for the initial one, and while too few members have signed.

    A site that knows fewer hospitals than are in the roster asks for fewer signatures.
    """
    roster = in_force(session)
    if model.round_number == 0 or roster is None:
        return None
    certificate = _certificate(session, run, round_rows.get(session, run.run_id, model.round_number))
    is_enough = len(certificate.signatures) >= certificate.needed(len(roster.entries))
    return certificate.to_message() if is_enough else None


def _certificate(session: Session, run: Run, row: Round) -> ModelCertificate:
    # Only rounds that published a model come here.
    assert row.next_model is not None
    return ModelCertificate(
        plan_digest=run.plan_digest,
        round=row.number,
        base_model_digest=row.base_model,
        model_digest=row.next_model,
        cohort=tuple(round_rows.senders(session, row.id, Seat.upload_claim)),
        signatures=round_rows.payloads(session, row.id, Seat.model_signature),
    )

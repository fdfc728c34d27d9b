"""The release of a content key to a site of the run."""

from federation.sealed_model import model_name
from federation.sealing import wrap_content_key
from federation.v1 import rounds_pb2

from aggregator.context import AppContext
from aggregator.errors import NotFound, WrongState
from aggregator.runs.plans import plan_of
from aggregator.store import round_rows, run_rows, site_rows
from aggregator.store.traffic import SeatKey


def release_key(
    app: AppContext, site: str, request: rounds_pb2.ReleaseRequest
) -> tuple[rounds_pb2.ReleaseReply, SeatKey]:
    """Encrypt the content key of a model for a site, and return the seat that its bytes count for.

    Raises:
        NotFound: When no such model is in a run of this site. The sentence is the same for each cause.
        WrongState: When the models of the run are not sealed.
        StateFolderRefused: When the secret of the content keys is gone.
    """
    refusal = "no model of that digest in a run of this site"
    with app.store.read() as session:
        try:
            run = run_rows.by_plan(session, request.plan_digest)
            run_rows.model_by_digest(session, run.run_id, request.model_digest)
        except NotFound:
            raise NotFound(refusal) from None
        number = round_rows.newest_seat(session, run.run_id, site)
        sealing_key = site_rows.get(session, site).sealing_key
    if number is None:
        raise NotFound(refusal)
    if plan_of(run).release is None:
        raise WrongState("expected a run whose plan has a release level, got one whose models are not sealed")
    name = model_name(request.plan_digest, request.model_digest)
    content_key = app.content_keys.of(request.plan_digest, request.model_digest)
    wrapped = wrap_content_key(content_key, site.encode(), sealing_key, name)
    return rounds_pb2.ReleaseReply(wrapped_key=wrapped), SeatKey(run.run_id, number, site)

"""Turns the masked uploads of a round into its published sum and the next model.

    uploads (disk) -> one accumulator -> unmask -> decode_sum -> next_model -> blobs -> PUBLISHED, in one transaction

Memory is one accumulator and the arithmetic of one model, however many sites take part: uploads are added while they
are read. Everything before the last transaction can be done again with the same result, because blobs are named by
their content. So a driver may be killed anywhere in here; the next one begins anew.
"""

import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np
import structlog
from federation import encoding, secagg
from federation.chain import next_model
from federation.encoding import DecodedSum, Layout
from federation.errors import FederationError
from federation.gate import Judgement, Verdict, judge
from federation.labels import LABELS
from federation.manifest import Model
from federation.masking_messages import dealt_of
from federation.plan import TrainingPlan
from federation.privacy import histogram_noise
from federation.v1.secagg_pb2 import EncryptedShare, UploadClaim
from federation.vocabulary import Metric
from sqlalchemy.orm import Session

from aggregator import memory
from aggregator.context import AppContext
from aggregator.errors import NotFound, SumRefused
from aggregator.rounds.cohort import MaskingAttempt, answers_of, attempt_of
from aggregator.rounds.failures import name_the_spoiler
from aggregator.runs import metrics, run_blobs
from aggregator.runs.lifecycle import continue_run, judge_base
from aggregator.runs.plans import plan_of
from aggregator.states import ModelStanding, RoundState
from aggregator.store import Cause, masking_rows, round_rows, run_rows
from aggregator.store.blobs import Blobs, StoredBlob
from aggregator.store.tables import ModelMetrics, ModelVersion, Round, Run, Seat

log = structlog.get_logger()

READ_WORDS = 1 << 15  # 256 KiB: the part of the accumulator it is added to stays in the cache
OnProgress = Callable[[], None]  # called between stages, to renew a lease


@dataclass(frozen=True)
class AggregationInput:
    """Everything that the rows hold of a round in AGGREGATING."""

    run: Run
    row: Round
    plan: TrainingPlan
    layout: Layout
    masking: MaskingAttempt
    dealt: secagg.Dealt  # by dealer, U2; of each the shares for members that vanished before their upload
    uploads: dict[str, bytes]  # U3, with the digest that each member claimed
    answers: Mapping[str, secagg.Answer]  # by revealer, with the shares that dealers opened
    base: ModelVersion


@dataclass(frozen=True)
class AggregationResult:
    """The decoded sum and the model it gives, both stored as blobs."""

    decoded: DecodedSum
    model_digest: bytes
    model_blob: StoredBlob | None  # None for a model that is there: after an evaluation-only round, or a refused base
    sum_blob: StoredBlob
    judgement: Judgement | None  # of the base model; None if it is no candidate


def aggregate_round(app: AppContext, round_id: int, actor: str, progress: OnProgress) -> None:
    """Aggregate a round that is in AGGREGATING, publish it, and begin the next one.

    Args:
        app: The aggregator.
        round_id: Primary key of the round.
        actor: The driver, for the audit.
        progress: Called between stages, often; what it raises ends the aggregation.

    Raises:
        SecaggError: When the masks cannot be recovered, however often it is tried.
        SumRefused: When the sum cannot be decoded, or leads to no model.
        NotFound: When an upload or the base model is gone or damaged.
        LostRace: When another driver, or an abort, was first.
        OSError: For example on a full disk; a later try may succeed.
    """
    with app.store.read() as session:
        inputs = _read_input(session, round_id)
    memory.trim()  # the uploads have just come in, and their buffers are free
    try:
        result = _aggregate(app, inputs, progress)
    except FederationError as error:
        # Only now: an ordinary round must not hold the words of its sum beside the model that they lead to.
        words = run_blobs.store_sum(
            app, inputs.plan, inputs.base.digest, _unmasked(app, inputs, progress).astype("<u8", copy=False).tobytes()
        )
        raise SumRefused(str(error), words.digest, words.size_bytes, len(inputs.uploads)) from error
    _publish(app, inputs, result, actor)
    log.info(
        "round published",
        run=inputs.row.run_id.hex(),
        round=inputs.row.number,
        members=result.decoded.members,
        model=result.model_digest.hex()[:16],
    )


def sum_uploads(
    uploads: Blobs, digests: Mapping[str, bytes], words: int, progress: OnProgress, threads: int = 1
) -> secagg.Words:
    """Add up complete blobs of little-endian 64-bit words, modulo 2^64, and check that each is as it came.

    Args:
        uploads: Where the blobs are.
        digests: The blob of each member.
        words: How many words each blob must hold.
        progress: Called after each blob.
        threads: Among which the words of each blob are divided.

    Returns:
        uint64[words].

    Raises:
        NotFound: For a blob that is gone.
        BlobDamaged: For one that has changed on the disk.
        secagg.MalformedValue: For a blob of another size.
    """
    total = np.zeros(words, np.uint64)

    def add(digest: bytes, first: int, end: int) -> None:
        with uploads.open(digest) as file:
            size_bytes = file.seek(0, os.SEEK_END)
            if size_bytes != 8 * words:
                raise secagg.MalformedValue(f"expected an upload of {8 * words} bytes, got {size_bytes}")
            file.seek(8 * first)
            for start in range(first, end, READ_WORDS):
                piece = np.fromfile(file, "<u8", min(READ_WORDS, end - start))
                total[start : start + piece.size] += piece

    bounds = [words * index // threads for index in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        for digest in digests.values():
            checked = pool.submit(uploads.check, digest)
            # Each thread owns a stretch of `total`, so no two write to one word; `list` re-raises what a thread raised.
            list(pool.map(partial(add, digest), bounds, bounds[1:]))
            checked.result()
            progress()
    return total


def _read_input(session: Session, round_id: int) -> AggregationInput:
    row = round_rows.by_id(session, round_id)
    run = run_rows.get(session, row.run_id)
    plan = plan_of(run)
    claims = round_rows.payloads(session, row.id, Seat.upload_claim)
    return AggregationInput(
        run=run,
        row=row,
        plan=plan,
        layout=Layout.of_round(plan, row.number),
        masking=attempt_of(session, run, row),
        dealt=_dealt(session, row, claims),
        uploads={site: UploadClaim.FromString(claim).digest for site, claim in claims.items()},
        answers=answers_of(session, row),
        base=run_rows.model_by_digest(session, row.run_id, row.base_model),
    )


def _dealt(session: Session, row: Round, uploaded: Collection[str]) -> secagg.Dealt:
    shared = round_rows.senders(session, row.id, Seat.shares_digest)
    dealt: dict[str, dict[str, secagg.DealtShares]] = {site: {} for site in shared}
    vanished = [site for site in shared if site not in uploaded]
    for data in masking_rows.dealt(session, row.id, uploaded, vanished) if vanished else ():
        message = EncryptedShare.FromString(data)
        dealt[message.from_site][message.to_site] = dealt_of(message)
    return dealt


def _unmasked(app: AppContext, inputs: AggregationInput, progress: OnProgress) -> secagg.Words:
    masking = inputs.masking
    total = sum_uploads(app.uploads, inputs.uploads, inputs.layout.words, progress, _threads(app))
    recovered = secagg.recover_masks(masking.ctx, masking.cohort, inputs.dealt, inputs.uploads, inputs.answers)
    progress()
    secagg.unmask(total, recovered, _threads(app))
    progress()
    return total


def _threads(app: AppContext) -> int:
    return app.settings.driver.aggregation_threads or os.cpu_count() or 1


def _aggregate(app: AppContext, inputs: AggregationInput, progress: OnProgress) -> AggregationResult:
    total = _unmasked(app, inputs, progress)
    decoded = encoding.decode_sum(inputs.layout, total, len(inputs.uploads))
    del total  # as large as the model; the next steps need its memory
    judgement = _judge(inputs, decoded)
    progress()

    def store_sum(leads_to: bytes) -> StoredBlob:
        return run_blobs.store_sum(app, inputs.plan, leads_to, encoding.pack_sum(inputs.layout, decoded))

    with ThreadPoolExecutor(1) as disk:
        digest, model_blob = inputs.row.base_model, None
        # The disk stores the sum while the cores compute the next model, whose digest a sealed sum needs first.
        stored = disk.submit(store_sum, digest) if inputs.plan.release is None else None
        # A refused model is not built upon, not even by the round that refuses it.
        if judgement is not None and judgement.verdict is Verdict.REFUSED:
            assert inputs.row.predecessor is not None  # only a candidate is judged
            digest = inputs.row.predecessor
        elif not inputs.plan.evaluates_only(inputs.row.number):
            model = next_model(inputs.plan, _take_base(app, inputs), decoded, _threads(app), uses_up=True)
            digest, model_blob = model.digest, run_blobs.store_model(app, inputs.plan, model)
            app.models[model.digest] = model  # the next round's base: it need not be read again
    progress()
    sum_blob = store_sum(digest) if stored is None else stored.result()
    return AggregationResult(decoded, digest, model_blob, sum_blob, judgement)


def _judge(inputs: AggregationInput, decoded: DecodedSum) -> Judgement | None:
    gate = inputs.plan.gate
    if gate is None or inputs.row.predecessor is None:
        return None
    return judge(gate, decoded.header.comparisons, inputs.plan.cohort.minimum)


def _take_base(app: AppContext, inputs: AggregationInput) -> Model:
    """Return the base model; `next_model` destroys it, so it leaves the memory of `app`.

    Raises:
        NotFound: When the file holds another model. Sites compute the next model from the true one, and would refuse.
    """
    cached = app.models.pop(inputs.base.digest, None)
    app.models.clear()  # a model of another run would only take memory
    if cached is not None:
        return cached
    model = run_blobs.load_stored(app, inputs.plan, inputs.base)
    if model.digest != inputs.base.digest:
        raise NotFound(
            f"expected model {inputs.base.digest.hex()[:16]} in its blob, got another; restore the state folder"
        )
    return model


def _publish(app: AppContext, inputs: AggregationInput, result: AggregationResult, actor: str) -> None:
    """Write in one transaction that the round is over, what it led to, and that the next one begins.

    Raises:
        LostRace: When the round has left AGGREGATING.
    """
    row, members = inputs.row, result.decoded.members
    cause = Cause(app.clock(), actor, f"decoded the sum of {members} uploads")
    subject = round_rows.subject(row)
    published = {
        "sum_blob": result.sum_blob.digest,
        "sum_size_bytes": result.sum_blob.size_bytes,
        "members": members,
        "next_model": result.model_digest,
    }
    with app.store.write() as session:
        # First the guarded transition: a driver that was too late stops here, before it adds a row.
        round_rows.move(session, row, RoundState.PUBLISHED, cause.of(subject), published)
        if result.model_blob is not None:
            model = ModelVersion(
                run_id=row.run_id,
                round_number=row.number,
                digest=result.model_digest,
                blob=result.model_blob.digest,
                size_bytes=result.model_blob.size_bytes,
                created_at=cause.at,
                standing=_standing(inputs, result),
            )
            run_rows.add_model(session, model)
        judged = _gate_report(inputs, result)
        report = _metrics_row(inputs, result, judged, app.settings.metrics.positives_min)
        round_rows.add_metrics(session, report)
        name_the_spoiler(session, row, inputs.uploads, cause)
        run = run_rows.get(session, row.run_id)
        if judged is not None:
            judge_base(session, run, row, refused=judged.verdict == "refused", cause=cause.because(judged.words()))
        continue_run(session, run, cause.because("the round before was published"))


def _standing(inputs: AggregationInput, result: AggregationResult) -> ModelStanding | None:
    if inputs.plan.gate is None:
        return None
    # A sum of zeros leads to its own base, and no round compares a model with itself.
    is_base = result.model_digest == inputs.row.base_model
    return ModelStanding.ACCEPTED if is_base else ModelStanding.CANDIDATE


def _gate_report(inputs: AggregationInput, result: AggregationResult) -> metrics.GateReport | None:
    judgement, gate = result.judgement, inputs.plan.gate
    if judgement is None or gate is None:
        return None
    return metrics.GateReport(
        verdict="refused" if judgement.verdict is Verdict.REFUSED else "accepted",
        mean=judgement.loss.mean,
        lower=judgement.loss.lower,
        without_one=judgement.loss.without_one,
        margin=gate.margin,
        patients=judgement.loss.cases,
        sites=judgement.loss.sites,
        auc_losses={
            name: metrics.RefusedLabel(found.mean, min(found.lower, found.without_one), found.cases, found.sites)
            for name, found in zip(LABELS, judgement.labels, strict=True)
            if found.refuses
        },
        auc_margin=gate.auc_margin,
    )


def _metrics_row(
    inputs: AggregationInput, result: AggregationResult, judged: metrics.GateReport | None, cases_min: int
) -> ModelMetrics:
    header, members = result.decoded.header, result.decoded.members
    trained = not inputs.plan.evaluates_only(inputs.row.number)
    # After dropouts the sum may be over fewer sites than the plan's minimum. It still moves the model, but figures over
    # so few sites would say too much about each.
    enough = members >= inputs.plan.cohort.minimum
    has_loss = enough and trained and header.example_count > 0
    privacy = inputs.plan.privacy
    if not enough or Metric.HISTOGRAMS not in inputs.layout.metrics:
        report = metrics.NOTHING
    elif privacy is None:
        report = metrics.report(header.histograms, cases_min)
    else:
        # Each member of the sum has added a share that was made for the whole cohort, U1.
        variance = members * histogram_noise(privacy).share_variance(len(inputs.masking.cohort.members))
        report = metrics.noised_report(header.histograms, cases_min, variance)
    return ModelMetrics(
        round_id=inputs.row.id,
        model_digest=inputs.row.base_model,
        cohort_size=members,
        train_loss=header.loss_sum / header.example_count if has_loss else None,
        # In a private round each member has the weight 1.
        studies=header.weight if trained and privacy is None else None,
        report=msgspec.structs.replace(report, gate=judged).to_json(),
    )

"""From the masked uploads of a round to its published sum and the next model.

    uploads (disk) -> one accumulator -> unmask -> open_sum -> next_model -> blobs -> PUBLISHED, in one transaction

Memory is one accumulator and the arithmetic of one model, however many sites take part: uploads are added while they
are read. Everything before the last transaction can be done again with the same result (blobs are named by their
content), so a driver killed anywhere in here is followed by one that begins anew.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import structlog
from federation import encoding, secagg
from federation.chain import next_model
from federation.encoding import DecodedSum, Layout
from federation.manifest import Model, load_model, save_model
from federation.plan import TrainingPlan
from federation.v1.secagg_pb2 import RevealMessage, UploadClaim
from federation.vocabulary import Metric
from sqlalchemy.orm import Session

from aggregator import memory
from aggregator.context import AppContext
from aggregator.errors import NotFound
from aggregator.rounds import messages
from aggregator.rounds.cohort import MaskingAttempt, attempt_of
from aggregator.runs import metrics
from aggregator.runs.lifecycle import Cause, continue_run, model_row
from aggregator.runs.plans import plan_of
from aggregator.states import RoundState
from aggregator.store import Change, record, round_rows, run_rows
from aggregator.store.blobs import Blobs, StoredBlob
from aggregator.store.tables import ModelMetrics, ModelVersion, Round, Run, Seat

log = structlog.get_logger()

READ_WORDS = 1 << 15  # 256 KiB: the part of the accumulator it is added to stays in the cache
OnProgress = Callable[[], None]  # called between stages, to renew a lease


@dataclass(frozen=True)
class AggregationInput:
    """Everything a round left behind for its recovered, as the rows say it."""

    run: Run
    row: Round
    plan: TrainingPlan
    layout: Layout
    masking: MaskingAttempt
    shared: list[str]  # U2
    uploads: dict[str, bytes]  # U3, and the digest each member claimed
    answers: Mapping[str, secagg.Answer]  # by revealer
    base: ModelVersion


@dataclass(frozen=True)
class AggregationResult:
    """The opened sum and where it led, stored as blobs."""

    opened: DecodedSum
    model_digest: bytes
    model_blob: StoredBlob | None  # None after an evaluation-only round: the model is its base
    sum_blob: StoredBlob
    altered: Mapping[str, tuple[str, ...]]


def aggregate_round(app: AppContext, round_id: int, actor: str, progress: OnProgress) -> None:
    """Open a round that is in AGGREGATING, publish it, and open the next one.

    Raises: SecaggError, FederationError, NotFound when the sum cannot be opened however often it is tried; LostRace
    when another driver, or an abort, was first. Anything else (a full disk) may be tried again.
    """
    with app.store.read() as session:
        sealed = _read_input(session, round_id)
    memory.trim()  # the uploads have just come in
    result = _aggregate(app, sealed, progress)
    _publish(app, sealed, result, actor)
    log.info(
        "round published",
        run=sealed.row.run_id.hex(),
        round=sealed.row.number,
        members=result.opened.members,
        model=result.model_digest.hex()[:16],
    )


def sum_uploads(
    uploads: Blobs, digests: Mapping[str, bytes], words: int, progress: OnProgress, threads: int = 1
) -> secagg.Words:
    """uint64 [words], modulo 2^64: the sum of complete blobs, each of that many little-endian words.

    threads: among which the words of each blob are shared out.

    Raises: NotFound for a blob that is gone; secagg.Malformed for one of another size.
    """
    total = np.zeros(words, np.uint64)

    def add(digest: bytes, first: int, end: int) -> None:
        with uploads.open(digest) as file:
            size_bytes = file.seek(0, os.SEEK_END)
            if size_bytes != 8 * words:
                raise secagg.MalformedValue(f"expected an upload of {8 * words} bytes, got {size_bytes}")
            file.seek(8 * first)
            for start in range(first, end, READ_WORDS):
                part = np.fromfile(file, "<u8", min(READ_WORDS, end - start))
                total[start : start + part.size] += part

    bounds = [words * part // threads for part in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        for digest in digests.values():
            list(pool.map(partial(add, digest), bounds, bounds[1:]))
            progress()
    return total


def _read_input(session: Session, round_id: int) -> AggregationInput:
    row = round_rows.by_id(session, round_id)
    run = run_rows.get(session, row.run_id)
    plan = plan_of(run)
    claims = round_rows.payloads(session, row.id, Seat.upload_claim)
    reveals = round_rows.payloads(session, row.id, Seat.reveal)
    return AggregationInput(
        run=run,
        row=row,
        plan=plan,
        layout=Layout.of_round(plan, row.number),
        masking=attempt_of(session, run, row),
        shared=round_rows.senders(session, row.id, Seat.shares),
        uploads={site: UploadClaim.FromString(claim).digest for site, claim in claims.items()},
        answers={site: messages.reveals(RevealMessage.FromString(reveal)) for site, reveal in reveals.items()},
        base=run_rows.model_by_digest(session, row.run_id, row.base_model),
    )


def _aggregate(app: AppContext, sealed: AggregationInput, progress: OnProgress) -> AggregationResult:
    masking = sealed.masking
    threads = app.settings.driver.aggregation_threads or os.cpu_count() or 1
    total = sum_uploads(app.uploads, sealed.uploads, sealed.layout.words, progress, threads)
    recovered = secagg.recover_masks(masking.ctx, masking.cohort, sealed.shared, sealed.uploads, sealed.answers)
    progress()
    secagg.unmask(total, recovered, threads)
    progress()
    opened = encoding.decode_sum(sealed.layout, total, len(sealed.uploads))
    del total
    progress()
    with ThreadPoolExecutor(1) as beside:  # the disk takes its time
        sum_blob = beside.submit(lambda: app.blobs.add(encoding.pack_sum(sealed.layout, opened)))
        digest, model_blob = sealed.row.base_model, None
        if not sealed.plan.evaluates_only(sealed.row.number):
            digest, model_blob = _compute_next(app, sealed, opened, threads)
    progress()
    return AggregationResult(opened, digest, model_blob, sum_blob.result(), recovered.altered)


def _compute_next(
    app: AppContext, sealed: AggregationInput, opened: DecodedSum, threads: int
) -> tuple[bytes, StoredBlob]:
    """The model that the sum leads to: its digest, and the blob it is now."""
    model = next_model(sealed.plan, _take_base(app, sealed), opened, threads, uses_up=True)
    with tempfile.TemporaryDirectory(dir=app.settings.state.folder, prefix="opening-") as folder:
        file = Path(folder) / "next.safetensors"
        save_model(file, model)
        blob = app.blobs.take(file)
    app.models[model.digest] = model  # the next round's base
    return model.digest, blob


def _take_base(app: AppContext, sealed: AggregationInput) -> Model:
    """The base model, to be used up: out of hand if it still is there, or out of its blob.

    Raises: NotFound when the file holds another model by now: no site would follow what comes of it.
    """
    kept = app.models.pop(sealed.base.digest, None)
    app.models.clear()
    if kept is not None:
        return kept
    with app.blobs.open(sealed.base.blob) as source:
        model = load_model(Path(f"/dev/fd/{source.fileno()}"))
    if model.digest != sealed.base.digest:
        raise NotFound(
            f"expected model {sealed.base.digest.hex()[:16]} in its blob, got another; restore the state folder"
        )
    return model


def _publish(app: AppContext, sealed: AggregationInput, result: AggregationResult, actor: str) -> None:
    """Everything that says the round is over, and the next round, at once. Raises: LostRace."""
    row, now = sealed.row, app.clock()
    members = result.opened.members
    change = Change(now, actor, round_rows.subject(row), f"opened the sum of {members} uploads")
    with app.store.write() as session:
        published = {
            "sum_blob": result.sum_blob.digest,
            "sum_size_bytes": result.sum_blob.size_bytes,
            "members": members,
            "next_model": result.model_digest,
        }
        round_rows.move(session, row, RoundState.PUBLISHED, change, published)
        for about, liars in result.altered.items():
            why = f"wrong shares about {about} were revealed by {', '.join(liars)}; the sum is right in spite of them"
            record(session, Change(now, actor, round_rows.subject(row), why), None, "altered shares")
        if result.model_blob is not None:
            run_rows.add_model(session, model_row(row.run_id, row.number, result.model_digest, result.model_blob, now))
        round_rows.add_metrics(session, _metrics_row(sealed, result, app.settings.metrics.positives_min))
        continue_run(session, run_rows.get(session, row.run_id), Cause(now, actor, "the round before was published"))


def _metrics_row(sealed: AggregationInput, result: AggregationResult, least: int) -> ModelMetrics:
    header, members = result.opened.header, result.opened.members
    trained = not sealed.plan.evaluates_only(sealed.row.number)
    enough = members >= sealed.plan.cohort.minimum
    judged = enough and Metric.HISTOGRAMS in sealed.plan.metrics
    has_loss = enough and trained and header.example_count > 0
    return ModelMetrics(
        round_id=sealed.row.id,
        model_digest=sealed.row.base_model,
        cohort_size=members,
        train_loss=header.loss_sum / header.example_count if has_loss else None,
        studies=header.weight if trained else None,
        report=(metrics.report(header.histograms, least) if judged else metrics.NOTHING).to_json(),
    )

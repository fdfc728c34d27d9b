"""A model of a run becomes a file outside the state folder, with a description of itself."""

import os
import tempfile
from pathlib import Path

from federation.description import ModelDescription
from federation.manifest import Model, load_model, save_model
from sqlalchemy.orm import Session

from aggregator.context import AppContext
from aggregator.errors import NotFound, WrongState
from aggregator.runs import run_blobs
from aggregator.runs.plans import plan_of
from aggregator.store import run_rows
from aggregator.store.tables import ModelVersion, Run


def choose(session: Session, run: Run, round_number: int | None) -> ModelVersion:
    """Find the model that a round made (0: the initial one); the newest model when `round_number` is None.

    Raises:
        NotFound: When that round made no model.
    """
    if round_number is None:
        return run_rows.newest_model(session, run.run_id)
    for version in run_rows.models(session, run.run_id):
        if version.round_number == round_number:
            return version
    raise NotFound(f"round {round_number} of run {run.name} made no model; `model list` shows those there are")


def read(app: AppContext, version: ModelVersion, run: Run) -> Model:
    """Read a model, after computing its digest anew.

    Raises:
        WrongState: When the digest is not the recorded one; the state folder is damaged.
        federation.errors.Malformed: When the file is no longer a model.
        NotFound: When its blob does not exist, or does not open.
    """
    model = run_blobs.load_stored(app, plan_of(run), version)
    if model.digest != version.digest:
        raise WrongState(f"expected model {version.digest.hex()}, the blob holds {model.digest.hex()}; restore it")
    return model


def export(app: AppContext, version: ModelVersion, run: Run, out: Path, *, overwrite: bool = False) -> None:
    """Write the model's safetensors file to `out`, whole or not at all, after computing its digest anew.

    The file says what the model is: its architecture, inputs, origin, run, plan and round, and the part of the network
    that each tensor belongs to, so that the next run may train some of them.

    Raises:
        WrongState: When `out` exists and is not to be overwritten; or when the digest is not the recorded one: the
            state folder is damaged.
        federation.errors.Malformed: When the file is no longer a model.
        NotFound: When its blob, or the folder of `out`, does not exist.
    """
    if not out.parent.is_dir():
        raise NotFound(f"no folder {out.parent}; make it, or export to another")
    if out.exists() and not overwrite:
        raise WrongState(f"expected no file {out}, got one; name another, or add --overwrite")
    model = read(app, version, run)
    plan = plan_of(run)
    description = ModelDescription(
        architecture=plan.architecture,
        image_size_px=plan.inputs.image_size_px,
        slices_max=plan.inputs.slices_max,
        slices_per_study=plan.training.slices_per_study,
        origin=plan.origin,
        run_id=plan.run_id.hex(),
        plan_digest=plan.digest.hex(),
        round=version.round_number,
        packing="" if plan.release is None or plan.release.permits_packing else "refused",
        parts=run.parts or "",
    )
    # Beside `out`, so that `replace` is atomic.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        draft = Path(folder) / out.name
        save_model(draft, model, description=description)
        # Read back: this finds a disk that wrote other bytes than it was given.
        if load_model(draft).digest != version.digest:
            raise WrongState(f"expected model {version.digest.hex()} in {out.name}, read another; check the disk")
        if not overwrite:
            _reserve(out)
        draft.replace(out)


def _reserve(out: Path) -> None:
    """Make an empty file of that name, which no other program has made.

    Raises:
        WrongState: When there is one.
    """
    # Not by a hard link, which the file system of a stick may not have.
    try:
        os.close(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        raise WrongState(f"expected no file {out}, got one; name another, or add --overwrite") from None

"""A model of a run as a file for whoever wants to use it."""

import shutil
from pathlib import Path

from federation.manifest import load_model
from sqlalchemy.orm import Session

from aggregator.errors import NotFound, WrongState
from aggregator.store import run_rows
from aggregator.store.blobs import Blobs
from aggregator.store.tables import ModelVersion, Run


def choose(session: Session, run: Run, round_number: int | None) -> ModelVersion:
    """The model that a round made (0: the initial one); the newest when None. Raises: NotFound."""
    if round_number is None:
        return run_rows.newest_model(session, run.run_id)
    for version in run_rows.models(session, run.run_id):
        if version.round_number == round_number:
            return version
    raise NotFound(f"round {round_number} of run {run.name} made no model; `model list` shows those there are")


def export(blobs: Blobs, version: ModelVersion, out: Path) -> None:
    """Write the model's safetensors file to `out`, whole or not at all, once its digest has been computed anew.

    Raises: WrongState when the numbers are not those of the recorded digest: the state folder was damaged.
    federation.errors.Malformed when the file is no model any more. NotFound when its blob, or the folder
    of `out`, is not there.
    """
    if not out.parent.is_dir():
        raise NotFound(f"no folder {out.parent}; make it, or export to another")
    unfinished = out.with_name(f".{out.name}.unfinished")
    try:
        with blobs.open(version.blob) as stored, unfinished.open("wb") as writer:
            shutil.copyfileobj(stored, writer)
        found = load_model(unfinished).digest
        if found != version.digest:
            raise WrongState(f"expected model {version.digest.hex()}, the stored file holds {found.hex()}; restore it")
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)

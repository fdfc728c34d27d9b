"""A model of a run becomes a file outside the state folder."""

import shutil
from pathlib import Path

from federation.manifest import load_model
from sqlalchemy.orm import Session

from aggregator.errors import NotFound, WrongState
from aggregator.store import run_rows
from aggregator.store.blobs import Blobs
from aggregator.store.tables import ModelVersion, Run


def choose(session: Session, run: Run, round_number: int | None) -> ModelVersion:
    """Find the model that a round made (0: the initial one); the newest model when `round_number` is None.

    Raises:
        NotFound: when that round made no model.
    """
    if round_number is None:
        return run_rows.newest_model(session, run.run_id)
    for version in run_rows.models(session, run.run_id):
        if version.round_number == round_number:
            return version
    raise NotFound(f"round {round_number} of run {run.name} made no model; `model list` shows those there are")


def export(blobs: Blobs, version: ModelVersion, out: Path) -> None:
    """Write the model's safetensors file to `out`, whole or not at all, after computing its digest anew.

    Raises:
        WrongState: when the digest is not the recorded one; the state folder is damaged.
        federation.errors.Malformed: when the file is no longer a model.
        NotFound: when its blob, or the folder of `out`, does not exist.
    """
    if not out.parent.is_dir():
        raise NotFound(f"no folder {out.parent}; make it, or export to another")
    unfinished = out.with_name(f".{out.name}.unfinished")  # in the same folder, so that `replace` is atomic
    try:
        with blobs.open(version.blob) as stored, unfinished.open("wb") as writer:
            shutil.copyfileobj(stored, writer)
        # Computed from the copy: it also finds a disk that wrote something else than it was given.
        digest = load_model(unfinished).digest
        if digest != version.digest:
            raise WrongState(f"expected model {version.digest.hex()}, the stored file holds {digest.hex()}; restore it")
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)

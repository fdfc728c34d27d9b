"""Models and sums of a run as blobs: as they are, or sealed where the plan has a release level."""

import tempfile
from pathlib import Path

from federation.errors import SealRefused
from federation.manifest import Model, load_model, save_model
from federation.plan import TrainingPlan
from federation.sealed_model import load_sealed_model, model_name, seal_model
from federation.sealing import SealedKind, SealedName, seal

from aggregator.context import AppContext
from aggregator.errors import NotFound
from aggregator.store.blobs import StoredBlob
from aggregator.store.tables import ModelVersion


def store_model(app: AppContext, plan: TrainingPlan, model: Model) -> StoredBlob:
    """Store a model of a run. Under a release level its plaintext touches no disk.

    Raises:
        BlobRefused: When it is above the limit.
        StateFolderRefused: When the secret of the content keys is gone.
    """
    if plan.release is not None:
        return app.blobs.add(seal_model(app.content_keys.of(plan.digest, model.digest), plan.digest, model))
    # In the state folder, so that the file can become the blob by a rename.
    with tempfile.TemporaryDirectory(dir=app.settings.state.folder, prefix="model-") as folder:
        file = Path(folder) / "model.safetensors"
        save_model(file, model)
        return app.blobs.take(file)


def load_stored(app: AppContext, plan: TrainingPlan, version: ModelVersion) -> Model:
    """Read a model of a run. The caller compares its digest.

    Raises:
        NotFound: When its blob does not exist, or does not open.
        StateFolderRefused: When the secret of the content keys is gone.
        federation.errors.Malformed: When the file is no longer a model.
    """
    with app.blobs.open(version.blob) as file:
        if plan.release is None:
            return load_model(Path(f"/dev/fd/{file.fileno()}"))
        key, name = app.content_keys.of(plan.digest, version.digest), model_name(plan.digest, version.digest)
        try:
            return load_sealed_model(key, name, plan.manifest, file)
        except SealRefused as error:
            raise NotFound(
                f"the blob of model {version.digest.hex()[:16]}: {error}; restore the state folder"
            ) from None


def store_sum(app: AppContext, plan: TrainingPlan, model_digest: bytes, data: bytes) -> StoredBlob:
    """Store a published sum, or the words of a refused one.

    Args:
        app: Where it is stored.
        plan: Of the run.
        model_digest: Of the model that the sum leads to; of the round's base model where it leads to none.
        data: The sum's bytes.

    Raises:
        BlobRefused: When it is above the limit.
        StateFolderRefused: When the secret of the content keys is gone.
    """
    if plan.release is None:
        return app.blobs.add(data)
    name = SealedName(SealedKind.SUM, plan.digest, model_digest)
    return app.blobs.add(seal(app.content_keys.of(plan.digest, model_digest), name, [data]))

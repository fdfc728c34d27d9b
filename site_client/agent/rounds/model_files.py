"""The files of the models that this site has verified: the newest, and the one before it; and what arrives for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from federation.errors import FederationError, Malformed, SealRefused
from federation.manifest import Model, load_model, save_model
from federation.plan import TrainingPlan
from federation.sealed_model import load_sealed_model, model_name, seal_model
from federation.sealing import SealedKind, SealedName, sealed_size, unseal_into_memory
from federation.v1 import rounds_pb2

from site_client.agent.egress.egress import Egress
from site_client.agent.egress.transfer import download
from site_client.agent.rounds.released_keys import ReleasedKeys
from site_client.errors import ModelDamaged, ModelMismatch, StateRefused, StateUnreadable, StepRefused
from site_client.files import private_folder, remove, replace_file, replace_in_pieces, set_aside, sync_folder
from site_client.typed_json import Digest, encode_state, read_state

_KEPT: Final = 2
_ARRIVALS: Final = (".*.part", "sum-*", "whole-*")  # downloads: not whole yet, or not used yet


class ModelFiles:
    """<state>/agent/models/<digest hex>.safetensors and history.json, the digests in the order of verification.

    Under a plan with a release level the file is <digest hex>-<plan digest hex, 16>.sealed, and its plaintext is in the
    memory of this process only.
    """

    def __init__(self, folder: Path, content_keys: ReleasedKeys) -> None:
        self._folder, self._arrived, self._content_keys = folder, folder / "arrived", content_keys
        private_folder(folder)
        self.damage = ""  # a sentence, from a damaged file until one arrives whole; for the reports of this site
        # Reading and hashing it anew each round would cost more than all other work on it.
        self._in_memory: Model | None = None

    @property
    def newest(self) -> bytes:
        """Digest of the newest verified model; empty before the first."""
        history = self._history()
        return history[-1] if history else b""

    @property
    def newest_two(self) -> list[bytes]:
        """Digests of the last two verified models, the newest last; fewer where there are none."""
        return [*self._history()[-2:]]

    def path(self, plan: TrainingPlan, digest: bytes) -> Path:
        """Return the model's file under this plan, whether it exists or not."""
        if plan.release is None:
            return self._folder / f"{digest.hex()}.safetensors"
        return self._folder / f"{digest.hex()}-{plan.digest.hex()[:16]}.sealed"

    def holds(self, plan: TrainingPlan, digest: bytes) -> bool:
        """Whether this model was verified here and is still kept, as the plan wants it kept."""
        return digest in self._history() and self.path(plan, digest).exists()

    def load(self, plan: TrainingPlan, digest: bytes) -> Model:
        """Load a kept model, which was verified before it was kept.

        Raises:
            ModelDamaged: The file has changed since. It is no model of this site any more.
        """
        if self._in_memory is None or self._in_memory.digest != digest:
            try:
                self._in_memory = _checked(plan, self._read(plan, digest), digest)
            except (FederationError, ModelMismatch, OSError) as error:
                raise self._forgotten(plan, digest, error) from error
        return _checked(plan, self._in_memory, digest)

    def take(self, plan: TrainingPlan, digest: bytes) -> Model:
        """Load a kept model for a caller that destroys it; this object keeps no reference.

        Raises:
            ModelDamaged: As `load`.
        """
        model = self.load(plan, digest)
        self._in_memory = None
        return model

    def fetch_whole(self, egress: Egress, plan: TrainingPlan, ref: rounds_pb2.BlobRef, digest: bytes) -> None:
        """Fetch a model, and keep it as the newest.

        Args:
            egress: The only way out.
            plan: Of the run.
            ref: The file on offer.
            digest: Of the model that it has to hold.

        Raises:
            ModelDamaged: It arrived damaged, or is damaged at the aggregator.
            ModelMismatch: It holds another model.
            Unreachable: The download broke off; the next call continues it.
        """
        if plan.release is not None:
            self._content_keys.of(plan, digest)  # before the download: without it the file is of no use here
        arrived = self._download(egress, ref, "whole", _stored_bytes(plan, plan.manifest.file_bytes_max))
        try:
            model = _checked(plan, self._read_file(plan, digest, arrived), digest)
            if plan.release is None:
                arrived.replace(self._arrived)
        # A file that does not fit its own digest proves nothing against its sender; another model would fit.
        except (Malformed, SealRefused) as error:
            raise self._damaged(f"the model on offer is damaged at the aggregator: {error}") from error
        finally:
            remove(arrived)
        self.keep(plan, model)

    def fetch_sum(
        self, egress: Egress, plan: TrainingPlan, ref: rounds_pb2.BlobRef, size_bytes: int, key_of: bytes
    ) -> Path:
        """Fetch a published sum; `plaintext` opens it, and the caller removes it.

        Args:
            egress: The only way out.
            plan: Of the run.
            ref: The file on offer.
            size_bytes: Of the sum in the clear.
            key_of: Digest of the model whose content key opens it under a release level.

        Raises:
            StepRefused: The file on offer has another size.
            ModelDamaged: It arrived damaged.
            Unreachable: The download broke off; the next call continues it.
        """
        expected = _stored_bytes(plan, size_bytes)
        if ref.size_bytes != expected:
            raise StepRefused(f"expected a sum of {expected} bytes, got one of {ref.size_bytes} on offer")
        if plan.release is not None:
            self._content_keys.of(plan, key_of)  # before the download, as for a whole model
        return self._download(egress, ref, "sum", expected)

    @contextmanager
    def plaintext(self, plan: TrainingPlan, model_digest: bytes, arrived: Path) -> Iterator[memoryview]:
        """Yield the bytes of a sum that has arrived. Under a release level they are in memory only."""
        if plan.release is None:
            yield np.memmap(arrived, np.uint8, "r").data
            return
        name = SealedName(SealedKind.SUM, plan.digest, model_digest)
        key = self._content_keys.of(plan, model_digest)
        with arrived.open("rb") as file:
            try:
                plaintext = unseal_into_memory(key, name, file, arrived.stat().st_size)
            except SealRefused as error:
                raise self._damaged(f"the sum on offer is damaged at the aggregator: {error}") from error
        with plaintext:
            yield np.memmap(plaintext, np.uint8, "r").data

    def keep(self, plan: TrainingPlan, model: Model, over_old: bool = False) -> None:
        """Keep a verified model as the newest. The last two are kept.

        Args:
            plan: Of the run.
            model: The model.
            over_old: Whether to write over a file that no longer counts, which is faster than a new one.
        """
        # The file gets its digest as a name only when it is whole.
        if plan.release is None:
            draft = self._folder / ".model.new"
            save_model(draft, model, self._spare(plan) if over_old else None)
            draft.chmod(0o600)
            draft.rename(self.path(plan, model.digest))
            sync_folder(self._folder)
        else:
            key = self._content_keys.of(plan, model.digest)
            replace_in_pieces(self.path(plan, model.digest), seal_model(key, plan.digest, model))
        self._in_memory = model
        # The history comes after the file: a digest in it always has its model.
        history = [*(digest for digest in self._history() if digest != model.digest), Digest(model.digest)][-_KEPT:]
        self._write_history(history)
        kept = {digest.hex() for digest in history}
        for path in (*self._folder.glob("*.safetensors"), *self._folder.glob("*.sealed")):
            if path.name[:64] not in kept:
                remove(path)
        self._content_keys.forget_others(set(history))

    def put_newest(self, plan: TrainingPlan, digest: bytes, dropped: bytes = b"") -> None:
        """Make a model the newest, if it is here, and remove the one that is dropped."""
        history = [kept for kept in self._history() if kept not in (dropped, digest)]
        if self.holds(plan, digest):
            history.append(Digest(digest))
        self._write_history(history)
        if dropped:
            for path in self._folder.glob(f"{dropped.hex()}*"):
                remove(path)

    def drop_arrivals(self, wanted: bytes = b"") -> None:
        """Remove every download, finished or not, but the one with the digest `wanted`."""
        for pattern in _ARRIVALS:
            for path in self._folder.glob(pattern):
                if not wanted or wanted.hex() not in path.name:
                    remove(path)

    def _read(self, plan: TrainingPlan, digest: bytes) -> Model:
        return self._read_file(plan, digest, self.path(plan, digest))

    def _read_file(self, plan: TrainingPlan, digest: bytes, path: Path) -> Model:
        if plan.release is None:
            return load_model(path)
        key = self._content_keys.of(plan, digest)
        with path.open("rb") as file:
            return load_sealed_model(key, model_name(plan.digest, digest), plan.manifest, file)

    def _download(self, egress: Egress, ref: rounds_pb2.BlobRef, kind: str, size_max: int) -> Path:
        # One download at a time lies on the disk: an aggregator that offers another file each time could fill it.
        self.drop_arrivals(ref.digest)
        arrived = self._folder / f"{kind}-{ref.digest.hex()}"
        try:
            download(egress, ref, arrived, size_max)
        except ModelDamaged as error:
            raise self._damaged(str(error)) from error
        self.damage = ""
        return arrived

    def _forgotten(self, plan: TrainingPlan, digest: bytes, error: Exception) -> ModelDamaged:
        """Take a damaged file out of the history, so that the model is fetched again."""
        path = self.path(plan, digest)
        if path.exists():
            set_aside(path, type(error).__name__, "the model is fetched again")
        history = [kept for kept in self._history() if kept != digest]
        self._write_history(history)
        return self._damaged(
            f"the stored model {digest.hex()[:16]} is damaged on this machine's disk; it is fetched again"
        )

    def _damaged(self, sentence: str) -> ModelDamaged:
        self.damage = sentence
        return ModelDamaged(sentence)

    def _spare(self, plan: TrainingPlan) -> Path | None:
        """Return a file to write the next model over; None without any.

        It is the file that a whole model came in, or the one that the next model pushes out. A file with a second
        name is a job's as well: the trainer may be reading it.
        """
        if self._arrived.exists():
            return self._arrived
        for digest in self._history()[: 1 - _KEPT]:
            path = self.path(plan, digest)
            if path.exists() and path.stat().st_nlink == 1:
                return path
        return None

    def _history(self) -> list[Digest]:
        path, way_on = self._folder / "history.json", "models are fetched whole"
        try:
            return read_state(list[Digest], path, way_on) or []
        except StateUnreadable:
            raise
        except StateRefused as error:
            # Only an order of models is lost. What protects against another history is in lineage.json.
            set_aside(path, str(error), way_on)
            return []

    def _write_history(self, history: list[Digest]) -> None:
        replace_file(self._folder / "history.json", encode_state(history))


def _stored_bytes(plan: TrainingPlan, size_bytes: int) -> int:
    return size_bytes if plan.release is None else sealed_size(size_bytes)


def _checked(plan: TrainingPlan, model: Model, digest: bytes) -> Model:
    if model.manifest != plan.manifest or model.digest != digest:
        raise ModelMismatch("expected the plan's tensors with the announced digest, got another model")
    return model

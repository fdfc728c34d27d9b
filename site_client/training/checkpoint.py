"""Checkpoints of a job, so that a kill at any moment costs at most the time since the last one.

A checkpoint is one safetensors file: tensors, and a header in its metadata. It holds no code, and nothing is unpickled.
It is written under another name, synced and renamed. The newest two are kept: the older one serves when the newer one
is damaged. A checkpoint of another job is refused.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from federation.errors import SealRefused
from federation.sealing import SealedName, seal, unseal_into_memory
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from site_client.errors import CheckpointRefused
from site_client.files import replace_file, replace_in_pieces

KEEP: Final = 2
_FORMAT = "hemofed checkpoint v1"


@dataclass(frozen=True)
class CheckpointIdentity:
    """The job of a checkpoint. A job resumes from checkpoints with an equal identity only.

    Attributes:
        stage: Part of the file names.
        run_id: 16 bytes in hex.
        round: From 1.
        base_model_digest: 32 bytes in hex.
        dataset_hash: In hex.
        config_hash: In hex, over all else that decides the numbers: plan, site, device, precision, studies taken.
    """

    stage: str
    run_id: str
    round: int
    base_model_digest: str
    dataset_hash: str
    config_hash: str


@dataclass(frozen=True)
class Saved:
    """The content of a checkpoint: counters, and tensors on the CPU (weights, optimizer moments, generator states)."""

    numbers: dict[str, int]
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class CheckpointSeal:
    """Encrypts the checkpoints of a job whose models are sealed: they hold the weights."""

    content_key: bytes = field(repr=False)
    name: SealedName


class Checkpoints:
    """The checkpoints of one stage of one job, in one folder."""

    def __init__(
        self,
        folder: Path,
        identity: CheckpointIdentity,
        *,
        every_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        seal: CheckpointSeal | None = None,
    ) -> None:
        """Use `folder`, and make it if needed.

        Args:
            folder: Where the files are.
            identity: Of the job.
            every_s: Seconds between two checkpoints, see `due`.
            clock: Monotonic, in seconds.
            seal: Of a job whose models are sealed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._identity = identity
        self._every_s = every_s
        self._clock = clock
        self._seal = seal
        self._suffix = ".safetensors" if seal is None else ".sealed"
        self._last = clock()

    def due(self) -> bool:
        """Tell whether the last checkpoint is older than `every_s` seconds."""
        return self._clock() - self._last >= self._every_s

    def save(self, step: int, numbers: Mapping[str, int], tensors: Mapping[str, Tensor]) -> None:
        """Write a checkpoint, which is durable when this returns, and remove all older ones but the newest.

        Args:
            step: Orders the checkpoints.
            numbers: Counters.
            tensors: Of any shape, dtype and device; they are stored contiguously.
        """
        # In the file's metadata, which safetensors keeps as text: JSON, and never pickle.
        header = {
            "format": _FORMAT,
            "identity": json.dumps(asdict(self._identity)),
            "numbers": json.dumps(dict(numbers)),
        }
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        # Order: the new file is durable before an old one goes, so a power cut leaves a whole checkpoint.
        path, content = self._folder / f"{self._identity.stage}-{step:010d}{self._suffix}", save(contiguous, header)
        if self._seal is None:
            replace_file(path, content)
        else:
            replace_in_pieces(path, seal(self._seal.content_key, self._seal.name, [content]))
        for old in self._files()[:-KEEP]:
            old.unlink()
        self._last = self._clock()

    def load(self) -> Saved | None:
        """Read the newest checkpoint that is whole.

        Returns:
            The checkpoint, its tensors on the CPU in the dtypes of `save`; None when the folder has no file of this
            stage.

        Raises:
            CheckpointRefused: It is of another job, or all files are damaged.
        """
        files = self._files()
        for path in reversed(files):
            saved = self._read(path)
            if saved is not None:
                return saved
        if files:
            raise CheckpointRefused(f"expected a whole checkpoint of {self._identity.stage}, got only damaged ones")
        return None

    def clear(self) -> None:
        """Remove all checkpoints of this stage."""
        for path in self._files():
            path.unlink()

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._identity.stage}-*{self._suffix}"))

    def _read(self, path: Path) -> Saved | None:
        try:
            with self._readable(path) as plain, safe_open(plain, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        except (SafetensorError, SealRefused):  # a full disk or a power cut tore the file
            return None
        # Order: after the tensors were read. A torn file is skipped; a whole one of another job is refused.
        self._refuse_other(header)
        return Saved(json.loads(header["numbers"]), tensors)

    @contextmanager
    def _readable(self, path: Path) -> Iterator[Path]:
        """Yield a path of the plaintext; that of a sealed checkpoint is in memory."""
        if self._seal is None:
            yield path
            return
        with path.open("rb") as file:
            plaintext = unseal_into_memory(self._seal.content_key, self._seal.name, file, path.stat().st_size)
        with plaintext:
            yield Path(f"/proc/self/fd/{plaintext.fileno()}")

    def _refuse_other(self, header: Mapping[str, str]) -> None:
        if header.get("format") != _FORMAT:
            raise CheckpointRefused(f"expected a checkpoint in the format {_FORMAT!r}, got another; remove it")
        theirs, ours = json.loads(header["identity"]), asdict(self._identity)
        different = [key for key in ours if theirs.get(key) != ours[key]]
        if different:
            raise CheckpointRefused(
                f"expected a checkpoint of this very job, got one with another {', '.join(different)}"
            )

"""Where a job stood, on disk, so that a kill at any moment costs at most the time since the last file.

A checkpoint is one safetensors file: tensors, and a header in its metadata. It holds no code: nothing is unpickled.
Written under another name, synced, renamed, folder synced; the newest two are kept, and the older one serves when the
newer is damaged. A checkpoint of another job is refused, never adapted.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from site_client.errors import CheckpointRefused
from site_client.files import replace_file

KEEP: Final = 2
_FORMAT = "hemofed checkpoint v1"


@dataclass(frozen=True)
class CheckpointIdentity:
    """What a checkpoint must agree on with the job that wants to go on from it. Digests and hashes in hex."""

    stage: str
    run_id: str
    round: int
    base_model_digest: str
    dataset_hash: str
    config_hash: str  # over whatever else decides the numbers: plan, site, device, precision, studies taken


@dataclass(frozen=True)
class Saved:
    """`numbers`: counters and cursors. `tensors`: weights, optimizer moments, generator states."""

    numbers: dict[str, int]
    tensors: dict[str, Tensor]


class Checkpoints:
    """The checkpoints of one stage of one job in one folder. `clock` is monotonic, in seconds."""

    def __init__(
        self,
        folder: Path,
        identity: CheckpointIdentity,
        *,
        every_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._identity = identity
        self._every_s = every_s
        self._clock = clock
        self._last = clock()

    def due(self) -> bool:
        return self._clock() - self._last >= self._every_s

    def save(self, step: int, numbers: Mapping[str, int], tensors: Mapping[str, Tensor]) -> None:
        """Durable when this returns. A later step replaces all but the newest of the earlier ones."""
        header = {
            "format": _FORMAT,
            "identity": json.dumps(asdict(self._identity)),
            "numbers": json.dumps(dict(numbers)),
        }
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        replace_file(self._folder / f"{self._identity.stage}-{step:010d}.safetensors", save(contiguous, header))
        for old in self._files()[:-KEEP]:
            old.unlink()
        self._last = self._clock()

    def load(self) -> Saved | None:
        """The newest that can be read; None without any. Raises CheckpointRefused when it is of something else, or
        when there are files and none of them is whole.
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
        for path in self._files():
            path.unlink()

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._identity.stage}-*.safetensors"))

    def _read(self, path: Path) -> Saved | None:
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        except SafetensorError:  # cut short by a full disk or a power cut
            return None
        self._refuse_other(header)
        return Saved(json.loads(header["numbers"]), tensors)

    def _refuse_other(self, header: Mapping[str, str]) -> None:
        if header.get("format") != _FORMAT:
            raise CheckpointRefused(f"expected a checkpoint in the format {_FORMAT!r}, got another; remove it")
        found, wanted = json.loads(header["identity"]), asdict(self._identity)
        odd = [key for key in wanted if found.get(key) != wanted[key]]
        if odd:
            raise CheckpointRefused(f"expected a checkpoint of this very job, got one with another {', '.join(odd)}")

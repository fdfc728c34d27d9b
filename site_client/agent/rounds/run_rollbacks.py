"""The rollbacks that this site has followed: by run, the newest that the custodian has signed.

    <state>/agent/models/rollbacks.json

A rollback leads back from models that this site has computed itself, so nothing but the custodian's signature over the
run, the round and the model is enough. A number that grows tells an old one, shown again, from a new one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from federation.rollback import RunRollback
from msgspec import Meta

from site_client.files import replace_file
from site_client.records import ROUND_MAX, RoundNumber, RunHex
from site_client.typed_json import Digest, encode_state, read_state

_ADVICE: Final = "put the state folder of the last backup back, then restart the agent"


@dataclass(frozen=True)
class FollowedRollback:
    """A rollback that was verified and followed."""

    number: Annotated[int, Meta(ge=1, le=2**31)]
    after_round: RoundNumber
    model_digest: Digest
    model_round: Annotated[int, Meta(ge=0, le=ROUND_MAX)]

    @classmethod
    def of(cls, rollback: RunRollback) -> "FollowedRollback":
        """Return what is kept of a verified rollback."""
        return cls(rollback.number, rollback.after_round, Digest(rollback.model_digest), rollback.model_round)

    def words(self) -> str:
        """Say what it did, for the people of this hospital."""
        model = f"the model of round {self.model_round}" if self.model_round else "the initial model"
        return f"after round {self.after_round} to {model}, by the custodian's signature"


class RunRollbacks:
    """The file. A site that has followed none has no file."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "rollbacks.json"

    def newest(self, run_id: bytes) -> FollowedRollback | None:
        """Return the newest rollback of a run; None before the first."""
        return self._read().get(run_id.hex())

    def record(self, run_id: bytes, followed: FollowedRollback) -> None:
        """Record that a rollback was followed."""
        replace_file(self._path, encode_state(self._read() | {run_id.hex(): followed}))

    def _read(self) -> dict[RunHex, FollowedRollback]:
        return read_state(dict[RunHex, FollowedRollback], self._path, _ADVICE) or {}

"""A whole round on a stained export, and the search for its canaries in all that it leaves behind.

Everything is the real thing but the consortium: the real catalog and worker processes, the real agent's steps, guard,
ledger, masking. The messages end in a file instead of TLS: exactly the bytes that TLS would be given. Plan, model and
peers are made here (a dry run: `rehearsal`). It takes a minute or two of CPU, and touches nothing of this site's own.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final

from federation.limits import CHUNK_BYTES_MAX
from federation.manifest import load_model
from federation.plan import TrainingPlan, sign_plan
from federation.v1 import blobs_pb2, rounds_pb2
from federation.v1.blobs_pb2 import RoundRef
from federation.wire import serialize

from site_client.agent.egress import verify
from site_client.agent.egress.calls import FETCH_PLAN, POLL
from site_client.agent.egress.egress import Cleared, Egress
from site_client.agent.egress.guard import Guard
from site_client.agent.egress.ledger import Ledger
from site_client.agent.egress.payloads import Payloads
from site_client.agent.rounds.dry_run import RecordingTransport
from site_client.agent.rounds.participant import Participant
from site_client.config import SiteSettings, load
from site_client.prove.consortium import Consortium, plan_for
from site_client.prove.finding import Outcome, ProofFinding
from site_client.prove.search import findings, spellings
from site_client.records import RunId
from site_client.spool import AgentSide

CLAIM: Final = "a round leaves no patient's value in messages, ledger, spool, databases, checkpoints, caches or logs"
_ARCHITECTURE: Final = "lite"
_STEP_S: Final = 900.0
_SITE_TOML: Final = """
name = "drill"
[aggregator]
address = "drill.invalid:443"
[folders]
state = "state"
spool = "spool"
cache = "cache"
export = "export"
labels = ["labels"]
[policy]
plan_approval = "automatic"
studies_min = 2
metered = "ignore"
dry_run = true
[ingest]
settle_s = 0
slices_min = 8
[training]
threads = 1
device = "cpu"
validation_fraction = 0.3
"""


@dataclass(frozen=True)
class Drilled:
    """What a round left behind: canaries that were put in, where they were looked for, and the hits."""

    canaries: int
    spellings: int
    files: int
    bytes_searched: int
    messages: int
    studies: int  # that the update was trained on
    hits: tuple[str, ...]


def show_no_canary() -> ProofFinding:
    """Runs the drill in a temporary folder. Not shown when the round did not come to its end."""
    with tempfile.TemporaryDirectory(prefix="hemofed-drill-") as folder:
        try:
            drilled = drill(Path(folder))
        except (OSError, subprocess.SubprocessError, LookupError) as error:
            return ProofFinding(
                CLAIM, Outcome.NOT_SHOWN, (f"the drill did not come to its end ({type(error).__name__})",)
            )
    evidence = (
        f"{drilled.canaries} canaries in names, identifiers, dates, UIDs, private elements, paths and label cells",
        f"a round trained on {drilled.studies} synthetic studies, {drilled.messages} messages up to the bytes for TLS",
        f"{drilled.files} files, {drilled.bytes_searched:,} bytes searched for {drilled.spellings} spellings "
        "(UTF-8, Latin-1, UTF-16, hex, base64, URL, MD5, SHA-1, SHA-256)",
        f"{len(drilled.hits)} hits",
        *drilled.hits[:10],
    )
    return ProofFinding(CLAIM, Outcome.BROKEN if drilled.hits else Outcome.SHOWN, evidence)


def drill(folder: Path) -> Drilled:
    """The round and the search, in an empty folder. Errors: OSError, SubprocessError, LookupError (no update came)."""
    config = folder / "site.toml"
    config.write_text(_SITE_TOML)
    logs = folder / "logs"
    logs.mkdir()
    stained = _run(
        ["-m", "site_client.prove.canaries", str(folder)], logs / "stain.txt", errors=None
    )  # prints canaries
    canaries = stained.read_text().splitlines()
    (logs / "stain.txt").unlink()
    _run(
        [
            "-m",
            "site_client.cli",
            "init-weights",
            "--architecture",
            _ARCHITECTURE,
            "--out",
            str(folder / "m.safetensors"),
        ],
        logs / "w.txt",
    )
    settings = load(config)
    settings.folders.trainer.mkdir(parents=True)
    worker = ["-m", "site_client.trainer.worker", "--config", str(config), "--parent", str(os.getpid())]
    _run([*worker, "--scan"], logs / "scan.txt")
    _run(["-m", "site_client.cli", "catalog", "--series", "--config", str(config)], logs / "catalog.txt")
    with closing(_Site(settings, folder / "m.safetensors")) as site:
        site.step()
        run, number = site.plan.run_id.hex(), "1"
        _run([*worker, "--run", run, "--round", number], logs / "worker.txt")
        studies = site.trained()
        site.step()
        _keep(site.ear, folder / "sent")
    messages = verify.verify(settings.folders.agent / "ledger.jsonl")
    if messages.dry_run == 0:
        raise LookupError("the agent made no message of the round")
    (folder / "m.safetensors").unlink()
    places = [folder / name for name in ("state", "spool", "cache", "logs", "sent")]
    wanted = spellings(canaries)
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    return Drilled(
        canaries=len(set(canaries)),
        spellings=len(wanted),
        files=len(files),
        bytes_searched=sum(path.stat().st_size for path in files),
        messages=messages.entries,
        studies=studies,
        hits=tuple(findings(wanted, places)),
    )


@dataclass
class _Aggregator(RecordingTransport):
    """Offers one round, and hears all that is said."""

    model: bytes = b""
    answers: dict[str, bytes] = field(default_factory=dict)

    def unary(self, path: str, request: Cleared) -> bytes:
        if path in self.answers:
            self.sent.append((path, request.data))
            return self.answers[path]
        return super().unary(path, request)

    def get(self, path: str, request: Cleared) -> Iterator[bytes]:
        self.sent.append((path, request.data))
        digest = sha256(self.model).digest()
        for at in range(0, len(self.model), CHUNK_BYTES_MAX):
            data = self.model[at : at + CHUNK_BYTES_MAX]
            yield serialize(blobs_pb2.BlobChunk(digest=digest, offset=at, data=data))


class _Site:
    """An agent's steps, without its service loop."""

    def __init__(self, settings: SiteSettings, model_file: Path) -> None:
        self._settings = settings
        consortium = Consortium()
        identity = consortium.enrol(settings.folders.agent / "identity", settings.name)
        model = load_model(model_file)
        self.plan: TrainingPlan = plan_for(model, _ARCHITECTURE)
        data = model_file.read_bytes()
        step = rounds_pb2.TrainStep(
            round=RoundRef(run_id=self.plan.run_id, round=1, attempt=0),
            plan_digest=self.plan.digest,
            base_model_digest=model.digest,
            whole_model=rounds_pb2.BlobRef(digest=sha256(data).digest(), size_bytes=len(data)),
            seconds_left=3600,
        )
        poll = rounds_pb2.PollReply(retry_after_ms=10, roster_epoch=1, train=step)
        signed = sign_plan(self.plan, consortium.custodian)
        self.ear = _Aggregator(settings.aggregator.address, model=data)
        self.ear.answers = {POLL.path: serialize(poll), FETCH_PLAN.path: serialize(signed)}

        def clock() -> datetime:
            return datetime.now(UTC)

        folder = settings.folders.agent
        self._ledger = Ledger(folder / "ledger.jsonl", identity.keys.signing, clock)
        egress = Egress(Guard(settings.policy), self._ledger, self.ear, Payloads(folder / "payloads", 1 << 28))
        self._rounds = Participant(egress, identity, AgentSide(settings.folders.spool), settings, clock)

    def step(self) -> None:
        """One turn of the agent. Errors: LookupError when the agent refuses what it is asked."""
        refusal = self._rounds.step().refusal
        if refusal is not None:
            raise LookupError(str(refusal))

    def trained(self) -> int:
        """Studies of the update that the worker delivered. Errors: LookupError without one."""
        update = AgentSide(self._settings.folders.spool).update(RunId(self.plan.run_id), 1)
        if update is None or update.outcome != "trained":
            raise LookupError("the worker delivered no trained update")
        return update.studies

    def close(self) -> None:
        self._ledger.close()


def _keep(ear: RecordingTransport, folder: Path) -> None:
    """The polls and requests; what the rehearsal made lies among the agent's payloads."""
    folder.mkdir()
    for number, (_, data) in enumerate(ear.sent):
        (folder / f"{number:06d}").write_bytes(data)


def _run(arguments: list[str], log: Path, errors: int | None = subprocess.STDOUT) -> Path:
    """A process of ours. Its output goes to `log`, and what it says of errors too, unless `errors` says otherwise.

    Errors: SubprocessError.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as out:
        subprocess.run(
            [sys.executable, *arguments],
            stdout=out,
            stderr=errors,
            env=environment,
            check=True,
            timeout=_STEP_S,
        )
    return log

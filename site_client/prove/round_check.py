"""The round check: a whole round on an export full of canaries, and the search of all its files for them.

Only the consortium is made up. Catalog and worker processes, the agent's steps, guard, ledger and masking are those of
a real round. The messages end in files instead of TLS: exactly the bytes that TLS would get. Plan, model and peers are
made here; the masking is a dry run (agent/rounds/dry_run.py). It takes a minute or two of CPU, and touches no file of
this site.
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
from federation.vocabulary import Outcome
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
from site_client.prove.finding import ProofFinding, ProofOutcome
from site_client.prove.search import findings, spellings
from site_client.records import RunId
from site_client.spool import AgentSide

CLAIM: Final = "a round leaves no patient's value in messages, ledger, spool, databases, checkpoints, caches or logs"
_ARCHITECTURE: Final = "lite"
_STEP_S: Final = 900.0
_SITE_TOML: Final = """
name = "round-check"
[aggregator]
address = "round-check.invalid:443"
[folders]
state = "state"
spool = "spool"
cache = "cache"
export = "export"
labels = ["labels"]
opt_outs = ["KANARI-ABLEHNUNG.txt"]
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
class RoundCheck:
    """The result: canaries that were planted, files that were searched, and the hits."""

    canaries: int
    spellings: int
    files: int
    bytes_searched: int
    messages: int
    studies: int  # in the update
    hits: tuple[str, ...]


def show_no_canary() -> ProofFinding:
    """Run the round check in a temporary folder. The claim is not shown when the round does not finish."""
    # Nothing of it may stay: a canary in a later search would look like a leak.
    with tempfile.TemporaryDirectory(prefix="hemofed-round-check-") as folder:
        try:
            result = check_round(Path(folder))
        except (OSError, subprocess.SubprocessError, LookupError) as error:
            # Without the exception's text, which may quote a canary.
            reason = f"the round check did not finish ({type(error).__name__})"
            return ProofFinding(CLAIM, ProofOutcome.NOT_SHOWN, (reason,))
    evidence = (
        f"{result.canaries} canaries in names, identifiers, dates, UIDs, private elements, paths and label cells",
        f"a round trained on {result.studies} synthetic studies, {result.messages} messages up to the bytes for TLS",
        f"{result.files} files, {result.bytes_searched:,} bytes searched for {result.spellings} spellings "
        "(UTF-8, Latin-1, UTF-16, hex, base64, URL, MD5, SHA-1, SHA-256)",
        f"{len(result.hits)} hits",
        *result.hits[:10],
    )
    return ProofFinding(CLAIM, ProofOutcome.BROKEN if result.hits else ProofOutcome.SHOWN, evidence)


def check_round(folder: Path) -> RoundCheck:
    """Run the round and the search, in an empty folder.

    Raises:
        OSError: A file cannot be written.
        SubprocessError: A process failed.
        LookupError: No update, or no message of the round, was made.
    """
    config, model_file, logs = folder / "site.toml", folder / "m.safetensors", folder / "logs"
    config.write_text(_SITE_TOML)
    logs.mkdir()
    # Its standard output is the list of canaries, which must not stay among the searched logs.
    listed = _run(["-m", "site_client.prove.canaries", str(folder)], logs / "canaries.txt", errors=None)
    canaries = listed.read_text().splitlines()
    listed.unlink()
    architecture = ["--architecture", _ARCHITECTURE, "--out", str(model_file)]
    _run(["-m", "site_client.cli", "init-weights", *architecture], logs / "weights.txt")
    settings = load(config)
    settings.folders.trainer.mkdir(parents=True)
    worker = ["-m", "site_client.trainer.worker", "--config", str(config), "--parent", str(os.getpid())]
    _run([*worker, "--scan"], logs / "scan.txt")
    # One of the label tables has to be refused, and its sentence is searched too.
    _run(["-m", "site_client.cli", "catalog", "--series", "--config", str(config)], logs / "catalog.txt", status=1)
    with closing(_Site(settings, model_file)) as site:
        site.step()
        _run([*worker, "--run", site.plan.run_id.hex(), "--round", "1"], logs / "worker.txt")
        studies = site.trained_studies()
        site.step()
        _write_messages(site.aggregator, folder / "sent")
    messages = verify.verify(settings.folders.agent / "ledger.jsonl")
    # No hit in a round that sent nothing would prove nothing.
    if messages.dry_run == 0:
        raise LookupError("the agent made no message of the round")
    model_file.unlink()
    places = [folder / name for name in ("state", "spool", "cache", "logs", "sent")]
    wanted = spellings(canaries)
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    return RoundCheck(
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
    """Offers one round, and records every message."""

    model: bytes = b""
    answers: dict[str, bytes] = field(default_factory=dict)

    def unary(self, path: str, request: Cleared) -> bytes:
        """Record a message, and give its prepared answer if there is one."""
        if path in self.answers:
            self.sent.append((path, request.data))
            return self.answers[path]
        return super().unary(path, request)

    def get(self, path: str, request: Cleared) -> Iterator[bytes]:
        """Record a message, and yield the base model."""
        self.sent.append((path, request.data))
        digest = sha256(self.model).digest()
        for at in range(0, len(self.model), CHUNK_BYTES_MAX):
            data = self.model[at : at + CHUNK_BYTES_MAX]
            yield serialize(blobs_pb2.BlobChunk(digest=digest, offset=at, data=data))


class _Site:
    """An agent without its service loop."""

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
        self.aggregator = _Aggregator(settings.aggregator.address, model=data)
        self.aggregator.answers = {POLL.path: serialize(poll), FETCH_PLAN.path: serialize(signed)}

        def clock() -> datetime:
            return datetime.now(UTC)

        folder = settings.folders.agent
        self._ledger = Ledger(folder / "ledger.jsonl", identity.keys.signing, clock)
        egress = Egress(Guard(settings.policy), self._ledger, self.aggregator, Payloads(folder / "payloads", 1 << 28))
        self._participant = Participant(egress, identity, AgentSide(settings.folders.spool), settings, clock)

    def step(self) -> None:
        """Take one turn.

        Raises:
            LookupError: The agent refuses the step.
        """
        refusal = self._participant.step().refusal
        if refusal is not None:
            raise LookupError(str(refusal))

    def trained_studies(self) -> int:
        """Return the number of studies in the update that the worker delivered.

        Raises:
            LookupError: There is no update.
        """
        update = AgentSide(self._settings.folders.spool).update(RunId(self.plan.run_id), 1)
        if update is None or update.outcome != Outcome.TRAINED:
            raise LookupError("the worker delivered no trained update")
        return update.studies

    def close(self) -> None:
        """Release the ledger."""
        self._ledger.close()


def _write_messages(aggregator: RecordingTransport, folder: Path) -> None:
    """Write the polls and requests, to be searched; the messages of the dry run are among the agent's payloads."""
    folder.mkdir()
    for number, (_, data) in enumerate(aggregator.sent):
        (folder / f"{number:06d}").write_bytes(data)


def _run(arguments: list[str], log: Path, errors: int | None = subprocess.STDOUT, status: int = 0) -> Path:
    """Run a Python process that ends with `status`.

    Its output goes into `log`, and its standard error too unless `errors` is another target.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    with log.open("wb") as out:
        done = subprocess.run(command, stdout=out, stderr=errors, env=environment, check=False, timeout=_STEP_S)
    if done.returncode != status:
        raise subprocess.CalledProcessError(done.returncode, command[:3])
    return log

"""Content keys of sealed models at a site: asked for once, opened in memory.

At the level "none" they are kept as the aggregator sent them, encrypted to the sealing key of this site. At the level
"cvm" they are encrypted to a key that is drawn for one release and never leaves the memory of this process. Nothing on
a disk opens a model there: after a restart, for each model, and after 24 hours this machine shows evidence again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from federation.errors import SealRefused
from federation.hpke import OVERHEAD_BYTES, SealingKey
from federation.plan import TrainingPlan
from federation.release import NONCE_BYTES, ReleaseLevel, report_data
from federation.sealed_model import model_name
from federation.sealing import CONTENT_KEY_BYTES, SealedName, unwrap_content_key
from federation.v1 import rounds_pb2
from federation.vocabulary import EvidenceRefusal

from site_client.agent.egress.calls import RELEASE_KEY
from site_client.agent.egress.egress import Egress
from site_client.agent.evidence import Attest
from site_client.agent.identity.identity import SiteIdentity
from site_client.errors import EvidenceMissing, StepRefused
from site_client.files import private_folder, remove, replace_file
from site_client.untrusted_files import read_regular

ATTESTED_FOR: Final = timedelta(hours=24)
_WRAPPED_BYTES: Final = CONTENT_KEY_BYTES + OVERHEAD_BYTES
_REMEMBERED: Final = 64  # keys in memory
_IN_WORDS: Final = {
    EvidenceRefusal.STALE: "its answer took more than five minutes; it is asked again",
    EvidenceRefusal.FORM: "the report or its certificates have a form that the aggregator does not read",
    EvidenceRefusal.CHAIN: "the certificates do not lead to the plan's root, or are not valid today; fetch others",
    EvidenceRefusal.SIGNATURE: "the chip of the certificate did not sign the report; fetch the VCEK of this host",
    EvidenceRefusal.BINDING: "the report is for something else; it is asked for again",
    EvidenceRefusal.MEASUREMENT: "this machine's image is none that the plan names; install the image of the plan",
    EvidenceRefusal.TCB: "the host's firmware is older than the plan asks for, or the VCEK is of another firmware",
    EvidenceRefusal.DEBUG: "the host may debug or migrate this machine; start it with a stricter policy",
    EvidenceRefusal.VMPL: "the report is not from this machine's most privileged level",
}


@dataclass(frozen=True)
class _ContentKey:
    key: bytes = field(repr=False)
    released_at: datetime


class ReleasedKeys:
    """<state>/agent/models/<model digest hex>-<plan digest hex, 16>.key, at the level "none" only."""

    def __init__(
        self, folder: Path, egress: Egress, identity: SiteIdentity, clock: Callable[[], datetime], attest: Attest
    ) -> None:
        """Take the folder of the models; nothing is read yet.

        Args:
            folder: Of the models.
            egress: The only way out.
            identity: Of this site.
            clock: Aware time.
            attest: Makes evidence of this machine.
        """
        self._folder, self._egress, self._identity = folder, egress, identity
        self._clock, self._attest = clock, attest
        self._in_memory: dict[SealedName, _ContentKey] = {}
        self.refusal = ""  # a sentence, from refused evidence until evidence suffices; for the reports of this site

    def of(self, plan: TrainingPlan, model_digest: bytes) -> bytes:
        """Return the content key of a model, 32 bytes; the aggregator is asked for one that is not here.

        Raises:
            LinkError: The aggregator cannot be reached, or does not release the key.
            StepRefused: Its answer is no key for this site, or this machine's evidence does not suffice.
        """
        name = model_name(plan.digest, model_digest)
        is_attested = plan.release is not None and plan.release.level is ReleaseLevel.CVM
        held = self._in_memory.get(name)
        if held is not None and is_attested and not held.released_at <= self._clock() < held.released_at + ATTESTED_FOR:
            del self._in_memory[name]
            held = None
        if held is None:
            # One plan and few models at a time: those of earlier rounds would only stay in memory.
            if len(self._in_memory) >= _REMEMBERED:
                self._in_memory.clear()
            key = self._attested(name) if is_attested else self._kept(name) or self._released(name)
            self._in_memory[name] = held = _ContentKey(key, self._clock())
        return held.key

    def forget_others(self, digests: set[bytes]) -> None:
        """Remove the keys of all models but these, from the disk and from memory."""
        for path in self._folder.glob("*.key"):
            if path.name[:64] not in {digest.hex() for digest in digests}:
                remove(path)
        self._in_memory = {name: key for name, key in self._in_memory.items() if name.model_digest in digests}

    def _kept(self, name: SealedName) -> bytes | None:
        path = self._path(name)
        try:
            return self._opened(read_regular(path, _WRAPPED_BYTES), name, self._identity.keys.sealing)
        except FileNotFoundError:
            return None
        except (ValueError, SealRefused):  # damaged, or for a sealing key that this site had before
            remove(path)
            return None

    def _released(self, name: SealedName) -> bytes:
        wrapped = self._egress.send(RELEASE_KEY, _request(name)).wrapped_key
        content_key = self._answered(wrapped, name, self._identity.keys.sealing)
        private_folder(self._folder)
        replace_file(self._path(name), wrapped)
        return content_key

    def _attested(self, name: SealedName) -> bytes:
        """Have a key released against evidence that is bound to a key drawn now."""
        nonce = self._egress.send(RELEASE_KEY, _request(name)).nonce
        if len(nonce) != NONCE_BYTES:
            raise StepRefused(f"expected a nonce of {NONCE_BYTES} bytes for evidence, got another answer; asking again")
        receiver = SealingKey.generate()
        request = _request(name)
        request.nonce, request.receiver_key = nonce, receiver.public_bytes
        try:
            request.snp.CopyFrom(self._attest(report_data(nonce, receiver.public_bytes, self._identity.site, name)))
        except EvidenceMissing as error:
            raise self.refused(str(error)) from error
        reply = self._egress.send(RELEASE_KEY, request)
        for reason, words in _IN_WORDS.items():
            if reply.refusal == reason.number:
                raise self.refused(f"the aggregator releases no model to this machine ({reason}): {words}")
        content_key = self._answered(reply.wrapped_key, name, receiver)
        self.refusal = ""
        return content_key

    def refused(self, sentence: str) -> StepRefused:
        """Return the refusal, which stays in the reports of this site until evidence suffices."""
        self.refusal = sentence
        return StepRefused(sentence)

    def _answered(self, wrapped: bytes, name: SealedName, receiver: SealingKey) -> bytes:
        try:
            return self._opened(wrapped, name, receiver)
        except SealRefused as error:
            raise StepRefused(f"the aggregator's answer: {error}; it is asked again") from error

    def _opened(self, wrapped: bytes, name: SealedName, receiver: SealingKey) -> bytes:
        return unwrap_content_key(wrapped, self._identity.site.encode(), receiver, name)

    def _path(self, name: SealedName) -> Path:
        return self._folder / f"{name.model_digest.hex()}-{name.plan_digest.hex()[:16]}.key"


def _request(name: SealedName) -> rounds_pb2.ReleaseRequest:
    return rounds_pb2.ReleaseRequest(plan_digest=name.plan_digest, model_digest=name.model_digest)

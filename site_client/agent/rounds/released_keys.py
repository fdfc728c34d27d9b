"""Content keys of sealed models at a site: asked for once, kept encrypted for this site, opened in memory."""

from pathlib import Path
from typing import Final

from federation.errors import SealRefused
from federation.hpke import OVERHEAD_BYTES
from federation.plan import TrainingPlan
from federation.sealed_model import model_name
from federation.sealing import CONTENT_KEY_BYTES, unwrap_content_key
from federation.v1 import rounds_pb2

from site_client.agent.egress.calls import RELEASE_KEY
from site_client.agent.egress.egress import Egress
from site_client.agent.identity.identity import SiteIdentity
from site_client.errors import StepRefused
from site_client.files import private_folder, remove, replace_file
from site_client.untrusted_files import read_regular

_WRAPPED_BYTES: Final = CONTENT_KEY_BYTES + OVERHEAD_BYTES
_REMEMBERED: Final = 64  # keys in memory


class ReleasedKeys:
    """<state>/agent/models/<model digest hex>-<plan digest hex, 16>.key, each as the aggregator sent it."""

    def __init__(self, folder: Path, egress: Egress, identity: SiteIdentity) -> None:
        self._folder, self._egress, self._identity = folder, egress, identity
        self._in_memory: dict[tuple[bytes, bytes], bytes] = {}

    def of(self, plan: TrainingPlan, model_digest: bytes) -> bytes:
        """Return the content key of a model, 32 bytes; the aggregator is asked for one that is not here.

        Raises:
            LinkError: The aggregator cannot be reached, or does not release the key.
            StepRefused: Its answer is no key for this site.
        """
        place = plan.digest, model_digest
        if place not in self._in_memory:
            # One plan and few models at a time: those of earlier rounds would only stay in memory.
            if len(self._in_memory) >= _REMEMBERED:
                self._in_memory.clear()
            self._in_memory[place] = self._kept(*place) or self._released(*place)
        return self._in_memory[place]

    def forget_others(self, digests: set[bytes]) -> None:
        """Remove the keys of all models but these, from the disk and from memory."""
        for path in self._folder.glob("*.key"):
            if path.name[:64] not in {digest.hex() for digest in digests}:
                remove(path)
        self._in_memory = {place: key for place, key in self._in_memory.items() if place[1] in digests}

    def _kept(self, plan_digest: bytes, model_digest: bytes) -> bytes | None:
        path = self._path(plan_digest, model_digest)
        try:
            return self._opened(read_regular(path, _WRAPPED_BYTES), plan_digest, model_digest)
        except FileNotFoundError:
            return None
        except (ValueError, SealRefused):  # damaged, or for a sealing key that this site had before
            remove(path)
            return None

    def _released(self, plan_digest: bytes, model_digest: bytes) -> bytes:
        request = rounds_pb2.ReleaseRequest(plan_digest=plan_digest, model_digest=model_digest)
        wrapped = self._egress.send(RELEASE_KEY, request).wrapped_key
        try:
            content_key = self._opened(wrapped, plan_digest, model_digest)
        except SealRefused as error:
            raise StepRefused(f"the aggregator's answer: {error}; it is asked again") from error
        private_folder(self._folder)
        replace_file(self._path(plan_digest, model_digest), wrapped)
        return content_key

    def _opened(self, wrapped: bytes, plan_digest: bytes, model_digest: bytes) -> bytes:
        name, key = model_name(plan_digest, model_digest), self._identity.keys.sealing
        return unwrap_content_key(wrapped, self._identity.site.encode(), key, name)

    def _path(self, plan_digest: bytes, model_digest: bytes) -> Path:
        return self._folder / f"{model_digest.hex()}-{plan_digest.hex()[:16]}.key"

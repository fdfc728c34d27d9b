"""The bandwidth test: bytes a second over the agent's own connection, and the time that a round takes with them.

At most five messages of a fixed sequence, no more than 1.2 MB in each direction. A large message follows only a small
one that took less than a second, so that a slow line is not busy for long.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from federation.bandwidth import sequence
from federation.encoding import Layout
from federation.errors import FederationError, Malformed
from federation.limits import CHUNK_BYTES_MAX
from federation.plan import TrainingPlan
from federation.v1 import bandwidth_pb2

from site_client.agent.commands.session import session
from site_client.agent.egress.calls import ECHO
from site_client.agent.egress.egress import Egress
from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.rounds.plans import Plans
from site_client.bus import Bus
from site_client.check_result import CheckResult, green, grey, red
from site_client.config import PolicySettings, SiteSettings
from site_client.doctor.network.enrolment import PATIENCE_S, agent_runs
from site_client.errors import Refused, SiteError, Unreachable
from site_client.metered import Meter, is_metered

FIRST_BYTES: Final = 64 * 1024
_QUICK_S: Final = 1.0
# densenet121-gru, 8 223 000 parameters: its upload at 6 bits for cohorts of up to 64, and its file of weights.
FULL_UPLOAD_BYTES, FULL_MODEL_BYTES = 13_427_952, 32_932_960


@dataclass(frozen=True)
class Speed:
    """Bytes a second, in both directions."""

    up: float
    down: float


@dataclass(frozen=True)
class RoundTrip:
    """The bytes that a round moves. `phase_s`: the time that the plan gives the upload; None without a plan."""

    label: str
    upload_bytes: int
    sum_bytes: int  # of the largest cohort
    model_bytes: int
    phase_s: int | None = None


def check_echo(settings: SiteSettings, identity: SiteIdentity, clock: Callable[[], datetime]) -> Iterator[CheckResult]:
    """Measure, unless an agent runs, the policy asks for dry runs, or the line costs by the byte."""
    bus = Bus()
    if agent_runs(settings.folders.agent):
        yield grey("echo", "the agent runs, and the line is its own; not measured", "Stop the agent to measure")
    elif settings.policy.dry_run:
        yield grey("echo", "policy.dry_run is set: nothing was sent")
    elif Meter(settings.policy, clock, lambda: is_metered(bus)).holds_back():
        yield grey("echo", "the line costs by the byte (policy.metered); not measured")
    else:
        yield _measured(settings, identity, clock)


def measure(egress: Egress, largest: int, monotonic: Callable[[], float] = time.monotonic) -> Speed:
    """Measure the upload, then the download.

    Args:
        egress: To the aggregator.
        largest: Bytes of the largest message.
        monotonic: Seconds of a monotonic clock.

    Raises:
        LinkError: No answer, or a refusal.
        Malformed: Other bytes come back than were asked for.
    """
    # The first, empty message makes the connection, whose cost is no part of the speed.
    egress.send(ECHO, bandwidth_pb2.EchoRequest())
    up = _rate(lambda size: bandwidth_pb2.EchoRequest(data=sequence(size)), egress, largest, monotonic)
    return Speed(up, _rate(lambda size: bandwidth_pb2.EchoRequest(wanted_bytes=size), egress, largest, monotonic))


def assess(speed: Speed, needs: RoundTrip, policy: PolicySettings) -> CheckResult:
    """Return the speed in words; red where the plan's phase is too short for the upload."""
    cap = policy.bandwidth_kib_s * 1024 or math.inf
    up, down = min(speed.up, cap), min(speed.down, cap)
    limited = (
        f", limited to {policy.bandwidth_kib_s} by policy.bandwidth_kib_s" if cap < max(speed.up, speed.down) else ""
    )
    upload_s = needs.upload_bytes / up
    found = (
        f"{speed.up / 1024:.0f} KiB/s up, {speed.down / 1024:.0f} down{limited}: {needs.label} sends "
        f"{_megabytes(needs.upload_bytes)}, fetches at most {_megabytes(needs.sum_bytes)} and needs "
        f"{_duration(upload_s + needs.sum_bytes / down)}; the whole model, {_megabytes(needs.model_bytes)}, "
        f"{_duration(needs.model_bytes / down)}"
    )
    # An upload that misses the phase costs the site the round, every round.
    if needs.phase_s is not None and upload_s > needs.phase_s:
        found += f"; the plan gives the upload {_duration(needs.phase_s)}"
        return red("echo", found, "Raise the bandwidth, or ask the coordinator for a longer phase_s")
    return green("echo", found)


def needs_of(plan: TrainingPlan | None) -> RoundTrip:
    """Return the bytes of a round of this plan; without a plan, of the full network."""
    if plan is None:
        return RoundTrip("a round of the full network", FULL_UPLOAD_BYTES, FULL_UPLOAD_BYTES, FULL_MODEL_BYTES)
    layout = Layout.of(plan, plan.moving.size)
    sum_bytes = layout.sum_bytes_for(plan.cohort.maximum)
    model_bytes = 4 * plan.manifest.size
    return RoundTrip("a round of the newest plan", layout.bytes, sum_bytes, model_bytes, plan.deadlines.phase_s)


def _measured(settings: SiteSettings, identity: SiteIdentity, clock: Callable[[], datetime]) -> CheckResult:
    # Where the policy limits the bandwidth, only the first small message is sent.
    largest = FIRST_BYTES if settings.policy.bandwidth_kib_s else CHUNK_BYTES_MAX
    with session(settings, identity, clock, PATIENCE_S) as egress:
        try:
            speed = measure(egress, largest)
        except Unreachable:
            words = f"no answer within {PATIENCE_S:.0f} s: not reached, slower than 3 KiB/s, or measured too often"
            return grey("echo", words, "See the lines above; else run doctor again in a minute")
        except Refused as error:
            if error.code == "UNIMPLEMENTED":
                return grey("echo", "this aggregator is older than this check, and does not answer it")
            return red("echo", str(error), "See the lines above", local=True)
        except (FederationError, SiteError) as error:
            return red("echo", str(error), "See the lines above", local=True)
    plans = [held.plan for held in Plans(settings.folders.agent / "plans").all()]
    return assess(speed, needs_of(plans[0] if plans else None), settings.policy)


def _rate(
    message: Callable[[int], bandwidth_pb2.EchoRequest], egress: Egress, largest: int, monotonic: Callable[[], float]
) -> float:
    size, took_s = FIRST_BYTES, _timed(message(FIRST_BYTES), egress, monotonic)
    # On a slow line a large message would take minutes, and the small one has measured it already.
    if took_s < _QUICK_S and largest > FIRST_BYTES:
        size, took_s = largest, _timed(message(largest), egress, monotonic)
    return size / max(took_s, 1e-6)


def _timed(message: bandwidth_pb2.EchoRequest, egress: Egress, monotonic: Callable[[], float]) -> float:
    began_s = monotonic()
    reply = egress.send(ECHO, message)
    took_s = monotonic() - began_s
    if reply.data != sequence(message.wanted_bytes):
        raise Malformed(f"expected {message.wanted_bytes} bytes of the sequence back, got others; tell the coordinator")
    return took_s


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    return f"{max(1, math.ceil(seconds))} s" if seconds < 120 else f"{math.ceil(seconds / 60)} min"

"""What the doctor says of a measured line: the speed, and how long a round takes at it."""

import re
from dataclasses import replace

import pytest
from federation.encoding import Layout
from federation.plan import Deadlines, TrainingPlan

from site_client.check_result import Color
from site_client.config import PolicySettings
from site_client.doctor.network.echo import FULL_MODEL_BYTES, FULL_UPLOAD_BYTES, RoundTrip, Speed, assess, needs_of
from site_client.model.registry import build, manifest_of
from tests.site_client.agent.conftest import plan as plan  # a fixture

KIB = 1024.0


def test_without_a_plan_it_speaks_of_the_full_network_and_its_sizes_are_the_real_ones() -> None:
    size = manifest_of(build("densenet121-gru", 1)).size
    layout = Layout(size, 6, 64, 1.0, 100, bytes(32), frozenset())
    needs = needs_of(None)
    assert (needs.upload_bytes, needs.model_bytes) == (layout.bytes, 4 * size) == (FULL_UPLOAD_BYTES, FULL_MODEL_BYTES)
    assert layout.sum_bytes_for(64) == needs.sum_bytes
    assert "a round of the full network sends 13.4 MB" in assess(Speed(KIB, KIB), needs, PolicySettings()).found


def test_with_a_plan_it_speaks_of_that_plan_s_sizes(plan: TrainingPlan) -> None:
    layout = Layout.of(plan, plan.manifest.size)
    needs = needs_of(plan)
    assert (needs.upload_bytes, needs.sum_bytes) == (layout.bytes, layout.sum_bytes_for(plan.cohort.maximum))
    assert (needs.model_bytes, needs.phase_s) == (4 * plan.manifest.size, plan.deadlines.phase_s)


@pytest.mark.parametrize(
    ("kib_s", "cap_kib_s", "round_s", "model_s"),
    [
        ((100, 200), 0, "15 s", "20 s"),
        ((100, 200), 50, "40 s", "80 s"),
        ((1e6, 1e6), 0, "1 s", "1 s"),
        ((1, 1), 0, "34 min", "67 min"),
    ],
)
def test_up_and_down_add_up_and_the_policy_s_cap_counts(
    kib_s: tuple[float, float], cap_kib_s: int, round_s: str, model_s: str
) -> None:
    needs = RoundTrip("a round", int(1000 * KIB), int(1000 * KIB), int(4000 * KIB))
    speed = Speed(*(one * KIB for one in kib_s))
    line = assess(speed, needs, PolicySettings(bandwidth_kib_s=cap_kib_s))
    found = re.search(r"needs (\d+ \w+); the whole model, \S+ MB, (\d+ \w+)$", line.found)
    assert found is not None, line.found
    assert (found[1], found[2], line.color) == (round_s, model_s, Color.GREEN)
    assert ("limited to 50 by policy.bandwidth_kib_s" in line.found) is (cap_kib_s == 50)


def test_a_line_too_slow_for_the_plan_s_phase_is_red_and_says_what_to_ask_for(plan: TrainingPlan) -> None:
    hurried = replace(plan, deadlines=Deadlines(training_s=86_400, phase_s=2))
    needs = needs_of(hurried)
    assert assess(Speed(needs.upload_bytes / 1.9, KIB), needs, PolicySettings()).color is Color.GREEN
    line = assess(Speed(needs.upload_bytes / 2.1, KIB), needs, PolicySettings())
    assert (line.color, line.fix) == (Color.RED, "Raise the bandwidth, or ask the coordinator for a longer phase_s")
    assert "the plan gives the upload 2 s" in line.found

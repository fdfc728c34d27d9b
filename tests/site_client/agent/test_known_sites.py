"""Which hospitals count for this one, and the person who decides it: files, policy, commands."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation.roster import ROSTER_DAYS, Roster, RosterEntry, sign_roster
from federation.secagg import CohortRefused, ConfirmationRefused
from federation.vocabulary import SiteState
from hypothesis import given
from hypothesis import strategies as st

from site_client.agent.commands import roster as commands
from site_client.agent.identity.identity import SiteIdentity
from site_client.agent.identity.known_sites import KnownSites, check_cohort, check_uploaded
from site_client.agent.rounds.journal import CurrentRound
from site_client.agent.rounds.revealed_sums import RevealedSums
from site_client.agent.status_file import AgentStatus, write_status
from site_client.check_result import Color
from site_client.cli import main
from site_client.config import FoldersSettings, PolicySettings, SiteSettings
from site_client.doctor.network.enrolment import check_roster
from site_client.errors import StateRefused, StepRefused
from site_client.records import RunId
from site_client.status import gather, render_text
from site_client.typed_json import Digest
from tests.site_client.agent.conftest import Consortium, StandingClock

ASK = PolicySettings(roster_approval="ask")
WAIT = PolicySettings(roster_approval="wait", roster_wait_days=7)


def entry(name: str, key: int = 0) -> RosterEntry:
    own = bytes([key]) + name.encode()
    return RosterEntry(name, own.ljust(32, b"."), own.ljust(1216, b"."))


def roster(*entries: RosterEntry, epoch: int = 1) -> Roster:
    return Roster(epoch, tuple(sorted(entries, key=lambda one: one.site)))


FIRST = roster(entry("mercy"), entry("north"), entry("south"))
GROWN = roster(*FIRST.entries, entry("ghost"), epoch=2)


@pytest.fixture
def known(tmp_path: Path) -> KnownSites:
    sites = KnownSites(tmp_path)
    sites.approve(FIRST.entries)
    return sites


# --- what counts ---


def test_an_added_name_waits_for_a_person_however_long(known: KnownSites, clock: StandingClock) -> None:
    known.observe(GROWN, clock())
    clock.advance(days=365)
    assert known.known(GROWN, ASK, clock()) == {"mercy", "north", "south"}
    assert known.waiting(GROWN, ASK, clock()) == [(entry("ghost"), None)]
    known.approve(GROWN.entries)
    assert "ghost" in known.known(GROWN, ASK, clock())


def test_with_wait_an_added_name_counts_after_its_days_and_not_before(known: KnownSites, clock: StandingClock) -> None:
    began = clock()
    known.observe(GROWN, began)
    clock.advance(days=6, hours=23)
    known.observe(GROWN, clock())  # every poll does; the days count from the first time
    assert known.waiting(GROWN, WAIT, clock()) == [(entry("ghost"), began + timedelta(days=7))]
    clock.advance(hours=1)
    assert "ghost" in known.known(GROWN, WAIT, clock())


def test_a_name_that_vanishes_and_comes_back_waits_anew(known: KnownSites, clock: StandingClock) -> None:
    known.observe(GROWN, clock())
    clock.advance(days=6)
    known.observe(FIRST, clock())
    clock.advance(days=6)
    known.observe(GROWN, clock())
    assert "ghost" not in known.known(GROWN, WAIT, clock())


@pytest.mark.parametrize("policy", [ASK, WAIT])
def test_a_known_name_with_other_keys_waits(known: KnownSites, clock: StandingClock, policy: PolicySettings) -> None:
    changed = roster(entry("mercy"), entry("north", key=1), entry("south"), epoch=2)
    known.observe(FIRST, clock())
    clock.advance(days=30)
    known.observe(changed, clock())
    assert known.known(changed, policy, clock()) == {"mercy", "south"}


def test_a_name_that_the_agent_has_not_recorded_yet_waits(known: KnownSites, clock: StandingClock) -> None:
    assert known.known(GROWN, WAIT, clock()) == {"mercy", "north", "south"}


def test_no_days_of_waiting_count_an_added_name_at_once(known: KnownSites, clock: StandingClock) -> None:
    policy = PolicySettings(roster_approval="wait", roster_wait_days=0)
    assert "ghost" in known.known(GROWN, policy, clock())


def test_a_damaged_file_lets_nobody_count_and_says_what_to_do(
    known: KnownSites, tmp_path: Path, clock: StandingClock
) -> None:
    for damage in (b"{", b"[]", b'{"mercy": "00"}', b"x" * (5 << 20)):
        (tmp_path / "approved.json").write_bytes(damage)
        with pytest.raises(StateRefused, match="roster approve"):
            known.known(GROWN, ASK, clock())


# --- the two checks ---


@given(known_count=st.integers(0, 12), ghosts=st.integers(0, 12), minimum=st.integers(3, 6))
def test_a_cohort_is_declined_unless_more_than_two_thirds_and_the_minimum_are_known(
    known_count: int, ghosts: int, minimum: int
) -> None:
    names = [f"known-{number}" for number in range(known_count)]
    cohort = [*names, *(f"ghost-{number}" for number in range(ghosts))]
    if known_count >= minimum and 3 * known_count > 2 * len(cohort):
        check_cohort(cohort, names, minimum)
    else:
        with pytest.raises(CohortRefused):
            check_cohort(cohort, names, minimum)


@given(known_count=st.integers(3, 12), ghosts=st.integers(0, 4), vanished=st.integers(0, 6))
def test_a_sum_needs_as_many_known_members_as_without_the_others(known_count: int, ghosts: int, vanished: int) -> None:
    names = [f"known-{number}" for number in range(known_count)]
    cohort = [*names, *(f"ghost-{number}" for number in range(ghosts))]
    if 3 * (known_count - vanished) > 2 * known_count:
        check_uploaded(cohort[vanished:], cohort, names)
    else:
        with pytest.raises(ConfirmationRefused):
            check_uploaded(cohort[vanished:], cohort, names)


NAMES = [f"known-{letter}" for letter in "abcdefg"]
GHOSTS = ["ghost-1", "ghost-2", "ghost-3"]


@pytest.mark.parametrize(
    ("first", "second", "is_confirmed"),
    [
        pytest.param(NAMES[:4], NAMES[:4], True, id="the same members"),
        pytest.param(NAMES[:7], NAMES[:4], True, id="three known ones less"),
        pytest.param(NAMES[:4], NAMES[:3], False, id="one known less"),
        pytest.param([*NAMES[:4], *GHOSTS[:2]], NAMES[:3], False, id="one known less, hidden among two invented ones"),
        pytest.param(NAMES[:4], [*NAMES[:3], *GHOSTS[:2]], False, id="one known less, two invented more"),
    ],
)
def test_two_sums_on_one_model_differ_by_nobody_or_by_enough_known_hospitals(
    tmp_path: Path, first: list[str], second: list[str], is_confirmed: bool
) -> None:
    sums, base = RevealedSums(tmp_path), Digest(bytes(32))
    current = CurrentRound(RunId(bytes(16)), 1, base, base, False, confirmed=tuple(sorted(first)))
    sums.record(current, current.confirmed)
    sums.settle(current)
    if is_confirmed:
        sums.check_set(current, second, 3, NAMES)
    else:
        with pytest.raises(StepRefused, match="known members"):
            sums.check_set(current, second, 3, NAMES)


# --- the site's own files ---


def grown(identity: SiteIdentity, consortium: Consortium, expires_at: datetime | None = None) -> Roster:
    """The site takes a roster with one hospital more."""
    north = RosterEntry("north", Ed25519PrivateKey.generate().public_key().public_bytes_raw(), bytes(1216))
    entries = tuple(sorted([*identity.roster.entries, north], key=lambda one: one.site))
    dates = (1, int(expires_at.timestamp())) if expires_at is not None else (0, 0)
    return identity.accept_roster(sign_roster(Roster(identity.roster.epoch + 1, entries, *dates), consortium.custodian))


def test_all_hospitals_of_the_first_roster_are_known_and_later_ones_wait(
    identity: SiteIdentity, consortium: Consortium, clock: StandingClock
) -> None:
    assert identity.known_sites.known(identity.roster, ASK, clock()) == {"mercy"}
    grown(identity, consortium)
    assert identity.known_sites.known(identity.roster, ASK, clock()) == {"mercy"}


def test_a_site_that_joined_with_the_first_version_knows_the_roster_it_held(
    identity: SiteIdentity, consortium: Consortium, clock: StandingClock, tmp_path: Path
) -> None:
    """Its folder has no list of known hospitals. The roster it holds is known; what comes later waits."""
    (tmp_path / "state" / "agent" / "identity" / "approved.json").unlink()
    assert identity.known_sites.known(identity.roster, ASK, clock()) == {"mercy"}
    grown(identity, consortium)
    assert identity.known_sites.known(identity.roster, ASK, clock()) == {"mercy"}


# --- commands, status, doctor ---


@pytest.fixture
def settings(identity: SiteIdentity, tmp_path: Path) -> SiteSettings:
    return SiteSettings("mercy", folders=FoldersSettings(tmp_path / "state", tmp_path / "spool", tmp_path / "export"))


def test_show_names_every_hospital_with_its_keys_and_the_custodians_words(
    settings: SiteSettings, identity: SiteIdentity, consortium: Consortium
) -> None:
    grown(identity, consortium)
    shown = commands.show(settings).splitlines()
    assert shown[0].startswith("Roster of epoch 2")
    assert len(shown[1].split()) == 6
    assert shown[2].endswith("this hospital")
    assert identity.roster.entries[1].fingerprint.hex()[:16] in shown[3]
    assert shown[3].endswith("waits for you: roster approve")


def test_approving_asks_with_the_names_and_no_changes_nothing(
    settings: SiteSettings, identity: SiteIdentity, consortium: Consortium, clock: StandingClock
) -> None:
    grown(identity, consortium)
    asked: list[str] = []

    def refuse(text: str) -> bool:
        asked.append(text)
        return False

    assert commands.approve(settings, refuse).startswith("nothing was changed")
    assert "north" in asked[0]
    assert "mercy" not in asked[0]
    assert identity.known_sites.known(identity.roster, ASK, clock()) == {"mercy"}
    assert commands.approve(settings, lambda _: True) == "known from now on: north"
    assert identity.known_sites.known(identity.roster, ASK, clock()) == {"mercy", "north"}
    assert commands.approve(settings, lambda _: False).startswith("no hospital waits")


def test_the_commands_are_on_the_command_line(
    settings: SiteSettings, identity: SiteIdentity, consortium: Consortium, tmp_path: Path
) -> None:
    grown(identity, consortium)
    config = tmp_path / "site.toml"
    config.write_text(f'name = "mercy"\n[folders]\nstate = "{tmp_path / "state"}"\n')
    assert "waits for you" in CliRunner().invoke(main, ["roster", "show", "--config", str(config)]).output
    refused = CliRunner().invoke(main, ["roster", "approve", "--config", str(config)], input="n\n")
    assert "nothing was changed" in refused.output
    accepted = CliRunner().invoke(main, ["roster", "approve", "--yes", "--config", str(config)])
    assert "known from now on: north" in accepted.output


@pytest.mark.parametrize(
    ("days", "color", "word"), [(31, Color.GREEN, "hospitals"), (29, Color.RED, "ends"), (0, Color.RED, "ended")]
)
def test_doctor_warns_thirty_days_before_the_roster_ends(
    identity: SiteIdentity, consortium: Consortium, clock: StandingClock, days: int, color: Color, word: str
) -> None:
    end = clock() + timedelta(days=ROSTER_DAYS)
    grown(identity, consortium, expires_at=end)
    identity.known_sites.approve(identity.roster.entries)
    [result] = check_roster(identity, ASK, end - timedelta(days=days))
    assert result.color is color
    assert word in result.found


def test_doctor_says_which_hospitals_wait(identity: SiteIdentity, consortium: Consortium, clock: StandingClock) -> None:
    grown(identity, consortium)
    [asked] = check_roster(identity, ASK, clock())
    assert (asked.color, asked.found) == (Color.RED, "north wait for you")
    [waits] = check_roster(identity, WAIT, clock())
    assert waits.color is Color.GREEN


@pytest.mark.parametrize(
    ("days", "said"), [(31, "in 31 days "), (29, "in 29 days: ask the coordinator"), (-1, "ended on")]
)
def test_status_warns_thirty_days_before_the_roster_ends(
    settings: SiteSettings, clock: StandingClock, days: int, said: str
) -> None:
    status = AgentStatus(
        written_at=clock(),
        state=SiteState.IDLE,
        reasons=(),
        run_id=None,
        round=None,
        model_digest=None,
        roster_epoch=2,
        certificate_expires_at=clock() + timedelta(days=20),
        last_contact_at=clock(),
        last_error="",
        ledger_entries=1,
        roster=("mercy", "north"),
        roster_waiting=("north",),
        roster_expires_at=clock() + timedelta(days=days),
    )
    write_status(settings.folders.agent, status)
    text = render_text(gather(settings, clock()))
    assert said in text
    assert any(line.split()[:2] == ["roster_waiting", "north"] for line in text.splitlines())

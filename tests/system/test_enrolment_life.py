"""An enrolment through its whole life: a real site identity and a real enrolment service on one standing clock.

Only TLS is left out, because it looks at the machine's own clock: the wire hands a certificate over as TLS would.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from federation.fingerprint import six_words
from federation.token import Token
from federation.v1 import enrolment_pb2
from federation.wire import parse, serialize

from aggregator import config
from aggregator.errors import AggregatorError
from aggregator.migrations import upgrade
from aggregator.sites.authentication import authenticate
from aggregator.sites.authority import create_authority
from aggregator.sites.enrolment import EnrolmentService
from aggregator.store import open_store, site_rows
from site_client.agent.egress.egress import Cleared, Egress
from site_client.agent.egress.guard import Guard
from site_client.agent.egress.ledger import Ledger
from site_client.agent.identity.certificates import Certificates
from site_client.agent.identity.identity import Joining, Membership, SiteIdentity
from site_client.agent.identity.keys import prove_possession
from site_client.config import PolicySettings
from site_client.errors import IdentityRefused, Refused
from site_client.typed_json import Digest
from tests.custodian import CUSTODIAN, sign_pending


@dataclass
class StandingClock:
    now: datetime = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **parts: float) -> None:
        self.now += timedelta(**parts)


@dataclass
class Wire:
    """Carries a call to the enrolment service. `certificate`: of the site's end, None at the enrolment listener."""

    enrolment: EnrolmentService
    certificate: Callable[[], bytes | None]
    calls: list[str] = field(default_factory=list)
    peer: str = "hub.example:8443"

    def unary(self, path: str, request: Cleared) -> bytes:
        name = path.rpartition("/")[2]
        self.calls.append(name)
        try:
            if name == "Join":
                return serialize(self.enrolment.join(parse(enrolment_pb2.JoinRequest, request.data)))
            if name == "Challenge":
                return serialize(self.enrolment.challenge(parse(enrolment_pb2.ChallengeRequest, request.data)))
            if name == "Recover":
                return serialize(self.enrolment.recover(parse(enrolment_pb2.RecoverRequest, request.data)))
            site = authenticate(self.enrolment.store, self.certificate(), self.enrolment.clock())
            return serialize(self.enrolment.renew(site, parse(enrolment_pb2.RenewRequest, request.data)))
        except AggregatorError as error:
            raise Refused(str(error), type(error).__name__) from error

    def put(self, path: str, requests: Iterator[Cleared]) -> bytes:
        raise NotImplementedError(path)

    def get(self, path: str, request: Cleared) -> Iterator[bytes]:
        raise NotImplementedError(path)


@dataclass
class Place:
    """One hospital's host and the coordinator's enrolment service, each with a clock."""

    enrolment: EnrolmentService
    aggregator_clock: StandingClock
    clock: StandingClock
    folder: Path
    calls: list[str] = field(default_factory=list)
    ledgers: list[Ledger] = field(default_factory=list)

    def join(self, token: Token) -> SiteIdentity:
        joining = Joining.prepare(self.folder / "identity", token.site)
        request = enrolment_pb2.JoinRequest(
            site=token.site,
            secret=token.secret,
            csr_der=joining.request.csr_der,
            signing_key=joining.keys.signing_public,
            sealing_key=joining.keys.sealing.public_bytes,
            possession=prove_possession(joining.keys, joining.request.csr_der),
        )
        if self.enrolment.join(request).WhichOneof("outcome") == "pending":
            words = six_words(request.csr_der, request.signing_key, request.sealing_key)
            self.enrolment.approve(token.site, words)
        sign_pending(self.enrolment.store, self.enrolment.authority, self.aggregator_clock())
        membership = Membership(token.site, "hub.example:8444", Digest(token.ca_fingerprint))
        return joining.accept(self.enrolment.join(request).credentials, membership)

    def keeper(self, identity: SiteIdentity) -> Certificates:
        ledger = Ledger(self.folder / "ledger.jsonl", identity.keys.signing, self.clock, joining=True)
        self.ledgers.append(ledger)
        enrolled = Wire(self.enrolment, lambda: identity.certificate_pem, self.calls)

        @contextmanager
        def without_certificate() -> Iterator[Egress]:
            yield Egress(Guard(PolicySettings()), ledger, Wire(self.enrolment, lambda: None, self.calls))

        return Certificates(
            identity, Egress(Guard(PolicySettings()), ledger, enrolled), without_certificate, self.clock
        )

    def is_let_in(self, identity: SiteIdentity) -> bool:
        try:
            return (
                authenticate(self.enrolment.store, identity.certificate_pem, self.aggregator_clock()) == identity.site
            )
        except AggregatorError:
            return False


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    clock = StandingClock()
    store = open_store(f"sqlite:///{tmp_path / 'hub.sqlite'}")
    upgrade(store.engine)
    authority = create_authority(tmp_path / "ca", clock, CUSTODIAN.public_key())
    enrolment = EnrolmentService(store, authority, config.EnrolmentSettings(), clock, os.urandom)
    made = Place(enrolment, clock, clock, tmp_path / "site")
    yield made
    for ledger in made.ledgers:
        ledger.close()
    store.close()


def test_a_certificate_is_renewed_once_at_two_thirds_of_its_life_and_the_site_stays_let_in(place: Place) -> None:
    identity = place.join(place.enrolment.invite("mercy"))
    keeper = place.keeper(identity)
    renewals = 0
    for _ in range(120):
        place.clock.advance(days=1)
        life = identity.expires_at - identity.valid_from
        into = (place.clock.now - identity.valid_from) / life
        if keeper.keep():
            renewals += 1
            assert 2 / 3 <= into <= 2 / 3 + 1 / 20 + timedelta(days=1) / life
        assert place.is_let_in(identity)
    assert renewals == len(place.calls) == 5
    assert set(place.calls) == {"Renew"}


def test_renewals_are_spread_and_stay_where_they_are_at_a_restart(place: Place) -> None:
    first, again = place.join(place.enrolment.invite("mercy")), SiteIdentity(place.folder / "identity")
    assert first.renewal_due() == again.renewal_due()
    dues = set()
    for number in range(6):
        other = Place(place.enrolment, place.aggregator_clock, place.clock, place.folder.with_name(f"site-{number}"))
        dues.add(other.join(place.enrolment.invite(f"site-{number}")).renewal_due())
    assert len(dues) == 6
    assert max(dues) - min(dues) <= timedelta(days=31) / 20


@pytest.mark.parametrize("weeks", [5, 30, 100])
def test_after_weeks_offline_the_signing_key_answers_for_the_certificate(place: Place, weeks: int) -> None:
    identity = place.join(place.enrolment.invite("mercy"))
    place.clock.advance(weeks=weeks)
    assert not place.is_let_in(identity)
    assert place.keeper(identity).keep()
    assert place.calls == ["Challenge", "Recover"]
    assert place.is_let_in(identity)
    assert SiteIdentity(place.folder / "identity").expires_at == identity.expires_at


def test_a_renewal_that_fails_harms_nothing_until_the_certificate_has_run_out(place: Place) -> None:
    identity = place.join(place.enrolment.invite("mercy"))
    keeper = place.keeper(identity)
    place.enrolment.revoke("mercy")
    place.clock.advance(days=22)
    assert not keeper.keep()
    place.clock.advance(days=10)
    with pytest.raises(Refused):
        keeper.keep()


def test_a_revoked_site_gets_in_by_no_door_until_it_is_invited_anew(place: Place, tmp_path: Path) -> None:
    identity = place.join(place.enrolment.invite("mercy"))
    place.enrolment.revoke("mercy")
    assert not place.is_let_in(identity)
    place.clock.advance(days=40)
    with pytest.raises(Refused):
        place.keeper(identity).keep()
    with pytest.raises(IdentityRefused, match="enrolled already"):
        place.join(place.enrolment.invite("mercy"))
    (place.folder / "identity").rename(place.folder / "identity-before")
    again = place.join(place.enrolment.invite("mercy"))
    assert place.is_let_in(again)
    assert again.keys.signing_public != identity.keys.signing_public


def test_a_clock_far_ahead_spends_one_recovery_and_not_all_of_them(place: Place) -> None:
    identity = place.join(place.enrolment.invite("mercy"))
    place.clock = StandingClock(place.aggregator_clock.now + timedelta(days=400))
    keeper = place.keeper(identity)
    assert keeper.keep()
    assert "clock is ahead" in keeper.notice
    for _ in range(200):
        place.clock.advance(minutes=30)
        place.aggregator_clock.advance(minutes=30)
        assert not keeper.keep()
    assert place.calls == ["Challenge", "Recover"]
    assert place.is_let_in(identity)
    with place.enrolment.store.read() as session:
        assert site_rows.get(session, "mercy").recoveries_left == config.EnrolmentSettings().recoveries - 1


@pytest.mark.parametrize("minutes", [-5, 5])
def test_a_clock_five_minutes_off_is_tolerated(place: Place, minutes: int) -> None:
    identity = place.join(place.enrolment.invite("mercy"))
    place.clock = StandingClock(place.aggregator_clock.now + timedelta(minutes=minutes))
    keeper = place.keeper(identity)
    assert identity.valid_from <= place.clock.now
    for _ in range(45):
        place.clock.advance(days=1)
        place.aggregator_clock.advance(days=1)
        keeper.keep()
        assert place.is_let_in(identity)
    assert keeper.notice == ""


def test_a_clock_behind_is_reported_at_the_next_certificate(place: Place) -> None:
    identity = place.join(place.enrolment.invite("mercy"))
    place.aggregator_clock.advance(days=3)
    place.clock = StandingClock(identity.renewal_due())
    place.aggregator_clock.now = identity.renewal_due() + timedelta(hours=2)
    keeper = place.keeper(identity)
    assert keeper.keep()
    assert "clock is behind" in keeper.notice


def test_keys_and_certificates_are_for_the_agent_alone(place: Place) -> None:
    identity = place.join(place.enrolment.invite("mercy"))
    place.clock.advance(days=22)
    assert place.keeper(identity).keep()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (place.folder / "identity").iterdir()}
    assert set(modes.values()) == {0o600}
    assert {"signing.key", "sealing.key", "tls.pem"} <= set(modes)
    assert "joining.key" not in modes
    assert stat.S_IMODE((place.folder / "identity").stat().st_mode) == 0o700
    assert identity.certificate_pem is not None
    assert x509.load_pem_x509_certificate(identity.certificate_pem).not_valid_after_utc == identity.expires_at

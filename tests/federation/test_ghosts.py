"""A malicious custodian or aggregator and its rosters: invented hospitals, stolen keys, rosters withheld for ever."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation.certificate import ModelCertificate
from federation.errors import BadSignature, CertificateRefused, RosterRefused
from federation.roster import ROSTER_DAYS, Roster, RosterEntry, sign_roster, succeed
from federation.v1 import blobs_pb2, rounds_pb2
from google.protobuf.message import Message

from aggregator.states import RoundState, SeatState
from site_client.agent.commands import roster as commands
from tests.custodian import CUSTODIAN, sign_pending
from tests.federation.nursery import TRAINING_S, host_of
from tests.federation.places import Site
from tests.federation.world import World

MakeWorld = Callable[..., World]
DAY_S = 86_400
GHOSTS = ("ghost-1", "ghost-2", "ghost-3")


def admit(world: World, *names: str) -> None:
    """Further machines join, and the custodian signs a roster with them."""
    enrolment = world.aggregator.enrolment
    hosts = {name: host_of(world.folder, name, enrolment.invite(name, auto_approve=True)) for name in names}
    for host in hosts.values():
        enrolment.join(host.request)
    sign_pending(world.aggregator.app.store, enrolment.authority, world.clock())
    for name, host in hosts.items():
        host.accept(enrolment.join(host.request).credentials)
        world.sites[name] = Site(name, world.folder / name, world.wire, world.clock)


def renew(world: World, days: float = ROSTER_DAYS) -> None:
    """The custodian signs the same sites again, and every site that is not silent takes the new dates."""
    sign_pending(world.aggregator.app.store, world.aggregator.enrolment.authority, world.clock(), days=days)
    for name in world.sites:
        world.step(name)


def approve(world: World, name: str) -> None:
    """A person at this hospital accepts the roster that it holds."""
    told = commands.approve(world.sites[name].settings, lambda _: True, world.clock)
    assert told.startswith("known from now on")


def published(world: World) -> bool:
    """Everybody steps for a few phases; whether a sum was published."""
    for _ in range(12):
        world.everybody()
        if world.rounds()[0].state in (RoundState.PUBLISHED, RoundState.ABANDONED):
            break
        world.clock.advance(31)
    return world.rounds()[0].state is RoundState.PUBLISHED


def refusals(world: World) -> dict[str, str]:
    """The last refusal of each site that names unknown hospitals."""
    return {name: str(error) for name, error in world.refused if "are known here" in str(error)}


# --- invented hospitals ---


@pytest.mark.parametrize("listed", [True, False], ids=["in the roster", "in no roster"])
@pytest.mark.parametrize("cohort", [GHOSTS, ("site-a", *GHOSTS), ("ghost-1", "site-a", "site-b", "site-c")], ids=len)
def test_a_certificate_with_signatures_of_invented_hospitals_proves_no_model(
    make_world: MakeWorld, cohort: tuple[str, ...], listed: bool
) -> None:
    """An aggregator and site-a want site-d, which was away, to train a model of theirs."""
    world = make_world(sites=4, rounds=3)
    world.silent = {"site-d"}
    for _ in range(3):
        world.everybody()
    world.clock.advance(TRAINING_S + 1)
    assert published(world)
    world.lied_down = True
    keys = {name: Ed25519PrivateKey.generate() for name in GHOSTS}
    if listed:
        admit(world, *GHOSTS)
        keys = {name: world.sites[name].identity.keys.signing for name in GHOSTS}
    keys["site-a"] = world.sites["site-a"].identity.keys.signing
    blob = world.aggregator.app.blobs.add(b"a model of theirs")
    own = ModelCertificate(world.plan.digest, 1, world.rounds()[0].base_model, blob.digest, tuple(sorted(cohort)))
    own = replace(own, signatures={name: own.sign(keys[name]) for name in cohort if name in keys})
    told = []

    def lie(site: str, call: str, reply: Message, request: Message) -> Message:
        if site == "site-d" and isinstance(reply, rounds_pb2.PollReply) and reply.WhichOneof("step") == "train":
            told.append(reply.train)
            reply.train.base_model_digest = reply.train.whole_model.digest = blob.digest
            reply.train.certificate.CopyFrom(own.to_message())
        return reply

    world.wire.lies_down.append(lie)
    for _ in range(3):
        world.step("site-d")
    assert told
    refusals = [
        str(error) for name, error in world.refused if name == "site-d" and isinstance(error, CertificateRefused)
    ]
    assert len(refusals) == len(told)
    assert world.sites["site-d"].jobs() == []
    asked = {one.message.digest for one in world.wire.heard if isinstance(one.message, blobs_pb2.BlobRequest)}
    assert blob.digest not in asked


def test_a_cohort_of_one_hospital_and_invented_ones_is_declined_before_a_secret_is_dealt(make_world: MakeWorld) -> None:
    world = make_world(sites=4)
    admit(world, *GHOSTS)
    world.silent = {"site-b", "site-c", "site-d"}
    published(world)
    assert world.seats(1)["site-a"] is SeatState.MISSED  # the invented ones go on by themselves
    assert "1 of the 4 hospitals in the cohort are known here, at least 3 are needed" in refusals(world)["site-a"]
    assert [
        heard.call for heard in world.wire.heard if heard.site == "site-a" and heard.call.endswith("SendShares")
    ] == []


def test_with_an_invented_hospital_in_it_a_cohort_still_needs_the_known_ones(make_world: MakeWorld) -> None:
    world = make_world(sites=4)
    admit(world, *GHOSTS[:2])
    world.silent = {"site-c", "site-d"}
    assert not published(world)
    assert all("2 of the 4" in refusals(world)[name] for name in ("site-a", "site-b"))


def test_three_known_hospitals_and_a_new_one_train_together(make_world: MakeWorld) -> None:
    world = make_world(sites=4)
    admit(world, "site-e")
    world.silent = {"site-d"}
    assert published(world)
    assert refusals(world) == {}


def test_known_hospitals_that_vanish_after_the_shares_leave_no_sum_with_an_invented_one(make_world: MakeWorld) -> None:
    """Three known and a ghost are a cohort; two known and the ghost are a sum that says one hospital's part to it."""
    world = make_world(sites=4)
    admit(world, "ghost-1")
    world.silent = {"site-d"}
    while world.round.state is not RoundState.UPLOAD:
        world.everybody()
    world.silent = {"site-c", "site-d"}
    world.everybody()
    world.clock.advance(61)
    for _ in range(6):
        world.everybody()
        world.clock.advance(31)
    told = [str(error) for name, error in world.refused if name == "site-a" and "in the sum are known" in str(error)]
    assert told
    assert "2 of the 3" in told[0]
    assert world.rounds()[0].members is None


def test_an_added_hospital_counts_once_a_person_at_each_hospital_has_approved_it(make_world: MakeWorld) -> None:
    world = make_world(sites=4)
    admit(world, "site-e", "site-f")
    world.silent = {"site-c", "site-d"}
    for name in ("site-a", "site-b"):
        world.step(name)  # the agent takes the new roster
        shown = commands.show(world.sites[name].settings, world.clock)
        assert re.search(r"site-e .* waits for you: roster approve", shown)
        approve(world, name)
        assert "waits" not in commands.show(world.sites[name].settings, world.clock)
    assert published(world)


def test_a_known_name_with_other_keys_counts_as_an_added_hospital(make_world: MakeWorld) -> None:
    world = make_world(sites=4)
    world.aggregator.enrolment.revoke("site-d")
    world.sites["site-d"].shut()
    (world.folder / "site-d").rename(world.folder / "gone")
    admit(world, "site-d", "site-e")
    world.silent = {"site-c"}
    assert not published(world)
    assert all("2 of the 4" in refusals(world)[name] for name in ("site-a", "site-b"))


def test_invented_hospitals_are_none_of_those_whose_word_about_a_model_counts(make_world: MakeWorld) -> None:
    world = make_world(sites=4)
    admit(world, *GHOSTS)
    world.step("site-a")
    assert world.sites["site-a"].rounds.known() == {"site-a", "site-b", "site-c", "site-d"}


# --- a roster that ends ---


def test_under_a_roster_that_has_ended_a_site_takes_part_in_nothing_and_says_why(make_world: MakeWorld) -> None:
    """An aggregator that withholds a roster without some hospital can do so for as long as the old one lasts."""
    world = make_world(sites=4)
    renew(world, days=0.01)
    world.clock.advance(0.01 * DAY_S)
    world.train("site-a")
    world.step("site-a")
    [(_, error)] = world.refused
    assert "the roster ended on 2026-11-23, so this site takes part in nothing; ask the coordinator" in str(error)
    assert not said_ready(world, "site-a")
    renew(world)
    world.step("site-a")
    assert said_ready(world, "site-a")


def test_a_roster_that_ends_during_masking_stops_it_before_anything_is_revealed(make_world: MakeWorld) -> None:
    world = make_world(sites=4)
    renew(world, days=0.01)
    world.until(RoundState.CONFIRM)
    world.clock.advance(0.01 * DAY_S)
    for name in world.sites:
        world.step(name)
    assert {name for name, error in world.refused if "takes part in nothing" in str(error)} == set(world.sites)
    assert not any(heard.call.endswith(("SendConfirm", "SendReveal")) for heard in world.wire.heard)


def said_ready(world: World, name: str) -> bool:
    return any(heard.site == name and heard.call == "Rounds/Ready" for heard in world.wire.heard)


# --- a custodian's key that is replaced, lost, stolen ---


def hand_over(world: World, successor: Ed25519PrivateKey) -> None:
    """The successor signs the next roster, and every site takes it. They hold the run's plan already."""
    for name in world.sites:
        world.step(name)
    link = succeed(CUSTODIAN, successor.public_key())
    app, authority = world.aggregator.app, world.aggregator.enrolment.authority
    sign_pending(app.store, authority, world.clock(), successor, [link])
    for name in world.sites:
        world.step(name)


def test_every_site_follows_the_custodian_to_its_successor_and_goes_on(make_world: MakeWorld) -> None:
    """The answer to a lost key: a successor that was signed in time and lay in a safe."""
    world, successor = make_world(sites=4), Ed25519PrivateKey.generate()
    hand_over(world, successor)
    for site in world.sites.values():
        site.boot()  # from its folder alone
        assert site.identity.custodian == successor.public_key()
    assert published(world)


def test_a_thief_of_the_old_key_adds_nobody_once_the_sites_have_followed(make_world: MakeWorld) -> None:
    """The answer to a stolen key: whatever it signs, also with a chain to a key of the thief's, no site takes it."""
    world, successor, stolen = make_world(sites=4), Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    hand_over(world, successor)
    site = world.sites["site-a"]
    ghost = RosterEntry("ghost-1", bytes(range(32)), bytes(1216))
    entries = tuple(sorted([*site.identity.roster.entries, ghost], key=lambda entry: entry.site))
    roster = Roster(99, entries)
    chain = [succeed(CUSTODIAN, successor.public_key())]
    forged = (
        (sign_roster(roster, CUSTODIAN), RosterRefused),
        (sign_roster(roster, CUSTODIAN, chain), BadSignature),
        (sign_roster(roster, stolen, [succeed(CUSTODIAN, stolen.public_key())]), RosterRefused),
        (sign_roster(roster, stolen, [*chain, succeed(CUSTODIAN, stolen.public_key())]), BadSignature),
    )
    for boot_before in (False, True):
        if boot_before:
            site.boot()
        for signed, refusal in forged:
            with pytest.raises(refusal):
                site.identity.accept_roster(signed)
        assert "ghost-1" not in site.identity.roster.signing_keys


def test_the_aggregator_takes_no_roster_of_the_old_key_after_the_succession(make_world: MakeWorld) -> None:
    world, successor = make_world(sites=4), Ed25519PrivateKey.generate()
    hand_over(world, successor)
    with pytest.raises(RosterRefused, match="newest key"):
        sign_pending(world.aggregator.app.store, world.aggregator.enrolment.authority, world.clock())


def test_a_hospital_that_joins_after_a_succession_follows_it_from_the_certificate(make_world: MakeWorld) -> None:
    world, successor = make_world(sites=4), Ed25519PrivateKey.generate()
    hand_over(world, successor)
    enrolment = world.aggregator.enrolment
    host = host_of(world.folder, "site-e", enrolment.invite("site-e", auto_approve=True))
    enrolment.join(host.request)
    link = succeed(CUSTODIAN, successor.public_key())
    sign_pending(world.aggregator.app.store, enrolment.authority, world.clock(), successor, [link])
    assert host.accept(enrolment.join(host.request).credentials).custodian == successor.public_key()

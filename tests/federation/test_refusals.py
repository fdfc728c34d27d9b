"""What an aggregator that lies, or a corrupt site, comes to: one named history for each refusal of docs/PROTOCOL.md."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pytest
from federation import secagg
from federation.v1 import rounds_pb2, secagg_pb2
from federation.v1.blobs_pb2 import RoundRef
from google.protobuf.message import Message

from aggregator.states import RoundState, SeatState
from site_client.agent.egress.calls import CALLS
from site_client.errors import Refused, StepRefused
from tests.federation.crooks import Crooks, let_in
from tests.federation.invariants import check
from tests.federation.lies import LIES_DOWN, LIES_UP, Lies, flipped
from tests.federation.nursery import PHASES
from tests.federation.world import World

ATTEMPT_IS_LEFT = "left attempt 1 of round 1"
NOT_TO_BE_TOLD = ("keys_of_an_older_roster", "keys_of_a_later_attempt")  # from the truth, by the site alone


def _ways(table: Mapping[str, Sequence[object]], *about: str) -> list[pytest.ParameterSet]:
    return [
        pytest.param(name, how, id=getattr(way, "__name__", "").strip("_"))
        for name in about
        for how, way in enumerate(table[name])
        if getattr(way, "__name__", "") != "_closed_early"
    ]


@pytest.mark.parametrize(
    ("about", "how"),
    [
        one
        for one in _ways(LIES_DOWN, *PHASES[1:])
        if one.id not in ("keys_of_an_older_roster", "keys_of_a_later_attempt")
    ],
)
def test_a_lie_in_a_step_is_refused_and_one_about_the_cohort_ends_the_attempt_for_the_site(
    make_world: Callable[..., World], about: str, how: int
) -> None:
    world = make_world(sites=3, phase=about)  # the smallest cohort there may be: one less is too few
    Lies(world).tell_down("site-c", about, how)
    before = len(world.wire.heard)
    world.step("site-c")
    assert world.lied_down
    ((name, refusal),) = world.refused
    assert name == "site-c"
    assert isinstance(refusal, StepRefused), refusal
    if ATTEMPT_IS_LEFT in str(refusal):
        assert world.sites["site-c"].member_files() == []
        world.step("site-c")  # the honest step, too late
    else:
        assert about in ("keys", "shares", "upload")  # not taken for a step at all: it may come again as it should be
    assert {one.call for one in world.wire.heard[before:]} == {"Rounds/Poll"}
    check(world)


@pytest.mark.parametrize(
    ("about", "how"), [("keys", 2), ("keys", 3), ("shares", 0), ("upload", 0), ("confirm", 0)], ids=lambda one: str(one)
)
def test_a_lie_that_a_site_cannot_see_leads_to_messages_that_fit_no_other_sites(
    make_world: Callable[..., World], about: str, how: int
) -> None:
    """An older roster, a later attempt, or one member less: another context, so neither keys nor signatures agree."""
    world = make_world(sites=5, phase=about)
    Lies(world).tell_down("site-c", about, how)
    for _ in range(2):
        world.everybody()
    assert world.lied_down
    _drive_to_the_end(world)
    assert world.rounds()[0].members in (None, 4, 5)
    check(world)


def test_a_lie_about_plan_round_or_base_model_trains_nothing(make_world: Callable[..., World]) -> None:
    world = make_world(sites=3)
    for how in range(len(LIES_DOWN["train"])):
        Lies(world).tell_down("site-c", "train", how)
        world.step("site-c")
        assert len(world.refused) == how + 1
        assert world.sites["site-c"].jobs() == []
        assert world.sites["site-c"].rounds.journal.current is None


def test_a_published_model_that_does_not_follow_from_its_sum_ends_the_run_for_the_site(
    make_world: Callable[..., World],
) -> None:
    world = make_world(sites=3, phase="reveal")
    Lies(world).tell_down("site-c", "close", 0)
    for _ in range(4):
        world.everybody()
    assert world.sites["site-c"].rounds.situation().reasons == ("MODEL_MISMATCH",)
    assert not any(one.site == "site-c" and one.round.round == 2 for one in world.wire.heard if _is_ready(one.message))
    check(world)


def test_two_survivor_sets_shown_to_two_halves_open_nothing_even_with_a_corrupt_member(
    make_world: Callable[..., World],
) -> None:
    """The corrupt member signs both sets; neither gathers the threshold of honest signatures."""
    world = make_world(sites=5, phase="confirm")
    world.corrupt, world.lied_down = {"site-e"}, True
    one, other = ["site-a", "site-b", "site-c", "site-e"], ["site-b", "site-c", "site-d", "site-e"]
    shown = {"site-a": one, "site-b": one, "site-c": other, "site-d": other}
    signatures: dict[str, bytes] = {}

    def split(site: str, call: str, reply: Message, request: Message) -> Message:
        if isinstance(reply, rounds_pb2.PollReply) and reply.WhichOneof("step") == "confirm" and site in shown:
            del reply.confirm.uploaded[:]
            reply.confirm.uploaded.extend(shown[site])
        if isinstance(request, secagg_pb2.ConfirmMessage):
            signatures[site] = request.confirmation.signature
        return reply

    world.wire.lies_down.append(split)
    for name in shown:
        world.step(name)
    signatures |= {
        heard.site: heard.message.confirmation.signature
        for heard in world.wire.heard
        if isinstance(heard.message, secagg_pb2.ConfirmMessage)
    }
    assert set(signatures) == set(shown)

    def ask_all(site: str, call: str, reply: Message, request: Message) -> Message:
        """Whatever the aggregator would say: reveal, with every signature there is on the set this site confirmed."""
        if not isinstance(reply, rounds_pb2.PollReply) or site not in shown:
            return reply
        ref = next(
            heard.message.round for heard in world.wire.heard if isinstance(heard.message, secagg_pb2.ConfirmMessage)
        )
        asked = rounds_pb2.PollReply(reveal=rounds_pb2.RevealStep(round=ref, uploaded=shown[site]))
        for signer in sorted(signatures):
            if shown[signer] == shown[site]:
                asked.reveal.confirmations.add(site=signer, signature=signatures[signer])
        return asked

    world.wire.lies_down.append(ask_all)
    for name in shown:
        world.step(name)
    assert not any(isinstance(heard.message, secagg_pb2.RevealMessage) for heard in world.wire.heard)
    check(world)


def test_a_second_question_after_the_answer_gets_the_same_answer_or_none(make_world: Callable[..., World]) -> None:
    """Asked again for the same set: the same bytes. Asked about another: nothing. Asked in a new attempt: nothing."""
    world = make_world(sites=5, phase="reveal")
    asked: list[rounds_pb2.PollReply] = []

    def remember(site: str, call: str, reply: Message, request: Message) -> Message:
        if isinstance(reply, rounds_pb2.PollReply) and reply.WhichOneof("step") == "reveal" and not asked:
            asked.append(reply)
        return reply if not asked or not isinstance(reply, rounds_pb2.PollReply) else asked[-1]

    world.wire.lies_down.append(remember)
    world.lied_down = True
    world.step("site-a")
    world.step("site-a")
    answers = [one.data for one in world.wire.heard if isinstance(one.message, secagg_pb2.RevealMessage)]
    assert len(answers) == 2
    assert answers[0] == answers[1]
    fewer = rounds_pb2.PollReply()
    fewer.CopyFrom(asked[0])
    fewer.reveal.uploaded.remove("site-b")
    again = rounds_pb2.PollReply(keys=rounds_pb2.KeysStep(round=asked[0].reveal.round, roster_epoch=5))
    again.keys.round.attempt, again.keys.base_model_digest = 2, world.round.base_model
    for lie in (fewer, again):
        asked.append(lie)
        world.step("site-a")
    assert len([one for one in world.wire.heard if isinstance(one.message, secagg_pb2.RevealMessage)]) == 2
    assert len(world.refused) == 2
    check(world)


def test_who_was_left_out_of_an_opening_is_in_no_second_sum_of_that_round(make_world: Callable[..., World]) -> None:
    """Five of seven open the sum over seven; the other two are told that it failed. Nothing tells them otherwise but
    who else comes to the second attempt: one accomplice, too few to prove the first one out of reach."""
    world = make_world(sites=7, phase="upload")
    world.corrupt, world.lied_down = {"site-e"}, True
    victims = {"site-f", "site-g"}
    for name in world.sites:
        world.step(name)
    world.silent |= victims
    _drive_to_the_end(world)
    assert (world.rounds()[0].state, world.rounds()[0].members) == (RoundState.PUBLISHED, 7)

    ref = RoundRef(run_id=world.run_id, round=1, attempt=2)
    keys = rounds_pb2.KeysStep(round=ref, base_model_digest=world.rounds()[0].base_model, roster_epoch=7)
    ctx = secagg.context(world.plan.digest, keys.base_model_digest, ref.run_id, 1, 2, 7)
    accomplice = secagg.Member.begin(ctx, "site-e", world.sites["site-e"].identity.keys.signing)
    advertised = [secagg_pb2.Advertisement(**vars(accomplice.advertisement))]
    for step in (rounds_pb2.PollReply(keys=keys), rounds_pb2.PollReply(shares=rounds_pb2.SharesStep(round=ref))):
        step.shares.advertisements.extend(advertised) if step.HasField("shares") else None
        world.wire.lies_down[:] = [partial(_answer_polls_with, step)]
        for name in victims:
            world.step(name)
        advertised += [
            one.message.advertisement
            for one in world.wire.heard
            if isinstance(one.message, secagg_pb2.KeysMessage) and one.message.round == ref
        ]
    assert {one.site for one in advertised} == {"site-e", *victims}
    assert all("could still be recovered" in str(refusal) for _, refusal in world.refused[-2:])
    assert not any(
        isinstance(one.message, secagg_pb2.SharesMessage) and one.message.round == ref for one in world.wire.heard
    )
    check(world)


@pytest.mark.parametrize(
    ("about", "how"),
    [*_ways(LIES_UP, "SendKeys", "SendUpload", "SendConfirm", "Put"), *_ways(LIES_UP, "SendShares")[:2]],
)
def test_what_a_corrupt_site_sends_is_refused_with_a_sentence_and_the_others_publish(
    make_world: Callable[..., World], about: str, how: int
) -> None:
    phases = {
        "SendKeys": "keys",
        "SendShares": "shares",
        "SendUpload": "upload",
        "SendConfirm": "confirm",
        "Put": "upload",
    }
    world = make_world(sites=4, phase=phases[about])
    world.corrupt = {"site-d"}
    Lies(world).tell_up("site-d", about, how)
    world.step("site-d")
    assert world.wire.refusals[-1][2].name in ("INVALID_ARGUMENT", "ABORTED")
    world.silent.add("site-d")
    _drive_to_the_end(world)
    assert (world.rounds()[0].state, world.rounds()[0].members) == (
        RoundState.PUBLISHED,
        4 if about == "SendConfirm" else 3,  # what was uploaded before stays in the sum
    )
    check(world)


@pytest.mark.parametrize(("about", "how"), _ways(LIES_UP, "SendReveal"))
def test_a_wrong_share_is_refused_or_found_out_and_the_sum_is_right_all_the_same(
    make_world: Callable[..., World], about: str, how: int
) -> None:
    world = make_world(sites=4, phase="reveal")
    world.corrupt = {"site-a"}
    Lies(world).tell_up("site-a", about, how)
    world.step("site-a")
    world.silent.add("site-a")
    _drive_to_the_end(world)
    assert world.rounds()[0].state is RoundState.PUBLISHED
    check(world)


@pytest.mark.parametrize(
    ("how", "about"), [(3, "all"), (4, "all"), (5, "all")], ids=["garbage", "another_kem_ciphertext", "other_digests"]
)
def test_a_dealer_of_garbage_is_left_out_and_all_others_publish(
    make_world: Callable[..., World], how: int, about: str
) -> None:
    """Each of three honest members complains; of four, more than one complaint proves it."""
    world = make_world(sites=4, phase="shares")
    world.corrupt = {"site-d"}
    Lies(world).tell_up("site-d", "SendShares", how)
    _drive_to_the_end(world)
    assert (world.rounds()[0].state, world.rounds()[0].members) == (RoundState.PUBLISHED, 3)
    assert world.rounds()[0].attempt == 2
    assert world.seats(1)["site-d"] is SeatState.LEFT_OUT
    assert "site-d dealt no shares" in str(world.rounds()[0].reason)
    check(world)


def test_a_dealer_of_one_bad_share_is_complained_about_and_the_sum_holds_everybody(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One complaint of four proves nothing, and stops nothing: the dealer opens the share in question."""
    let_in(monkeypatch, Crooks(garbage={"site-d": {"site-a"}}))
    world = make_world(sites=4, phase="shares")
    world.corrupt = {"site-d"}
    _drive_to_the_end(world)
    assert (world.rounds()[0].state, world.rounds()[0].members, world.rounds()[0].attempt) == (
        RoundState.PUBLISHED,
        4,
        1,
    )
    (complaint,) = [one for heard in world.wire.heard if isinstance(one := heard.message, secagg_pb2.ComplaintMessage)]
    assert [(one.site, one.dealer) for one in complaint.complaints] == [("site-a", "site-d")]
    opened = {
        (heard.site, shares.to_site)
        for heard in world.wire.heard
        if isinstance(heard.message, secagg_pb2.ConfirmMessage)
        for shares in heard.message.confirmation.opened
    }
    assert opened == {("site-d", "site-a")}
    assert not world.refused
    check(world)


@pytest.mark.parametrize("phase", ["keys", "shares", "upload", "confirm", "reveal"])
def test_a_member_that_changes_its_mind_is_refused(make_world: Callable[..., World], phase: str) -> None:
    """The first message counts: the same again is fine, another one is not."""
    world = make_world(sites=3, phase=phase)
    site = world.sites["site-a"]
    world.step("site-a")
    said = world.wire.heard[-1]
    world.replay(
        "site-a", [one for one in world.wire.heard if one.site == "site-a" and one.call != "Blobs/Put"].index(said)
    )
    assert world.wire.refusals == []
    other = type(said.message)()
    other.CopyFrom(said.message)
    _spoil(other)
    with pytest.raises(Refused, match="cannot change"):
        world.wire.call("site-a", site.certificate_pem, CALLS[said.call], [other.SerializeToString()])


def _spoil(message: Message) -> None:
    match message:
        case secagg_pb2.KeysMessage():
            message.advertisement.mask_key = flipped(message.advertisement.mask_key)
        case secagg_pb2.SharesMessage():
            message.shares[0].ciphertext = flipped(message.shares[0].ciphertext)
        case secagg_pb2.UploadMessage():
            message.claim.signature = flipped(message.claim.signature)
        case secagg_pb2.ConfirmMessage():
            message.confirmation.signature = flipped(message.confirmation.signature)
        case secagg_pb2.RevealMessage():
            message.shares[0].share = flipped(message.shares[0].share)


def _drive_to_the_end(world: World) -> None:
    """Of the first round; whoever is missing is not waited for longer than its deadline."""
    for _ in range(16):
        if world.rounds()[0].state in (RoundState.PUBLISHED, RoundState.ABANDONED):
            return
        world.everybody()
        world.clock.advance(31)


def _answer_polls_with(
    step: rounds_pb2.PollReply, _site: str, _call: str, reply: Message, _request: Message
) -> Message:
    return step if _is_poll(reply) else reply


def _is_poll(message: Message) -> bool:
    return isinstance(message, rounds_pb2.PollReply)


def _is_ready(message: Message) -> bool:
    return isinstance(message, rounds_pb2.ReadyMessage)

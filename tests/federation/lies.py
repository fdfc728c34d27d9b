"""What a malicious aggregator may show a site, and what a corrupt site may send: changes to messages on their way.

Each lie is told once, in the next message of its kind. The aggregator's rows stay honest: a site cannot see rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from federation import secagg
from federation.masking_messages import dealt_of
from federation.secagg.state import MemberState
from federation.secagg.transcript import dealt_statement
from federation.v1 import blobs_pb2, rounds_pb2, secagg_pb2
from google.protobuf.message import Message

from tests.federation.world import World

Down = Callable[[str, rounds_pb2.PollReply], None]  # site told, reply to change in place


@dataclass(frozen=True)
class Corrupt:
    """A corrupt site: it has its own keys, and the state of its member."""

    key: Ed25519PrivateKey
    member: MemberState | None

    def sign_dealt(self, share: secagg_pb2.EncryptedShare) -> None:
        """Sign whatever stands in `share`, as its dealer."""
        assert self.member is not None
        statement = dealt_statement(self.member.uctx, share.from_site, share.to_site, dealt_of(share))
        share.signature = self.key.sign(statement)


Up = Callable[[Message, Corrupt], None]


class Lies:
    """Those still to be told."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._down: list[tuple[str, str, int]] = []
        self._up: list[tuple[str, str, int]] = []
        self._told: dict[str, list[rounds_pb2.PollReply]] = {}  # every step ever given, for asking again
        world.wire.lies_down.append(self._change_reply)
        world.wire.lies_up.append(self._change_request)

    def tell_down(self, site: str, about: str, how: int) -> None:
        self._down.append((site, about, how))

    def tell_up(self, site: str, about: str, how: int) -> None:
        self._up.append((site, about, how))

    def _change_reply(self, site: str, call: str, reply: Message, request: Message) -> Message:
        if not isinstance(reply, rounds_pb2.PollReply):
            return reply
        step = reply.WhichOneof("step") or "nothing"
        for lie in [one for one in self._down if one[:2] == (site, step)]:
            if (reply.WhichOneof("step") or "nothing") != step:
                break  # the lie before this one closed the round instead
            self._down.remove(lie)
            self._world.lied_down = True
            if step == "nothing":
                reply = self._told_before(site, lie[2])
            else:
                reply = _changed(LIES_DOWN[step], lie[2], site, reply)
        self._told.setdefault(site, []).append(reply)
        return reply

    def _told_before(self, site: str, number: int) -> rounds_pb2.PollReply:
        """A question of long ago, put a second time."""
        before = self._told.get(site) or [rounds_pb2.PollReply(retry_after_ms=20)]
        return before[number % len(before)]

    def _change_request(self, site: str, call: str, message: Message) -> Message:
        method = call.partition("/")[2]
        for lie in [one for one in self._up if one[:2] == (site, method)]:
            self._up.remove(lie)
            changed = type(message)()
            changed.CopyFrom(message)
            wrong = LIES_UP[method]
            wrong[lie[2] % len(wrong)](changed, self._corrupt(site))
            message = changed
        return message

    def _corrupt(self, name: str) -> Corrupt:
        site = self._world.sites[name]
        members = [member for _, member in site.member_files()]
        return Corrupt(site.identity.keys.signing, members[0] if members else None)


def _changed(ways: tuple[Down, ...], how: int, site: str, reply: rounds_pb2.PollReply) -> rounds_pb2.PollReply:
    changed = rounds_pb2.PollReply()
    changed.CopyFrom(reply)
    ways[how % len(ways)](site, changed)
    return changed


def flipped(data: bytes) -> bytes:
    """The same with another last bit."""
    return data[:-1] + bytes([data[-1] ^ 1]) if data else b"\x01"


# train


def _another_base(site: str, reply: rounds_pb2.PollReply) -> None:
    reply.train.base_model_digest = flipped(reply.train.base_model_digest)


def _another_plan(site: str, reply: rounds_pb2.PollReply) -> None:
    reply.train.plan_digest = flipped(reply.train.plan_digest)


def _wrong_kind_of_round(site: str, reply: rounds_pb2.PollReply) -> None:
    reply.train.evaluation_only = not reply.train.evaluation_only


def _round_out_of_turn(site: str, reply: rounds_pb2.PollReply) -> None:
    reply.train.round.round += 1


# keys


def _keys_for_another_base(site: str, reply: rounds_pb2.PollReply) -> None:
    reply.keys.base_model_digest = flipped(reply.keys.base_model_digest)


def _keys_of_no_roster(site: str, reply: rounds_pb2.PollReply) -> None:
    reply.keys.roster_epoch = 0


def _keys_of_an_older_roster(site: str, reply: rounds_pb2.PollReply) -> None:
    reply.keys.roster_epoch -= 1


def _keys_of_a_later_attempt(site: str, reply: rounds_pb2.PollReply) -> None:
    reply.keys.round.attempt += 1


# shares


def _cohort_without_one(site: str, reply: rounds_pb2.PollReply) -> None:
    del reply.shares.advertisements[_another(site, [one.site for one in reply.shares.advertisements])]


def _cohort_without_oneself(site: str, reply: rounds_pb2.PollReply) -> None:
    kept = [one for one in reply.shares.advertisements if one.site != site]
    del reply.shares.advertisements[:]
    reply.shares.advertisements.extend(kept)


def _invented_member(site: str, reply: rounds_pb2.PollReply) -> None:
    """The aggregator sits in for a member with keys of its own."""
    one = reply.shares.advertisements[_another(site, [one.site for one in reply.shares.advertisements])]
    ctx = secagg.Context(bytes(32))
    own = secagg.Member.begin(ctx, one.site, Ed25519PrivateKey.generate()).advertisement
    one.CopyFrom(secagg_pb2.Advertisement(**vars(own)))


def _swapped_key(site: str, reply: rounds_pb2.PollReply) -> None:
    one = reply.shares.advertisements[_another(site, [one.site for one in reply.shares.advertisements])]
    one.mask_key, one.share_key = one.share_key, one.mask_key


def _member_twice(site: str, reply: rounds_pb2.PollReply) -> None:
    reply.shares.advertisements.append(reply.shares.advertisements[0])


# upload


def _fewer_dealers(site: str, reply: rounds_pb2.PollReply) -> None:
    if reply.upload.shares:
        gone = reply.upload.shares.pop()
        reply.upload.members.remove(gone.from_site)


def _altered_ciphertext(site: str, reply: rounds_pb2.PollReply) -> None:
    for share in reply.upload.shares[:1]:
        share.ciphertext = flipped(share.ciphertext)


def _exchanged_ciphertexts(site: str, reply: rounds_pb2.PollReply) -> None:
    shares = reply.upload.shares
    if shares:  # a reply that closes the round may answer this poll, and has none
        shares[0].ciphertext, shares[-1].ciphertext = shares[-1].ciphertext, shares[0].ciphertext


def _another_list_of_dealers(site: str, reply: rounds_pb2.PollReply) -> None:
    reply.upload.members.append("nobody")


# confirm


def _uploads_without_one(site: str, reply: rounds_pb2.PollReply) -> None:
    del reply.confirm.uploaded[_another(site, list(reply.confirm.uploaded))]


def _uploads_without_oneself(site: str, reply: rounds_pb2.PollReply) -> None:
    if site in reply.confirm.uploaded:  # it may be gone by a lie before this one
        reply.confirm.uploaded.remove(site)


def _upload_of_nobody(site: str, reply: rounds_pb2.PollReply) -> None:
    reply.confirm.uploaded.append("nobody")


def _complaint_of_nobody(site: str, reply: rounds_pb2.PollReply) -> None:
    """A member is said to have complained: its shares would be opened."""
    accuser = "site-b" if site == "site-a" else "site-a"
    reply.confirm.complaints.add(site=accuser, dealer=site, signature=bytes(64))


# reveal


def _reveal_another_set(site: str, reply: rounds_pb2.PollReply) -> None:
    del reply.reveal.uploaded[_another(site, list(reply.reveal.uploaded))]


def _reveal_without_confirmations(site: str, reply: rounds_pb2.PollReply) -> None:
    del reply.reveal.confirmations[1:]


def _reveal_on_a_forged_confirmation(site: str, reply: rounds_pb2.PollReply) -> None:
    reply.reveal.confirmations[-1].signature = flipped(reply.reveal.confirmations[-1].signature)


def _reveal_on_one_confirmation_copied(site: str, reply: rounds_pb2.PollReply) -> None:
    for one in reply.reveal.confirmations:
        one.signature = reply.reveal.confirmations[0].signature


# close


def _published_another_model(site: str, reply: rounds_pb2.PollReply) -> None:
    reply.close.outcome = rounds_pb2.CloseStep.PUBLISHED
    reply.close.published.model_digest = flipped(reply.close.published.model_digest)


def _closed_early(site: str, reply: rounds_pb2.PollReply) -> None:
    ref = next(value for _, value in reply.ListFields() if hasattr(value, "round")).round
    reply.close.CopyFrom(rounds_pb2.CloseStep(round=ref, outcome=rounds_pb2.CloseStep.ABANDONED))


def _another(site: str, names: list[str]) -> int:
    """The place of a site that is not the one lied to."""
    return next((at for at, name in enumerate(names) if name != site), 0)


LIES_DOWN: dict[str, tuple[Down, ...]] = {
    "train": (_another_base, _another_plan, _wrong_kind_of_round, _round_out_of_turn),
    "keys": (_keys_for_another_base, _keys_of_no_roster, _keys_of_an_older_roster, _keys_of_a_later_attempt),
    "shares": (_cohort_without_one, _cohort_without_oneself, _invented_member, _swapped_key, _member_twice),
    "upload": (_fewer_dealers, _altered_ciphertext, _exchanged_ciphertexts, _another_list_of_dealers, _closed_early),
    "confirm": (
        _uploads_without_one,
        _uploads_without_oneself,
        _upload_of_nobody,
        _closed_early,
        _complaint_of_nobody,
    ),
    "reveal": (
        _reveal_another_set,
        _reveal_without_confirmations,
        _reveal_on_a_forged_confirmation,
        _reveal_on_one_confirmation_copied,
        _closed_early,
    ),
    "close": (_published_another_model,),
    "nothing": (),  # see Lies._told_before
}


# What a corrupt site sends.


def _another_share(message: Message, corrupt: Corrupt) -> None:
    assert isinstance(message, secagg_pb2.RevealMessage)
    for share in message.shares:
        share.share = flipped(share.share)


def _another_kind(message: Message, corrupt: Corrupt) -> None:
    assert isinstance(message, secagg_pb2.RevealMessage)
    message.shares[0].kind = secagg_pb2.RevealedShare.MASK_KEY


def _no_kind(message: Message, corrupt: Corrupt) -> None:
    assert isinstance(message, secagg_pb2.RevealMessage)
    message.shares[0].kind = secagg_pb2.RevealedShare.KIND_UNSPECIFIED


def _shares_without_signature(message: Message, corrupt: Corrupt) -> None:
    assert isinstance(message, secagg_pb2.SharesMessage)
    message.shares[0].ciphertext = flipped(message.shares[0].ciphertext)


def _garbage_for_one(message: Message, corrupt: Corrupt) -> None:
    """A ciphertext that is none, signed: its receiver alone can tell."""
    assert isinstance(message, secagg_pb2.SharesMessage)
    share = next(share for share in message.shares if share.ciphertext)
    share.ciphertext = flipped(share.ciphertext)
    corrupt.sign_dealt(share)


def _garbage_for_all(message: Message, corrupt: Corrupt) -> None:
    assert isinstance(message, secagg_pb2.SharesMessage)
    for share in message.shares:
        share.ciphertext = flipped(share.ciphertext) if share.ciphertext else b""
        corrupt.sign_dealt(share)


def _another_kem_ciphertext(message: Message, corrupt: Corrupt) -> None:
    """Decapsulation gives a wrong key and no error (FIPS 203): the share does not decrypt."""
    assert isinstance(message, secagg_pb2.SharesMessage)
    for share in message.shares:
        share.kem_ciphertext = flipped(share.kem_ciphertext) if share.kem_ciphertext else b""
        corrupt.sign_dealt(share)


def _digests_of_other_shares(message: Message, corrupt: Corrupt) -> None:
    assert isinstance(message, secagg_pb2.SharesMessage)
    for share in message.shares:
        share.seed_digest = flipped(share.seed_digest)
        corrupt.sign_dealt(share)


def _shares_for_others(message: Message, corrupt: Corrupt) -> None:
    assert isinstance(message, secagg_pb2.SharesMessage)
    message.shares[0].to_site = "nobody"


def _another_claim(message: Message, corrupt: Corrupt) -> None:
    assert isinstance(message, secagg_pb2.UploadMessage)
    message.claim.digest = flipped(message.claim.digest)


def _another_signature(message: Message, corrupt: Corrupt) -> None:
    assert isinstance(message, secagg_pb2.ConfirmMessage)
    message.confirmation.signature = flipped(message.confirmation.signature)


def _in_anothers_name(message: Message, corrupt: Corrupt) -> None:
    assert isinstance(message, secagg_pb2.KeysMessage)
    message.advertisement.site = "site-b" if message.advertisement.site == "site-a" else "site-a"


def _one_key_for_both(message: Message, corrupt: Corrupt) -> None:
    assert isinstance(message, secagg_pb2.KeysMessage)
    message.advertisement.share_key = message.advertisement.mask_key


def _other_bytes(message: Message, corrupt: Corrupt) -> None:
    assert isinstance(message, blobs_pb2.BlobChunk)
    message.data = flipped(message.data)


LIES_UP: dict[str, tuple[Up, ...]] = {
    "SendReveal": (_another_share, _another_kind, _no_kind),
    "SendShares": (
        _shares_without_signature,
        _shares_for_others,
        _garbage_for_one,
        _garbage_for_all,
        _another_kem_ciphertext,
        _digests_of_other_shares,
    ),
    "SendUpload": (_another_claim,),
    "SendConfirm": (_another_signature,),
    "SendKeys": (_in_anothers_name, _one_key_for_both),
    "Put": (_other_bytes,),
}

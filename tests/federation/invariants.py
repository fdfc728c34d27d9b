"""What must hold after every history, whatever was lost, killed, replayed or lied about.

Each check reads what crossed the wire, the folders and the rows; none asks the code under test whether it is right.
"""

from base64 import b64encode, urlsafe_b64encode
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
from federation import encoding, secagg
from federation.chain import next_model
from federation.encoding import Layout
from federation.encoding.noised import encode_noised
from federation.secagg.state import OwnSecrets, Phase
from federation.v1 import blobs_pb2, secagg_pb2

from aggregator.states import RoundState
from aggregator.store import round_rows, run_rows
from aggregator.store.tables import Round, Seat
from site_client.agent.egress.guard import Guard
from site_client.agent.rounds.contribution import Contribution, prepare_contribution
from site_client.records import Job
from site_client.spool import RunId
from site_client.typed_json import Digest
from tests.federation.openable import alone, attempt_of, groups
from tests.federation.places import an_update
from tests.federation.world import World

_ANSWERS = {
    secagg_pb2.KeysMessage,
    secagg_pb2.SharesMessage,
    secagg_pb2.ComplaintMessage,
    secagg_pb2.UploadMessage,
    secagg_pb2.ConfirmMessage,
    secagg_pb2.RevealMessage,
}


def check(world: World) -> None:
    """All of them."""
    one_answer_a_phase(world)
    no_key_used_twice(world)
    one_reveal_a_round(world)
    nothing_openable_alone(world)
    sums_are_sums(world)
    models_are_one(world)
    secrets_are_gone(world)
    aggregator_holds_no_secret(world)


def one_answer_a_phase(world: World) -> None:
    """A site says one thing a phase and attempt, in the same bytes however often: a restart changes nothing."""
    said: dict[tuple[object, ...], set[bytes]] = defaultdict(set)
    for one in world.wire.heard:
        if type(one.message) in _ANSWERS and one.site not in world.corrupt:
            said[one.site, one.call, attempt_of(one.round)].add(one.data)
    twice = [key[:2] for key, answers in said.items() if len(answers) > 1]
    assert not twice, f"more than one answer in a phase: {twice}"


def no_key_used_twice(world: World) -> None:
    """Every key and commitment belongs to one site in one attempt, and masks one upload."""
    owners: dict[bytes, set[object]] = defaultdict(set)
    uploads: dict[object, set[bytes]] = defaultdict(set)
    for one in world.wire.heard:
        if one.site in world.corrupt:
            continue
        match one.message:
            case secagg_pb2.KeysMessage(round=ref, advertisement=own):
                for value in (own.mask_key, own.kem_key, own.share_key, own.seed_commitment):
                    owners[value].add((one.site, attempt_of(ref)))
            case blobs_pb2.BlobOffer(round=ref, digest=digest):
                uploads[one.site, attempt_of(ref)].add(digest)
            case blobs_pb2.BlobChunk(offset=0, data=data):
                uploads["chunk", one.message.digest].add(data)
    assert all(len(held) == 1 for held in owners.values()), (
        "a key or commitment appears in two attempts or at two sites"
    )
    assert all(len(digests) == 1 for digests in uploads.values()), "two uploads under the masks of one attempt"


def one_reveal_a_round(world: World) -> None:
    """A site reveals in one attempt of a round; and all who reveal in an attempt reveal about the same two sets."""
    attempts: dict[object, set[int]] = defaultdict(set)
    kinds: dict[object, set[int]] = defaultdict(set)
    for one in world.wire.heard:
        if isinstance(one.message, secagg_pb2.RevealMessage) and one.site not in world.corrupt:
            ref = one.message.round
            attempts[one.site, ref.run_id, ref.round].add(ref.attempt)
            for share in one.message.shares:
                kinds[attempt_of(ref), share.about_site].add(share.kind)
    assert all(len(ones) == 1 for ones in attempts.values()), f"a site revealed in two attempts: {dict(attempts)}"
    assert all(len(both) == 1 for both in kinds.values()), "both kinds of share about one member were revealed"


def nothing_openable_alone(world: World) -> None:
    """No honest update follows from everything the aggregator heard; nor a sum of fewer than the threshold's honest."""
    sums: dict[object, list[frozenset[str]]] = defaultdict(list)
    for attempt, in_attempt in groups(world.wire.heard, world.states, world.corrupt).items():
        for group in in_attempt:
            for part in group.openable():
                least = secagg.threshold(group.size) - len(group.corrupt)
                assert len(part) >= least, (
                    f"the sum of {sorted(part)} can be opened in {attempt[1:]}, of {least} or more"
                )
                sums[attempt[:2]].append(part)
    _no_difference_tells_of_few(world, sums)
    for parts in sums.values():
        assert not alone(parts), f"an update follows from the sums over {parts}"
        several = Counter(site for part in parts for site in part)
        assert max(several.values()) == 1, f"a site is in two sums of one round that can be opened: {parts}"
        if not world.lied_down:
            assert len(parts) == 1, f"an honest aggregator could open {len(parts)} sums in one round: {parts}"


def _no_difference_tells_of_few(world: World, sums: Mapping[object, list[frozenset[str]]]) -> None:
    """Two sums on one model that can be recovered differ by nobody, or by as many as the least cohort.

    Of those, corrupt members may be some; the parts below are of the honest.
    """
    on_model: dict[bytes, list[frozenset[str]]] = defaultdict(list)
    for row in world.rounds():
        on_model[row.base_model].extend(sums.get((row.run_id, row.number), []))
    for parts in on_model.values():
        for one, other in combinations(parts, 2):
            apart = one ^ other
            assert not apart or len(apart | world.corrupt) >= world.plan.cohort.minimum, (
                f"two sums on one model tell of {sorted(apart)}"
            )


def sums_are_sums(world: World) -> None:
    """What was published is the sum of the members' words, without masks; and leads to the model that was published."""
    for row in world.rounds():
        if row.state is RoundState.PUBLISHED:
            _sum_is_sum(world, row)
        elif row.sum_blob is not None:
            assert row.next_model is None, f"the sum of round {row.number} was refused and led to a model"
            honest = not world.corrupt and not world.lied_down
            assert not honest, f"the sum of round {row.number} was refused, and everybody is honest"
        else:
            assert row.sum_blob is None, f"round {row.number} is {row.state} and has a sum"
            assert row.next_model is None, f"round {row.number} is {row.state} and has a model"


def _sum_is_sum(world: World, row: Round) -> None:
    with world.aggregator.app.store.read() as session:
        advertised = round_rows.payloads(session, row.id, Seat.advertisement)
        members = round_rows.senders(session, row.id, Seat.upload_claim)
        revealed = round_rows.senders(session, row.id, Seat.reveal)
        base = run_rows.model_by_digest(session, row.run_id, row.base_model)
    least = max(3, secagg.threshold(len(advertised)))
    assert row.members == len(members) >= least, f"round {row.number} opened a sum of {members}, of {least} or more"
    assert len(revealed) >= least, f"round {row.number} was opened by {revealed}, of {least} or more"
    plan = world.plan
    layout = Layout.of_round(plan, row.number)
    total = np.zeros(layout.words, np.uint64)
    for site in members:
        sent = secagg_pb2.Advertisement.FromString(advertised[site])
        total += plain_words(world, row, site, sent.mask_key)
    opened = encoding.decode_sum(layout, total, len(members))
    assert world.published_sum(row) == encoding.pack_sum(layout, opened), (
        f"the sum of round {row.number} is not its members' sum"
    )
    follows = next_model(plan, world.model(base.blob), opened)
    assert row.next_model == follows.digest, f"the model of round {row.number} does not follow from its sum"


def plain_words(world: World, row: Round, site: str, mask_key: bytes) -> np.ndarray:
    """uint64 [words]: what the site put into the sum of a round, as it would be without masks.

    Its dither and noise come from the coins of the attempt that has this mask key, and from nothing else.
    """
    contribution, coins = contribution_of(world, row, site), world.sites[site].coins[mask_key]
    layout, delta, header = contribution.layout, contribution.delta, contribution.header
    if layout.privacy is not None:
        members = len(world.states[mask_key].cohort)
        return encode_noised(layout, delta, header.histograms, members, coins)
    return encoding.encode(layout, delta, header, np.random.default_rng(int.from_bytes(coins, "big")))


def contribution_of(world: World, row: Round, site: str) -> Contribution:
    plan = world.plan
    job = Job(
        RunId(world.run_id), row.number, plan.evaluates_only(row.number), Digest(row.base_model), Digest(plan.digest)
    )
    update, delta = an_update(job, world.seed_of(site), plan.moving.size)
    return prepare_contribution(Guard(world.sites[site].settings.policy), plan, row.number, update, delta)


def models_are_one(world: World) -> None:
    """Every model that a site took for verified is one that the aggregator published."""
    with world.aggregator.app.store.read() as session:
        published = {model.digest for model in run_rows.models(session, world.run_id)}
    for site in world.sites.values():
        newest = site.rounds.model_files.newest
        assert newest in published | {b""}, f"{site.name} holds a model that nobody published"
        if newest:
            assert world.kept_model(site, newest).digest == newest  # the file, not the memory


def secrets_are_gone(world: World) -> None:
    """A site keeps the secrets of the attempt it is in, until it has confirmed, and of no other."""
    for site in world.sites.values():
        current = site.rounds.journal.current
        now = "" if current is None or current.refused_attempt == current.attempt else f"attempt-{current.attempt}"
        kept = set()
        for file, member in site.member_files():
            assert current is not None, f"{site.name} works on no round and keeps {file}"
            expected = (f"{current.run_id.hex()}-{current.number}", now)
            assert (file.parts[-3], file.parts[-2]) == expected, f"{site.name} keeps an attempt that is over: {file}"
            if member.secrets is not None:
                assert member.phase not in (Phase.CONFIRMED, Phase.REVEALED)
                kept.add(member.own.mask_key)
        gone = [of for mask_key, of in site.secrets.items() if mask_key not in kept]
        coins = [drawn for mask_key, drawn in site.coins.items() if mask_key not in kept]
        found = find([*raw_secrets(gone), *coins], site.agent_folder)
        assert not found, f"secrets of a past attempt are still at {site.name}: {found}"


def aggregator_holds_no_secret(world: World) -> None:
    """Neither what a site drew nor what it trained stands in the aggregator's folder: rows, journal, blobs."""
    wanted = [
        needle
        for site in world.sites.values()
        for needle in (*raw_secrets(site.secrets.values()), *site.coins.values())
    ]
    found = find(wanted, world.aggregator.folder)
    assert not found, f"a site's secrets are in the aggregator's folder: {found}"


def raw_secrets(drawn: Iterable[OwnSecrets]) -> list[bytes]:
    return [one.expose() for of in drawn for one in (of.mask, of.share, of.seed, of.polynomial)]


def find(needles: Iterable[bytes], folder: Path) -> list[str]:
    """The files below `folder` that hold one of the needles."""
    wanted = list(needles)
    return [file.name for file, data in _files(folder) if any(needle in data for needle in wanted)]


def spellings(secret: bytes) -> tuple[bytes, ...]:
    """As bytes, in hex, in base64 (standard and for URLs; without the end, which hangs on what follows)."""
    plain = b64encode(secret)[:-4]
    return secret, secret.hex().encode(), secret.hex().upper().encode(), plain, urlsafe_b64encode(secret)[:-4]


def _files(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for file in folder.rglob("*"):
        if file.is_file():
            yield file, file.read_bytes()

"""Values of `federation.secagg` as the messages that travel. Nothing is checked here: `secagg.verify_...` does."""

from collections.abc import Mapping

from federation.secagg import Advertisement, BadDealing, DealtShares, OpenedShares, ShareKind
from federation.v1 import secagg_pb2


def advertisement_of(message: secagg_pb2.Advertisement) -> Advertisement:
    """Converts the message to the value."""
    return Advertisement(
        site=message.site,
        mask_key=message.mask_key,
        kem_key=message.kem_key,
        share_key=message.share_key,
        seed_commitment=message.seed_commitment,
        signature=message.signature,
    )


def message_of(own: Advertisement) -> secagg_pb2.Advertisement:
    """Converts an advertisement to its message."""
    return secagg_pb2.Advertisement(
        site=own.site,
        mask_key=own.mask_key,
        kem_key=own.kem_key,
        share_key=own.share_key,
        seed_commitment=own.seed_commitment,
        signature=own.signature,
    )


def dealt_of(message: secagg_pb2.EncryptedShare) -> DealtShares:
    """Converts the message to the value. Dealer and member stay in the message."""
    return DealtShares(
        kem_ciphertext=message.kem_ciphertext,
        pair_secret=message.pair_secret,
        ciphertext=message.ciphertext,
        seed_digest=message.seed_digest,
        key_digest=message.key_digest,
        signature=message.signature,
    )


def share_message(dealer: str, member: str, dealt: DealtShares) -> secagg_pb2.EncryptedShare:
    """Converts the shares that `dealer` dealt to `member` to their message."""
    return secagg_pb2.EncryptedShare(
        from_site=dealer,
        to_site=member,
        kem_ciphertext=dealt.kem_ciphertext,
        pair_secret=dealt.pair_secret,
        ciphertext=dealt.ciphertext,
        seed_digest=dealt.seed_digest,
        key_digest=dealt.key_digest,
        signature=dealt.signature,
    )


def opened_of(message: secagg_pb2.Confirmation) -> dict[str, OpenedShares]:
    """Converts the shares that a confirmation opens to values, by the member that they were dealt to."""
    return {opened.to_site: OpenedShares(opened.seed_share, opened.key_share) for opened in message.opened}


def confirmation_message(site: str, signature: bytes, opened: Mapping[str, OpenedShares]) -> secagg_pb2.Confirmation:
    """Converts a confirmation and the shares that it opens to the message."""
    message = secagg_pb2.Confirmation(site=site, signature=signature)
    for member in sorted(opened):
        shares = opened[member]
        message.opened.add(to_site=member, seed_share=shares.seed_share, key_share=shares.key_share)
    return message


def bad_dealing_of(message: secagg_pb2.BadDealing) -> BadDealing | None:
    """Converts the message to the value; None when it names no kind of secret, or its lists differ in length."""
    if message.kind not in (secagg_pb2.RevealedShare.SEED, secagg_pb2.RevealedShare.MASK_KEY):
        return None
    if len(message.dealt) != len(message.shares):
        return None
    dealt = {share.to_site: dealt_of(share) for share in message.dealt}
    shares = {share.to_site: data for share, data in zip(message.dealt, message.shares, strict=True)}
    return BadDealing(message.dealer, ShareKind(message.kind), dealt, shares)

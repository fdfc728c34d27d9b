"""A member's advertisement as the message that travels and as the value that `federation.secagg` works on."""

from federation.secagg import Advertisement
from federation.v1 import secagg_pb2


def advertisement_of(message: secagg_pb2.Advertisement) -> Advertisement:
    """Checks nothing: `secagg.verify_advertisement` does."""
    return Advertisement(
        site=message.site,
        mask_key=message.mask_key,
        share_key=message.share_key,
        seed_commitment=message.seed_commitment,
        signature=message.signature,
    )


def message_of(own: Advertisement) -> secagg_pb2.Advertisement:
    """Converts an advertisement to its message."""
    return secagg_pb2.Advertisement(
        site=own.site,
        mask_key=own.mask_key,
        share_key=own.share_key,
        seed_commitment=own.seed_commitment,
        signature=own.signature,
    )

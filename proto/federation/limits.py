"""Limits that both sides enforce: sizes on the wire, and the form of names."""

import re
from typing import Final

from federation.errors import TokenRefused

DIGEST_BYTES: Final = 32  # SHA-256
MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024  # of a parsed message
CHUNK_BYTES_MAX: Final = 1024 * 1024  # of data in one message: a chunk of a blob, a bandwidth test
# On a slow line a chunk takes seconds, and a cut costs at most one of them: 256 KiB are two seconds at 1 Mbit/s.
SLOW_CHUNK_BYTES: Final = 256 * 1024

SECAGG_VERSION: Final = 2  # of secure aggregation, as both sides speak it
COHORT_MAX: Final = 500  # members of one secure aggregation, one complete graph
COHORT_MIN: Final = 3  # below it a "sum" tells one member about the other
REASONS_MAX: Final = 32  # state reasons in one Poll

SITE_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
VERSION: Final = re.compile(r"[0-9A-Za-z.+-]{1,32}")


def is_site_name(name: str) -> bool:
    """Whether `name` has 1 to 32 of [a-z0-9-], neither the first nor the last one a hyphen.

    The name stands in tokens, certificates, rosters and in the input of every mask key.
    """
    return SITE_NAME.fullmatch(name) is not None


def check_site_name(name: str) -> str:
    """Returns `name` when it may be a site's name.

    Raises:
        TokenRefused: It may not.
    """
    if not is_site_name(name):
        raise TokenRefused(
            f"expected a site name of 1 to 32 lowercase letters, digits and inner hyphens, got {name[:40]!r}; "
            "choose a name such as 'st-mary'"
        )
    return name

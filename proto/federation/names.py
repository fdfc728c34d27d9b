"""What a site may be called. The name stands in tokens, certificates, rosters and every mask key."""

import re

from federation.errors import TokenRefused

_SITE = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


def is_site_name(name: str) -> bool:
    """Whether `name` is 1..32 of [a-z0-9-], neither first nor last character a hyphen."""
    return _SITE.fullmatch(name) is not None


def check_site_name(name: str) -> str:
    """Return `name` when it may be a site's name. Errors: TokenRefused."""
    if not is_site_name(name):
        raise TokenRefused(
            f"expected a site name of 1 to 32 lowercase letters, digits and inner hyphens, got {name[:40]!r}; "
            "choose a name such as 'st-mary'"
        )
    return name

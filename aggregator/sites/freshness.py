"""The age of a site's last report from which on it no longer tells how the site is."""

from federation.vocabulary import SiteState

from aggregator.config import PacingSettings

STALE_FACTOR = 3  # a report is stale when the next one is this many polling intervals late
STALE_LEAST_S = 15.0  # reports are written every few seconds only, so a younger one is never stale


def stale_after_s(pacing: PacingSettings, state: str, *, run_paused: bool) -> float:
    """Return the age in seconds from which a report is stale.

    Args:
        pacing: A site polls as often as it was told to, and that is how old a healthy report may be.
        state: Name of the SiteState in the report.
        run_paused: Whether the active run is paused.
    """
    busy_s = max(pacing.training_s, pacing.paused_s if run_paused else 0.0)
    interval_s = max(pacing.idle_s, busy_s) if state == SiteState.IDLE else busy_s
    return max(STALE_FACTOR * interval_s, STALE_LEAST_S)

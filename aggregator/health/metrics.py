"""Metrics for Prometheus, read from the rows at each scrape. Labels are of closed sets: no site, no run, no label."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from aggregator.alerts.conditions import AlertKind
from aggregator.context import AppContext
from aggregator.sites.roster import in_force
from aggregator.states import RoundState, RunState, SiteStanding
from aggregator.store import alert_rows, round_rows, run_rows, site_rows
from aggregator.store.tables import Audit

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, eq=False)  # a registry hashes its collectors
class AggregatorMetrics(Collector):
    """The figures of one running service.

    Attributes:
        app: The aggregator.
        driver_silent_s: Returns the seconds since all drivers last looked at the rounds.
    """

    app: AppContext
    driver_silent_s: Callable[[], float]

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        ProcessCollector(registry=registry)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the figures as they are now."""
        yield _gauge("driver_silent_seconds", "Since all drivers last looked at the rounds.", self.driver_silent_s())
        free = shutil.disk_usage(self.app.settings.state.folder).free
        yield _gauge("disk_free_bytes", "Free for the state folder.", free)
        yield from self._rows()

    def _rows(self) -> Iterator[Metric]:
        now = self.app.clock()
        with self.app.store.read() as session:
            sites = {site.name: site_rows.standing(site) for site in site_rows.all_sites(session)}
            approved = [name for name, standing in sites.items() if standing is SiteStanding.APPROVED]
            reports = {report.site: report.seen_at for report in site_rows.reports(session)}
            expiries = site_rows.certificate_expiries(session)
            roster = in_force(session)
            runs = Counter(run.state for run in run_rows.all_runs(session))
            run = run_rows.active(session)
            row = None if run is None else round_rows.newest(session, run.run_id)
            alerts = alert_rows.counts(session)
            audited = session.scalar(select(func.max(Audit.id))) or 0
        yield _by_state("sites", "Hospitals by standing.", "standing", SiteStanding, Counter(sites.values()))
        silent = [(now - reports[name]).total_seconds() for name in approved if name in reports]
        if silent:
            yield _gauge("site_silent_seconds_max", "Since the approved hospital that is silent longest.", max(silent))
        left = [(expiries[name] - now).total_seconds() for name in approved if name in expiries]
        if left:
            yield _gauge("site_certificate_seconds_min", "Until the first hospital's certificate ends.", min(left))
        if roster is not None and roster.expires_at is not None:
            yield _gauge("roster_seconds", "Until the roster ends.", (roster.expires_at - now).total_seconds())
        yield _by_state("runs", "Runs by state.", "state", RunState, runs)
        current = Counter([row.state] if row is not None else [])
        yield _by_state("round", "1 for the state of the active run's newest round.", "state", RoundState, current)
        if row is not None:
            yield _gauge("round_number", "Of the active run's newest round.", row.number)
            yield _gauge("round_phase_seconds", "Since its phase began.", (now - row.phase_since).total_seconds())
        yield _by_state("alerts", "Conditions that need a person, by kind.", "kind", AlertKind, alerts)
        yield _gauge("audit_entries", "Rows of the audit trail.", audited)


def _gauge(name: str, help_text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"hemofed_{name}", help_text, value=value)


def _by_state(
    name: str, help_text: str, label: str, states: type[StrEnum], counts: Mapping[Any, int]
) -> GaugeMetricFamily:
    """A gauge with one series for each state, 0 where there is none, so that a rule finds it before the first."""
    family = GaugeMetricFamily(f"hemofed_{name}", help_text, labels=[label])
    for state in states:
        family.add_metric([state.value], counts.get(state, 0))
    return family

"""A coordinator with real listeners in this process, and hospitals that join it over real TLS."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from site_client.agent.commands.join import join  # before the aggregator: grpc reads its cipher suites once
from site_client.config import AgentSettings, AggregatorAddress, FoldersSettings
from site_client.config import SiteSettings as SiteSettings

from aggregator import config  # isort: skip
from aggregator.sites.authority import create_authority  # isort: skip
from aggregator.sites.enrolment import EnrolmentService  # isort: skip
from aggregator.context import AppContext, open_context  # isort: skip
from aggregator.migrations import upgrade  # isort: skip
from aggregator.serve import AggregatorServer  # isort: skip
from tests.custodian import CUSTODIAN, sign_pending  # isort: skip


@dataclass
class Consortium:
    """The coordinator's services, and how a hospital joins."""

    app: AppContext
    enrolment: EnrolmentService
    aggregator: AggregatorServer
    folder: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.aggregator.sites_port}"

    def hospital(self, name: str) -> SiteSettings:
        """Makes the settings of a hospital that has not joined."""
        state = self.folder / name / "state"
        folders = FoldersSettings(state, self.folder / name / "spool", self.folder / name / "export")
        return SiteSettings(name, AggregatorAddress(self.address), folders, agent=AgentSettings(stall_s=5))

    def joined(self, name: str) -> SiteSettings:
        """Makes the settings of a hospital, and lets it join with a fresh invitation."""
        settings = self.hospital(name)
        token = self.enrolment.invite(name, auto_approve=True).text()
        address, accept = f"127.0.0.1:{self.aggregator.enrolment_port}", lambda _: True
        join(settings, address, token, say=lambda _: None, confirm=accept, wait=lambda _: self.sign_roster())
        return settings

    def sign_roster(self) -> None:
        """The custodian signs a roster of all active sites."""
        sign_pending(self.app.store, self.enrolment.authority, self.app.clock())


@contextmanager
def consortium(folder: Path) -> Iterator[Consortium]:
    any_port = "127.0.0.1:0"
    listen = config.ListenSettings(
        sites=any_port, enrolment=any_port, dashboard=any_port, host_names=("127.0.0.1",), threads=8
    )
    dashboard = config.DashboardSettings(enabled=False)
    state = config.StateSettings(folder=folder / "hub")
    settings = config.AggregatorSettings(listen=listen, state=state, dashboard=dashboard)
    (folder / "hub").mkdir(parents=True)
    authority = create_authority(folder / "hub" / "ca", lambda: datetime.now(UTC), CUSTODIAN.public_key())
    app = open_context(settings)
    upgrade(app.store.engine)
    aggregator = AggregatorServer(app, authority)
    aggregator.start()
    try:
        enrolment = EnrolmentService(app.store, authority, settings.enrolment, app.clock, app.random)
        yield Consortium(app, enrolment, aggregator, folder)
    finally:
        aggregator.stop()

"""The same store on a real PostgreSQL: tables, the guard that decides a race, and two hosts that race for one token."""

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from federation.roster import Roster, sign_roster
from sqlalchemy import inspect, update
from structlog.testing import capture_logs

from aggregator.config import AggregatorSettings
from aggregator.context import AppContext
from aggregator.custodian.review import next_roster
from aggregator.errors import JoinDenied, WrongState
from aggregator.migrations import upgrade
from aggregator.rounds.clock_steps import ClockSteps
from aggregator.sites.enrolment import EnrolmentService
from aggregator.sites.roster import import_roster, request_roster
from aggregator.states import RoundState, RunState
from aggregator.store import Change, Store, audit_chain, open_store, record, round_rows, site_rows, transition
from aggregator.store.blobs import Blobs
from aggregator.store.content_keys import ContentKeys
from aggregator.store.people import audit_trail
from aggregator.store.tables import Base, Invitation, Round, Run
from tests.aggregator.conftest import Host, StandingClock
from tests.aggregator.enrolment_helpers import roster_of, sign
from tests.custodian import CUSTODIAN

pytestmark = pytest.mark.slow

RUN = b"r" * 16


def tool(name: str) -> str:
    """initdb or pg_ctl, on the path or where Debian keeps them."""
    found = shutil.which(name) or next(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), None)
    if found is None:
        pytest.skip(f"{name} (PostgreSQL) is not installed")
    return found


def as_server_user(*command: str) -> None:
    """PostgreSQL refuses to run as root; Debian's package brings a user for it."""
    prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    subprocess.run([*prefix, *command], check=True, stdout=subprocess.DEVNULL, timeout=60)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A URL of a server of its own, on a socket in its own folder, without any TCP port."""
    initdb, pg_ctl = tool("initdb"), tool("pg_ctl")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed")
    folder = Path(tempfile.mkdtemp(prefix="hemofed-pg-"))
    if os.geteuid() == 0:
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("running as root without a user postgres to run the server as")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    as_server_user(initdb, "-D", str(folder / "data"), "-A", "trust", "-U", "hub", "--no-sync")
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    as_server_user(pg_ctl, "-D", str(folder / "data"), "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        yield f"postgresql+psycopg://hub@/postgres?host={folder}"
    finally:
        as_server_user(pg_ctl, "-D", str(folder / "data"), "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)


@pytest.fixture
def store(server: str) -> Iterator[Store]:
    opened = open_store(server)
    upgrade(opened.engine)
    yield opened
    Base.metadata.drop_all(opened.engine)
    with opened.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE alembic_version")
    opened.close()


def outcomes_of(*acts: Callable[[], object]) -> list[str]:
    """What acts on threads of their own came to, started together; sorted."""
    barrier = threading.Barrier(len(acts))
    outcomes: list[str] = []

    def perform(act: Callable[[], object]) -> None:
        barrier.wait()
        try:
            act()
            outcomes.append("won")
        except (WrongState, JoinDenied):
            outcomes.append("lost")

    threads = [threading.Thread(target=perform, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(outcomes)


def test_the_migrations_lead_to_the_tables_with_a_comment_on_every_column(store: Store) -> None:
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        held = inspect(connection)
        for table in Base.metadata.tables.values():
            comments = {column["name"]: column["comment"] for column in held.get_columns(table.name)}
            assert comments == {column.name: column.comment for column in table.columns}


def a_run(clock: StandingClock) -> Run:
    return Run(
        run_id=RUN,
        name="pilot",
        signed_plan=b"plan",
        plan_digest=b"d" * 32,
        state=RunState.RUNNING,
        created_at=clock(),
    )


def test_a_clock_that_is_set_moves_no_deadline_that_other_aggregators_share(
    store: Store, clock: StandingClock, tmp_path: Path
) -> None:
    app = AppContext(
        store,
        Blobs(tmp_path / "a", 1),
        Blobs(tmp_path / "b", 1),
        AggregatorSettings(),
        ContentKeys(tmp_path / "key"),
        clock,
    )
    deadline = clock() + timedelta(hours=1)
    times = {"began_at": clock(), "phase_since": clock(), "deadline": deadline}
    row = Round(
        run_id=RUN, number=1, attempt=1, state=RoundState.TRAINING, base_model=b"m" * 32, roster_epoch=0, **times
    )
    with store.write() as session:
        session.add(a_run(clock))
        session.flush()
        session.add(row)
    steps = ClockSteps(app, monotonic=lambda: 0.0)
    clock.advance(hours=-2)
    with capture_logs() as logs:
        steps.follow()
        steps.follow()
    assert [event["event"] for event in logs] == ["clock was set"]
    with store.read() as session:
        assert [row.deadline for row in round_rows.of_run(session, RUN)] == [deadline]


def test_of_eight_that_make_one_transition_at_once_exactly_one_wins(store: Store, clock: StandingClock) -> None:
    with store.write() as session:
        session.add(a_run(clock))

    def pause() -> None:
        change = Change(clock(), "operator", "run:72", "race")
        with store.write() as session:
            transition(session, Run.state, {Run.run_id: RUN}, RunState.RUNNING, RunState.PAUSED, change)

    assert outcomes_of(*[pause] * 8) == ["lost"] * 7 + ["won"]
    with store.read() as session:
        run = session.get(Run, RUN)
        assert run is not None
        assert (run.state, run.created_at) == (RunState.PAUSED, clock())
        assert len(audit_trail(session)) == 1


def test_of_two_hosts_racing_for_one_token_one_is_admitted(
    enrolment: EnrolmentService, host: Host, other_host: Host
) -> None:
    for attempt in range(5):
        token = enrolment.invite(f"site-{attempt}", auto_approve=True)
        first, second = host.join_request(token), other_host.join_request(token)
        outcome = outcomes_of(partial(enrolment.join, first), partial(enrolment.join, second))
        assert outcome == ["lost", "won"]
        enrolment.revoke(f"site-{attempt}")
        host, other_host = type(host)(), type(other_host)()


def test_two_sites_approved_at_once_stand_in_the_next_roster(
    enrolment: EnrolmentService, host: Host, other_host: Host
) -> None:
    requests = {name: one.join_request(enrolment.invite(name)) for name, one in (("a", host), ("b", other_host))}
    for request in requests.values():
        enrolment.join(request)
    with enrolment.store.read() as session:
        words = {name: site_rows.get(session, name).fingerprint for name in requests}

    def approve(name: str) -> None:
        enrolment.approve(name, words[name])

    assert outcomes_of(lambda: approve("a"), lambda: approve("b")) == ["won", "won"]
    assert sorted(roster_of(enrolment, sign(enrolment)).signing_keys) == ["a", "b"]


def test_of_two_imports_of_one_signed_roster_one_wins(enrolment: EnrolmentService, host: Host) -> None:
    enrolment.join(host.join_request(enrolment.invite("a", auto_approve=True)))
    with enrolment.store.read() as session:
        proposed = Roster.from_bytes(request_roster(session).proposed)
    signed = sign_roster(next_roster(proposed, None, enrolment.clock()), CUSTODIAN)

    def take() -> None:
        import_roster(enrolment.store, enrolment.authority, signed, enrolment.clock())

    assert outcomes_of(take, take) == ["lost", "won"]


def test_writers_at_once_make_one_chain_of_the_audit(store: Store, clock: StandingClock) -> None:
    rows_each, writers = 20, 6

    def write(name: str) -> None:
        for number in range(rows_each):
            with store.write() as session:
                record(session, Change(clock(), f"person:{name}", "site:north", f"{number}"), None, "first")
                record(session, Change(clock(), f"person:{name}", "site:north", f"{number}"), None, "second")

    assert outcomes_of(*(partial(write, f"writer-{number}") for number in range(writers))) == ["won"] * writers
    with store.read() as session:
        assert audit_chain.verify(session).entries == 2 * rows_each * writers


def test_a_run_that_is_aborted_while_sites_write_waits_for_nobody_for_ever(store: Store, clock: StandingClock) -> None:
    """Two transactions that hold rows of each other's and both write audit rows: one waits, and none is refused."""
    with store.write() as session:
        for name in ("alpha", "omega"):
            session.add(Invitation(site=name, secret_hash=b"", expires_at=clock(), used_by=None, auto_approve=False))

    def touch(first: str, second: str) -> None:
        with store.write() as session:
            record(session, Change(clock(), "person:ada", f"site:{first}", ""), None, "before the rows")
            for name in sorted((first, second)):  # the order in which every use case takes them
                session.connection().execute(update(Invitation).where(Invitation.site == name).values(used_by=b"x"))

    acts = [partial(touch, "alpha", "omega"), partial(touch, "omega", "alpha")] * 4
    assert outcomes_of(*acts) == ["won"] * 8
    with store.read() as session:
        assert audit_chain.verify(session).entries == 8

"""./deploy/demo: an aggregator, a few hospitals and a dashboard on this machine, from nothing to a trained model."""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import click
from click.core import ParameterSource

from aggregator.runs.privacy_status import status_words
from aggregator.states import RunState
from aggregator.store import run_rows
from deploy.demonstration import results
from deploy.demonstration.federation import ADMINISTRATOR, Federation, Options
from deploy.demonstration.hospitals import BadDataFolder
from deploy.demonstration.joining import StepFailed
from deploy.demonstration.plan_files import POISONED_ROUND
from deploy.demonstration.processes import RestartedTooOften
from deploy.demonstration.progress import DemoProgress
from site_client.agent.status_file import read_status
from site_client.config import load

MARKER = ".hemofed-demo"  # the demo empties a folder only if this file is in it
LISTENING_S = 60.0  # seconds are usual; a busy machine takes longer
AGREEING_S = 60.0  # sites learn of the last model at their next poll
POLL_S = 0.5
# More patients than without noise, so that there is more than noise to see.
PRIVATE_DEFAULTS = {"sites": 4, "rounds": 6, "studies": 96}
# One in four poisons round 2; round 3 refuses its model, and round 4 goes on from the accepted one.
POISON_DEFAULTS = {"sites": 4, "rounds": 4}


@click.command()
@click.option(
    "--sites", default=3, show_default="3, with --privacy or --poison 4", type=click.IntRange(3, 16), help="Hospitals."
)
@click.option(
    "--rounds",
    default=3,
    show_default="3, with --privacy 6, with --poison 4",
    type=click.IntRange(1, 100),
    help="Training rounds.",
)
@click.option("--architecture", default="lite", show_default=True, help="Network, a name of the registry.")
@click.option(
    "--studies", default=32, show_default="32, with --privacy 96", type=click.IntRange(6), help="CT studies a hospital."
)
@click.option("--seed", default=7, show_default=True, type=click.IntRange(0), help="Of patients, scanners and weights.")
@click.option("--port", default=18443, show_default=True, type=click.IntRange(1024, 65533), help="First of three.")
@click.option(
    "--state",
    default=Path(".demo"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for all it writes.",
)
@click.option("--epochs", default=12, show_default=True, type=click.IntRange(1, 100), help="Local epochs a round.")
@click.option("--learning-rate", default=0.001, show_default=True, type=click.FloatRange(0, 1, min_open=True))
@click.option("--privacy", is_flag=True, help="Train the heads with noise, for a claim of epsilon 8.")
@click.option("--poison", is_flag=True, help="One hospital sends a poisoned update, and the gate refuses its model.")
@click.option("--keep", is_flag=True, help="Stay up afterwards, until Ctrl-C.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder instead of synthetic patients: an export with label tables at its top, or RSNA's.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures there.")
def main(state: Path, **options: object) -> None:
    """Bring up a federation on this machine, train it, and show the results.

    Exit status 0 only if the run completed and the last model beats the first on held-out patients. With --privacy the
    noise over so few patients may hide that, so completion is enough. With --poison the poisoned model has to be
    refused, too.
    """
    if options["privacy"] and options["poison"]:
        raise click.UsageError("expected --privacy or --poison, got both: a private plan has no gate")
    if options["privacy"] or options["poison"]:
        source = click.get_current_context().get_parameter_source
        typed = {name for name in options if source(name) is not ParameterSource.DEFAULT}
        defaults = PRIVATE_DEFAULTS if options["privacy"] else POISON_DEFAULTS
        options |= {name: value for name, value in defaults.items() if name not in typed}
    federation = Federation(Options(state=state.absolute(), **options))  # type: ignore[arg-type]  # click checked them
    _stop_at_signal(federation)
    try:
        _check_json_file(federation.options.json_file)
        federation.require_ports()
        with _own_folder(federation.folder), _all_stopped_afterwards(federation):
            success = _run(federation)
            if federation.options.keep:
                click.echo("  staying up; Ctrl-C ends everything")
                while True:
                    _look_after(federation)
                    time.sleep(1.0)
    except (StepFailed, BadDataFolder, RestartedTooOften) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:  # no room, no right to write, a folder that went away
        raise click.ClickException(f"{error.filename or federation.folder}: {error.strerror or error}") from error
    except KeyboardInterrupt:
        click.echo("\nstopping")
        sys.exit(130)
    sys.exit(0 if success else 1)


def _check_json_file(path: Path | None) -> None:
    """Refuses a file that cannot be written, before minutes of work and not after them."""
    if path is not None and not os.access(path.absolute().parent, os.W_OK):
        raise StepFailed(f"cannot write {path}; --json needs a folder that exists and may be written to")


def _stop_at_signal(federation: Federation) -> None:
    """Makes Ctrl-C and SIGTERM end the demo wherever it is.

    Python drops an exception that is raised while a finalizer runs. For that case `_look_after` asks `stopping`, too.
    """

    def stop(*_: object) -> None:
        federation.stopping = True  # first: it stays set where the exception is lost
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


@contextlib.contextmanager
def _all_stopped_afterwards(federation: Federation) -> Iterator[None]:
    """Ends every process of the demo at the end of the block, however that came, also under a second Ctrl-C."""
    try:
        yield
    finally:
        # A second Ctrl-C must not interrupt the ending: it would leave processes behind.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        federation.processes.stop_all()


def _look_after(federation: Federation) -> list[str]:
    """Restarts the children that died; gives their names.

    Raises:
        KeyboardInterrupt: The demo has to end.
        RestartedTooOften: A child died again and again.
    """
    if federation.stopping:
        raise KeyboardInterrupt
    return federation.processes.restart_the_dead()


def _run(federation: Federation) -> bool:
    """Does all steps in order; tells whether the run succeeded."""
    began = time.monotonic()
    options = federation.options
    click.echo(f"hemofed demo in {federation.folder}")
    # Each step needs the ones before it: addresses and keys, then data, then a listening aggregator, then sites.
    federation.initialize()
    federation.make_initial_model()
    studies = "synthetic CT studies" if options.data is None else "of the given CT studies"
    click.echo(f"  {options.sites} hospitals, each with up to {options.studies} {studies}")
    federation.provide_data()
    federation.start_aggregator()
    _await_listening(federation)
    federation.enroll(federation.sites)
    click.echo("  the custodian signed the roster")
    for hospital in federation.sites:
        federation.start_site(hospital)
        click.echo(f"  {hospital.name} enrolled with a one-time token")
    federation.start_run()
    _print_dashboard(federation)
    completed = _watch(federation)
    digests = _agreed_digests(federation) if completed else _site_digests(federation)
    outcome = results.collect(federation.app(), digests)
    return _conclude(federation, outcome, time.monotonic() - began)


def _watch(federation: Federation) -> bool:
    """Shows progress and restarts dead children until the run is over; tells whether it completed."""
    progress = DemoProgress(federation.app(), federation.sites)
    # Only the database tells the end: the demo sees what a coordinator sees.
    while True:
        for name in _look_after(federation):
            progress.print(f"  {name} had died and was restarted")
        progress.show()
        with progress.app.store.read() as session:
            run = run_rows.all_runs(session)[-1]
        # Abandoned rounds pause a run, and a demo has no coordinator who resumes it.
        if run.state is RunState.PAUSED:
            raise StepFailed(f"the run was paused: {run.reason}; read {federation.processes.folder}")
        if run.state in (RunState.COMPLETED, RunState.ABORTED):
            return run.state is RunState.COMPLETED
        time.sleep(POLL_S)


def _conclude(federation: Federation, outcome: results.RunResults, seconds: float) -> bool:
    """Prints the results and writes the JSON file; tells whether the run succeeded."""
    options = federation.options
    click.echo("\nThe global model before and after each round, on patients that no hospital trained on:\n")
    click.echo(results.table(outcome) + "\n")
    click.echo("".join(f"  {line}\n" for line in status_words(outcome.privacy)))
    for number, why in outcome.refused.items():
        click.echo(f"  refused   the model of round {number}: {why.removeprefix('refused: ')}")
    click.echo(f"  model     {federation.export_model()}")
    click.echo(f"  digest    {outcome.model_digest}")
    for site, digest in outcome.site_digests.items():
        click.echo(
            f"  {site:<9} {'computed the same' if digest == outcome.model_digest else f'holds {digest or None}'}"
        )
    _print_dashboard(federation)
    click.echo(f"  took      {seconds:.0f} s")
    if options.json_file is not None:
        results.write_json(outcome, options.json_file)
    gate_held = not options.poison or list(outcome.refused) == [POISONED_ROUND]
    if outcome.completed and outcome.agreed and gate_held and (outcome.improved or options.privacy):
        return True
    if not outcome.completed:
        failure = f"the run did not complete: {outcome.reason}"
    elif not outcome.agreed:
        failure = "some site does not hold the aggregator's model"
    elif not gate_held:
        failure = f"expected the gate to refuse the model of round {POISONED_ROUND} alone, got {list(outcome.refused)}"
    else:
        failure = "the last model does not beat the first"
    click.echo(f"  {failure}; logs in {federation.processes.folder}", err=True)
    return False


def _print_dashboard(federation: Federation) -> None:
    click.echo(f"  dashboard {federation.dashboard_url}  ({ADMINISTRATOR} / {federation.password})")


def _await_listening(federation: Federation) -> None:
    deadline = time.monotonic() + LISTENING_S
    for port in federation.ports:
        while not _listens(port):
            if time.monotonic() > deadline:
                raise StepFailed(f"the aggregator does not listen; read {federation.processes.log('aggregator')}")
            _look_after(federation)
            time.sleep(POLL_S)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _agreed_digests(federation: Federation) -> dict[str, str]:
    """Waits until all sites hold the newest model or AGREEING_S is over; gives the digests that the sites report."""
    with federation.app().store.read() as session:
        newest = run_rows.newest_model(session, run_rows.all_runs(session)[-1].run_id).digest.hex()
    # A run is completed before its sites have computed the last model.
    deadline = time.monotonic() + AGREEING_S
    while set((digests := _site_digests(federation)).values()) != {newest} and time.monotonic() < deadline:
        _look_after(federation)
        time.sleep(POLL_S)
    return digests


def _site_digests(federation: Federation) -> dict[str, str]:
    """Reads the model digest of each site from its own status file; "" before the site has verified a model."""
    statuses = {site.name: read_status(load(site.config).folders.agent) for site in federation.sites}
    return {name: (status.model_digest or "") if status else "" for name, status in statuses.items()}


@contextlib.contextmanager
def _own_folder(folder: Path) -> Iterator[None]:
    """Makes an empty folder and locks it. It removes the files of an earlier demo, and refuses one that still runs."""
    marker = folder / MARKER
    if folder.exists() and any(folder.iterdir()):
        if not marker.exists():
            raise StepFailed(f"{folder} is not empty and not a demo's; choose another with --state")
        # Locked before anything is removed: the folder of a running demo stays untouched.
        with marker.open("a") as lock:
            _lock(lock, folder)
            shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with marker.open("w") as lock:
        _lock(lock, folder)
        yield


def _lock(marker: TextIO, folder: Path) -> None:
    try:
        fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StepFailed(
            f"a demo is running in {folder}; stop it with Ctrl-C, or choose another with --state"
        ) from None


if __name__ == "__main__":
    main()

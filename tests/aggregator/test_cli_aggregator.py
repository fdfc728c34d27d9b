"""The coordinator's command line, on a real state folder."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from federation.description import ModelDescription
from federation.manifest import Manifest, Model, TensorSpec, load_description, load_model, save_model
from federation.token import Token
from federation.v1 import enrolment_pb2

from aggregator.cli import main
from aggregator.commands.lazy_group import LazyCommand
from aggregator.config import load_settings
from aggregator.context import open_context
from aggregator.custodian import sealed_key
from aggregator.sites.authority import Authority
from aggregator.sites.enrolment import EnrolmentService
from aggregator.store import run_rows
from tests.aggregator.conftest import Host
from tests.custodian import PASSPHRASE, Program, sign_pending

PLAN = 'name = "pilot"\narchitecture = "lite"\nrounds = 2\n'


class Console:
    """One coordinator at one state folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "aggregator.toml"
        self.config.write_text(f'[state]\nfolder = "{folder / "state"}"\n')
        self.custodian = Program.begin(folder / "custodian")
        self.init = ("init", "--custodian", str(self.custodian.public_key_file))

    def __call__(self, *arguments: str, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(main, ["--config", str(self.config), *arguments], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def json(self, *arguments: str) -> Any:
        result = self(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def refused(self, *arguments: str, stdin: str | None = None) -> str:
        result = self(*arguments, stdin=stdin)
        assert result.exit_code == 1, result.output
        return result.stderr

    def sign_roster(self) -> None:
        """Out to the custodian, and back."""
        request = self.folder / "roster.request"
        assert self("roster", "export", str(request)).exit_code == 0
        assert self("roster", "import", str(self.custodian.sign(request))).exit_code == 0

    def signed_plan(self) -> str:
        """The plan of plan.toml, signed by the custodian."""
        request = self.folder / "plan.request"
        model = str(self.folder / "initial.safetensors")
        export = ("plan", "export", str(self.folder / "plan.toml"), str(request), "--model", model)
        assert self(*export, "--force").exit_code == 0  # its model is smaller than that of any architecture
        return str(self.custodian.sign(request))

    def join(self, token: str, host: Host) -> enrolment_pb2.JoinReply:
        app = open_context(load_settings(self.config))
        authority = Authority(app.settings.state.folder / "ca", app.clock)
        enrolment = EnrolmentService(app.store, authority, app.settings.enrolment, app.clock, app.random)
        try:
            return enrolment.join(host.join_request(Token.parse(token)))
        finally:
            app.store.close()


@pytest.fixture
def fresh(tmp_path: Path, cheap_scrypt: None) -> Console:
    return Console(tmp_path)


@pytest.fixture
def console(fresh: Console) -> Console:
    assert fresh(*fresh.init).exit_code == 0
    return fresh


@pytest.fixture
def with_run(console: Console) -> Console:
    model = Model(Manifest((TensorSpec("w", (5,)),)), np.arange(5, dtype=np.float32))
    save_model(console.folder / "initial.safetensors", model, description=ModelDescription("lite", parts="h"))
    (console.folder / "plan.toml").write_text(PLAN)
    initial = str(console.folder / "initial.safetensors")
    console.json("run", "start", console.signed_plan(), "--model", initial, "--force")
    return console


# --- the root ---


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be refused as root")
def test_root_leaves_no_file_in_the_state_folder_of_another_user(tmp_path: Path) -> None:
    console = Console(tmp_path)
    (tmp_path / "state").mkdir()
    os.chown(tmp_path / "state", 65_534, 65_534)
    for command in (console.init, ("site", "list"), ("serve",), ("site", "invite", "north")):
        said = console.refused(*command)
        assert "got root, whose files the service could not open; type `runuser -u nobody -- hemofed-agg" in said
        assert said.count("\n") == 1
    assert list((tmp_path / "state").iterdir()) == []


def test_help_imports_neither_the_database_nor_grpc() -> None:
    program = (
        "import sys\nfrom aggregator.cli import main\nmain(['--help'], standalone_mode=False)\n"
        "assert not {'sqlalchemy', 'grpc', 'numpy', 'fastapi'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Hospitals: invite, approve, list, show, suspend," in done.stdout


def test_every_stand_in_of_the_root_has_the_name_and_the_short_help_of_its_command() -> None:
    for name, stand_in in main.commands.items():
        assert isinstance(stand_in, LazyCommand)
        command = stand_in.load()
        assert (command.name, command.get_short_help_str(100)) == (name, stand_in.get_short_help_str(100))


def test_a_misspelt_command_is_refused_with_the_nearest_one(fresh: Console) -> None:
    result = fresh("modle")
    assert result.exit_code == 2
    assert "Did you mean 'model'?" in result.stderr


# --- init ---


def test_init_makes_the_folder_for_its_owner_only_and_says_what_to_do_next(fresh: Console) -> None:
    result = fresh(*fresh.init)
    assert result.exit_code == 0
    assert "CA fingerprint" in result.output
    assert "site invite NAME" in result.output
    for path in (fresh.folder / "state").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_init_twice_is_refused_and_changes_nothing(fresh: Console) -> None:
    first = fresh.json(*fresh.init)
    assert "already" in fresh.refused(*fresh.init)
    token = Token.parse(fresh.json("site", "invite", "st-mary")["token"])
    assert token.ca_fingerprint.hex() == first["ca_fingerprint"]


@pytest.mark.parametrize(
    "command", [["site", "list"], ["site", "invite", "a"], ["run", "status"], ["admin", "list"], ["audit"], ["serve"]]
)
def test_before_init_every_command_says_so(fresh: Console, command: list[str]) -> None:
    assert "run `hemofed-aggregator init`" in fresh.refused(*command)


def test_a_settings_file_with_an_unknown_key_stops_every_command(console: Console) -> None:
    console.config.write_text("[drivr]\n")
    assert "did you mean 'driver'?" in console.refused("site", "list")


def test_a_missing_settings_file_is_one_sentence(console: Console) -> None:
    console.config.unlink()
    assert "copy deploy/aggregator.toml" in console.refused("audit")


# --- sites ---


def test_a_site_is_invited_joins_is_approved_and_revoked(console: Console, host: Host) -> None:
    token = console("site", "invite", "st-mary").stdout.strip()
    assert [row["standing"] for row in console.json("site", "list")] == ["invited"]
    assert console.join(token, host).HasField("pending")
    [row] = console.json("site", "list")
    assert (row["standing"], len(row["words"].split())) == ("pending", 6)
    assert console("site", "approve", "st-mary", "--words", row["words"]).exit_code == 0
    assert console.join(token, host).HasField("pending")
    assert "it adds st-mary" in console("site", "list").stderr
    console.sign_roster()
    assert console.join(token, host).HasField("credentials")
    listed = console("site", "list")
    assert "approved" in listed.stdout
    assert listed.stderr == ""
    assert console("site", "revoke", "st-mary").exit_code == 0
    assert [row["standing"] for row in console.json("site", "list")] == ["revoked"]
    told = [(row["before"], row["after"]) for row in console.json("audit", "--subject", "site:st-mary")]
    assert told == [("approved", "revoked"), ("pending", "approved"), ("invited", "pending"), (None, "invited")]


def test_other_words_than_the_sites_do_not_approve_it(console: Console, host: Host) -> None:
    console.join(console.json("site", "invite", "st-mary")["token"], host)
    assert "do not approve" in console.refused("site", "approve", "st-mary", "--words", "one two three four five six")
    [row] = console.json("site", "list")
    assert row["standing"] == "pending"


def test_approving_asks_and_no_means_no(console: Console, host: Host) -> None:
    console.join(console.json("site", "invite", "st-mary")["token"], host)
    assert console("site", "approve", "st-mary", stdin="n\n").exit_code == 1
    assert console.json("site", "list")[0]["standing"] == "pending"
    assert console("site", "approve", "st-mary", stdin="y\n").exit_code == 0
    assert console.json("site", "list")[0]["standing"] == "approved"


def test_automatic_approval_needs_no_telephone(console: Console, host: Host) -> None:
    token = console.json("site", "invite", "st-mary", "--auto-approve")["token"]
    assert console.join(token, host).HasField("pending")
    console.sign_roster()
    assert console.join(token, host).HasField("credentials")


def test_a_site_that_does_not_exist_is_refused_in_one_line(console: Console) -> None:
    for command in (["site", "approve", "nobody"], ["site", "revoke", "nobody"], ["site", "invite", "No Body"]):
        told = console.refused(*command)
        assert told.startswith("Error: ")
        assert "Traceback" not in told


# --- the roster and its custodian ---


def approved(console: Console, host: Host, name: str = "st-mary") -> None:
    console.join(console.json("site", "invite", name, "--auto-approve")["token"], host)


def test_a_change_of_the_roster_goes_out_is_read_signed_and_comes_back(
    console: Console, host: Host, other_host: Host
) -> None:
    approved(console, host)
    approved(console, other_host, "charite")
    console.sign_roster()
    console("site", "revoke", "charite")
    assert "it removes charite" in console.json("roster", "show")["notices"][0]
    request = console.folder / "roster.request"
    assert "removes charite" in console("roster", "export", str(request)).stdout
    assert "removes     charite" in console.custodian.succeeds("review", str(request))
    assert "removes charite" in console("roster", "import", str(console.custodian.sign(request))).stdout
    shown = console.json("roster", "show")
    assert (shown["epoch"], list(shown["sites"])) == (2, ["st-mary"])
    assert (shown["awaits_signature"], shown["notices"]) == (None, [])
    [row] = console.json("audit", "--subject", "roster:2")
    assert (row["before"], row["after"]) == ("epoch 1", "epoch 2")
    assert row["why"] == "signed by the custodian: removes charite"


def test_an_import_that_is_a_request_foreign_or_in_force_already_changes_nothing(console: Console, host: Host) -> None:
    approved(console, host)
    request = console.folder / "roster.request"
    console("roster", "export", str(request))
    assert "expected a signed roster" in console.refused("roster", "import", str(request))
    foreign = Program.begin(console.folder / "stranger").sign(request)
    assert "signed by the expected key" in console.refused("roster", "import", str(foreign))
    assert console.json("roster", "show")["epoch"] is None
    signed = console.custodian.sign(request)
    assert console("roster", "import", str(signed)).exit_code == 0
    assert "in force already" in console.refused("roster", "import", str(signed))
    assert "There is no roster" not in console("roster", "show").stdout


def test_without_any_change_an_export_asks_for_new_dates(console: Console, host: Host) -> None:
    approved(console, host)
    console.sign_roster()
    assert "lists the same sites" in console("roster", "export", str(console.folder / "roster.request")).stdout
    console.sign_roster()
    assert console.json("roster", "show")["epoch"] == 2


def test_the_coordinator_is_warned_thirty_days_before_the_roster_ends(console: Console, host: Host) -> None:
    approved(console, host)
    app = open_context(load_settings(console.config))
    authority = Authority(app.settings.state.folder / "ca", app.clock)
    for days, said in ((31, []), (29.5, ["in 29 days"]), (-1, ["no site takes part"])):
        key = sealed_key.unseal(console.custodian.folder / "custodian.key", PASSPHRASE)
        began = app.clock() - timedelta(days=2)
        sign_pending(app.store, authority, began, key, days=days + 2)
        notices = console.json("roster", "show")["notices"]
        assert [text for text in said if text in " ".join(notices)] == said
        assert len(notices) == len(said)
        assert console("site", "list").stderr.splitlines() == notices
    app.store.close()


def test_init_takes_the_public_key_of_a_custodian_and_nothing_else(fresh: Console) -> None:
    for path in (fresh.config, fresh.folder / "missing.pub", fresh.folder / "custodian" / "custodian.json"):
        assert "expected the custodian.pub" in fresh.refused("init", "--custodian", str(path))
    assert fresh("init").exit_code == 2  # there is no other way to make a custodian
    assert fresh.json(*fresh.init)["custodian_words"] in fresh.custodian.succeeds("show")


# --- runs and models ---


def test_a_run_starts_pauses_resumes_and_aborts(with_run: Console) -> None:
    states = []
    for verb in (None, ["pause"], ["resume"], ["abort", "--yes"]):
        if verb is not None:
            assert with_run("run", *verb).exit_code == 0
        states.append(with_run.json("run", "status")["state"])
    assert states == ["running", "paused", "running", "aborted"]
    [only] = with_run.json("run", "status")["rounds"]
    assert (only["round"], only["state"]) == (1, "abandoned")
    assert "aborted" in with_run("run", "status").stdout


def test_the_wrong_state_or_a_second_run_is_refused(with_run: Console) -> None:
    assert "it is running" in with_run.refused("run", "resume")
    again = ["run", "start", with_run.signed_plan(), "--model", str(with_run.folder / "initial.safetensors"), "--force"]
    assert "one run at a time" in with_run.refused(*again)
    with_run("run", "abort", "--yes")
    assert "it is aborted" in with_run.refused("run", "pause")
    assert with_run(*again).exit_code == 0


def test_a_run_is_chosen_by_the_beginning_of_its_id(with_run: Console) -> None:
    run_id = with_run.json("run", "status")["run"]
    assert with_run.json("run", "status", "--run", run_id[:6])["run"] == run_id
    assert "see `run list`" in with_run.refused("run", "status", "--run", "zz")
    assert [row["run"] for row in with_run.json("run", "list")] == [run_id]
    assert run_id in with_run("run", "status").stdout


def test_without_any_run_status_says_how_to_begin_one(console: Console) -> None:
    assert "run start" in console.refused("run", "status")


def test_a_plan_that_cannot_be_is_refused_and_never_reaches_the_custodian(with_run: Console) -> None:
    plan, request = with_run.folder / "plan.toml", with_run.folder / "another.request"
    plan.write_text(PLAN + "[cohort]\nminimum = 1\n")
    model = str(with_run.folder / "initial.safetensors")
    assert "cohort.minimum" in with_run.refused("plan", "export", str(plan), str(request), "--model", model)
    assert not request.exists()


def test_a_run_begins_with_a_plan_that_this_custodian_signed_and_no_other(with_run: Console) -> None:
    with_run("run", "abort", "--yes")
    model, plan = str(with_run.folder / "initial.safetensors"), with_run.folder / "plan.toml"
    assert "expected a file of" in with_run.refused("run", "start", str(plan), "--model", model)
    request = with_run.folder / "plan.request"
    assert "expected a signed plan" in with_run.refused("run", "start", str(request), "--model", model)
    foreign = Program.begin(with_run.folder / "stranger").sign(request)
    assert "signed by the expected key" in with_run.refused("run", "start", str(foreign), "--model", model)
    assert [row["state"] for row in with_run.json("run", "list")] == ["aborted"]


def test_models_are_listed_and_exported_after_their_digest_was_checked(with_run: Console) -> None:
    [listed] = with_run.json("model", "list")
    out = with_run.folder / "out.safetensors"
    exported = with_run.json("model", "export", str(out))
    assert exported["model_digest"] == listed["model_digest"] == load_model(out).digest.hex()
    description = load_description(out)
    assert description is not None
    assert (description.architecture, description.round) == ("lite", 0)
    assert len(description.plan_digest) == 64
    assert description.parts == "h"  # as the initial model said: the next run may train some tensors of this one
    assert "made no model" in with_run.refused("model", "export", str(out), "--round", "7")
    assert "no folder" in with_run.refused("model", "export", str(out.parent / "absent" / "m.safetensors"))
    assert with_run("model", "export", str(out.parent)).exit_code == 2  # a folder is no file: wrong usage


def test_a_damaged_model_is_not_exported(with_run: Console) -> None:
    [stored] = [path for path in (with_run.folder / "state" / "blobs" / "whole").rglob("*") if path.is_file()]
    stored.write_bytes(stored.read_bytes()[:-1] + b"\xff")
    out = with_run.folder / "out.safetensors"
    assert "model file" in with_run.refused("model", "export", str(out))
    assert sorted(path.name for path in with_run.folder.glob("*out*")) == []


def test_another_model_under_a_models_name_is_not_exported(with_run: Console) -> None:
    """A state folder put together from two backups: the file is a sound model, but not that one."""
    [stored] = [path for path in (with_run.folder / "state" / "blobs" / "whole").rglob("*") if path.is_file()]
    save_model(stored, Model(Manifest((TensorSpec("w", (5,)),)), np.zeros(5, np.float32)))
    out = with_run.folder / "out.safetensors"
    assert "expected model" in with_run.refused("model", "export", str(out))
    assert not out.exists()


def test_a_disk_without_room_is_one_sentence_and_leaves_nothing_half_written(with_run: Console) -> None:
    out = with_run.folder / "out.safetensors"
    app = open_context(load_settings(with_run.config))
    with app.store.read() as session:
        assert run_rows.all_runs(session)  # as long as somebody reads it, the database needs no new file to be read
        with file_size_limit(64):
            told = with_run.refused("model", "export", str(out))
    app.store.close()
    assert "File too large" in told
    assert sorted(path.name for path in with_run.folder.glob("*out*")) == []


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Writes beyond it fail with EFBIG, as they would with ENOSPC on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- people ---


def test_administrators_are_added_listed_and_removed(console: Console) -> None:
    assert console("admin", "add", "ada", "--password-stdin", stdin="correct horse battery\n").exit_code == 0
    assert [row["name"] for row in console.json("admin", "list")] == ["ada"]
    assert "exists" in console.refused("admin", "add", "ada", "--password-stdin", stdin="correct horse battery\n")
    assert "at least 12" in console.refused("admin", "add", "bob", "--password-stdin", stdin="short\n")
    assert console("admin", "remove", "ada").exit_code == 0
    assert "no administrator" in console.refused("admin", "remove", "ada")
    assert console.json("admin", "list") == []


def test_the_installed_command_works_from_another_process_beside_this_one(console: Console, host: Host) -> None:
    """What a coordinator does while `serve` runs: two processes, one state folder."""
    environment = {**os.environ, "HEMOFED_AGGREGATOR_CONFIG": str(console.config)}
    command = [sys.executable, "-c", "from aggregator.cli import main; main()"]

    def other(*arguments: str) -> str:
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    token = json.loads(other("site", "invite", "st-mary", "--auto-approve", "--json"))["token"]
    assert console.join(token, host).HasField("pending")
    other("site", "revoke", "st-mary")
    assert console.json("site", "list")[0]["standing"] == "revoked"

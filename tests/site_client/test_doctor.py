"""The doctor's other half, the units, the whole command, and what its bundle must not hold."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from site_client.check_result import CheckResult, Color, from_json_line, green, red, to_json_line
from site_client.config import FoldersSettings, IdleSettings, SiteSettings, TrainingSettings, load
from site_client.doctor import command, units
from site_client.doctor.bundle import bundle
from site_client.doctor.compute.checks import TorchCuda, check_gpu
from site_client.doctor.data import checks as data
from site_client.prove.search import findings, spellings
from site_client.trainer.idle.readings import NEVER_S, GpuUse, Signals, Unknown

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "deploy" / "systemd"


@pytest.fixture
def settings(tmp_path: Path) -> SiteSettings:
    (tmp_path / "export").mkdir()
    folders = FoldersSettings(tmp_path / "state", tmp_path / "spool", tmp_path / "export", (), tmp_path / "cache")
    return SiteSettings("mercy", folders=folders, training=TrainingSettings(device="cpu"))


def colors(lines: list[CheckResult]) -> dict[str, Color]:
    return {line.check: line.color for line in lines}


def test_an_export_that_is_missing_empty_or_writable_is_red(settings: SiteSettings) -> None:
    export = settings.folders.export
    assert "empty" in next(data.check_export(export)).found
    (export / "DOE_JOHN").mkdir()
    (export / "DOE_JOHN" / "1").write_bytes(b"x")
    lines = list(data.check_export(export))
    assert colors(lines) == {"export": Color.GREEN, "export is read-only": Color.RED}
    assert lines[1].fix == "Mount it read-only (ro)"
    assert "DOE" not in str(lines)
    (line,) = data.check_export(export / "nowhere")
    assert (line.color, "hemofed-trainer" in line.fix) == (Color.RED, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_files_that_the_service_cannot_read_are_counted_and_the_group_to_join_is_named(
    settings: SiteSettings, tmp_path: Path
) -> None:
    export = settings.folders.export
    for number in range(3):
        (export / str(number)).write_bytes(b"x")
        (export / str(number)).chmod(0o640 if number else 0o644)
    for folder in (export, *export.parents[:-2]):  # down from the folder of temporary files, which all may enter
        folder.chmod(folder.stat().st_mode | 0o055)
    lines = as_nobody(lambda: list(data.check_export(export)))
    assert lines[0].found == "2 of 3 files looked at cannot be read"
    assert "SupplementaryGroups=root" in lines[0].fix
    assert lines[1].found == "nothing in it can be written from here"


def as_nobody(look: Callable[[], list[CheckResult]]) -> list[CheckResult]:
    """What a child process sees that has given up root."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        os.write(writer, "\n".join(to_json_line(line) for line in look()).encode())
        os._exit(0)
    os.close(writer)
    os.wait()
    with os.fdopen(reader) as pipe:
        return [from_json_line(line) for line in pipe.read().splitlines()]


def test_disk_room_is_held_against_what_the_cache_may_grow_to(settings: SiteSettings) -> None:
    wants = replace(settings, training=TrainingSettings(cache_max_gib=100_000.0))
    (line,) = [one for one in data.check_disk(wants) if one.color is Color.RED]
    assert line.fix.endswith("GiB or lower training.cache_max_gib")
    small = replace(settings, training=TrainingSettings(cache_max_gib=0.1), idle=IdleSettings(disk_free_min_gib=0))
    assert {line.color for line in data.check_disk(small)} == {Color.GREEN}


def test_a_signal_that_denies_is_red_and_one_that_does_not_is_grey(settings: SiteSettings) -> None:
    known = Signals(0.0, 0.0, 0.0, 8.0, GpuUse(0, 0), NEVER_S, NEVER_S, False, False, 40.0, 9.0, frozenset())
    assert [line.color for line in data.check_signals(settings, known)] == [Color.GREEN]
    gone = Unknown("no such daemon")
    lines = list(data.check_signals(settings, replace(known, on_battery=gone, user_idle_s=gone)))
    assert [(line.color, line.fix.split(";")[0]) for line in lines[:2]] == [
        (Color.GREY, "Enable systemd-logind and D-Bus"),
        (Color.RED, "Install and enable upower"),
    ]
    careless = replace(settings, idle=IdleSettings(battery="ignore"))
    assert Color.RED not in {line.color for line in data.check_signals(careless, replace(known, on_battery=gone))}


def test_the_gpu_s_kernel_module_is_asked_for_only_where_there_is_a_driver(tmp_path: Path) -> None:
    wants = SiteSettings("mercy", training=TrainingSettings(device="cuda"))
    assert next(check_gpu(wants, tmp_path, tmp_path)).color is Color.RED
    assert next(check_gpu(SiteSettings("mercy"), tmp_path, tmp_path)).color is Color.GREY
    (tmp_path / "driver" / "nvidia").mkdir(parents=True)
    (tmp_path / "driver" / "nvidia" / "version").touch()
    assert "nvidia_uvm at boot" in next(check_gpu(wants, tmp_path, tmp_path)).fix


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize(
    ("cuda", "color", "words"),
    [
        (TorchCuda(None, 0), Color.RED, "there is a card, and this package's PyTorch has no CUDA"),
        (TorchCuda("12.8", 0), Color.RED, "there is a card, and PyTorch with CUDA 12.8 cannot use it"),
        (TorchCuda("12.8", 1), Color.GREEN, "PyTorch with CUDA 12.8 can use 1 card"),
    ],
)
def test_where_there_is_a_card_pytorch_itself_is_asked(
    tmp_path: Path, device: Literal["auto", "cuda"], cuda: TorchCuda, color: Color, words: str
) -> None:
    (tmp_path / "driver" / "nvidia").mkdir(parents=True)
    (tmp_path / "driver" / "nvidia" / "version").touch()
    (tmp_path / "nvidia-uvm").touch()
    settings = SiteSettings("mercy", training=TrainingSettings(device=device))
    (result,) = check_gpu(settings, tmp_path, tmp_path, lambda: cuda)
    assert (result.color, result.found) == (color, words)


def test_this_machine_s_own_pytorch_answers() -> None:
    import torch

    cuda = TorchCuda.here()
    assert (cuda.cards > 0) == torch.cuda.is_available()
    assert cuda.version is not None or cuda.cards == 0


def test_no_advice_of_doctor_or_idle_gate_is_from_the_world_of_pip() -> None:
    sources = [*(ROOT / "site_client" / "doctor").rglob("*.py"), *(ROOT / "site_client" / "trainer").rglob("*.py")]
    assert [path.name for path in sources if re.search(r"pip install|hemofed\[", path.read_text())] == []


def test_every_decoder_the_package_ships_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [line.color for line in data.check_decoders()] == [Color.GREEN]
    monkeypatch.setattr(data, "has_decoder", lambda syntax: not str(syntax).endswith(".70"))
    (line,) = data.check_decoders()
    assert line.fix == "Install python-gdcm; series in it wait until then"


# Units.


@pytest.mark.parametrize(
    ("unit", "text", "weakened"),
    [
        ("hemofed-trainer", "PrivateNetwork=no", ["PrivateNetwork"]),
        ("hemofed-trainer", "RestrictAddressFamilies=AF_INET", ["RestrictAddressFamilies"]),
        ("hemofed-trainer", "IPAddressAllow=any", ["IPAddressAllow"]),
        ("hemofed-trainer", "User=root", ["User"]),
        ("hemofed-trainer", "ProtectSystem=full\nSystemCallFilter=", ["ProtectSystem", "SystemCallFilter"]),
        ("hemofed-agent", "InaccessiblePaths=", ["InaccessiblePaths"]),
        ("hemofed-agent", "BindReadOnlyPaths=/srv/export", ["BindReadOnlyPaths"]),
        ("hemofed-agent", "CapabilityBoundingSet=CAP_SYS_ADMIN", ["CapabilityBoundingSet"]),
        # What the documentation tells people to set.
        ("hemofed-agent", "IPAddressDeny=any\nIPAddressAllow=192.0.2.7\nInaccessiblePaths=/pacs", []),
        ("hemofed-trainer", "SupplementaryGroups=pacs\nReadOnlyPaths=/pacs\nProtectProc=default", []),
        ("hemofed-trainer", "DeviceAllow=char-nvidia* rw\nPrivateDevices=no\nMemoryDenyWriteExecute=no", []),
    ],
)
def test_a_drop_in_that_opens_the_wall_is_told_from_one_that_does_not(
    unit: str, text: str, weakened: list[str]
) -> None:
    assert list(units.weakens(unit, f"[Service]\n{text}\n")) == weakened


def test_the_units_of_the_package_weaken_nothing_of_their_own() -> None:
    for unit in units.UNITS:
        assert list(units.weakens(unit, (UNITS / f"{unit}.service").read_text())) == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze not installed")
def test_installed_units_have_a_score_and_their_drop_ins_are_looked_at(tmp_path: Path) -> None:
    etc, lib = tmp_path / "etc", tmp_path / "lib"
    shutil.copytree(UNITS, lib)
    lines = list(units.check_units((etc, lib)))
    scores = [line for line in lines if line.check == "hardening"]
    assert [line.color for line in scores] == [Color.GREEN, Color.GREEN]
    assert ["of 10, at most 1.2" in scores[0].found, "of 10, at most 0.6" in scores[1].found] == [True, True]
    folder = etc / "hemofed-trainer.service.d"
    folder.mkdir(parents=True)
    (folder / "pacs.conf").write_text("[Service]\nPrivateNetwork=no\n")
    lines = list(units.check_units((etc, lib)))
    (line,) = [one for one in lines if one.check == "drop-ins"]
    worse = [one for one in lines if one.check == "hardening"][1]
    assert worse.color is Color.RED  # the drop-in counts
    assert (line.color, line.fix) == (Color.RED, f"Remove PrivateNetwork from {folder / 'pacs.conf'}")


# The command, and its bundle.


CANARY_USER, CANARY_SECRET, CANARY_HOST = "canary-user-7f3a", "canary-secret-91bd", "canary-gateway.hospital.example"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    export = tmp_path / "CANARYPATIENT^ANNA" / "export"
    export.mkdir(parents=True)
    (export / "CANARYPATIENT^ANNA.dcm").write_bytes(b"CANARYPATIENT^ANNA")
    (export / "CANARYPATIENT.csv").write_text("StudyInstanceUID,any\nCANARYPATIENT^ANNA,1\n")
    path = tmp_path / "site.toml"
    path.write_text(
        f'name = "canary-site"\n[aggregator]\naddress = "{CANARY_HOST}:443"\n'
        f'proxy = "http://{CANARY_USER}:{CANARY_SECRET}@127.0.0.1:9"\n'
        f'[folders]\nstate = "state"\nspool = "spool"\ncache = "cache"\nexport = "{export}"\n'
        'labels = ["CANARYPATIENT-labels.csv"]\n'
        '[training]\ndevice = "cpu"\n[idle]\nexclusive_programs = ["canary-viewer"]\n'
    )
    return path


def test_the_command_says_every_half_exits_by_color_and_its_bundle_holds_no_canary(config: Path) -> None:
    out = config.parent / "bundle.json"
    arguments = ["doctor", "--quick", "--json", "--bundle", str(out), "--config", str(config)]
    done = subprocess.run(
        [sys.executable, "-m", "site_client.cli", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    lines = json.loads(done.stdout)
    assert {"configuration", "dns", "connection", "export", "labels", "signals", "units"} <= {
        line["check"] for line in lines
    }
    assert CANARY_SECRET not in done.stdout + done.stderr
    canaries = ["CANARYPATIENT", CANARY_USER, CANARY_SECRET, CANARY_HOST, "canary-site", "canary-viewer"]
    assert findings(spellings(canaries), [out]) == []
    told = json.loads(out.read_text())
    assert told["settings"]["aggregator"] == {"address": "given", "enrolment_address": "empty", "proxy": "given"}
    assert len(told["checks"]) == len(lines)


def test_a_bundle_takes_out_addresses_paths_and_names_even_where_a_check_quotes_them(config: Path) -> None:
    lines = [
        red(
            "a", f"{CANARY_HOST}:443 at 192.0.2.77 and fe80::1:2 refused {CANARY_USER}", f"chmod 0600 {config.parent}/x"
        ),
        red("b", "issued by CN=CANARYPATIENT", "ask CANARYPATIENT", local=True),
        green("c", "12 entries"),
    ]
    text = bundle(load(config), lines).decode()
    for gone in (CANARY_HOST, "192.0.2.77", "fe80", CANARY_USER, str(config.parent), "CANARYPATIENT"):
        assert gone not in text
    assert "12 entries" in text


def test_a_site_toml_that_cannot_be_used_is_one_red_line(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text('name = "mercy"\n[aggregator]\nproxy = "https://proxy:3128"\n')
    (line,) = command.examine(path)
    assert (line.color, line.fix) == (Color.RED, "Use http://, not https://")
    assert command.exit_status([line]) == 2
    assert command.exit_status([green("a", "b")]) == 0

"""A package with the real scripts and a program of one line, and a root file system that forgets what is done to it.

The root is this machine's own, under an overlay in memory, in a mount namespace of its own: dpkg, sysusers, userdel and
find are real. `systemctl` is a script that keeps a file for each unit that "runs" and starts what the unit would.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

DEB: Final = Path(__file__).parents[2] / "deploy" / "deb"
NEEDED: Final = ("unshare", "dpkg-deb", "systemd-sysusers", "systemd-tmpfiles", "userdel")
UNITS: Final = ("hemofed-agent.service", "hemofed-trainer.service")
_SYSTEMCTL: Final = """#!/bin/sh
echo "$*" >>/var/log/systemctl
command=$1
shift
for unit; do
  case $command in
    is-active) [ "$unit" = --quiet ] || [ -e "/var/active/$unit" ] || exit 3 ;;
    start | restart) version=$(/usr/bin/hemofed-site --version) && echo "$version" >"/var/active/$unit" || exit 1 ;;
    stop) rm -f "/var/active/$unit" ;;
  esac
done
"""


def missing() -> str:
    """Why there is no such root here; empty when nothing is known to be in the way."""
    absent = [tool for tool in NEEDED if shutil.which(tool) is None]
    if os.geteuid() != 0:
        return "only root can mount"
    if absent:
        return f"not installed: {', '.join(absent)}"
    tried = subprocess.run(["unshare", "-m", "sh", "-c", _MOUNT, "sh", "/mnt"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else "no overlay can be mounted here"


_MOUNT: Final = """set -e
mount --make-rprivate /
mount -t tmpfs -o size=512m tmpfs "$1"
mkdir "$1/up" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/up,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount --bind /dev "$1/root/dev"
# What a machine of a hospital does not have, and `find` would look through.
for big in work root tmp home mnt srv var/tmp; do
  mkdir -p "$1/root/$big"
  mount -t tmpfs tmpfs "$1/root/$big"
done
"""


class Root:
    """The root file system, for as long as a process holds its mount namespace."""

    def __init__(self, holder: int, folder: Path) -> None:
        self._inside = ["nsenter", "-t", str(holder), "-m", "--", "chroot", str(folder / "root")]

    def start(self, command: str) -> "subprocess.Popen[str]":
        """Start a shell command inside, in a process group of its own."""
        environment = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}
        return subprocess.Popen(
            [*self._inside, "sh", "-c", command],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True,
        )  # fmt: skip

    def run(self, command: str, *, good: bool = True) -> str:
        """Run a shell command inside; gives its output."""
        with self.start(command) as process:
            output, _ = process.communicate(timeout=120)
        assert process.returncode == 0 or not good, f"{command}: {output}"
        return output

    def give(self, source: Path) -> str:
        """Copy a file in; gives its path there."""
        inside = f"/var/tmp/{source.name}"
        subprocess.run([*self._inside, "sh", "-c", f"cat >{inside}"], input=source.read_bytes(), check=True)
        return inside

    def kill(self, process: "subprocess.Popen[str]") -> None:
        """Kill a command with all that it started, as a power cut does."""
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@contextmanager
def fresh_root(folder: Path) -> Iterator[Root]:
    """A root in which systemd seems to run."""
    folder.mkdir()
    script = f"{_MOUNT}\necho ready\nexec sleep infinity"
    holder = subprocess.Popen(["unshare", "-m", "sh", "-c", script, "sh", str(folder)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        root = Root(holder.pid, folder)
        root.run(
            "rm -f /var/lib/dpkg/lock* && mkdir -p /run/systemd/system /var/active && "
            f"cat >/usr/local/bin/systemctl <<'EOF'\n{_SYSTEMCTL}EOF\nchmod 755 /usr/local/bin/systemctl"
        )
        yield root
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()


# As 0.1.0 had them: both units stop before the unpacking, and dpkg owns the folder of the version.
_SCRIPTS_OF_0_1_0: Final = {
    "prerm": """#!/bin/sh
set -e
if [ "$1" = remove ] || [ "$1" = upgrade ]; then
  for unit in hemofed-trainer.service hemofed-agent.service; do
    if systemctl is-active --quiet "$unit"; then echo "$unit" >>/run/hemofed.stopped; fi
    systemctl stop "$unit"
  done
fi
""",
    "postinst": """#!/bin/sh
set -e
systemd-sysusers hemofed.conf
systemd-tmpfiles --create hemofed.conf
ln -sfn @VERSION@ /opt/hemofed/current
""",
}


def build(out: Path, version: str, *, is_0_1_0: bool = False) -> Path:
    """Build a package of this version, with the scripts as they are now or as 0.1.0 had them."""
    tree = out / version
    home = tree / "opt" / "hemofed" / (version if is_0_1_0 else "package")
    (home / "bin").mkdir(parents=True)
    (home / "lib").mkdir()
    program = home / "bin" / "hemofed-site"
    program.write_text(f'#!/bin/sh\ncat "/opt/hemofed/{version}/lib/0.py" >/dev/null && echo {version}\n')
    program.chmod(0o755)
    if not is_0_1_0:
        (home / "lib/site_client/agent/egress").mkdir(parents=True)
        (home / "lib/site_client/agent/egress/segments.py").touch()
    for number in range(40):  # of another content in each version
        (home / "lib" / f"{number}.py").write_text(f"version = {version!r}\n")
    places = {
        "usr/lib/sysusers.d/hemofed.conf": DEB / "sysusers.conf",
        "usr/lib/tmpfiles.d/hemofed.conf": DEB / "tmpfiles.conf",
        "usr/lib/hemofed/switch.sh": DEB / "switch.sh",
        "usr/sbin/hemofed-rollback": DEB / "rollback.sh",
        "etc/hemofed/site.toml": DEB.parent / "site.toml",
        **{f"lib/systemd/system/{unit}": DEB.parent / "systemd" / unit for unit in UNITS},
    }
    for name, source in places.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tree / name)
    (tree / "usr/sbin/hemofed-rollback").chmod(0o755)
    (tree / "usr/bin").mkdir()
    (tree / "usr/bin/hemofed-site").symlink_to("/opt/hemofed/current/bin/hemofed-site")
    control = tree / "DEBIAN"
    control.mkdir()
    facts = {"Package": "hemofed-site", "Version": version, "Architecture": "amd64", "Maintainer": "tests"}
    control.joinpath("control").write_text(
        "".join(f"{key}: {value}\n" for key, value in facts.items()) + "Description: the scripts\n"
    )
    control.joinpath("conffiles").write_text("/etc/hemofed/site.toml\n")
    scripts = {name: (DEB / name).read_text() for name in ("preinst", "postinst", "prerm", "postrm")}
    for name, text in (_SCRIPTS_OF_0_1_0 if is_0_1_0 else scripts).items():
        control.joinpath(name).write_text(text.replace("@VERSION@", version))
        control.joinpath(name).chmod(0o755)
    package = out / f"hemofed-site_{version}_amd64.deb"
    # Whatever the umask of this process is.
    subprocess.run(["chmod", "-R", "u=rwX,go=rX", str(tree)], check=True)
    command = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(package)]
    subprocess.run(command, check=True, capture_output=True)
    return package

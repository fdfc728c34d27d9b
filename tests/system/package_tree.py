"""A package of either side: the real scripts, and a program of one line. And a root file system that forgets.

The root is this machine's own, under an overlay in memory, in a mount namespace of its own: dpkg, sysusers, userdel and
find are real. `systemctl` is a script that keeps a file for each unit that "runs" and starts what the unit would.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
    start | restart) program=hemofed-site
      case $unit in *aggregator*) program=hemofed-aggregator ;; esac
      version=$("/usr/bin/$program" --version) && echo "$version" >"/var/active/$unit" || exit 1 ;;
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
umask 022 # as a machine was installed, whatever this process has
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


# Whatever it is asked for, but that it refuses to read what a newer version has written.
_PROGRAM: Final = """#!/bin/sh
cat "{home}/{version}/lib/0.py" >/dev/null || exit 1
if [ "$1" != --version ] && [ -e /var/lib/hemofed-aggregator/of-a-newer-version ]; then
  echo "expected a database of another revision" >&2
  exit 1
fi
echo {version}
"""
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


@dataclass(frozen=True)
class Side:
    """The facts of a package, as `package.sh` has them."""

    name: str  # the folder of deploy/deb

    def fact(self, key: str) -> str:
        """A variable of package.sh or contents.sh."""
        script = f'. "$1/package.sh"; . "$1/contents.sh"; printf %s "${key}"'
        done = subprocess.run(["sh", "-c", script, "sh", DEB / self.name], capture_output=True, text=True, check=True)
        return done.stdout

    def render(self, script: str, version: str) -> str:
        """A script as the package has it."""
        command = [str(DEB / "render.sh"), self.name, version, script]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def scripts(self) -> list[str]:
        """The names of those that dpkg runs."""
        names = ("preinst", "postinst", "prerm", "postrm")
        return [name for name in names if (DEB / self.name / name).exists() or (DEB / name).exists()]


SITE: Final = Side("site")
AGGREGATOR: Final = Side("aggregator")


def build(out: Path, version: str, *, side: Side = SITE, is_0_1_0: bool = False) -> Path:
    """Build a package of this version, with the scripts as they are now or as 0.1.0 had them."""
    tree = out / side.name / version
    home, program, rollback, doc = (side.fact(key) for key in ("home", "program", "rollback", "doc"))
    folder = tree / home.lstrip("/") / (version if is_0_1_0 else "package")
    (folder / "bin").mkdir(parents=True)
    (folder / "lib").mkdir()
    script = folder / "bin" / program
    script.write_text(_PROGRAM.format(home=home, version=version))
    script.chmod(0o755)
    if not is_0_1_0:
        (folder / "lib/site_client/agent/egress").mkdir(parents=True)
        (folder / "lib/site_client/agent/egress/segments.py").touch()
    for number in range(40):  # of another content in each version
        (folder / "lib" / f"{number}.py").write_text(f"version = {version!r}\n")
    own, settings = DEB / side.name, side.fact("settings").split()[0]
    units = [unit for unit in side.fact("units").split() if unit != "hemofed-receiver.service"]
    places = {
        f"usr/lib/sysusers.d/{doc}.conf": (own / "sysusers.conf").read_text(),
        f"usr/lib/tmpfiles.d/{doc}.conf": (own / "tmpfiles.conf").read_text(),
        f"usr/sbin/{rollback}": side.render("rollback.sh", version),
        f"etc/hemofed/{settings}": (DEB.parent / settings).read_text(),
        **{f"lib/systemd/system/{unit}": (DEB.parent / "systemd" / unit).read_text() for unit in units},
    }
    for name, text in places.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    (tree / "usr/sbin" / rollback).chmod(0o755)
    (tree / "usr/bin").mkdir()
    (tree / "usr/bin" / program).symlink_to(f"{home}/current/bin/{program}")
    control = tree / "DEBIAN"
    control.mkdir()
    package = side.fact("package")
    facts = {"Package": package, "Version": version, "Architecture": "amd64", "Maintainer": "tests"}
    control.joinpath("control").write_text(
        "".join(f"{key}: {value}\n" for key, value in facts.items()) + "Description: the scripts\n"
    )
    control.joinpath("conffiles").write_text(f"/etc/hemofed/{settings}\n")
    scripts = {name: side.render(name, version) for name in side.scripts()}
    for name, text in (_SCRIPTS_OF_0_1_0 if is_0_1_0 else scripts).items():
        control.joinpath(name).write_text(text.replace("@VERSION@", version))
        control.joinpath(name).chmod(0o755)
    file = out / f"{package}_{version}_amd64.deb"
    # Whatever the umask of this process is.
    subprocess.run(["chmod", "-R", "u=rwX,go=rX", str(tree)], check=True)
    command = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(file)]
    subprocess.run(command, check=True, capture_output=True)
    return file

#!/usr/bin/env bash
# Make or refresh ./.venv from pinned requirements: deploy/venv.sh run | dev
#
# The two README commands call this. PyTorch comes first and only ever as the CPU build: deploy/constraints.txt pins
# "+cpu", which no CUDA wheel satisfies, so nothing that is installed later can pull one.
set -euo pipefail
set_name=${1:?usage: deploy/venv.sh run|dev}
root=$(cd "$(dirname "$0")/.." && pwd)
venv=$root/.venv
torch=$(grep '^torch==' "$root/deploy/constraints.txt")
cpu_wheels=https://download.pytorch.org/whl/cpu

say() { echo "hemofed: $*" >&2; }

find_python() {
  local candidate
  for candidate in python3.11 python3.12 python3.13 python3; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  say "expected Python 3.11 or newer with venv, found none; on Debian 12 run: apt install python3-venv"
  exit 1
}

exec 9>"$root/.venv.lock"
flock 9 # two commands started side by side install once

stamp=$venv/.installed-$set_name
wanted=$(cat "$root/pyproject.toml" "$root/deploy/constraints.txt" "$0" | sha256sum)
if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then exit 0; fi

[[ -x $venv/bin/python ]] || "$(find_python)" -m venv "$venv"
say "installing pinned requirements into .venv (once; a few minutes)"
pip=("$venv/bin/python" -m pip --disable-pip-version-check --quiet)
"${pip[@]}" install 'pip==26.0' 2> >(grep -v WARNING >&2)
if ! "${pip[@]}" install -c "$root/deploy/constraints.txt" "$torch" 2>/dev/null; then
  "${pip[@]}" install -c "$root/deploy/constraints.txt" --extra-index-url "$cpu_wheels" "$torch"
fi
groups=()
if [[ $set_name == dev ]]; then groups=(--group "$root/pyproject.toml:dev"); fi
"${pip[@]}" install -c "$root/deploy/constraints.txt" -e "$root[simulate]" "${groups[@]}" 2> >(grep -v WARNING >&2)

if "$venv/bin/python" -m pip list --disable-pip-version-check 2>/dev/null | grep -qi '^nvidia-'; then
  say "CUDA packages were installed, which must not happen; remove .venv and report this"
  exit 1
fi
echo "$wanted" >"$stamp"

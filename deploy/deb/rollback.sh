#!/bin/sh
# hemofed-rollback: back to the version before the last upgrade, without a network. State stays as it is.
set -e
[ "$(id -u)" = 0 ] || { echo "hemofed-rollback: run this as root" >&2; exit 1; }
running=$(readlink /opt/hemofed/current)
before=$(readlink /opt/hemofed/previous 2>/dev/null || true)
if [ -z "$before" ] || [ ! -x "/opt/hemofed/$before/bin/hemofed-site" ]; then
  echo "hemofed-rollback: there is no version before $running on this machine; install its .deb with dpkg -i" >&2
  exit 1
fi
/opt/hemofed/"$before"/bin/hemofed-site --version >/dev/null # it must still run before anything is stopped
python3.11 -m compileall -qq -j 0 "/opt/hemofed/$before/lib" || true # only the speed of the start depends on it
active=
for unit in hemofed-trainer.service hemofed-agent.service hemofed-receiver.service; do
  if systemctl is-active --quiet "$unit"; then active="$active $unit"; fi
done
[ -z "$active" ] || systemctl stop $active
ln -sfn "$before" /opt/hemofed/current
ln -sfn "$running" /opt/hemofed/previous
# A version before 0.2.0 has no receiver: it stays stopped then.
/opt/hemofed/"$before"/bin/hemofed-site receiver --help >/dev/null 2>&1 || active=$(echo "$active" | sed 's/ hemofed-receiver.service//')
[ -z "$active" ] || systemctl start $active
echo "hemofed-rollback: $running -> $before (again: back to $running)"

#!/bin/sh
# hemofed-aggregator-rollback: back to the version before the last upgrade, without a network. State stays as it is.
set -e
[ "$(id -u)" = 0 ] || { echo "hemofed-aggregator-rollback: run this as root" >&2; exit 1; }
#include package.sh
#include switch.sh
find_previous
# The newer version may have changed the tables or the settings: the older one is asked before anything is stopped.
if [ -e /var/lib/hemofed-aggregator/ca/ca.key ] &&
  ! runuser -u hemofed-aggregator -- "$home/$before/bin/$program" site list --json >/dev/null; then
  echo "hemofed-aggregator-rollback: $before cannot use what $running has written (above). Stop the service, move" >&2
  echo "/var/lib/hemofed-aggregator away, type this again, and restore the backup from before the upgrade" >&2
  echo "(/usr/share/doc/hemofed-aggregator/OPERATIONS.md, Rollback)" >&2
  exit 1
fi
switch_to "$before"
point previous "$running"
echo "hemofed-aggregator-rollback: $running -> $before (again: back to $running)"

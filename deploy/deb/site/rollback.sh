#!/bin/sh
# hemofed-rollback: back to the version before the last upgrade, without a network. State stays as it is.
set -e
[ "$(id -u)" = 0 ] || { echo "hemofed-rollback: run this as root" >&2; exit 1; }
#include package.sh
#include switch.sh
find_previous

write_state_of_0_1_0() ( # one ledger file, and state files without a checksum; each step may be repeated after a crash
  cd /var/lib/hemofed/agent 2>/dev/null || exit 0
  if [ -d ledger.segments ] && [ ! -d .joined ]; then
    for segment in ledger.segments/0*.jsonl ledger.jsonl; do
      # A sealing that was interrupted: both names are one file.
      if [ "$segment" = ledger.jsonl ] || [ ! "$segment" -ef ledger.jsonl ]; then cat "$segment"; fi
    done >.ledger.jsonl.joined
    chown --reference=ledger.jsonl .ledger.jsonl.joined
    chmod --reference=ledger.jsonl .ledger.jsonl.joined
    sync .ledger.jsonl.joined
    mv ledger.segments .joined
  fi
  if [ -d .joined ]; then
    [ ! -e .ledger.jsonl.joined ] || mv .ledger.jsonl.joined ledger.jsonl
    sync -f .
    rm -rf .joined
  fi
  find . -type f \( -name '*.json' -o -name '*.decision' -o -name '*.answer' \) -exec sed -i '2{/^[0-9a-f]\{64\}$/d}' {} +
  if [ "$(head -c 7 rounds/left_bases.bin 2>/dev/null)" = "sha256 " ]; then
    tail -c +40 rounds/left_bases.bin >rounds/.left_bases.bin.new
    chown --reference=rounds/left_bases.bin rounds/.left_bases.bin.new
    chmod --reference=rounds/left_bases.bin rounds/.left_bases.bin.new
    mv rounds/.left_bases.bin.new rounds/left_bases.bin
  fi
  sync -f .
)

if ! find "$home/$before/lib" -path '*/agent/egress/segments.py' | grep -q .; then
  stopped=$(running_units)
  [ -z "$stopped" ] || await_end_of_masking
  for unit in $stopped; do systemctl stop "$unit"; done
  write_state_of_0_1_0
  switch_to "$before"
  # 0.1.0 has no receiver.
  for unit in $stopped; do [ "$unit" = hemofed-receiver.service ] || systemctl start "$unit"; done
else
  switch_to "$before"
fi
point previous "$running"
echo "hemofed-rollback: $running -> $before (again: back to $running)"

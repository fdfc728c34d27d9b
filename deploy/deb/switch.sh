# Sourced by postinst and hemofed-rollback: which version runs, and how it changes.
#
#   /opt/hemofed/package      dpkg's files, replaced one by one while a version runs from its own folder
#   /opt/hemofed/<version>    hard links to them as they were; dpkg does not know these, so that no unpacking touches them
#   /opt/hemofed/current      the version that the units start
#   /opt/hemofed/previous     the version before, for hemofed-rollback
home=/opt/hemofed

point() { # point NAME VERSION: by a rename, so that at no moment there is none
  ln -sfn "$2" "$home/.$1.new"
  mv -T "$home/.$1.new" "$home/$1"
}

running_units() { # the agent first: others wait for it
  [ -d /run/systemd/system ] || return 0
  for unit in hemofed-agent.service hemofed-trainer.service hemofed-receiver.service; do
    if systemctl is-active --quiet "$unit"; then echo "$unit"; fi
  done
}

await_end_of_masking() { # a member that is away in a masking phase costs all hospitals an attempt; phases have deadlines
  left=${HEMOFED_MASKING_S:-900}
  while [ "$left" -gt 0 ] && systemctl is-active --quiet hemofed-agent.service &&
    grep -q '"state":"SITE_MASKING"' /var/lib/hemofed/agent/status.json 2>/dev/null; do
    [ "$left" != "${HEMOFED_MASKING_S:-900}" ] || echo "hemofed: a round is being masked; the services restart after it" >&2
    sleep 1
    left=$((left - 1))
  done
}

switch_to() { # switch_to VERSION: what runs is stopped for its own restart only
  units=$(running_units)
  [ -z "$units" ] || await_end_of_masking
  sync -f "$home" # the version's files before its name
  point current "$1"
  sync -f "$home"
  [ ! -d /run/systemd/system ] || systemctl daemon-reload
  for unit in $units; do systemctl restart "$unit"; done
}

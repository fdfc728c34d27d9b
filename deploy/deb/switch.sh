# In postinst and the rollback: which version runs, and how it changes. package.sh comes before.
#
#   $home/package      dpkg's files, replaced one by one while a version runs from its own folder
#   $home/<version>    hard links to them as they were; dpkg does not know these, so that no unpacking touches them
#   $home/current      the version that the units start
#   $home/previous     the version before, for the rollback

lay_out() { # lay_out VERSION: it gets its own folder; a crash in here leaves the version that runs as it is
  if [ -d "$home/$1" ] && diff -rq --exclude=__pycache__ "$home/package" "$home/$1" >/dev/null; then
    return 0 # installed again
  fi
  rm -rf "$home/.new" "$home/.old"
  cp -al "$home/package" "$home/.new"
  python3.11 -m compileall -qq -j 0 -s "$home/.new" -p "$home/$1" "$home/.new/lib" || true # only speed depends on it
  sync -f "$home"
  [ ! -d "$home/$1" ] || mv "$home/$1" "$home/.old"
  mv "$home/.new" "$home/$1"
  rm -rf "$home/.old"
}

keep_previous() { # keep_previous VERSION: one version before it is enough
  running=$(readlink "$home/current" 2>/dev/null || true)
  if [ -n "$running" ] && [ "$running" != "$1" ] && [ -d "$home/$running" ]; then point previous "$running"; fi
  before=$(readlink "$home/previous" 2>/dev/null || true)
  for older in "$home"/[0-9]*; do
    case $older in "$home/$1" | "$home/$before") ;; *) rm -rf "$older" ;; esac
  done
}

find_previous() { # sets running and before; ends the script where there is none that starts
  running=$(readlink "$home/current")
  before=$(readlink "$home/previous" 2>/dev/null || true)
  if [ -z "$before" ] || [ ! -x "$home/$before/bin/$program" ]; then
    echo "$rollback: there is no version before $running on this machine; install its .deb with dpkg -i" >&2
    exit 1
  fi
  "$home/$before/bin/$program" --version >/dev/null # it must still run before anything is stopped
  python3.11 -m compileall -qq -j 0 "$home/$before/lib" || true # only the speed of the start depends on it
}

point() { # point NAME VERSION: by a rename, so that at no moment there is none
  ln -sfn "$2" "$home/.$1.new"
  mv -T "$home/.$1.new" "$home/$1"
}

running_units() {
  [ -d /run/systemd/system ] || return 0
  for unit in $units; do
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
  affected=$(running_units)
  case $affected in *hemofed-agent.service*) await_end_of_masking ;; esac
  sync -f "$home" # the version's files before its name
  point current "$1"
  sync -f "$home"
  [ ! -d /run/systemd/system ] || systemctl daemon-reload
  for unit in $affected; do systemctl restart "$unit"; done
}

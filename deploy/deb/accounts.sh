# In postrm: the accounts go only when no file is left that the next owner of their numbers could read. package.sh comes before.

numbers() { # as words of find: -uid 1 -o -gid 2 ...
  for user in $accounts; do getent passwd "$user" | awk -F: '{ print "-o -uid " $3 }'; done
  for group in $groups; do getent group "$group" | awk -F: '{ print "-o -gid " $3 }'; done
}

carried() { # why the accounts stay; empty: nothing on this machine has their numbers any more
  # A file server may not answer, and what is on it has the same numbers.
  if awk '$3 ~ /^(nfs|cifs|smb|ceph|gluster|fuse\.(sshfs|s3fs|gluster))/ { found = 1 } END { exit !found }' /proc/mounts; then
    echo "folders of other machines are mounted here, which may have files with their numbers"
    return
  fi
  pseudo='-fstype proc -o -fstype sysfs -o -fstype cgroup2 -o -fstype devpts -o -fstype autofs'
  # shellcheck disable=SC2046,SC2086 # words of find
  found=$(timeout "${HEMOFED_SEARCH_S:-600}" find / \( $pseudo \) -prune -o \( -false $(numbers) \) -print -quit 2>/dev/null) ||
    if [ $? = 124 ]; then echo "the search for files with their numbers did not end"; return; fi
  [ -z "$found" ] || echo "a file outside has one of their numbers"
}

remove_accounts() {
  [ -n "$(numbers)" ] || return 0
  why=$(carried)
  if [ -n "$why" ]; then
    for user in $accounts; do
      if getent passwd "$user" >/dev/null; then usermod --lock --expiredate 1 "$user"; fi
    done
    echo "hemofed: the accounts $accounts and their groups stay, locked: $why." >&2
    echo "hemofed: Without them the next new account could get a number that may read $theirs." >&2
    # shellcheck disable=SC2086 # one word each
    echo "hemofed: Show such files with: find / -false$(printf ' -o -group %s' $groups). Then: deluser, delgroup" >&2
    return
  fi
  for user in $accounts; do
    if getent passwd "$user" >/dev/null; then userdel "$user"; fi
  done
  for group in $groups; do
    if getent group "$group" >/dev/null; then groupdel "$group"; fi
  done
}

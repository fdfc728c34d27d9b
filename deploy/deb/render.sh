#!/usr/bin/env bash
# Print a script of a package as it is installed: deploy/deb/render.sh site|aggregator VERSION SCRIPT
#
# A line "#include FILE" becomes the text of that file: of the package's own folder, or the one that both share. So a script
# that dpkg runs reads no file of a package that it is about to remove.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
own=$here/$1 version=$2 script=$own/$3
[[ -e $script ]] || script=$here/$3
while IFS= read -r line; do
  case $line in
    '#include '*)
      included=${line#\#include }
      if [[ -e $own/$included ]]; then cat "$own/$included"; else cat "$here/$included"; fi
      ;;
    *) printf '%s\n' "${line//@VERSION@/$version}" ;;
  esac
done <"$script"

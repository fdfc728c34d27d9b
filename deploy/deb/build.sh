#!/usr/bin/env bash
# Build a package: deploy/deb/build.sh site|aggregator --out DIR [--version V] [--compression zstd|xz|none] [--sign KEY]
#
# `site` is for a hospital, `aggregator` for the coordinator. One .deb with its own virtual environment under /opt, everything
# in it that Debian 12 itself does not have, and beside it a CycloneDX SBOM and SHA256SUMS. Only the download of the wheels
# needs a network, and each must have the SHA-256 in requirements.lock. Same commit, same dpkg: the same bytes
# (SOURCE_DATE_EPOCH, or the time of the last commit). Needs Python 3.11 with pip, dpkg-deb and 2 GB of disk; no root.
# --sign: sign.sh says with what.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
usage="usage: deploy/deb/build.sh site|aggregator --out DIR [--version V] [--compression zstd|xz|none] [--sign KEY]"
side=${1:-}
[[ $side == site || $side == aggregator ]] || { echo "$usage" >&2; exit 2; }
shift
own=$here/$side
source "$own/package.sh"
source "$own/contents.sh"
out='' version='' compression=zstd sign=''
while (($#)); do
  case $1 in
    --out) out=$2 ;;
    --version) version=$2 ;;
    --compression) compression=$2 ;;
    --sign) sign=$2 ;;
    *) echo "$usage" >&2; exit 2 ;;
  esac
  shift 2
done
[[ -n $out ]] || { echo "expected --out DIR, the folder to write the package into" >&2; exit 2; }
# Minutes before it is needed:
if [[ -n $sign ]] && ! gpg --batch --list-secret-keys "$sign" >/dev/null 2>&1; then
  echo "expected --sign a key that gpg can sign with here, got '$sign'; \`gpg --list-secret-keys\` shows those there are" >&2
  exit 1
fi
version=${version:-$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/pyproject.toml")}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct)}
export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
umask 022
mkdir -p "$out"
work=$(mktemp -d "$out/.build.XXXXXX")
trap 'rm -rf "$work"' EXIT
tree=$work/tree built=$work/tree$home/package # switch.sh says why not .../$version
packages=$built/lib/python3.11/site-packages
wheels=${HEMOFED_WHEELHOUSE:-${XDG_CACHE_HOME:-$HOME/.cache}/hemofed/wheelhouse}

find_python() {
  local candidate
  for candidate in "$root/.venv/bin/python" python3.11; do
    if "$candidate" -c 'import pip, sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "expected Python 3.11 with pip, found none; run ./deploy/venv.sh run first" >&2
  exit 1
}

fetch_wheels() {
  mkdir -p "$wheels"
  local get=("$python" -m pip download --quiet --no-deps --only-binary=:all: --require-hashes --dest "$wheels"
    --find-links "$wheels" --requirement "$own/requirements.lock")
  "${get[@]}" 2>"$work/pip.log" && return
  "${get[@]}" --extra-index-url https://download.pytorch.org/whl/cpu
}

install_packages() {
  mkdir -p "$packages" "$built/bin"
  "$python" -m pip install --quiet --no-index --find-links "$wheels" --no-deps --require-hashes --no-compile \
    --target "$packages" --requirement "$own/requirements.lock" 2> >(grep -v WARNING >&2)
  rm -rf "$packages/bin" "$packages/share"
  local module
  for module in $modules; do cp -R "$root/$module" "$packages/"; done
  local facts=$packages/hemofed-$version.dist-info
  mkdir "$facts"
  printf 'Metadata-Version: 2.1\nName: hemofed\nVersion: %s\nLicense-Expression: Apache-2.0\n' "$version" >"$facts/METADATA"
  cp "$root/LICENSE" "$facts/"
  ln -s /usr/bin/python3.11 "$built/bin/python"
  printf 'home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.11\n' >"$built/pyvenv.cfg"
  local pair
  for pair in $programs; do
    printf '#!%s/%s/bin/python\nfrom %s import main\n\nmain(prog_name="%s")\n' \
      "$home" "$version" "${pair#*:}" "${pair%:*}" >"$built/bin/${pair%:*}"
    chmod 755 "$built/bin/${pair%:*}"
  done
}

strip_packages() { # what only developers of these libraries need
  find "$packages" -depth -type d \( -name __pycache__ -o -name tests -o -name include \) -exec rm -rf {} +
  rm -rf "$packages"/*.dist-info/{RECORD,direct_url.json,REQUESTED}
  find "$packages" -type f \( -name '*.pyi' -o -name '*.a' -o -name '*.lib' -o -name '*.cpp' -o -name '*.pyx' \) -delete
  strip_own
  chmod -R u=rwX,go=rX "$packages" # whatever the umask of the checkout was
  # What is left must still start, with nothing but itself: -S hides every other site-packages.
  PYTHONPATH=$packages "$python" -S -c "import $starts"
}

lay_out() {
  local unit name pair page
  for unit in $units; do install -D -m 644 -t "$tree/lib/systemd/system" "$root/deploy/systemd/$unit"; done
  install -D -m 644 "$own/sysusers.conf" "$tree/usr/lib/sysusers.d/$doc.conf"
  install -D -m 644 "$own/tmpfiles.conf" "$tree/usr/lib/tmpfiles.d/$doc.conf"
  for name in $settings; do install -D -m 640 "$root/deploy/$name" "$tree/etc/hemofed/$name"; done
  for name in $pages; do install -D -m 644 "$root/docs/$name" "$tree/usr/share/doc/$doc/$name"; done
  mkdir -p "$tree/usr/sbin" "$tree/usr/bin" "$tree/usr/share/bash-completion/completions"
  "$here/render.sh" "$side" "$version" rollback.sh >"$tree/usr/sbin/$rollback"
  chmod 755 "$tree/usr/sbin/$rollback"
  sed -e "s|@HOME@|${home#/}|" -e "s|@DOC@|$doc|" "$here/copyright" >"$tree/usr/share/doc/$doc/copyright"
  for page in "$own"/*.[18]; do
    mkdir -p "$tree/usr/share/man/man${page##*.}"
    gzip -9n <"$page" >"$tree/usr/share/man/man${page##*.}/${page##*/}.gz"
  done
  for pair in $programs; do
    name=${pair%:*}
    ln -s "$home/current/bin/$name" "$tree/usr/bin/$name"
    variable=_${name^^}_COMPLETE
    env PYTHONPATH="$packages" "${variable//-/_}=bash_source" "$python" "$built/bin/$name" \
      >"$tree/usr/share/bash-completion/completions/$name"
  done
  lay_out_own
}

control_files() {
  mkdir "$tree/DEBIAN"
  local size_kib
  size_kib=$(find "$tree" -type f -printf '%s\n' | awk '{ sum += int(($1 + 1023) / 1024) } END { print sum }')
  sed -e "s/@VERSION@/$version/" -e "s/@SIZE@/$size_kib/" "$own/control" >"$tree/DEBIAN/control"
  printf '/etc/hemofed/%s\n' $settings >"$tree/DEBIAN/conffiles"
  local script
  for script in preinst postinst prerm postrm; do
    [[ -e $own/$script || -e $here/$script ]] || continue
    "$here/render.sh" "$side" "$version" "$script" >"$tree/DEBIAN/$script"
    chmod 755 "$tree/DEBIAN/$script"
  done
  (cd "$tree" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
}

python=$(find_python)
fetch_wheels
install_packages
strip_packages
lay_out
bill=${doc}_$version.cdx.json
"$python" "$here/sbom.py" --name "$package" --packages "$packages" --lock "$own/requirements.lock" --version "$version" \
  >"$work/$bill"
install -D -m 644 "$work/$bill" "$tree/usr/share/doc/$doc/sbom.cdx.json"
control_files
find "$tree" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
file=${package}_${version}_amd64.deb
dpkg-deb --root-owner-group -Z"$compression" --build "$tree" "$work/$file" >/dev/null
mv "$work/$file" "$work/$bill" "$out/"
(cd "$out" && rm -f SHA256SUMS.sig && sha256sum "$file" "$bill" >SHA256SUMS)
[[ -z $sign ]] || "$here/sign.sh" "$out" "$sign"
echo "$out/$file"

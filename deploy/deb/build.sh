#!/usr/bin/env bash
# Build the package for a hospital: deploy/deb/build.sh --out DIR [--version V] [--compression zstd|xz|none] [--sign KEY]
#
# One .deb with its own virtual environment under /opt/hemofed/<version>, everything in it that Debian 12 itself does
# not have, and beside it a CycloneDX SBOM and SHA256SUMS. Only the download of the wheels needs a network, and each
# must have the SHA-256 in requirements.lock. Same commit, same dpkg: the same bytes (SOURCE_DATE_EPOCH, or the time of
# the last commit). Needs Python 3.11 with pip, dpkg-deb and 2 GB of disk; no root. --sign: sign.sh says with what.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
out='' version='' compression=zstd sign=''
while (($#)); do
  case $1 in
    --out) out=$2 ;;
    --version) version=$2 ;;
    --compression) compression=$2 ;;
    --sign) sign=$2 ;;
    *) echo "usage: deploy/deb/build.sh --out DIR [--version V] [--compression zstd|xz|none] [--sign KEY]" >&2; exit 2 ;;
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
tree=$work/tree home=$work/tree/opt/hemofed/package # switch.sh says why not .../$version
packages=$home/lib/python3.11/site-packages
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
    --find-links "$wheels" --requirement "$here/requirements.lock")
  "${get[@]}" 2>"$work/pip.log" && return
  "${get[@]}" --extra-index-url https://download.pytorch.org/whl/cpu
}

install_packages() {
  mkdir -p "$packages" "$home/bin"
  "$python" -m pip install --quiet --no-index --find-links "$wheels" --no-deps --require-hashes --no-compile \
    --target "$packages" --requirement "$here/requirements.lock" 2> >(grep -v WARNING >&2)
  rm -rf "$packages/bin" "$packages/share"
  cp -R "$root/site_client" "$root/proto/federation" "$packages/"
  local facts=$packages/hemofed-$version.dist-info
  mkdir "$facts"
  printf 'Metadata-Version: 2.1\nName: hemofed\nVersion: %s\nLicense-Expression: Apache-2.0\n' "$version" >"$facts/METADATA"
  cp "$root/LICENSE" "$facts/"
  ln -s /usr/bin/python3.11 "$home/bin/python"
  printf 'home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.11\n' >"$home/pyvenv.cfg"
  printf '#!/opt/hemofed/%s/bin/python\nfrom site_client.cli import main\n\nmain(prog_name="hemofed-site")\n' \
    "$version" >"$home/bin/hemofed-site"
  chmod 755 "$home/bin/hemofed-site"
}

strip_packages() { # what only developers of these libraries need
  find "$packages" -depth -type d \( -name __pycache__ -o -name tests -o -name include \) -exec rm -rf {} +
  rm -rf "$packages"/torch/{share,test} "$packages"/*.dist-info/{RECORD,direct_url.json,REQUESTED}
  find "$packages" -type f \( -name '*.pyi' -o -name '*.a' -o -name '*.lib' -o -name '*.cpp' -o -name '*.pyx' \) -delete
  find "$packages/torch/bin" -type f ! -name torch_shm_manager -delete # without that one, torch cannot be imported
  chmod -R u=rwX,go=rX "$packages" # whatever the umask of the checkout was
  # What is left must still start, with nothing but itself: -S hides every other site-packages.
  PYTHONPATH=$packages "$python" -S -c 'import site_client.agent.service, site_client.trainer.job, site_client.ingest.catalog.catalog, site_client.receiver.service'
}

lay_out() {
  install -D -m 644 -t "$tree/lib/systemd/system" "$root"/deploy/systemd/hemofed*.{service,slice}
  install -D -m 644 "$here/sysusers.conf" "$tree/usr/lib/sysusers.d/hemofed.conf"
  install -D -m 644 "$here/tmpfiles.conf" "$tree/usr/lib/tmpfiles.d/hemofed.conf"
  install -D -m 640 "$root/deploy/site.toml" "$tree/etc/hemofed/site.toml"
  install -D -m 640 "$root/deploy/receiver.toml" "$tree/etc/hemofed/receiver.toml"
  install -D -m 755 "$here/rollback.sh" "$tree/usr/sbin/hemofed-rollback"
  install -D -m 644 "$here/switch.sh" "$tree/usr/lib/hemofed/switch.sh"
  install -D -m 644 "$root/docs/HOSPITAL.md" "$tree/usr/share/doc/hemofed/HOSPITAL.md"
  install -D -m 644 "$root/docs/SECURITY.md" "$tree/usr/share/doc/hemofed/SECURITY.md"
  install -D -m 644 "$root/docs/SECURITY_QUESTIONNAIRE.md" "$tree/usr/share/doc/hemofed/SECURITY_QUESTIONNAIRE.md"
  install -D -m 644 "$root/deploy/systemd/gpu.conf" "$tree/usr/share/doc/hemofed/examples/gpu.conf"
  install -D -m 644 "$here/copyright" "$tree/usr/share/doc/hemofed/copyright"
  mkdir -p "$tree/usr/bin" "$tree/usr/share/man/man1" "$tree/usr/share/man/man8" "$tree/usr/share/bash-completion/completions"
  ln -s /opt/hemofed/current/bin/hemofed-site "$tree/usr/bin/hemofed-site"
  gzip -9n <"$here/hemofed-site.1" >"$tree/usr/share/man/man1/hemofed-site.1.gz"
  gzip -9n <"$here/hemofed-rollback.8" >"$tree/usr/share/man/man8/hemofed-rollback.8.gz"
  PYTHONPATH=$packages _HEMOFED_SITE_COMPLETE=bash_source "$python" "$home/bin/hemofed-site" \
    >"$tree/usr/share/bash-completion/completions/hemofed-site"
}

control_files() {
  mkdir "$tree/DEBIAN"
  local size_kib
  size_kib=$(find "$tree" -type f -printf '%s\n' | awk '{ sum += int(($1 + 1023) / 1024) } END { print sum }')
  sed -e "s/@VERSION@/$version/" -e "s/@SIZE@/$size_kib/" "$here/control" >"$tree/DEBIAN/control"
  printf '%s\n' /etc/hemofed/site.toml /etc/hemofed/receiver.toml >"$tree/DEBIAN/conffiles"
  local script
  for script in preinst postinst prerm postrm; do
    sed "s/@VERSION@/$version/g" "$here/$script" >"$tree/DEBIAN/$script"
    chmod 755 "$tree/DEBIAN/$script"
  done
  (cd "$tree" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
}

python=$(find_python)
fetch_wheels
install_packages
strip_packages
lay_out
"$python" "$here/sbom.py" --packages "$packages" --lock "$here/requirements.lock" --version "$version" \
  >"$work/hemofed_$version.cdx.json"
install -D -m 644 "$work/hemofed_$version.cdx.json" "$tree/usr/share/doc/hemofed/sbom.cdx.json"
control_files
find "$tree" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
package=hemofed-site_${version}_amd64.deb
dpkg-deb --root-owner-group -Z"$compression" --build "$tree" "$work/$package" >/dev/null
mv "$work/$package" "$work/hemofed_$version.cdx.json" "$out/"
(cd "$out" && rm -f SHA256SUMS.sig && sha256sum "$package" "hemofed_$version.cdx.json" >SHA256SUMS)
[[ -z $sign ]] || "$here/sign.sh" "$out" "$sign"
echo "$out/$package"

#!/usr/bin/env bash
# Sign a built package: deploy/deb/sign.sh FOLDER KEY
#
# KEY is whatever gpg here can sign with: a fingerprint, a smart card's key. Beside SHA256SUMS come SHA256SUMS.sig, a
# detached signature, and hemofed-release.gpg, the public key. A hospital verifies with gpgv, which every Debian has
# because apt needs it (docs/decisions/0008-gpgv.md); the last line here does what it will do.
set -euo pipefail
(($# == 2)) || { echo "usage: deploy/deb/sign.sh FOLDER KEY" >&2; exit 2; }
folder=$1 key=$2
for tool in gpg gpgv; do
  command -v "$tool" >/dev/null || { echo "expected $tool to sign with; apt-get install $tool" >&2; exit 1; }
done
cd "$folder"
gpg --batch --yes --quiet --local-user "$key" --detach-sign --output SHA256SUMS.sig SHA256SUMS
gpg --batch --yes --quiet --export --output hemofed-release.gpg "$key"
gpgv --quiet --keyring ./hemofed-release.gpg SHA256SUMS.sig SHA256SUMS

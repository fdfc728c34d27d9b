"""The package's signature: made by deploy/deb/sign.sh, verified by what docs/HOSPITAL.md tells a hospital to type."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEB = ROOT / "deploy" / "deb"
PACKAGE, BILL = "hemofed-site_0.1.0_amd64.deb", "hemofed_0.1.0.cdx.json"
pytestmark = [
    pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} not installed") for tool in ("gpg", "gpgv")
]


class Signer:
    """Somebody's GnuPG, with one key, in a folder of its own."""

    def __init__(self, home: Path, name: str) -> None:
        self.environment, self.name = {**os.environ, "GNUPGHOME": str(home)}, name
        home.mkdir(mode=0o700)
        self.run("gpg", "--batch", "--passphrase", "", "--quick-generate-key", name, "ed25519", "sign", "never")

    def run(self, *command: str | Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True)

    @property
    def fingerprint(self) -> str:
        listed = self.run("gpg", "--batch", "--with-colons", "--fingerprint", self.name).stdout
        (fingerprint, *_subkeys) = re.findall(r"^fpr:+([0-9A-F]{40}):", listed, re.MULTILINE)
        return str(fingerprint)


@pytest.fixture(scope="module")
def signers() -> Iterator[tuple[Signer, Signer]]:
    """The release key's owner, and somebody else who calls himself the same."""
    with tempfile.TemporaryDirectory(prefix="gpg") as short:  # an agent's socket has a path of at most 108 bytes
        both = Signer(Path(short, "a"), "hemofed release"), Signer(Path(short, "b"), "hemofed release")
        yield both
        for one in both:
            one.run("gpgconf", "--kill", "all")


@pytest.fixture
def folder(tmp_path: Path, signers: tuple[Signer, Signer]) -> Path:
    """As build.sh leaves it with --sign."""
    out = tmp_path / "out"
    out.mkdir()
    (out / PACKAGE).write_bytes(os.urandom(5000))
    (out / BILL).write_text("{}")
    listed = subprocess.run(["sha256sum", PACKAGE, BILL], cwd=out, capture_output=True, check=True).stdout
    (out / "SHA256SUMS").write_bytes(listed)
    signers[0].run(DEB / "sign.sh", out, signers[0].name)
    return out


def verify(folder: Path, home: Path) -> "subprocess.CompletedProcess[str]":
    """What the page says, on a machine that has no GnuPG home."""
    page = (ROOT / "docs" / "HOSPITAL.md").read_text()
    commands = re.findall(r"^((?:gpgv|sha256sum) .*?)(?: +#.*)?$", page, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["gpgv", "sha256sum"]
    home.mkdir(exist_ok=True)
    nobody = {"PATH": os.environ["PATH"], "HOME": str(home)}
    command = ["sh", "-c", " && ".join(commands)]
    return subprocess.run(command, cwd=folder, env=nobody, capture_output=True, text=True, check=False)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_hospital_verifies_with_what_the_page_says_and_reads_the_fingerprint(
    folder: Path, tmp_path: Path, signers: tuple[Signer, Signer]
) -> None:
    done = verify(folder, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert f"using EDDSA key {signers[0].fingerprint}" in done.stderr
    assert "Good signature" in done.stderr
    assert done.stdout.splitlines() == [f"{PACKAGE}: OK", f"{BILL}: OK"]


@pytest.mark.parametrize("name", [PACKAGE, BILL, "SHA256SUMS", "SHA256SUMS.sig"])
def test_one_changed_bit_fails(folder: Path, tmp_path: Path, name: str) -> None:
    size = (folder / name).stat().st_size
    inside = set() if name.endswith(".sig") else {size // 2}  # a signature has hints in the middle that nothing covers
    for at in {0, size - 1} | inside:
        flip(folder / name, at)
        assert verify(folder, tmp_path / "home").returncode != 0, (name, at)
        flip(folder / name, at)
    assert verify(folder, tmp_path / "home").returncode == 0


@pytest.mark.parametrize("missing", ["SHA256SUMS.sig", "hemofed-release.gpg", PACKAGE])
def test_what_is_missing_fails(folder: Path, tmp_path: Path, missing: str) -> None:
    (folder / missing).unlink()
    assert verify(folder, tmp_path / "home").returncode != 0


def test_another_package_signed_by_another_of_the_same_name_fails_with_the_kept_key(
    folder: Path, tmp_path: Path, signers: tuple[Signer, Signer]
) -> None:
    kept = (folder / "hemofed-release.gpg").read_bytes()
    (folder / PACKAGE).write_bytes(b"another package")
    listed = subprocess.run(["sha256sum", PACKAGE, BILL], cwd=folder, capture_output=True, check=True).stdout
    (folder / "SHA256SUMS").write_bytes(listed)
    signers[1].run(DEB / "sign.sh", folder, signers[1].name)
    told = verify(folder, tmp_path / "home")
    assert (told.returncode, signers[1].fingerprint in told.stderr) == (0, True)  # only the fingerprint gives it away
    assert signers[0].fingerprint not in told.stderr
    (folder / "hemofed-release.gpg").write_bytes(kept)
    assert verify(folder, tmp_path / "home").returncode != 0


def test_signing_again_replaces_the_signature(folder: Path, tmp_path: Path, signers: tuple[Signer, Signer]) -> None:
    signers[0].run(DEB / "sign.sh", folder, signers[0].fingerprint)
    assert verify(folder, tmp_path / "home").returncode == 0


def test_a_key_that_is_not_here_is_told_before_anything_is_built(
    tmp_path: Path, signers: tuple[Signer, Signer]
) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        signers[0].run(DEB / "build.sh", "site", "--out", tmp_path / "out", "--sign", "nobody")
    assert refused.value.returncode == 1
    assert refused.value.stderr.startswith("expected --sign a key that gpg can sign with here, got 'nobody'")
    assert not (tmp_path / "out").exists()

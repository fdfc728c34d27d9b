"""Prints a CycloneDX 1.5 SBOM of the package: every library with version, licence and the digest of its wheel.

sbom.py --name PACKAGE --packages SITE-PACKAGES --lock requirements.lock --version V. The time is SOURCE_DATE_EPOCH, the
serial number comes from the content: the same package has the same SBOM. Source: CycloneDX 1.5 JSON reference.
"""

import argparse
import json
import os
import re
import uuid
from datetime import UTC, datetime
from email.message import Message
from importlib.metadata import Distribution, distributions
from pathlib import Path

_LOCKED = re.compile(r"^(\S+)==(\S+) --hash=sha256:([0-9a-f]{64})$", re.MULTILINE)
_LICENCE_CLASSIFIER = "License :: OSI Approved :: "


def main() -> None:
    """Writes to standard output."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--version", required=True)
    given = parser.parse_args()
    digests = {name: digest for name, _, digest in _LOCKED.findall(given.lock.read_text())}
    # Sorted, and without a time of its own: one lock file and one version give one file, byte by byte.
    installed = sorted(distributions(path=[str(given.packages)]), key=lambda package: _plain(package.name))
    libraries = [
        _component(package, digests[_plain(package.name)]) for package in installed if package.name != "hemofed"
    ]
    print(json.dumps(_document(given.name, libraries, given.version), indent=2, sort_keys=True))


def _document(name: str, libraries: list[dict[str, object]], version: str) -> dict[str, object]:
    content = json.dumps([version, libraries], sort_keys=True)
    built_at = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, content)}",
        "version": 1,
        "metadata": {
            "timestamp": built_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {"type": "application", "name": name, "version": version, "bom-ref": name},
        },
        "components": libraries,
        "dependencies": [{"ref": name, "dependsOn": [library["bom-ref"] for library in libraries]}],
    }


def _component(library: Distribution, digest: str) -> dict[str, object]:
    name = _plain(library.name)
    purl = f"pkg:pypi/{name}@{library.version}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": library.version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": digest}],
        # importlib promises a mapping; what it gives is an email message, with get_all.
        "licenses": [{"license": {"name": _licence(library.metadata)}}],  # type: ignore[arg-type]
    }


def _licence(facts: Message) -> str:
    """One line, from the newest kind of field a library has."""
    classifiers = [text for text in facts.get_all("Classifier", []) if text.startswith(_LICENCE_CLASSIFIER)]
    spelled = facts.get("License-Expression") or (facts.get("License") or "").strip().split("\n")[0][:80]
    named = ", ".join(text.removeprefix(_LICENCE_CLASSIFIER) for text in classifiers)
    return spelled or named or "see its dist-info"


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()

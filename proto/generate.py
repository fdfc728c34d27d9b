"""Run protoc over proto/federation/v1, or with --check say whether the committed stubs still match.

The stubs are committed so that neither a hospital nor a build machine needs protoc; they are never edited by hand.
"""

import argparse
import sys
import sysconfig
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]  # ships no types

ROOT = Path(__file__).resolve().parent


def generate(out: Path) -> None:
    """Write every stub below `out`, which mirrors this folder.

    Errors: SystemExit when protoc refuses a file; protoc has printed why.
    """
    sources = sorted(str(path) for path in (ROOT / "federation" / "v1").glob("*.proto"))
    scripts = Path(sysconfig.get_path("scripts"))
    well_known = str(files("grpc_tools") / "_proto")
    arguments = [
        "protoc",
        f"-I{ROOT}",
        f"-I{well_known}",
        # Beside this interpreter, so that an environment that is not activated works too.
        *(f"--plugin=protoc-gen-{name}={scripts / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")),
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out={out}",
        f"--mypy_grpc_out={out}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; see its message above")
    for stub in (out / "federation" / "v1").glob("*_pb2_grpc.py"):
        if "Servicer" not in stub.read_text():  # a .proto file without a service
            stub.unlink()
            stub.with_suffix(".pyi").unlink()


def stale() -> list[str]:
    """Names of stubs that are missing, differ from protoc's output, or have no .proto file any more."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {path.name: path.read_bytes() for path in Path(folder, "federation", "v1").iterdir()}
    committed = {path.name: path.read_bytes() for path in (ROOT / "federation" / "v1").glob("*_pb2*")}
    return sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))


def main() -> None:
    """Write the stubs, or compare them with `--check`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the stubs differ")
    if not parser.parse_args().check:
        generate(ROOT)
        return
    if different := stale():
        sys.exit(f"stubs differ from their .proto files: {', '.join(different)}; run python proto/generate.py")


if __name__ == "__main__":
    main()

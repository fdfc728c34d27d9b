"""Install each extra alone in a throw-away environment and import every module of that side.

A module that needs a library its side does not declare, or declares the other side's library, fails here: the
aggregator must start without torch, the agent without torch and pydicom, the trainer without
grpc, the receiver and `hemofed-predict` without torch and grpc.
"""

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = ["federation"]
SIDES: dict[str, tuple[list[str], list[str]]] = {  # extra: packages to import whole, libraries that must be absent
    "aggregator": (["aggregator", *CONTRACT], ["torch", "pydicom"]),
    "custodian-token": (["aggregator.custodian", *CONTRACT], ["torch", "pydicom", "grpc", "fastapi", "sqlalchemy"]),
    "agent": (["site_client.agent", *CONTRACT], ["torch", "pydicom", "fastapi", "sqlalchemy"]),
    "trainer": (
        [
            "site_client.ingest",
            "site_client.model",
            "site_client.training",
            "site_client.trainer",
            "site_client.phantom",
            "site_client.packing",
        ],
        ["grpc", "fastapi", "pynetdicom"],
    ),
    "predict": (
        ["site_client.bedside", "site_client.ingest", "site_client.model.inputs"],
        ["torch", "monai", "grpc", "fastapi", "pynetdicom", "sklearn", "onnx"],
    ),
    "receiver": (["site_client.receiver"], ["torch", "grpc", "fastapi", "sqlalchemy", "scipy"]),
}
IMPORT_ALL = """
import importlib, importlib.util, pkgutil, sys
names, absent = sys.argv[1].split(","), sys.argv[2].split(",")
for name in absent:
    assert importlib.util.find_spec(name) is None, f"{name} was installed and must not be"
for name in names:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(getattr(package, "__path__", []), name + "."):
        acts = module.name.endswith((".__main__", ".migrations.env"))  # when imported
        if not acts and not (name == "federation" and module.name.endswith("_pb2_grpc")):
            importlib.import_module(module.name)
print("  imported every module of", ", ".join(names), flush=True)
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as threads:
        _pip("wheel", "--no-deps", "--wheel-dir", folder, str(ROOT))
        (wheel,) = Path(folder).iterdir()
        # Installing takes one core and much of the disk: two at a time take little more than half of the time.
        for imported in threads.map(lambda extra: _import_alone(extra, wheel), SIDES):
            print(imported, end="", flush=True)


def _import_alone(extra: str, wheel: Path) -> str:
    packages, absent = SIDES[extra]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        python = str(Path(folder) / "bin" / "python")
        constraints = str(ROOT / "deploy" / "constraints.txt")
        # Compiling PyTorch for one import would take longer than installing it.
        _pip("--python", python, "install", "--no-compile", "-c", constraints, f"hemofed[{extra}] @ {wheel.as_uri()}")
        done = subprocess.run(
            [python, "-W", "error", "-c", IMPORT_ALL, ",".join(packages), ",".join(absent)],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONWARNINGS": "default", "PYTHONDONTWRITEBYTECODE": "1"},
        )
    return f"extra [{extra}] alone\n{done.stdout}"


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()

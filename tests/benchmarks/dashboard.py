"""The dashboard's pages for consortia of some sizes, as JSON: processor milliseconds, statements and bytes of each.

    python tests/benchmarks/dashboard.py [--sites 40 1000] [--rounds 500] [--repeat 9]

Least processor times of the whole process over the repeats; nothing else runs in it. To compare two versions run it in
both checkouts in turns.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy import event

from aggregator import config
from aggregator.context import AppContext, open_context
from aggregator.dashboard.app import create_app
from aggregator.migrations import upgrade
from aggregator.store import Change, people
from tests.aggregator.dashboard_crowd import fill

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
PASSWORD = "correct horse battery"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[40, 1000])
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=9)
    options = parser.parse_args()
    print(json.dumps({sites: of_size(sites, options.rounds, options.repeat) for sites in options.sites}, indent=1))


def of_size(sites: int, rounds: int, repeat: int) -> dict[str, Any]:
    """Figures of each page, by its name."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        settings = config.AggregatorSettings(state=config.StateSettings(folder=folder))
        app = replace(open_context(settings), clock=lambda: NOW)
        upgrade(app.store.engine)
        with app.store.write() as session:
            change = Change(NOW, "operator", "administrator:ada", "for the benchmark")
            people.add_administrator(session, "ada", PASSWORD, os.urandom(16), change)
        fill(app, folder, sites=sites, rounds=rounds, cohort=max(3, sites // 2))
        figures = measure(app, repeat)
        app.store.close()
    return figures


def measure(app: AppContext, repeat: int) -> dict[str, Any]:
    """Figures of each page of a filled store."""
    statements = 0

    def count(*_: object) -> None:
        nonlocal statements
        statements += 1

    event.listen(app.store.engine, "before_cursor_execute", count)
    with TestClient(create_app(app)) as browser:
        browser.post("/login", data={"name": "ada", "password": PASSWORD})
        run = next(word for word in browser.get("/").text.split('"') if word.startswith("/runs/"))
        pages = {
            "/": "/",
            "/sites": "/sites",
            "/sites/NAME": "/sites/hospital-0007",
            "/runs": "/runs",
            "/runs/RUN": run,
        }
        figures = {}
        for name, path in pages.items():
            best_ms = float("inf")
            for _ in range(repeat):
                statements, began = 0, time.process_time()
                reply = browser.get(path)
                best_ms = min(best_ms, 1000 * (time.process_time() - began))
            figures[name] = {"cpu_ms": round(best_ms, 1), "statements": statements, "bytes": len(reply.content)}
    return figures


if __name__ == "__main__":
    main()

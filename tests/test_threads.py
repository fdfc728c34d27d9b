"""Both programs keep OpenBLAS to one thread unless the administrator says otherwise."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("package", ["site_client.agent.rounds.contribution", "aggregator.rounds.aggregation"])
@pytest.mark.parametrize(("set_to", "is_then"), [(None, "1"), ("3", "3")])
def test_one_thread_is_the_default_before_numpy_is_imported(package: str, set_to: str | None, is_then: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    if set_to is not None:
        environment["OPENBLAS_NUM_THREADS"] = set_to
    program = (
        f"import sys, os; import {package.split('.')[0]}; assert 'numpy' not in sys.modules; import {package}; "
        "print(os.environ['OPENBLAS_NUM_THREADS'])"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == is_then

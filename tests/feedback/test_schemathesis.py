"""The API does what its description says, and no more: schemathesis, with all checks."""

import os
import subprocess
import sys

import pytest
from serving import pairs, serving

pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install it to fuzz")

CONFIG = """
[[operations]]
include-name = "PUT /api/judgements/{key}"
# whether a choice fits depends on the kind of item that the lease holds: 422 where it does not
checks.positive_data_acceptance.expected-statuses = ["2xx", 401, 403, 404, 409, 422, 429, 503]
"""
HOOKS = """
import itertools
import schemathesis

turns = itertools.count()


# every way in which each field of each kind of item can be wrong is 2,700 requests: of these, one in eleven
@schemathesis.hook.apply_to(path="/api/items", method="PUT")
def filter_case(context, case):
    return case.meta.phase.name != "coverage" or next(turns) % 11 == 0
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    # training would refuse work to somebody who answers by chance
    with serving(tmp_path_factory.mktemp("fuzzing"), training_count=0) as server:
        server.put(pairs(200))
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("who", ["annotators", "owner"])
def test_nothing_is_found_that_is_not_described(server, who, tmp_path):
    token = server.invite(f"fuzzes {who}", kind="person" if who == "annotators" else "owner")
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    (tmp_path / "sampling.py").write_text(HOOKS)
    ran = subprocess.run(
        [
            *[sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"],
            *["--checks=all", "--max-examples=20", "--seed=1", "--no-color"],
            *[f"--include-tag={who}", f"--header=Authorization: Bearer {token}"],
            "--suppress-health-check=all",  # how slow it is says nothing here
        ],
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "sampling", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-1000:]
    assert "4 passed" in ran.stdout
    assert "ERROR" not in server.log

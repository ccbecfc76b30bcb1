"""The short form of benchmarks/soak.py: each kind of run twice, with faults, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parent.parent / "benchmarks" / "soak.py"


@pytest.mark.nightly
def test_a_process_that_completes_many_runs_ends_each_rightly_and_keeps_nothing() -> None:
    how = ["--warm", "26", "--count", "26", "--docker", "0", "--faults", "0.1"]
    ran = subprocess.run([sys.executable, SOAK, *how], capture_output=True, text=True, timeout=580)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.rstrip().endswith("\n0 problems")

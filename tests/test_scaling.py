"""benchmarks/scaling.py: what it calls a straight line, and the page that it shares with others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import bench  # noqa: E402
import scaling  # noqa: E402

sys.path.remove(str(BENCHMARKS))  # it has a mcp.py, which must not stand in for the package of that name

SIZES = (10, 100, 250, 500, 1000)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([500 + 3 * n for n in SIZES], "1.00"),
        ([500 + 3 * n * n for n in SIZES], "2.00"),
        ([500 + n / 100 for n in SIZES], "flat"),
        ([7, 7, 7, 7, 7], "flat"),
        ([0, 0, 0, 0, 0], "flat"),
    ],
    ids=["a straight line", "a parabola", "nearly level", "level", "nothing"],
)
def test_the_exponent_of_growth_leaves_out_what_is_paid_once(values: list[float], shown: str) -> None:
    assert scaling.growth(SIZES, values) == shown


def test_a_page_keeps_the_regions_of_others(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    bench.write_page(page, "# One\n")
    bench.write_region(page, "scaling", "lines")
    bench.write_region(page, "soak", "a thousand")
    bench.write_page(page, "# Two\n")
    bench.write_region(page, "scaling", "straight lines")
    regions = ["<!-- scaling -->\nstraight lines", "<!-- /scaling -->", "<!-- soak -->\na thousand", "<!-- /soak -->\n"]
    assert page.read_text() == "\n\n".join(["# Two", *regions])
    assert bench.region(page, "soak") == "a thousand\n\n"


@pytest.mark.slow
def test_a_series_is_measured_and_shown() -> None:
    how = [sys.executable, BENCHMARKS / "scaling.py", "--quick", "--series", "turns"]
    ran = subprocess.run(how, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    rows = [line for line in ran.stdout.splitlines() if line.startswith("|")]
    firsts = [row.split("|")[1].strip() for row in rows]
    assert firsts == ["turns", "---:", "10", "100", "250", "exponent"] * 2

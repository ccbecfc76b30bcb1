"""Are these tables fit for use? For a CI job: the exit status is 1 if something serious is wrong.

    python examples/csv_audit.py [FILE.csv ...]

Rules are checked by code that the model writes after it has seen the columns: types, duplicates, missing values, and
references from one file to another.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlm import RLMError, complete

PROMPT = """Audit these CSV files for data quality: types and formats that change within a column, duplicate keys,
missing or impossible values, references to rows that are not there. Check by code, over all rows.
`rows` are the line numbers in the file, the header being line 1."""

DATA = Path(__file__).parent / "data"


@dataclass
class Finding:
    file: str
    column: str
    problem: str
    rows: list[int]
    severity: Literal["high", "medium", "low"]


def main(paths: list[str]) -> int:
    tables = {Path(path).name: Path(path).read_text() for path in paths}
    try:
        findings = complete(PROMPT, tables, schema=list[Finding]).value
    except RLMError as error:
        print(error, error.hint, sep="\n", file=sys.stderr)
        return 2
    print("| severity | where | rows | problem |\n|---|---|---|---|")
    for found in sorted(findings, key=lambda found: ("high", "medium", "low").index(found.severity)):
        rows = ", ".join(map(str, found.rows))
        print(f"| {found.severity} | {found.file}: {found.column} | {rows} | {found.problem} |")
    return int(any(found.severity == "high" for found in findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [str(DATA / "customers.csv"), str(DATA / "orders.csv")]))

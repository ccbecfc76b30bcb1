"""Questions to an SQLite database, by a tool that can only read.

    python examples/custom_tool.py "Which country spends most?" [FILE.db]

`query` is all that the model can do with the database, from the chat and from its code: SQLite itself refuses all but
SELECT, a slow query is stopped, and what comes back is bounded.
"""

from __future__ import annotations

import csv
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from rlm import RLM, RLMError, Tool, tool

ROWS = 1000
SECONDS = 10.0
ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
DATA = Path(__file__).parent / "data"


def authorize(action: int, *_: Any) -> int:
    return sqlite3.SQLITE_OK if action in ALLOWED else sqlite3.SQLITE_DENY


def query_tool(database: Path) -> Tool:
    @tool
    def query(sql: str) -> list[dict[str, Any]]:
        """Run one SELECT on the SQLite database; sqlite_master lists its tables. At most 1,000 rows come back."""
        end = time.monotonic() + SECONDS
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            connection.set_authorizer(authorize)
            connection.set_progress_handler(lambda: time.monotonic() > end, 10_000)
            cursor = connection.execute(sql)
            names = [column[0] for column in cursor.description or ()]
            return [dict(zip(names, row)) for row in cursor.fetchmany(ROWS)]

    return query


def sample_database(folder: str) -> Path:
    """The two tables of examples/data as a database."""
    path = Path(folder) / "shop.db"
    with closing(sqlite3.connect(path)) as connection:
        for name in ("customers", "orders"):
            header, *rows = csv.reader((DATA / f"{name}.csv").read_text().splitlines())
            connection.execute(f"CREATE TABLE {name} ({', '.join(header)})")
            connection.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(header))})", rows)
        connection.commit()
    return path


def main(question: str, database: Path) -> int:
    try:
        result = RLM(tools=[query_tool(database)]).completion(question)
    except RLMError as error:
        print(error, error.hint, sep="\n", file=sys.stderr)
        return 1
    print(result)
    for call in result.tool_calls:
        if call["name"] == "query":
            print("  asked:", call["arguments"])
    return 0


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(main(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) == 3 else sample_database(folder)))

"""What went wrong in these logs, and how often?

    python examples/log_triage.py [LOG ...]

The model counts and groups by code and reads only samples. Each incident must quote a line of the log; the program
looks for that line itself, so that an invented one does not pass.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rlm import RLMError, complete

PROMPT = """Group the errors in these logs into incidents by their cause, the most frequent first.
Count by code. Ask a sub-model only to name the cause of a group from a few of its lines.
Quote one line of each incident exactly as it stands in the log."""


@dataclass
class Incident:
    cause: str
    count: int
    first: str  # time of its first line
    quote: str


def main(paths: list[str]) -> int:
    logs = {path: Path(path).read_text(errors="replace") for path in paths}
    try:
        result = complete(PROMPT, logs, schema=list[Incident])
    except RLMError as error:
        print(error, error.hint, sep="\n", file=sys.stderr)
        return 1
    lines = {line for text in logs.values() for line in text.splitlines()}
    for incident in result.value:
        proof = "" if incident.quote in lines else "   (its quote is not in the log!)"
        print(f"{incident.count:>6}  since {incident.first}  {incident.cause}{proof}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [str(Path(__file__).parent / "data/app.log")]))

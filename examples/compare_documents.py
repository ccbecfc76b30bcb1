"""What has really changed between two versions of a document?

    python examples/compare_documents.py [OLD NEW]

Code finds the sections that differ; a sub-model reads each pair, all of them at once, and says what it means. Sections
that are the same cost nothing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlm import RLMError, complete

PROMPT = """The context holds the old and the new version of a document. Pair their sections by code, leave out those
that are the same, and have a sub-model (llm_query_batched) say of each other pair what changes for the reader, in one
sentence. List the changes in the document's order."""

DATA = Path(__file__).parent / "data"


@dataclass
class Change:
    section: str
    kind: Literal["added", "removed", "changed"]
    meaning: str


def main(old: str, new: str) -> int:
    try:
        result = complete(PROMPT, {"old": Path(old).read_text(), "new": Path(new).read_text()}, schema=list[Change])
    except RLMError as error:
        print(error, error.hint, sep="\n", file=sys.stderr)
        return 1
    for change in result.value:
        print(f"{change.section} ({change.kind})\n  {change.meaning}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) not in (1, 3):
        sys.exit(__doc__)
    sys.exit(main(*(sys.argv[1:] or [str(DATA / "contract_2025.md"), str(DATA / "contract_2026.md")])))

"""Questions about a folder of code, answered with places that can be looked up.

    python examples/ask_codebase.py "Where is the exit status decided?" [FOLDER]

Nothing is loaded beforehand: the model searches and reads with the file tools, which reach this folder and nothing
else. The program checks each place that the answer cites.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rlm import RLM, RLMError


@dataclass
class Place:
    path: str
    line: int
    quote: str  # a part of that line


@dataclass
class Answer:
    text: str
    places: list[Place]


def is_there(place: Place) -> bool:
    try:
        return place.quote in Path(place.path).read_text().splitlines()[place.line - 1]
    except (OSError, IndexError, UnicodeDecodeError):
        return False


def main(question: str, folder: str) -> int:
    prompt = (
        f"{question}\nAnswer for the code under {folder}. Cite the places that prove it, quoting a part of each line."
    )
    try:
        answer = RLM(allowed_paths=[folder], schema=Answer).completion(prompt).value
    except RLMError as error:
        print(error, error.hint, sep="\n", file=sys.stderr)
        return 1
    print(answer.text)
    for place in answer.places:
        print(f"  {place.path}:{place.line}: {place.quote}{'' if is_there(place) else '   (not there!)'}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else "."))

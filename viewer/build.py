"""`make viewer`: write the page's sources, which lie beside this file, between the markers of rlm_viz.py.

    python viewer/build.py            write them
    python viewer/build.py --check    say whether they differ (exit 1)

`rlm_viz.py` stays one file that can be vendored; browsers, linters and people read the sources here.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
MODULE = HERE.parent / "rlm_viz.py"
BEGIN, END = "# <viewer>\n", "# </viewer>\n"
# In this order they are one script: each may use what the ones before it define while it loads.
SCRIPTS = (
    *("dom", "figures", "run", "address", "text", "markdown", "heading", "values", "rows", "tree", "inspector"),
    *("history", "search", "filters", "timeline", "charts", "transcript", "diff", "runs", "export", "live", "page"),
)


def minified(text: str) -> str:
    """A script or a style without indentation, blank lines and comment lines."""
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


def source(*names: str) -> str:
    return "".join((HERE / name).read_text("utf-8") for name in names)


def assignments() -> str:
    """The Python text that holds the page's sources."""
    texts = {
        "_BODY": source("page.html"),
        "_STYLE": minified(source("style.css")),
        "_APP_STYLE": minified(source("app.css")),
        "_HEAD_SCRIPT": minified(source("head.js")),
        "_LOADER": minified(source("loader.js")),
        "_SCRIPT": minified(source(*(f"{name}.js" for name in SCRIPTS))),
    }
    assert not any('"""' in text or text.endswith(("\\", '"')) for text in texts.values())
    return "".join(f'{name} = r"""{text}"""\n' for name, text in texts.items())


def built(module: str) -> str:
    """The module's text with the page's sources as they are now."""
    return re.sub(f"(?<={BEGIN}).*(?={END})", lambda _: assignments(), module, flags=re.DOTALL)


def main() -> int:
    old = MODULE.read_text("utf-8")
    new = built(old)
    if "--check" not in sys.argv:
        MODULE.write_text(new, "utf-8")
    elif new != old:
        print("rlm_viz.py does not hold what viewer/ has: make viewer", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

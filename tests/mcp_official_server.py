"""Run in an environment that has an official MCP SDK, 1.x or 2.x (`.ci/mcp-clients`), never in the project's own.

python mcp_official_server.py stdio              a server made with it, on stdin and stdout
python mcp_official_server.py http PORT [json]   the same behind a URL: http://127.0.0.1:PORT/mcp
"""

from __future__ import annotations

import base64
import os
import sys
import time
from typing import Any

try:
    from mcp.server import MCPServer as Server  # 2.x
    from mcp.server.mcpserver import Image

    LATEST = True
except ImportError:
    from mcp.server.fastmcp import FastMCP as Server  # 1.x
    from mcp.server.fastmcp import Image

    LATEST = False

DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
server: Any = Server("depot", instructions="What the depot holds.")


@server.tool()
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@server.tool(name="search-issues")
def search_issues(query: str) -> list[dict[str, Any]]:
    """Search the issues, most relevant first."""
    return [{"title": f"about {query}", "number": 7}]


@server.tool()
def stock(item: str) -> dict[str, int]:
    """How many there are of an item."""
    return {item: 12}


@server.tool()
def note() -> Any:
    """A text that happens to be JSON."""
    return '{"a": 1}'


@server.tool()
def dot() -> Image:
    """A picture of one pixel."""
    return Image(data=DOT, format="png")


@server.tool()
def fail(why: str) -> str:
    """Fail."""
    raise ValueError(why)


@server.tool()
def environment() -> list[str]:
    """The names of the variables that the server has."""
    return sorted(os.environ)


@server.tool()
def wait(seconds: float) -> str:
    """Answer late."""
    time.sleep(seconds)
    return "awake"


if sys.argv[1] == "stdio":
    server.run("stdio")
else:
    how: dict[str, Any] = {"host": "127.0.0.1", "port": int(sys.argv[2])}
    if LATEST:
        server.run("streamable-http", json_response="json" in sys.argv, **how)
    else:
        for name, value in how.items():
            setattr(server.settings, name, value)
        server.settings.json_response = "json" in sys.argv
        server.run("streamable-http")

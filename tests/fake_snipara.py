"""A Snipara server on loopback for tests: both wires, its tools over a small documentation, and its failures.

    with FakeSnipara() as snipara:
        ... url=snipara.url ("/mcp": JSON-RPC), snipara.rest_url ("/api/mcp") or snipara.v1_url ("/v1") ...
        snipara.failures = ["429", "html"]     # the next answers, in turn; see FAILURES

It is strict: unknown tools and parameters, nulls and wrong types are refused with -32602 as the real one does.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

JSON = dict[str, Any]
KEY = "rlm_planted_9b2e71c4"
SLUG = "my-project"

DOCUMENT = """# Authentication
Users log in with a password.
Tokens expire after 30 minutes.
# Payments
Cards are charged through the gateway.
Refunds need an approval.
""".splitlines()

# parameters of each tool: name -> (type, required)
PARAMETERS: dict[str, dict[str, tuple[type | tuple[type, ...], bool]]] = {
    "rlm_context_query": {
        "query": (str, True),
        "max_tokens": (int, False),
        "search_mode": (str, False),
        "prefer_summaries": (bool, False),
        "include_metadata": (bool, False),
    },
    "rlm_search": {"pattern": (str, True), "max_results": (int, False)},
    "rlm_sections": {"filter": (str, False), "limit": (int, False), "offset": (int, False)},
    "rlm_read": {"start_line": (int, True), "end_line": (int, True)},
    "rlm_shared_context": {"categories": (list, False), "max_tokens": (int, False), "include_content": (bool, False)},
    "rlm_remember": {
        "content": (str, True),
        "type": (str, False),
        "scope": (str, False),
        "category": (str, False),
        "ttl_days": (int, False),
        "related_to": (list, False),
        "document_refs": (list, False),
    },
    "rlm_recall": {
        "query": (str, True),
        "limit": (int, False),
        "min_relevance": ((int, float), False),
        "type": (str, False),
        "scope": (str, False),
        "category": (str, False),
    },
    "rlm_memories": {
        "type": (str, False),
        "scope": (str, False),
        "category": (str, False),
        "search": (str, False),
        "limit": (int, False),
        "offset": (int, False),
    },
    "rlm_forget": {
        "memory_id": (str, False),
        "type": (str, False),
        "category": (str, False),
        "older_than_days": (int, False),
    },
}


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: Any


class BadArguments(ValueError):
    """What the real server answers with -32602."""


class FakeSnipara:
    """The server: `requests` are those it got, `failures` the answers it gives first, `memories` what it remembers."""

    def __init__(self, key: str = KEY, slug: str = SLUG) -> None:
        self.key = key
        self.slug = slug
        self.tokens = {"access-good"}  # OAuth access tokens that hold
        self.refresh_tokens = {"refresh-good": "access-new"}
        self.requests: list[Request] = []
        self.failures: list[str] = []
        self.memories: list[JSON] = []
        self.has_v1 = True
        self.lock = threading.Lock()

    def __enter__(self) -> FakeSnipara:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, extra, answer = fake.answer(self.path, headers, body)
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **extra}.items():
                    self.send_header(name, value)
                if status != 204:
                    self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def url(self) -> str:
        return f"{self.origin}/mcp"

    @property
    def rest_url(self) -> str:
        return f"{self.origin}/api/mcp"

    @property
    def v1_url(self) -> str:
        return f"{self.origin}/v1"

    # answering

    def answer(self, path: str, headers: dict[str, str], raw: bytes) -> tuple[int, JSON, bytes]:
        """Status, headers and body for a POST."""
        try:
            body = json.loads(raw)
        except ValueError:
            error = {"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "Parse error"}}
            return 400, {}, json.dumps(error).encode()
        with self.lock:
            self.requests.append(Request("POST", path, headers, body))
            failure = self.failures.pop(0) if self.failures else ""
        if path == "/api/oauth/token":
            return packed(*self.refreshed(body))
        if failure:
            return FAILURES[failure](headers)
        if not self.is_authorized(headers):
            return packed(401, {"detail": "Invalid API key or token"})
        if path == f"/mcp/{self.slug}":
            return packed(*self.json_rpc(body))
        if path == f"/api/mcp/{self.slug}" or (path == f"/v1/{self.slug}/mcp" and self.has_v1):
            return packed(*self.rest(body))
        return packed(404, {"detail": "Project not found"})

    def is_authorized(self, headers: dict[str, str]) -> bool:
        token = headers.get("authorization", "").removeprefix("Bearer ")
        return headers.get("x-api-key") == self.key or token in self.tokens

    def refreshed(self, body: JSON) -> tuple[int, JSON]:
        token = self.refresh_tokens.pop(body.get("refresh_token", ""), None)
        if body.get("grant_type") != "refresh_token" or token is None:
            return 400, {"error": "invalid_grant"}
        self.tokens.add(token)
        self.refresh_tokens["refresh-next"] = "access-newer"
        return 200, {"access_token": token, "refresh_token": "refresh-next", "expires_in": 3600, "token_type": "Bearer"}

    def json_rpc(self, body: Any) -> tuple[int, Any]:
        if isinstance(body, list):
            answers = [one for one in (self.json_rpc(item)[1] for item in body) if one is not None]
            return (200, answers) if answers else (204, None)
        if "id" not in body:
            return 204, None
        answer: JSON = {"jsonrpc": "2.0", "id": body["id"]}
        params = body.get("params", {})
        if body["method"] == "initialize":
            server = {"name": "snipara", "version": "2"}
            return 200, {
                **answer,
                "result": {"protocolVersion": "2024-11-05", "serverInfo": server, "capabilities": {}},
            }
        if body["method"] == "ping":
            return 200, {**answer, "result": {}}
        if body["method"] == "tools/list":
            return 200, {**answer, "result": {"tools": [{"name": name} for name in PARAMETERS]}}
        if body["method"] != "tools/call":
            return 200, {**answer, "error": {"code": -32601, "message": f"Method not found: {body['method']}"}}
        try:
            result = self.called(params["name"], params["arguments"])
        except BadArguments as error:
            return 200, {**answer, "error": {"code": -32602, "message": str(error)}}
        return 200, {**answer, "result": {"content": [{"type": "text", "text": json.dumps(result)}]}}

    def rest(self, body: JSON) -> tuple[int, JSON]:
        usage = {"input_tokens": 12, "output_tokens": 34, "latency_ms": 5}
        try:
            result = self.called(body["tool"], body["params"])
        except BadArguments as error:
            return 200, {"success": False, "result": None, "error": str(error), "usage": usage}
        return 200, {"success": True, "result": result, "error": None, "usage": usage}

    # the tools

    def called(self, tool: str, arguments: JSON) -> Any:
        if tool not in PARAMETERS:
            raise BadArguments(f"Unknown tool: {tool}")
        known = PARAMETERS[tool]
        for name, value in arguments.items():
            if name not in known:
                raise BadArguments(f"Unexpected argument: {name}")
            if not isinstance(value, known[name][0]):
                raise BadArguments(f"Invalid type for {name}: {type(value).__name__}")
        if missing := [name for name, (_, required) in known.items() if required and name not in arguments]:
            raise BadArguments(f"Missing argument: {missing[0]}")
        name = "list_memories" if tool == "rlm_memories" else tool.removeprefix("rlm_")
        return getattr(self, name)(**arguments)

    def context_query(self, query: str, **options: Any) -> JSON:
        words = query.lower().split()
        sections = [section for section in sections_of(DOCUMENT) if any(w in section["content"].lower() for w in words)]
        return {
            "sections": sections,
            "total_tokens": sum(section["token_count"] for section in sections),
            "max_tokens": options["max_tokens"],
            "query": query,
            "search_mode": options["search_mode"],
            "suggestions": [],
            "timing": None,
        }

    def search(self, pattern: str, max_results: int) -> JSON | str:
        try:
            find = re.compile(pattern).search
        except re.error as error:
            return f"Invalid regex pattern: {error}"
        lines = [(number, line) for number, line in enumerate(DOCUMENT, 1) if find(line)]
        results = [{"line_number": n, "file_path": "docs/guide.md", "content": line} for n, line in lines[:max_results]]
        return {"pattern": pattern, "total_matches": len(lines), "results": results}

    def sections(self, limit: int, offset: int, filter: str = "") -> JSON:
        found = [section for section in sections_of(DOCUMENT) if filter.lower() in section["title"].lower()]
        rows = [
            {"id": f"s{number}", "title": s["title"], "start_line": s["lines"][0], "end_line": s["lines"][1]}
            for number, s in enumerate(found)
        ][offset : offset + limit]
        page = {"returned": len(rows), "offset": offset, "limit": limit, "has_more": len(found) > offset + limit}
        return {"total_sections": len(found), **page, "sections": rows}

    def read(self, start_line: int, end_line: int) -> JSON:
        lines = DOCUMENT[start_line - 1 : end_line]
        content = "\n".join(f"{number:>5}| {line}" for number, line in enumerate(lines, start_line))
        return {"start_line": start_line, "end_line": end_line, "total_lines": len(DOCUMENT), "content": content}

    def shared_context(self, max_tokens: int, include_content: bool, categories: Any = None) -> JSON:
        document = {"id": "d1", "title": "Rules", "category": "MANDATORY", "is_mandatory": True, "token_count": 6}
        content = "Write tests first." if include_content else None
        wanted = categories is None or "MANDATORY" in categories
        return {"documents": [document] if wanted else [], "merged_content": content, "total_tokens": 6}

    def remember(self, content: str, type: str, scope: str, **rest: Any) -> JSON:
        memory = {"memory_id": f"m{len(self.memories) + 1}", "content": content, "type": type, "scope": scope, **rest}
        self.memories.append(memory)
        return {**memory, "status": "active", "created": True, "message": "Memory stored"}

    def recall(self, query: str, limit: int, min_relevance: float, **_: Any) -> JSON:
        found = [{**memory, "relevance": 0.9} for memory in self.memories if query.lower() in memory["content"].lower()]
        return {"memories": found[:limit], "warnings": [], "total_searched": len(self.memories), "query": query}

    def list_memories(self, limit: int, offset: int, search: str = "", **_: Any) -> JSON:
        found = [memory for memory in self.memories if search.lower() in memory["content"].lower()]
        return {"memories": found[offset : offset + limit], "total_count": len(found), "has_more": False}

    def forget(self, memory_id: str | None = None, **_: Any) -> JSON:
        kept = [memory for memory in self.memories if memory_id is not None and memory["memory_id"] != memory_id]
        count, self.memories = len(self.memories) - len(kept), kept
        return {"deleted_count": count, "message": f"Deleted {count} memories"}


def sections_of(lines: list[str]) -> list[JSON]:
    starts = [index for index, line in enumerate(lines) if line.startswith("#")]
    return [
        {
            "title": lines[start].lstrip("# "),
            "content": "\n".join(lines[start:end]),
            "file": "docs/guide.md",
            "lines": [start + 1, end],
            "relevance_score": 0.8,
            "token_count": sum(map(len, lines[start:end])) // 4,
            "truncated": False,
        }
        for start, end in zip(starts, [*starts[1:], len(lines)])
    ]


def packed(status: int, answer: Any, **headers: str) -> tuple[int, JSON, bytes]:
    return status, headers, b"" if answer is None else json.dumps(answer).encode()


def rpc(**fields: Any) -> tuple[int, JSON, bytes]:
    return packed(200, {"jsonrpc": "2.0", "id": 1, **fields})


def texts(*blocks: str, **fields: Any) -> tuple[int, JSON, bytes]:
    return rpc(result={"content": [{"type": "text", "text": block} for block in blocks], **fields})


# each failure: the answer that the server gives instead of its own
FAILURES: dict[str, Callable[[dict[str, str]], tuple[int, JSON, bytes]]] = {
    "401": lambda headers: packed(401, {"detail": "Token expired"}),
    "403": lambda headers: packed(403, {"detail": {"message": "No access to this project", "code": "forbidden"}}),
    "404": lambda headers: packed(404, {"detail": "Project not found"}),
    "422": lambda headers: packed(422, {"detail": [{"loc": ["body"], "msg": "field required"}]}),
    "429": lambda headers: (429, {"Retry-After": "0"}, b'{"detail": "Monthly query limit of 100 is reached"}'),
    "500": lambda headers: (500, {}, b"Internal Server Error"),
    "302": lambda headers: (302, {"Location": "https://elsewhere.example/"}, b""),
    "html": lambda headers: (200, {"Content-Type": "text/html"}, b"<!DOCTYPE html><title>Sign in</title>"),
    "empty": lambda headers: (200, {}, b""),
    "half": lambda headers: (200, {}, b'{"jsonrpc": "2.0", "id": 1, "resu'),
    "list": lambda headers: packed(200, [1, 2]),
    "nothing": lambda headers: rpc(),
    "error object": lambda headers: rpc(error={"code": -32000, "message": "The index is being rebuilt"}),
    "error string": lambda headers: packed(200, {"error": "The index is being rebuilt"}),
    "detail": lambda headers: packed(200, {"detail": "The index is being rebuilt"}),
    "not a success": lambda headers: packed(200, {"success": False, "result": None, "error": "Out of luck"}),
    "isError": lambda headers: texts("Section index unavailable", "try later", isError=True),
    "two blocks": lambda headers: texts('{"part": 1}', '{"part": 2}'),
    "plain text": lambda headers: texts("No documentation loaded"),
    "text and image": lambda headers: rpc(
        result={"content": [{"type": "image", "data": "eA=="}, {"type": "text", "text": "a caption"}]}
    ),
    "structured": lambda headers: rpc(result={"content": [], "structuredContent": {"sections": []}}),
    "echo": lambda headers: packed(403, {"detail": f"Key {headers.get('x-api-key', '')} is blocked"}),
}

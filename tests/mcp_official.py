"""Run in an environment that has an official MCP client (`.ci/mcp-clients`), never in the project's own.

python mcp_official.py session MODE COMMAND...   what a client of `mcp` 2.x (MODE auto, legacy or a revision) or
                                                 1.x (MODE handshake) sees, as one JSON object
python mcp_official.py validate FOLDER < lines   what is wrong with a server's lines by the official types
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

FIBONACCI = "a, b = 0, 1\nseen = []\nwhile a <= 20:\n    seen.append(a)\n    a, b = b, a + b\nprint(seen)"


# --- a session ----------------------------------------------------------------------------------------------------


async def sample(context: Any, params: Any) -> Any:
    """The client's model: it answers each prompt in capitals."""
    import mcp.types as types

    content = params.messages[-1].content
    block = content[0] if isinstance(content, list) else content
    text = block.text.partition("\n\n`context`")[0].upper()  # the prompt, without what is said of the context
    return types.CreateMessageResult(
        role="assistant", content=types.TextContent(type="text", text=text), model="host", stopReason="endTurn"
    )


@contextlib.asynccontextmanager
async def connected(mode: str, command: list[str], sampling: Any) -> AsyncIterator[Any]:
    if mode == "handshake":
        from mcp import ClientSession, StdioServerParameters
        from mcp.client.stdio import stdio_client

        parameters = StdioServerParameters(command=command[0], args=command[1:])
        async with (
            stdio_client(parameters) as (read, write),
            ClientSession(read, write, sampling_callback=sampling) as session,
        ):
            await session.initialize()
            yield session
    else:
        from mcp import Client
        from mcp.client.stdio import StdioServerParameters

        parameters = StdioServerParameters(command=command[0], args=command[1:])
        async with Client(parameters, mode=mode, sampling_callback=sampling, list_roots_callback=roots) as client:
            yield client


async def roots(context: Any) -> Any:
    """The client's only folder, which is not the server's own."""
    import mcp.types as types

    return types.ListRootsResult(roots=[types.Root(uri=(Path.cwd() / "root").as_uri())])


def said(result: Any) -> str:
    return "\n".join(block.text for block in result.content if block.type == "text")


async def session(mode: str, command: list[str]) -> dict[str, Any]:
    import anyio

    seen: dict[str, Any] = {}
    async with connected(mode, command, None) as client:
        seen["tools"] = [tool.name for tool in (await client.list_tools()).tools]
        seen["fibonacci"] = said(await client.call_tool("execute_python", {"code": FIBONACCI}))
        await client.call_tool("set_repl_context", {"key": "x", "value": "[1, 2]"})
        seen["variables"] = json.loads(said(await client.call_tool("get_repl_context", {})))["variables"]
        failed = await client.call_tool("execute_python", {"code": "1 / 0"})
        seen["error"] = bool(getattr(failed, "isError", None) or getattr(failed, "is_error", None))
        long = await client.call_tool("execute_python", {"code": "print('x' * 50_000)"})
        uri = next(block.uri for block in long.content if block.type == "resource_link")
        seen["resource"] = len((await client.read_resource(uri)).contents[0].text)
        seen["resources"] = str(uri) in [str(row.uri) for row in (await client.list_resources()).resources]
        heard: list[float] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            heard.append(done)

        code = "import time\nfor i in range(20):\n    print(i)\n    time.sleep(0.05)"
        await client.call_tool("execute_python", {"code": code}, progress_callback=progress)
        seen["progress"] = bool(heard) and heard == sorted(set(heard))
        if mode == "handshake":  # its client does not tell the server of a call that it gives up
            await client.call_tool("execute_python", {"code": "x = 'kept'"})
        else:
            with anyio.move_on_after(0.3):
                await client.call_tool("execute_python", {"code": "x = 'kept'\nwhile True:\n    pass"})
        seen["after cancel"] = said(await client.call_tool("execute_python", {"code": "x"}))
        status = json.loads(said(await client.call_tool("execute_python", {"code": "llm_query('hello')"})))
        seen["requests"] = status["requests"]
        resumed = await client.call_tool("resume", {"handle": status["handle"], "answers": ["hi"]})
        seen["resumed"] = said(resumed)
        listed = json.loads(said(await client.call_tool("list_sessions", {})))
        seen["directory"] = listed["sessions"][0]["directory"]
    async with connected(mode, command, sample) as client:
        code = "llm_query_batched(['a', 'b']) + [llm_query('c')]"
        seen["sampled"] = said(await client.call_tool("execute_python", {"code": code}))
        done = await client.call_tool("run_completion", {"prompt": "shout", "context": "abc"})
        seen["completion"] = done.content[0].text
    return seen


# --- validation ---------------------------------------------------------------------------------------------------

RESULTS = {
    "initialize": "InitializeResult",
    "ping": "EmptyResult",
    "tools/list": "ListToolsResult",
    "tools/call": "CallToolResult",
    "resources/list": "ListResourcesResult",
    "resources/templates/list": "ListResourceTemplatesResult",
    "resources/read": "ReadResourceResult",
}
NOTES = {
    "notifications/progress": "ProgressNotification",
    "notifications/resources/list_changed": "ResourceListChangedNotification",
}
REQUESTS = {"sampling/createMessage": "CreateMessageRequest", "roots/list": "ListRootsRequest"}


FREE = {"meta", "input_schema", "inputSchema", "input_requests", "data"}  # objects that may hold anything


def handshake_type(folder: str, version: str, table: dict[str, str], method: str) -> Any:
    name = f"types_{version.replace('-', '_')}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, f"{folder}/types/{version}.py")
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return getattr(sys.modules[name], table[method])


def official_type(folder: str, version: str, kind: str, method: str) -> Any:
    if version >= "2025-11-25":
        import mcp_types.methods as methods

        tables = {"result": methods.SERVER_RESULTS, "note": methods.SERVER_NOTIFICATIONS}
        return {**tables, "request": methods.SERVER_REQUESTS}[kind][method, version]
    return handshake_type(folder, version, {"result": RESULTS, "note": NOTES, "request": REQUESTS}[kind], method)


def unknown_fields(model: Any, path: str) -> list[str]:
    """Fields that the official type does not have, free-form objects apart."""
    from pydantic import BaseModel

    found: list[str] = []
    if isinstance(model, BaseModel):
        found += [f"{path}.{name}" for name in (model.model_extra or {})]
        for name in type(model).model_fields:
            if name not in FREE:
                found += unknown_fields(getattr(model, name), f"{path}.{name}")
    elif isinstance(model, list):
        for item in model:
            found += unknown_fields(item, path)
    return found


def problems_of(folder: str, version: str, message: dict[str, Any], methods: dict[Any, str]) -> list[str]:
    from pydantic import TypeAdapter, ValidationError

    if "error" in message:
        error = message["error"]
        right = isinstance(error.get("code"), int) and isinstance(error.get("message"), str)
        return [] if right else [f"{version}: {message}"]
    if "method" in message:
        kind, method = ("request" if "id" in message else "note"), message["method"]
        body: Any = {"method": method, **({"params": message["params"]} if "params" in message else {})}
        if kind == "request" or version >= "2025-11-25":
            body = {"jsonrpc": "2.0", **({"id": message["id"]} if "id" in message else {}), **body}
    else:
        kind, method, body = "result", methods[json.dumps(message["id"])], message["result"]
    try:
        model = TypeAdapter(official_type(folder, version, kind, method)).validate_json(json.dumps(body))
    except (ValidationError, KeyError) as error:
        return [f"{version} {method}: {error!r}"]
    extra = [name for name in unknown_fields(model, "") if name not in (".jsonrpc", ".id")]
    return [f"{version} {method}: unknown {name}" for name in extra]


def validate(folder: str) -> list[str]:
    problems: list[str] = []
    for line in sys.stdin:
        told = json.loads(line)
        methods: dict[Any, str] = {}
        for entry in told["transcript"]:
            [(way, messages)] = entry.items()
            for message in messages if isinstance(messages, list) else [messages]:
                if way == "sent":
                    if isinstance(message, dict) and "method" in message:
                        methods[json.dumps(message.get("id"))] = message["method"]
                else:
                    problems += problems_of(folder, told["version"], message, methods)
    return problems


if __name__ == "__main__":
    if sys.argv[1] == "session":
        import anyio

        print(json.dumps(anyio.run(session, sys.argv[2], sys.argv[3:])))
    else:
        print(json.dumps(validate(sys.argv[2])))

"""Run in the environment `converters` of `.ci/mcp-clients`, never in the project's own.

python mcp_converters.py COMMAND...   for each framework, as one JSON object: the schema that its converter makes of
                                      every tool of the server, and what a cell answers through it
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

COMMAND = sys.argv[1:]
CODE = {"code": "6 * 7"}
Found = tuple[dict[str, Any], Any]  # {tool: schema}, the answer


async def google_genai() -> Found:
    from google.genai import Client, _transformers, types
    from google.genai._mcp_utils import mcp_to_gemini_tools
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client

    server = StdioServerParameters(command=COMMAND[0], args=COMMAND[1:])
    async with stdio_client(server) as streams, ClientSession(*streams) as session:
        await session.initialize()
        tools = mcp_to_gemini_tools((await session.list_tools()).tools)
        answer = await session.call_tool("execute_python", CODE)
    found = {}
    for tool in _transformers.t_tools(Client(api_key="none")._api_client, tools):
        for declaration in tool.function_declarations or []:
            assert declaration.parameters is None or isinstance(declaration.parameters, types.Schema)
            schema = declaration.parameters or declaration.parameters_json_schema
            found[declaration.name] = schema if isinstance(schema, dict) else schema.model_dump(mode="json")
    return found, answer.content[0].text


async def openai_agents() -> Found:
    from agents.mcp import MCPServerStdio
    from agents.mcp.util import MCPUtil

    async with MCPServerStdio({"command": COMMAND[0], "args": COMMAND[1:]}) as server:
        tools = [MCPUtil.to_function_tool(tool, server, True) for tool in await server.list_tools()]
        assert all(tool.strict_json_schema for tool in tools), "a schema cannot be made strict"
        strict = dict.fromkeys(tools[0].params_json_schema["properties"])
        answer = await server.call_tool("execute_python", {**strict, **CODE})
    return {tool.name: tool.params_json_schema for tool in tools}, answer.content[0].text


async def pydantic_ai() -> Found:
    from fastmcp.client.transports import StdioTransport
    from pydantic_ai import Agent
    from pydantic_ai.mcp import MCPToolset
    from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
    from pydantic_ai.models.function import AgentInfo, FunctionModel
    from pydantic_ai.profiles.google import GoogleJsonSchemaTransformer
    from pydantic_ai.profiles.openai import OpenAIJsonSchemaTransformer

    found: dict[str, Any] = {}
    said: list[Any] = []

    def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        for tool in info.function_tools:
            GoogleJsonSchemaTransformer(dict(tool.parameters_json_schema)).walk()
            found[tool.name] = OpenAIJsonSchemaTransformer(dict(tool.parameters_json_schema), strict=True).walk()
        said.extend(p.content for p in messages[-1].parts if isinstance(p, ToolReturnPart))
        return ModelResponse([TextPart("done") if said else ToolCallPart("execute_python", CODE)])

    agent = Agent(FunctionModel(model), toolsets=[MCPToolset(StdioTransport(COMMAND[0], COMMAND[1:]))])
    await agent.run("go")
    return found, said[0]


async def langchain() -> Found:
    from langchain_core.utils.function_calling import convert_to_openai_tool
    from langchain_mcp_adapters.client import MultiServerMCPClient

    connection = {"command": COMMAND[0], "args": COMMAND[1:], "transport": "stdio"}
    tools = await MultiServerMCPClient({"rlm": connection}).get_tools()
    found = {tool.name: convert_to_openai_tool(tool, strict=True)["function"]["parameters"] for tool in tools}
    answer = await next(tool for tool in tools if tool.name == "execute_python").ainvoke(CODE)
    return found, answer if isinstance(answer, str) else answer[0]["text"]


async def autogen() -> Found:
    from autogen_core import CancellationToken
    from autogen_ext.tools.mcp import StdioServerParams, mcp_server_tools

    tools = await mcp_server_tools(StdioServerParams(command=COMMAND[0], args=COMMAND[1:]))
    run = next(tool for tool in tools if tool.name == "execute_python")
    answer = await run.run_json(CODE, CancellationToken())  # which fills in null for each argument that is absent
    return {tool.name: tool.schema["parameters"] for tool in tools}, answer[0].text


async def main(frameworks: list[Callable[[], Awaitable[Found]]]) -> None:
    seen = {}
    for framework in frameworks:
        tools, answer = await framework()
        seen[framework.__name__] = {"tools": tools, "answer": answer}
    print(json.dumps(seen, default=str))


if __name__ == "__main__":
    asyncio.run(main([google_genai, openai_agents, pydantic_ai, langchain, autogen]))

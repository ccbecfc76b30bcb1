"""What version 2 of the journal says of itself, so that a reader infers nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rlm
import rlm_viz
from rlm_backends import Reply


class Says:
    """A backend object that gives these replies in turn, then the last one for ever."""

    model = "of-my-own"
    supports_tools = True

    def __init__(self, *replies: Any) -> None:
        self.replies = list(replies)

    def complete(self, messages: list[dict[str, Any]], **how: Any) -> Reply:
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, BaseException):
            raise reply
        calls = [{"id": f"t{n}", "name": name, "arguments": asked} for n, (name, asked) in enumerate(reply[1:])]
        stop = "tool_calls" if calls else "stop"
        return Reply(reply[0], calls, {"input": 10, "output": 5}, stop, self.model, 0.0)


def run(folder: Path, *replies: Any, **options: Any) -> list[dict[str, Any]]:
    with rlm.RLM(backend=Says(*replies), config=False, log_dir=str(folder), **options) as runtime:
        return runtime.completion("go", "a line\n" * 2000).events()


def cell(code: str) -> tuple[str, dict[str, str]]:
    return "execute_code", {"code": code}


def test_every_message_without_content_names_the_line_that_has_it(tmp_path: Path) -> None:
    events = run(tmp_path, ("", cell("len(context)"), ("file_list", {})), ("", cell("1 / 0")), ("It is long.",))
    assert [event["index"] for event in events] == list(range(len(events)))
    named = [
        (message["role"], events[ref["index"]]["event"], ref["call_id"] == events[ref["index"]]["call_id"])
        for event in events
        for message in (event["prompt"] if event["event"] == "call" else [])
        for ref in message["refs"]
    ]
    assert named == [("system", "start", True), ("user", "start", True), *[("tool", "tool", True)] * 3]
    assert events[-1]["answer"] == {name: events[-2][name] for name in ("call_id", "index")}


def test_a_tools_error_has_its_type_and_its_message(tmp_path: Path) -> None:
    code = "try:\n    file_read('none')\nexcept Exception:\n    pass\n1 / 0"
    events = run(tmp_path, ("", cell(code), ("file_read", {"path": "none"}), ("nothing", {})), ("Done.",))
    found = {(e.get("name") or e["tool_results"][0]["name"], e["error"]["type"]) for e in events if e.get("error")}
    assert found == {
        *(("execute_code", "ZeroDivisionError"), ("file_read", "FileNotFoundError"), ("nothing", "ToolNotFoundError")),
    }
    [failed] = [event for event in events if "code" in event]
    assert failed["error"] == {"type": "ZeroDivisionError", "message": "division by zero"}
    assert failed["traceback"].endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize(
    ("text", "status", "error"),
    [
        ('  File "<cell 1>", line 1\nValueError: a\n  b\nC: d', "error", ("ValueError", "a\n  b\nC: d")),
        ("KeyboardInterrupt", "timeout", ("KeyboardInterrupt", "")),
        (
            "the cell was killed: it ran out of memory",
            "memory",
            ("memory", "the cell was killed: it ran out of memory"),
        ),
        ("", "crash", ("crash", "")),
    ],
    ids=["with frames", "alone", "no exception", "empty"],
)
def test_an_error_is_found_in_its_traceback(text: str, status: str, error: tuple[str, str]) -> None:
    assert tuple(rlm.error_in(text, status).values()) == error


def test_the_time_between_a_stop_and_a_resumption_is_not_active_time(tmp_path: Path) -> None:
    stops = Says(("", cell("x = 1")), OSError("gone"))
    with (
        rlm.RLM(backend=stops, config=False, log_dir=str(tmp_path)) as runtime,
        pytest.raises(rlm.RLMError) as stopped,
    ):
        runtime.completion("go", "a line\n" * 2000)
    name = str(stopped.value.trajectory_id)
    log = tmp_path / f"{name}.jsonl"
    active = rlm.read_journal(str(log))[-1]["active_ms"]
    log.write_text(log.read_text().replace('"timestamp":"20', '"timestamp":"19'))  # as if a century had passed
    with rlm.RLM(backend=Says(("It is long.",)), config=False, log_dir=str(tmp_path)) as runtime:
        events = runtime.resume(name).events()
    [resumed] = [event for event in events if event["event"] == "resume"]
    after = active + events[-1]["totals"]["duration_ms"]
    assert (resumed["active_ms"], events[-1]["active_ms"]) == (active, after)
    assert rlm_viz.totals(events)["duration_ms"] == after


def test_the_journal_keeps_a_cells_images_up_to_a_limit() -> None:
    images = [{"media_type": "image/png", "data": "A" * size} for size in (8, 900_000, 900_000, 4)]
    first, second, third, fourth = rlm.image_uris(images)
    assert (first, third, fourth) == ("data:image/png;base64,AAAAAAAA", None, "data:image/png;base64,AAAA")
    assert second is not None and len(second) > 900_000
    assert rlm.show_cell({"images": [first, None]}) == rlm_viz.cell_text({"images": [first, None]})

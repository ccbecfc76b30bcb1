"""The programs of docs/tools.md and of examples/, each run as its reader would, against a scripted model."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import scripted
from conftest import ROOT
from fake_snipara import FakeSnipara
from scripted import Reply, Request, Server, Turn, call, code

EXAMPLES = ROOT / "examples"


def run(*command: object, cwd: Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **environment},
    )


# --- docs/tools.md -------------------------------------------------------------------------------------------------


def programs(page: str) -> list[tuple[str, str]]:
    """The Python programs of a page, each with the output that the page shows below it."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)


SAID: dict[str, Sequence[Reply]] = {
    "How warm will it be in Rome in three days?": [
        Turn(tool_calls=[call("weather", city="Rome", days="3")]),
        "It will be 21 degrees in Rome.",
    ],
    "Which of Oslo and Rome is warmer?": [
        code("warm = [get_weather(city)['temp'] for city in ('Oslo', 'Rome')]\nprint(warm)"),
        "Neither: both have 72.",
    ],
    "Read the invoice.": [
        code("FINAL({'number': '2026-17'})"),
        code("import re\nFINAL({'number': '2026-17', 'total': re.search('due: ([0-9.]+)', context)[1]})"),
    ],
    "What does the box say that 6 * 7 is?": [
        code("FINAL(box.execute_python('6 * 7').removeprefix('Value: '))"),
    ],
    "Explain how authentication works in this project": [
        code(
            "(section,) = context_query('tokens')['sections']\n"
            "print(section['content'])\nprint(section['file'], section['lines'])"
        ),
        "Users log in with a password; tokens expire after 30 minutes (docs/guide.md:1-3).",
    ],
}


def said(request: Request) -> Reply:
    return SAID[request.prompt][request.turn - 1]


@pytest.mark.parametrize(("program", "output"), programs("tools.md"), ids=range(5))
def test_the_programs_of_the_page_on_tools_print_what_it_says(
    openai: Server, workspace: Path, program: str, output: str
) -> None:
    openai.script = said
    (workspace / "program.py").write_text(program)
    with FakeSnipara(key="rlm_...") as snipara:
        ran = run("program.py", cwd=workspace, SNIPARA_API_URL=snipara.url)
        asked = [request.path for request in snipara.requests]
    assert (ran.stderr, ran.stdout) == ("", output)
    assert asked == (["/mcp/my-project"] if "snipara" in program else [])


# --- examples/ -----------------------------------------------------------------------------------------------------


def play(*turns: Reply, sub: dict[str, str] | None = None) -> scripted.Script:
    """A model that says these turns in order, and answers a sub-call by the first key that its prompt holds."""

    def script(request: Request) -> Reply:
        if not request.tools:
            return next(answer for key, answer in (sub or {}).items() if key in request.prompt)
        return turns[request.turn - 1]

    return script


def outputs(server: Server) -> list[str]:
    """What the root model was shown, turn by turn."""
    return [request.last for request in server.requests if request.tools][1:]


LOOK_AT_THE_LOG = """
import re
(text,) = context.values()
errors = [line for line in text.splitlines() if " ERROR " in line]
groups = {}
for line in errors:
    groups.setdefault(re.sub(r"[0-9]+", "#", line.split(" ", 1)[1]), []).append(line)
ranked = sorted(groups.values(), key=len, reverse=True)
print(len(text), len(errors), [len(group) for group in ranked])
"""
NAME_THE_CAUSES = """
causes = llm_query_batched(["Name the cause in five words:\\n" + "\\n".join(group[:3]) for group in ranked])
found = [{"cause": c, "count": len(g), "first": g[0].split()[0], "quote": g[0]} for c, g in zip(causes, ranked)]
found.append({"cause": "Martians", "count": "1", "first": "never", "quote": "2026-03-02 ERROR little green men"})
FINAL(found)
"""


def test_log_triage_counts_incidents_and_unmasks_an_invented_quote(openai: Server, workspace: Path) -> None:
    causes = {"connection pool": "Too few connections", "gateway timeout": "Slow gateway", "No space left": "Full disk"}
    openai.script = play(code(LOOK_AT_THE_LOG), code(NAME_THE_CAUSES), sub=causes)
    ran = run(EXAMPLES / "log_triage.py", cwd=workspace)
    errors = [line for line in (EXAMPLES / "data/app.log").read_text().splitlines() if " ERROR " in line]
    since = {cause: next(line for line in errors if cause in line).split()[0] for cause in causes}
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == [
        f"    28  since {since['connection pool']}  Too few connections",
        f"    18  since {since['gateway timeout']}  Slow gateway",
        f"    11  since {since['No space left']}  Full disk",
        "     1  since never  Martians   (its quote is not in the log!)",
    ]
    assert outputs(openai)[0].endswith(" 57 [28, 18, 11]")


AUDIT = """
import csv, re
tables = {name: list(csv.DictReader(text.splitlines())) for name, text in context.items()}
orders, customers = tables["orders.csv"], tables["customers.csv"]
found = []
def finding(file, column, problem, rows, severity):
    if rows:
        found.append({"file": file, "column": column, "problem": problem, "rows": rows, "severity": severity})
def lines(table, wrong):
    return [number for number, row in enumerate(table, 2) if wrong(row)]
ids = [row["id"] for row in customers]
finding("customers.csv", "email", "not an address", lines(customers, lambda r: "@" not in r["email"]), "Medium")
finding("customers.csv", "id", "duplicate key", lines(customers, lambda r: ids.count(r["id"]) > 1), "high")
finding("orders.csv", "customer_id", "no such customer", lines(orders, lambda r: r["customer_id"] not in ids), "high")
finding("orders.csv", "date", "not ISO", lines(orders, lambda r: not re.match("[0-9]{4}-", r["date"])), "low")
odd = lines(orders, lambda r: not re.match(r"[0-9.]+$", r["total"]))
finding("orders.csv", "total", "negative or not a number", odd, "medium")
FINAL(found)
"""


def test_csv_audit_finds_what_is_wrong_and_fails_the_job(openai: Server, workspace: Path) -> None:
    openai.script = play(code("print(SHOW_VARS())"), code(AUDIT))
    ran = run(EXAMPLES / "csv_audit.py", cwd=workspace)
    assert (ran.returncode, ran.stderr) == (1, "")
    assert ran.stdout.splitlines()[2:] == [
        "| high | customers.csv: id | 5, 6 | duplicate key |",
        "| high | orders.csv: customer_id | 5 | no such customer |",
        "| medium | customers.csv: email | 4, 7 | not an address |",
        "| medium | orders.csv: total | 6, 7 | negative or not a number |",
        "| low | orders.csv: date | 4 | not ISO |",
    ]


def test_csv_audit_passes_tables_without_a_fault(openai: Server, workspace: Path) -> None:
    (workspace / "good.csv").write_text("a,b\n1,2\n")
    openai.script = play(code("FINAL([])"))
    ran = run(EXAMPLES / "csv_audit.py", "good.csv", cwd=workspace)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_ask_codebase_cites_places_and_checks_them(openai: Server, workspace: Path) -> None:
    (workspace / "shop").mkdir()
    (workspace / "shop/main.py").write_text("import sys\n\n\ndef main():\n    sys.exit(3)\n")
    (workspace / "secret.txt").write_text("sys.exit in a file outside the folder\n")
    answer = (
        "try:\n    file_read('secret.txt')\nexcept PermissionError as error:\n    print(error)\n"
        "(hit,) = file_search(r'sys\\.exit', '*.py')\n"
        "real = {'path': hit['path'], 'line': hit['line'], 'quote': 'sys.exit(3)'}\n"
        "FINAL({'text': 'In main().', 'places': [real, {**real, 'line': 1}, {**real, 'path': 'no.py'}]})"
    )
    search = Turn(tool_calls=[call("file_search", regex="exit"), call("file_list", pattern="**")])
    openai.script = play(search, code(answer))
    ran = run(EXAMPLES / "ask_codebase.py", "Where is the exit status decided?", "shop", cwd=workspace)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == [
        "In main().",
        "  shop/main.py:5: sys.exit(3)",
        "  shop/main.py:1: sys.exit(3)   (not there!)",
        "  no.py:5: sys.exit(3)   (not there!)",
    ]
    assert "shop/main.py:5:     sys.exit(3)" in openai.requests[1].results.values()


COMPARE = """
def sections(text):
    parts = [part.partition("\\n") for part in text.split("\\n## ")[1:]]
    return {title: body.strip() for title, _, body in parts}
old, new = sections(context["old"]), sections(context["new"])
titles = [title for title in {**old, **new} if old.get(title) != new.get(title)]
kinds = ["added" if t not in old else "removed" if t not in new else "changed" for t in titles]
means = llm_query_batched([f"OLD: {old.get(t)}\\nNEW: {new.get(t)}" for t in titles])
FINAL([{"section": t, "kind": k, "meaning": m.strip()} for t, k, m in zip(titles, kinds, means)])
"""


def test_compare_documents_reads_only_the_sections_that_differ(openai: Server, workspace: Path) -> None:
    meanings = {
        "renews for another": "You must cancel in time.",
        "last month": "They owe you far less.",
        "suppliers store": "Data may leave the EU.",
        "14 days": "Terms may change at short notice.",
    }
    openai.script = play(code(COMPARE), sub=meanings)
    ran = run(EXAMPLES / "compare_documents.py", cwd=workspace)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == [
        "1 Term (changed)",
        "  You must cancel in time.",
        "4 Liability (changed)",
        "  They owe you far less.",
        "5 Data (changed)",
        "  Data may leave the EU.",
        "6 Changes (added)",
        "  Terms may change at short notice.",
    ]
    assert len(openai.requests) == 5


SPENT = """
rows = query('''SELECT country, SUM(CAST(REPLACE(total, ',', '') AS REAL)) AS spent
                FROM orders JOIN customers ON customer_id = id GROUP BY country ORDER BY spent DESC''')
print(rows[0])
for attack in ("DELETE FROM orders", "ATTACH DATABASE 'new.db' AS other", "PRAGMA writable_schema = 1", "DROP TABLE x"):
    try:
        query(attack)
        print("ran:", attack)
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_custom_tool_answers_from_a_database_that_it_cannot_change(openai: Server, workspace: Path) -> None:
    openai.script = play(
        Turn(tool_calls=[call("query", sql="SELECT name FROM sqlite_master")]), code(SPENT), "The UK: 1370."
    )
    ran = run(EXAMPLES / "custom_tool.py", "Which country spends most?", cwd=workspace)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("The UK: 1370.\n  asked: {'sql': 'SELECT name FROM sqlite_master'}\n")
    tables, spent = outputs(openai)
    assert tables == '[{"name": "customers"}, {"name": "orders"}]'
    assert spent.startswith("{'country': 'UK', 'spent': 1370.0}") and "ran:" not in spent
    assert spent.count("DatabaseError not authorized") == 3
    assert not (workspace / "new.db").exists()


@pytest.mark.parametrize("program", sorted(p.name for p in EXAMPLES.glob("*.py") if p.name != "test_replay.py"))
def test_an_example_without_a_key_says_what_to_do(program: str, workspace: Path) -> None:
    arguments = ["a question"] if program in ("ask_codebase.py", "custom_tool.py") else []
    ran = run(EXAMPLES / program, *arguments, cwd=workspace)
    assert ran.returncode in (1, 2) and "Traceback" not in ran.stderr
    assert "no API key" in ran.stderr and "OPENAI_API_KEY" in ran.stderr


def test_the_list_of_examples_is_complete() -> None:
    listed = set(re.findall(r"examples/(\w+\.py|plugin)", (EXAMPLES / "README.md").read_text()))
    assert listed == {path.name for path in EXAMPLES.glob("*.py")} | {"plugin"}


# --- the sample plug-in --------------------------------------------------------------------------------------------

USE_THE_PLUG_IN = """
from rlm import RLM
result = RLM(model="gpt-4o-mini").completion("How many working days has May 2026?")
print(result)
"""


@pytest.mark.slow
def test_an_installed_package_brings_its_tools(openai: Server, workspace: Path, tmp_path: Path) -> None:
    """Installed by pip as its README says; then its entry points are broken in each way that there is."""
    source, site = tmp_path / "plugin", tmp_path / "site"
    shutil.copytree(EXAMPLES / "plugin", source)
    pip = run("-m", "pip", "install", "-q", "--no-deps", "--target", site, source, cwd=tmp_path)
    assert pip.returncode == 0, pip.stderr
    days = code("FINAL(working_days('2026-05-01', '2026-05-31', holidays=['2026-05-01']))")
    openai.script = play(Turn(tool_calls=[call("weekday", day="2026-05-01")]), days)
    path = {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    ran = run("-c", USE_THE_PLUG_IN, cwd=workspace, **path)
    assert (ran.stdout, ran.stderr) == ("20\n", "")
    assert outputs(openai) == ["Friday"]

    module = site / "rlm_calendar_tools.py"
    broken = {
        "import nowhere": "cannot be imported: ModuleNotFoundError: No module named 'nowhere'",
        "x = 1": "has no tools",
        "from rlm import tool\n@tool\ndef file_read(): ...": "two tools are called 'file_read'",
    }
    for text, problem in broken.items():
        module.write_text(text)
        ran = run("-m", "rlm", "How many?", cwd=workspace, **path)
        assert ran.returncode == 2 and problem in ran.stderr, ran.stderr
        assert "rlm-calendar-tools (entry point 'calendar')" in ran.stderr and "Traceback" not in ran.stderr

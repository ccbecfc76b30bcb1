"""Documents and web pages as the context: what readers make of them, what hostile ones cannot do, what is fetched."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import ROOT, eventually, left_running, need
from scripted import KEY, Server, answer_with, code

import rlm
import rlm_cli
import rlm_tools

# --- documents, made by hand --------------------------------------------------------------------------------------


def pdf(text: str, trailer: str = "") -> bytes:
    """A PDF of one page with one line."""
    drawn = f"BT /F1 24 Tf 72 700 Td ({text}) Tj ET"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        "/Resources << /Font << /F1 5 0 R >> >> >>",
        f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    made, places = "%PDF-1.4\n", []
    for number, item in enumerate(objects, 1):
        places.append(len(made))
        made += f"{number} 0 obj\n{item}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    head = f"xref\n0 6\n0000000000 65535 f \n{table}trailer << /Size 6 /Root 1 0 R {trailer}>>\n"
    return f"{made}{head}startxref\n{len(made)}\n%%EOF\n".encode()


ENCRYPTED = pdf(
    "x", f"/Encrypt << /Filter /Standard /V 1 /R 2 /O <{'41' * 32}> /U <{'42' * 32}> /P -4 >> /ID [<41><41>]"
)
WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"


def docx(path: Path, text: str, megabytes: int = 0) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        target = f'<Relationship Id="r1" Type="{OFFICE}" Target="word/document.xml"/>'
        archive.writestr("_rels/.rels", f'<Relationships xmlns="{PACKAGE}">{target}</Relationships>')
        with archive.open("word/document.xml", "w", force_zip64=True) as file:
            file.write(f'<w:document xmlns:w="{WORD}"><w:body><w:p><w:r><w:t>{text}'.encode())
            for _ in range(megabytes):
                file.write(b"A" * 1_000_000)
            file.write(b"</w:t></w:r></w:p></w:body></w:document>")


def xlsx(path: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    book.active.append(["customer", "failed"])
    book.active.append(["Acme", 3])
    book.save(path)


def pptx(path: Path) -> None:
    import pptx

    deck = pptx.Presentation()
    deck.slides.add_slide(deck.slide_layouts[0]).shapes.title.text = "Quarter"
    deck.save(str(path))


def epub(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        root = '<rootfile full-path="a.opf" media-type="application/oebps-package+xml"/>'
        archive.writestr("META-INF/container.xml", f"<container><rootfiles>{root}</rootfiles></container>")
        item = '<item id="c" href="c.xhtml" media-type="application/xhtml+xml"/>'
        parts = f'<manifest>{item}</manifest><spine><itemref idref="c"/></spine>'
        archive.writestr("a.opf", f"<package><metadata/>{parts}</package>")
        archive.writestr("c.xhtml", "<html><body><p>Call me Ishmael.</p></body></html>")


MADE: dict[str, tuple[Callable[[Path], object], str]] = {
    "invoice.pdf": (lambda path: path.write_bytes(pdf("Total due 99.50")), "Total due 99.50"),
    "letter.docx": (lambda path: docx(path, "Dear Ms Moe"), "Dear Ms Moe"),
    "book.xlsx": (xlsx, "| Acme | 3 |"),
    "deck.pptx": (pptx, "# Quarter"),
    "novel.epub": (epub, "Call me Ishmael."),
}


def command(*arguments: str, **how: Any) -> tuple[int, str, str]:
    how = {"stdin": subprocess.DEVNULL} | how if "input" not in how else how
    ran = subprocess.run([sys.executable, "-m", "rlm", *arguments], capture_output=True, timeout=100, **how)
    return ran.returncode, ran.stdout.decode(), ran.stderr.decode()


def journal() -> list[dict[str, Any]]:
    (path,) = Path("logs").glob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- markitdown ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MADE)
def test_a_document_is_text(workspace: Path, name: str) -> None:
    need("import markitdown")
    make, expected = MADE[name]
    make(workspace / name)
    context = rlm.read_context([name])
    assert expected in context.value
    (record,) = context.source["documents"]
    assert record["reader"].startswith("markitdown ") and record["bytes"] == (workspace / name).stat().st_size
    assert context.notes == (f"{name}: read by {record['reader']} into {len(context.value)} characters",)
    assert "markitdown" not in sys.modules


def test_what_was_read_is_told_and_journalled_and_resumed_from_the_copy(openai: Server, workspace: Path) -> None:
    need("import markitdown")
    (workspace / "a.pdf").write_bytes(pdf("Total due 99.50"))
    openai.script = answer_with(code("FINAL(context.split()[-1])"))
    status, out, err = command("How much?", "-c", "a.pdf", "--max-iterations", "1", "--show-below", "0")
    assert (status, out) == (0, "99.50\n")
    assert "rlm: context: a.pdf: read by markitdown" in err
    source = journal()[0]["context"]["source"]
    assert source["names"] == ["a.pdf"] and len(source["documents"][0]["sha256"]) == 64
    (workspace / "a.pdf").unlink()
    status, out, err = command("replay", journal()[0]["trajectory_id"])
    assert (status, out) == (0, "99.50\n"), err


def test_a_piped_document_and_one_without_a_suffix_are_read_too(workspace: Path) -> None:
    need("import markitdown")
    (workspace / "paper").write_bytes(pdf("by its bytes"))
    assert "by its bytes" in rlm.read_context(["paper"]).value
    assert "by its bytes" in rlm.read_context([], stdin=pdf("by its bytes")).value


BAD: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "torn.pdf": (lambda p: p.write_bytes(b"%PDF-1.4 nonsense"), "cannot read torn.pdf: ", "in another format"),
    "locked.pdf": (lambda p: p.write_bytes(ENCRYPTED), "locked.pdf is encrypted", "without a password"),
    "locked.docx": (lambda p: p.write_bytes(b"\xd0\xcf\x11\xe0" * 99), "encrypted, or in an older", "without a pass"),
    "scan.pdf": (lambda p: p.write_bytes(pdf("")), "found no text in scan.pdf", "OCR"),
    "text.pdf": (lambda p: p.write_text("hello"), "text.pdf is not a PDF: its bytes are those of text", "right"),
    "empty.docx": (lambda p: p.touch(), "empty.docx is not a Word document: it is empty", "right file"),
    "zip.xlsx": (lambda p: zipfile.ZipFile(p, "w").writestr("a", "b"), "cannot read zip.xlsx: ", "another format"),
    "bomb.docx": (lambda p: docx(p, "", 2200), "needs more than 2 GB for bomb.docx", "another format"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.nightly) if name == "bomb.docx" else name for name in BAD]
)
def test_a_bad_document_is_an_error_that_says_what_to_do(workspace: Path, name: str) -> None:
    need("import markitdown")
    make, said, following = BAD[name]
    make(workspace / name)
    with pytest.raises(rlm.ConfigError) as caught:
        rlm.read_context([name])
    assert said in caught.value.message and following in caught.value.hint
    (workspace / "a.txt").write_text("kept")
    found = rlm.read_context(["."])
    assert found.value == {"a.txt": "kept"} and said in found.notes[0]  # nobody has named it: it is left out


def test_a_document_that_is_too_large_is_not_read(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("import markitdown")
    monkeypatch.setattr(rlm_tools, "DOCUMENT_LIMIT", 100_000)
    (workspace / "a.pdf").write_bytes(pdf("x") + b" " * 100_000)
    with pytest.raises(rlm.ConfigError, match="larger than"):
        rlm.read_context(["a.pdf"])


def test_without_the_extra_the_error_names_it(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "markitdown", None)
    (workspace / "a.pdf").write_bytes(pdf("x"))
    with pytest.raises(rlm.ConfigError, match="a PDF, which needs markitdown") as caught:
        rlm.read_context(["a.pdf"])
    assert caught.value.hint == "pip install 'flat-rlm[docs]'"


def test_html_files_are_the_text_that_they_are(workspace: Path) -> None:
    (workspace / "a.html").write_text("<p>hello</p>")
    assert rlm.read_context(["a.html"]).value == "<p>hello</p>"


# --- readers of installed packages --------------------------------------------------------------------------------

PLUGIN = '''
import os, sys, time

def read(path):
    """Rich text without its commands."""
    text = open(path, encoding="latin-1").read()
    if "raise" in text:
        raise ValueError("not rich enough")
    if "exit" in text:
        os._exit(7)
    if "hang" in text:
        time.sleep(1000)
    if "eat" in text:
        bytearray(8 << 30)
    if "print" in text:
        print('{"text": "forged"}')
    if "bytes" in text:
        return b"none"
    if "environment" in text:
        return repr(dict(os.environ))
    return "read: " + text[6:]

read.suffixes = [".rtf"]
read.signatures = [b"{\\\\rtf"]
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with a reader, as pip would have installed it."""
    site = tmp_path / "site"
    info = site / "rlm_rtf-1.2.dist-info"
    info.mkdir(parents=True)
    (site / "rlm_rtf.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rlm-rtf\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[rlm.readers]\nrtf = rlm_rtf:read\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", f"{site}:{os.environ['PYTHONPATH']}")
    yield site
    sys.modules.pop("rlm_rtf", None)


def rich(text: str) -> rlm.Context:
    Path("a.rtf").write_text("{\\rtf " + text)
    return rlm.read_context(["a.rtf"])


def test_a_plug_in_reads_its_suffix_and_its_signature(plugin: Path, workspace: Path) -> None:
    context = rich("hello")
    assert (context.value, context.source["documents"][0]["reader"]) == ("read: hello", "rtf (rlm-rtf 1.2)")
    (workspace / "b.txt").write_text("{\\rtf by its signature")
    assert rlm.read_context(["b.txt"]).value == "read: by its signature"


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("raise", "cannot read a.rtf: ValueError: not rich enough"),
        ("exit", "crashed over a.rtf (exit code 7)"),
        ("hang", "took longer than 1 s over a.rtf"),
        ("eat", "needs more than 2 GB for a.rtf"),
        ("bytes", "cannot read a.rtf: TypeError: it returned bytes, not str"),
    ],
)
def test_a_reader_that_fails_fails_alone(plugin: Path, monkeypatch: pytest.MonkeyPatch, does: str, said: str) -> None:
    if does == "hang":
        monkeypatch.setattr(rlm_tools, "READER_SECONDS", 1.0)
    with pytest.raises(rlm.ConfigError) as caught:
        rich(does)
    assert said in caught.value.message and caught.value.hint


def test_a_reader_s_prints_are_no_reply_and_the_next_document_is_read(plugin: Path, workspace: Path) -> None:
    assert rich("print").value == "read: print"
    for name in ("exit", "fine"):
        (workspace / f"{name}.rtf").write_text("{\\rtf " + name)
    (workspace / "a.rtf").unlink()
    found = rlm.read_context(["."])
    assert found.value == {"fine.rtf": "read: fine"} and "crashed over exit.rtf" in found.notes[1]


def test_slow_documents_share_one_budget_of_time(
    plugin: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rlm_tools, "READER_SECONDS", 2.0)
    monkeypatch.setattr(rlm_tools, "_READER_LEAST", 0.5)
    for name in ("a-hang", "b-hang", "c-hang", "d-hang"):
        (workspace / f"{name}.rtf").write_text("{\\rtf " + name)
    allowed: list[float | None] = []
    on_thread = rlm_tools._on_thread

    def noted(work: Callable[[], Any], seconds: float | None = None) -> Any:
        allowed.append(seconds)
        return on_thread(work, seconds)

    monkeypatch.setattr(rlm_tools, "_on_thread", noted)
    with rlm_tools.Documents() as documents:
        for name in ("a-hang", "b-hang", "c-hang", "d-hang"):
            blob = (workspace / f"{name}.rtf").read_bytes()
            reader = documents.reader_for(f"{name}.rtf", blob)
            assert reader is not None
            with pytest.raises(rlm_tools.ToolError, match=f"took longer than .* s over {name}.rtf") as caught:
                documents.read(reader, f"{name}.rtf", blob)
        assert "what the documents before it left of 2 s" in str(caught.value) and "give it alone" in caught.value.hint
    assert [seconds for seconds in allowed if seconds in (2.0, 0.5)] == [2.0, 0.5, 0.5, 0.5]


def test_a_quick_document_is_read_however_long_the_others_took(
    plugin: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rlm_tools, "READER_SECONDS", 1.0)
    (workspace / "a.rtf").write_text("{\\rtf hang")
    (workspace / "b.rtf").write_text("{\\rtf quick")
    found = rlm.read_context(["."])
    assert found.value == {"b.rtf": "read: quick"} and "took longer than 1 s over a.rtf" in found.notes[-1]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe")
@pytest.mark.parametrize("name", ["a.rtf", "a.txt", "rows.jsonl"])
def test_a_pipe_that_nobody_writes_to_is_named(
    plugin: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(rlm_tools, "_SLOW_SECONDS", 0.0)
    os.mkfifo(name)
    said: list[str] = []

    def write(text: str) -> None:
        said.append(text)
        if len(said) == 1:
            content = '"hello"' if name == "rows.jsonl" else "{\\rtf hello"
            threading.Thread(target=lambda: (workspace / name).write_text(content)).start()

    if name == "rows.jsonl":
        assert rlm_cli.read_items(name, None, warn=write) == [{"prompt": "hello"}]
    else:
        assert rlm.read_context([name], on_slow=write).value == "read: hello"
    assert f"waiting for {name}" in said[0]


def test_what_takes_long_is_said(plugin: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = threading.Event()
    monkeypatch.setattr(rlm_tools, "_SLOW_SECONDS", 0.0)
    (workspace / "a.rtf").write_text("{\\rtf hello")
    assert rlm.read_context(["a.rtf"], on_slow=lambda text: said.set()).value == "read: hello"
    assert said.wait(10)


def test_a_reader_gets_no_key(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    shown = rich("environment").value
    assert KEY not in shown and "OPENAI" not in shown


@pytest.mark.parametrize("body", ["read = 1", "def read(path): return ''", "import nothing_of_the_kind"])
def test_a_plug_in_that_is_no_reader_is_named(plugin: Path, body: str) -> None:
    (plugin / "rlm_rtf.py").write_text(body)
    with pytest.raises(rlm.ConfigError, match="rtf"):
        rich("x")
    with pytest.raises(rlm.ConfigError, match="rtf"):  # rather than files left out
        rlm.read_context(["."])


def test_the_reader_in_the_documentation_works(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "tools.md").read_text()
    (body,) = re.findall(r"^```py\n# rlm_notebooks.py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (entry,) = re.findall(r'^\[project\.entry-points\."rlm\.readers"\]\n(\w+ = )"(.*)"$', page, re.MULTILINE)
    info = tmp_path / "notebooks" / "notebooks-1.dist-info"
    info.mkdir(parents=True)
    (info.parent / "rlm_notebooks.py").write_text(body)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: notebooks\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[rlm.readers]\n" + "".join(entry) + "\n")
    monkeypatch.syspath_prepend(info.parent)
    cells = [{"source": ["# Title\n", "words"]}, {"source": ["x = 1"], "outputs": ["long"]}]
    (workspace / "a.ipynb").write_text(json.dumps({"cells": cells}))
    context = rlm.read_context(["a.ipynb"])
    assert context.value == "# Title\nwords\n\nx = 1"
    assert context.source["documents"][0]["reader"] == "notebooks (notebooks 1)"
    sys.modules.pop("rlm_notebooks")


# --- web addresses ------------------------------------------------------------------------------------------------


class Web(BaseHTTPRequestHandler):
    """Answers each path with what the test has put there: (status, headers, body)."""

    pages: ClassVar[dict[str, tuple[int, dict[str, str], bytes]]] = {}
    heard: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        Web.heard.append(dict(self.headers.items()))
        status, headers, body = Web.pages[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    """A server on 127.0.0.1; its address."""
    Web.pages.clear()
    Web.heard.clear()
    with ThreadingHTTPServer(("0.0.0.0", 0), Web) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_an_address_is_fetched_without_login_and_with_its_charset(
    web: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = Path(os.environ["HOME"])
    netrc.mkdir(exist_ok=True)
    (netrc / ".netrc").write_text("machine 127.0.0.1 login me password s3cret-word\n")
    Web.pages["/a.txt?token=abcdef"] = 200, {"Content-Type": "text/plain; charset=koi8-r"}, "привет".encode("koi8-r")
    url = web.replace("//", "//me:s3cret-word@") + "/a.txt?token=abcdef"
    context = rlm.read_context([url])
    assert context.value == "привет"
    assert context.source["paths"] == [f"{web}/a.txt?token=[redacted]"]
    assert "s3cret" not in repr(context) and "abcdef" not in repr(context)
    assert {"Authorization", "Cookie"}.isdisjoint(Web.heard[0])


def test_addresses_that_differ_in_what_is_hidden_are_two_and_one_given_twice_is_one(web: str, workspace: Path) -> None:
    for token in ("one", "two"):
        Web.pages[f"/a?token={token}"] = 200, {"Content-Type": "text/plain"}, token.encode()
    urls = [f"{web}/a?token={token}" for token in ("one", "two", "one")]
    name = f"{web}/a?token=[redacted]"
    assert rlm.read_context(urls).value == {name: "one", f"{name} (2)": "two"}


def test_a_fetched_page_is_journalled_and_not_fetched_again(openai: Server, web: str) -> None:
    Web.pages["/moved"] = 302, {"Location": "/a.csv"}, b""
    Web.pages["/a.csv"] = 200, {"Content-Type": "text/csv"}, b"a,b\n1,2\n3,4\n"
    openai.script = answer_with(code("FINAL(len(context.splitlines()))"))
    status, out, err = command("How many?", "-c", f"{web}/moved")
    assert (status, out) == (0, "3\n")
    assert f"rlm: context: {web}/moved: redirected to {web}/a.csv" in err
    (record,) = journal()[0]["context"]["source"]["documents"]
    assert (record["url"], record["redirects"], record["bytes"]) == (f"{web}/moved", [f"{web}/a.csv"], 12)
    assert command("replay", journal()[0]["trajectory_id"])[:2] == (0, "3\n")
    assert len(Web.heard) == 2


def test_documents_and_pages_are_read_by_their_type(web: str, workspace: Path) -> None:
    need("import markitdown")
    Web.pages["/paper"] = 200, {"Content-Type": "application/pdf"}, pdf("over the wire")
    page = '<html><meta charset="cp1251"><body><h1>Привет</h1></body>'.encode("cp1251")
    Web.pages["/page"] = 200, {"Content-Type": "text/html"}, page
    (workspace / "a.txt").write_text("a file")
    value = rlm.read_context([f"{web}/paper", f"{web}/page", "a.txt"]).value
    assert {name: text.strip() for name, text in value.items()} == {
        "a.txt": "a file",
        f"{web}/paper": "over the wire",
        f"{web}/page": "# Привет",
    }


@pytest.mark.parametrize("charset", ["punycode", "idna", "undefined", "unicode_escape", "Raw-Unicode-Escape", "base64"])
def test_a_charset_that_no_text_is_in_is_ignored(web: str, monkeypatch: pytest.MonkeyPatch, charset: str) -> None:
    monkeypatch.setitem(sys.modules, "markitdown", None)
    Web.pages["/a.txt"] = 200, {"Content-Type": f"text/plain; charset={charset}"}, b"a\\u0041-b"
    Web.pages["/page"] = 200, {"Content-Type": "text/html"}, f"<meta charset={charset}>a\\u0041-b".encode()
    value = rlm.read_context([f"{web}/a.txt", f"{web}/page"]).value
    assert list(value.values()) == ["a\\u0041-b", f"<meta charset={charset}>a\\u0041-b"]
    with pytest.raises(rlm.ConfigError, match="there is no encoding"):
        rlm.RLM(model="gpt-4o-mini", encoding=charset, config=False)


def test_a_page_without_text_is_no_scan(web: str) -> None:
    need("import markitdown")
    Web.pages["/page"] = 200, {"Content-Type": "text/html"}, b"<html><body><script>1</script></body></html>"
    with pytest.raises(rlm.ConfigError, match="found no text in") as caught:
        rlm.read_context([f"{web}/page"])
    assert "browser" in caught.value.hint and "OCR" not in caught.value.hint


def test_without_the_extra_a_page_is_its_html(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "markitdown", None)
    Web.pages["/page"] = 200, {"Content-Type": "text/html; charset=utf-8"}, "<h1>é</h1>".encode()
    context = rlm.read_context([f"{web}/page"])
    assert context.value == "<h1>é</h1>" and "pip install 'flat-rlm[docs]'" in context.notes[0]


@pytest.mark.parametrize(
    ("pages", "said"),
    [
        ({"/": (404, {}, b"")}, "answered 404"),
        ({"/": (401, {}, b"")}, "answered 401"),
        ({"/": (302, {"Location": "/"}, b"")}, "redirects more than 5 times"),
        ({"/": (302, {"Location": "file:///etc/passwd"}, b"")}, "only http and https"),
        ({"/": (200, {"Content-Length": "200000000"}, b"")}, "larger than 1 MB"),
        ({"/": (200, {}, b"x" * 1_100_000)}, "larger than 1 MB"),
        ({"/": (200, {"Content-Encoding": "gzip"}, gzip.compress(bytes(50_000_000)))}, "larger than 1 MB"),
        ({"/": (200, {"Content-Encoding": "gzip"}, gzip.compress(b"text" * 99)[:-20])}, "was cut off"),
        ({"/": (200, {"Content-Encoding": "br"}, b"x")}, "its encoding is 'br'"),
        ({"/": (200, {"Content-Length": "100"}, b"short")}, "was cut off"),
    ],
    ids=["missing", "login", "loop", "scheme", "long", "longer", "bomb", "torn gzip", "brotli", "torn"],
)
def test_what_cannot_be_fetched_is_an_error(
    web: str, monkeypatch: pytest.MonkeyPatch, pages: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(rlm_tools, "FETCH_LIMIT", 1_000_000)
    monkeypatch.setattr(Web, "protocol_version", "HTTP/1.0")
    Web.pages.update(pages)
    with pytest.raises(rlm.ConfigError) as caught:
        rlm.read_context([web + "/"])
    assert said in caught.value.message and caught.value.hint


def test_a_public_address_does_not_lead_to_a_private_one(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = web.rpartition(":")[2]
    monkeypatch.setattr(rlm_tools, "_is_public", lambda address: address == "127.0.0.2")
    Web.pages["/to"] = 302, {"Location": f"http://127.0.0.1:{port}/in"}, b""
    Web.pages["/in"] = 200, {}, b"inside"
    with pytest.raises(rlm.ConfigError, match=r"redirects to 127\.0\.0\.1, which is private: not followed"):
        rlm.read_context([f"http://127.0.0.2:{port}/to"])
    assert len(Web.heard) == 1
    assert rlm.read_context([f"{web}/to"]).value == "inside"  # the user's own word


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fe80::1%eth0", "::ffff:10.0.0.1"]
)
def test_private_addresses(address: str) -> None:
    assert not rlm_tools._is_public(address)
    assert rlm_tools._is_public("93.184.215.14") and rlm_tools._is_public("2606:2800:21f:cb07:6820:80da:af6b:8b2c")


def test_a_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(rlm_tools, "FETCH_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        with pytest.raises(rlm.ConfigError, match=r"took longer than 0\.5 s"):
            rlm.read_context([f"http://127.0.0.1:{silent.getsockname()[1]}/"])
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("spec", ["ftp://example.org/a", "file:///etc/passwd", "http:///a", "http://[::1", "https://"])
def test_what_is_no_web_address_is_an_error(spec: str) -> None:
    with pytest.raises(rlm.ConfigError) as caught:
        rlm.read_context([spec])
    assert caught.value.hint


def test_an_mcp_client_s_addresses_are_not_fetched(web: str, workspace: Path) -> None:
    with pytest.raises(rlm.ConfigError, match="lies outside of"):
        rlm.read_context([f"{web}/"], within=str(workspace))
    assert Web.heard == []


def test_no_reader_is_left_running(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    rich("hello")
    base = str(tmp_path_factory.getbasetemp())
    assert eventually(lambda: not any("serve_readers" in line for line in left_running(base).values()), 10)

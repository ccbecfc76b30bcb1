"""Files as people have them: what is text in which encoding, what is not, and what is said of it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import tarfile
import zipfile
from pathlib import Path

import pytest
from scripted import Server, answer_with, code
from test_cli import here
from test_cli import rlm as command

import rlm
import rlm_tools

# --- what is not text -----------------------------------------------------------------------------------------------


def archive(*names: str) -> bytes:
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w") as file:
        for name in names:
            file.writestr(name, "<xml/>" * 50)
    return blob.getvalue()


def tarred() -> bytes:
    blob = io.BytesIO()
    with tarfile.open(fileobj=blob, mode="w:gz") as file:
        info = tarfile.TarInfo("a.txt")
        info.size = 5
        file.addfile(info, io.BytesIO(b"hello"))
    return blob.getvalue()


DER = bytes.fromhex("3082010a0282010100c5062b58d8539c765e1e5dbaf14cf75dd56c2e13105fecfd1a930bbb5948ff328f126abe")
BINARIES = {
    "paper.pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /Catalog >>\nendobj\n" + b"BT (Hello) Tj ET\n" * 9000,
    "plain.pdf": b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\n" * 4,
    "late.bin": b"text " * 20_000 + random.Random(1).randbytes(50_000),
    "key.gpg": bytes.fromhex("8c0d0409030281f3d5c09a1b7e5bffd24001c7f1e2d3a4b5968778695a4b3c2d1e0f") * 3,
    "key.der": DER,
    "small.msgpack": b"\x81\xa1a\xa1b",
    "map.msgpack": b"\x82\xa4name\xa5alice\xa4city\xa5paris",
    "rows.msgpack": b"\x92\x82\xa2id\x07\xa4name\xa3bob\x82\xa2id\x08\xa4name\xa3eve",
    "noise": random.Random(2).randbytes(300).replace(b"\0", b"\1"),
    "controls": bytes(range(1, 9)) * 20,
    "report.docx": archive("[Content_Types].xml", "word/document.xml"),
    "table.xlsx": archive("xl/workbook.xml"),
    "all.zip": archive("a.txt"),
    "all.tar.gz": tarred(),
    "torn.gz": gzip.compress(b"text" * 1000)[:-20],
    "db.sqlite": b"SQLite format 3\0" + bytes(100),
    "pickle.pkl": b"\x80\x04}\x94\x8c\x01a\x94K\x01s.",
}


DOCUMENTS = {name for name in BINARIES if name.endswith((".pdf", ".docx", ".xlsx"))}  # test_documents reads them


@pytest.mark.parametrize("name", sorted(BINARIES.keys() - DOCUMENTS))
def test_what_is_not_text_is_never_recoded(workspace: Path, name: str) -> None:
    (workspace / name).write_bytes(BINARIES[name])
    context = rlm.read_context([name])
    assert context.value == BINARIES[name]
    assert len(context.notes) == 1 and f"{name}: " in context.notes[0] and "bytes" in context.notes[0]


@pytest.mark.parametrize("name", sorted(BINARIES.keys() - {"late.bin"}))  # of that, file_read has read the beginning
def test_file_read_reads_text_alone(workspace: Path, name: str) -> None:
    (workspace / name).write_bytes(BINARIES[name])
    with pytest.raises(ValueError, match="binary"):
        rlm_tools.call_tool(rlm_tools.file_tools()[0], {"path": name})


@pytest.mark.parametrize(
    ("name", "kind"),
    {"all.zip": "a zip archive", "db.sqlite": "a data file", "key.gpg": "OpenPGP"}.items(),
)
def test_a_binary_file_is_named_with_what_it_is(openai: Server, workspace: Path, name: str, kind: str) -> None:
    openai.script = answer_with(code("FINAL(type(context).__name__)"))
    (workspace / name).write_bytes(BINARIES[name])
    (workspace / "a.txt").write_text("a")
    ran = here("what?", "-c", name)
    assert (ran.returncode, ran.stdout) == (0, b"bytes\n")
    assert f"rlm: context: {name}: not text but {kind}: given as" in ran.stderr.decode()
    ran = here("what?", "-c", name, "-c", "a.txt")
    assert f"rlm: context: 1 file that is not text was left out: {name} ({kind})" in ran.stderr.decode()
    ran = command("what?", "-c", "-", input=BINARIES[name])
    assert f"rlm: context: stdin: not text but {kind}" in ran.stderr.decode()


def test_logs_with_stray_bytes_and_colours_are_text(workspace: Path) -> None:
    lines = b"2026-11-28 INFO \x1b[32mok\x1b[0m\n" * 5000
    for stray in (b"", b"caf\xe9 \x96 gone\n", "naïve 日本\n".encode() + b"\xff\n"):
        (workspace / "a.log").write_bytes(lines + stray)
        value = rlm.read_context(["a.log"]).value
        assert isinstance(value, str) and value.startswith("2026-11-28 INFO \x1b[32mok")
    assert value.endswith("naïve 日本\nÿ\n")


# --- encodings ------------------------------------------------------------------------------------------------------

TEXTS = {
    "German": ("Die Größe der Straße ändert sich täglich; wir müssen prüfen, ob alle Züge fahren.\n", ["cp1252"]),
    "French": ("Où est l'hôtel ? La réservation a été annulée, désolé.\n", ["cp1252", "latin-1"]),
    "Spanish": ("El niño comió una manzana mañana; ¿dónde está la estación?\n", ["latin-1"]),
    "Czech": ("Příliš žluťoučký kůň úpěl ďábelské ódy. Zítra bude v Praze pěkné počasí.\n", ["cp1250"]),
    "Polish": ("Zażółć gęślą jaźń. Dzień dobry, proszę o wysłanie faktury.\n", ["cp1250"]),
    "Turkish": ("Bugün hava çok güzel, İstanbul'da şehir dışına çıkacağız. Öğleden sonra.\n", ["cp1254"]),
    "Russian": ("Привет, мир! Сегодня хорошая погода, и мы пойдём гулять в парк.\n", ["cp1251", "koi8-r", "cp866"]),
    "Greek": ("Καλημέρα κόσμε, ο καιρός είναι πολύ καλός σήμερα.\n", ["cp1253"]),
    "Chinese": ("今天天气很好,我们去公园散步吧。客户投诉付款失败。\n", ["gbk", "gb18030"]),
    "Chinese in Taiwan": ("今天天氣很好,我們去公園散步吧。客戶投訴付款失敗。\n", ["big5"]),
    "Japanese": ("こんにちは、世界。今日は天気がいいので散歩に行きましょう。\n", ["shift_jis", "euc-jp", "iso2022_jp"]),
    "Korean": ("안녕하세요, 오늘은 날씨가 좋아서 공원에 산책하러 갑니다.\n", ["euc-kr", "cp949"]),
    "Chinese names in a table": ("id,name,amount\n1,张三,100.00\n2,李四,2000.00\n3,王小明,35.10\n" * 3, ["gbk"]),
    "Japanese names": ("id,name\n1,テスト太郎,100\n2,データ花子,200\n" * 3, ["shift_jis"]),
    "Russian in a table": ("id;name;sum\n1;Иванов;100\n2;Петров;200\n" * 3, ["cp1251"]),
}
CASES = [(language, encoding) for language, (_, encodings) in TEXTS.items() for encoding in encodings]


@pytest.mark.parametrize(("language", "encoding"), CASES)
@pytest.mark.parametrize("times", [1, 4000])
def test_an_encoding_is_found_and_said(workspace: Path, language: str, encoding: str, times: int) -> None:
    text = TEXTS[language][0] * times
    (workspace / "a.txt").write_bytes(text.encode(encoding))
    context = rlm.read_context(["a.txt"])
    assert context.value == text
    assert "not UTF-8: read as" in context.notes[0] and "--encoding" in context.notes[0]
    shown = rlm_tools.call_tool(rlm_tools.file_tools()[0], {"path": "a.txt", "end_line": 3})
    assert text.startswith(shown[:40])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_marks_are_heeded(workspace: Path, encoding: str) -> None:
    text = "id,name\n1,Ana\n2,Zoë\n" * 50
    (workspace / "a.csv").write_bytes(text.encode(encoding))
    assert rlm.read_context(["a.csv"]) == rlm.Context(text, rlm.read_context(["a.csv"]).source)


def test_the_callers_word_on_the_encoding_wins(openai: Server, workspace: Path) -> None:
    openai.script = answer_with(code("FINAL(context)"))
    (workspace / "a.txt").write_bytes("Zażółć gęślą".encode("iso8859-2"))
    for how in (["--encoding", "iso8859-2"], ["--encoding=latin2"]):
        ran = here("what?", "-c", "a.txt", *how)
        assert (ran.returncode, ran.stdout.decode()) == (0, "Zażółć gęślą\n")
        assert b"not UTF-8" not in ran.stderr
    ran = command("what?", "-c", "-", "--encoding", "utf-16-le", input="λ".encode("utf-16-le"))
    assert ran.stdout.decode() == "λ\n"
    for wrong in ("nope", "base64", "rot13"):
        ran = here("what?", "-c", "a.txt", "--encoding", wrong)
        assert ran.returncode == 2 and b"there is no encoding" in ran.stderr


def test_a_run_over_another_encoding_is_resumed(openai: Server, workspace: Path) -> None:
    openai.script = answer_with(code("print(context)"), code("FINAL(context)"))
    (workspace / "a.txt").write_bytes("Zażółć".encode("iso8859-2"))
    assert here("what?", "-c", "a.txt", "--encoding", "latin2", "--max-iterations", "1").returncode == 3
    ran = here("resume", "--max-iterations", "4")
    assert (ran.returncode, ran.stdout.decode()) == (0, "Zażółć\n"), ran.stderr


# --- compressed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_compressed_text_is_decompressed(openai: Server, workspace: Path, ending: str, pack: object) -> None:
    assert callable(pack)
    openai.script = answer_with(code("FINAL([type(context).__name__, len(context)])"))
    (workspace / f"a.log.{ending}").write_bytes(pack(b"a line\n" * 1000))
    ran = here("what?", "-c", f"a.log.{ending}", "--json")
    assert json.loads(ran.stdout)["value"] == ["str", 7000]
    assert f"a.log.{ending}: decompressed" in ran.stderr.decode()
    (workspace / "b.txt").write_text("b")
    assert rlm.read_context(["."]).value == {f"a.log.{ending}": "a line\n" * 1000, "b.txt": "b"} | {
        name: value for name, value in rlm.read_context(["."]).value.items() if name.startswith("logs/")
    }
    ran = command("what?", "--json", input=pack(b"a line\n" * 1000))
    assert json.loads(ran.stdout)["value"] == ["str", 7000]


def test_a_compressed_file_unpacks_to_a_bounded_size(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlm_tools, "UNPACKED_LIMIT", 100_000)
    (workspace / "bomb.gz").write_bytes(gzip.compress(bytes(10_000_000)))
    context = rlm.read_context(["bomb.gz"])
    assert isinstance(context.value, bytes) and "more than" in context.notes[0]


# --- a byte order mark, wherever text is read ----------------------------------------------------------------------

MARK = b"\xef\xbb\xbf"


def test_a_mark_loses_no_key_and_breaks_no_file(
    openai: Server, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    openai.script = answer_with('"ok"')
    (workspace / ".env").write_bytes(MARK + f"OPENAI_API_KEY={openai.key}\n".encode())
    (workspace / "rlm.toml").write_bytes(MARK + b"[rlm]\nmax_iterations = 7\n")
    (workspace / "other.toml").write_bytes(MARK + b"[rlm]\nmax_iterations = 8\n")
    (workspace / "schema.json").write_bytes(MARK + b'{"type": "string"}')
    (workspace / "prompt.txt").write_bytes(MARK + b"Be brief.")
    (workspace / "b.jsonl").write_bytes(MARK + b'"a prompt"\n')
    (workspace / "c.csv").write_bytes(MARK + b"prompt,context\nwhat?,text\n")
    assert rlm.load_config({}).values["max_iterations"] == 7
    user = Path(rlm.user_config_dir()) / "config.toml"
    user.parent.mkdir(parents=True)
    user.write_bytes(MARK + b"[rlm]\nmax_depth = 9\n")
    assert rlm.load_config({}).values["max_depth"] == 9
    for arguments in (
        ["x", "--schema", "schema.json"],
        ["x", "--config", "other.toml"],
        ["x", "--prompt-file", "prompt.txt"],
        ["batch", "b.jsonl"],
        ["batch", "c.csv"],
    ):
        ran = here(*arguments)
        assert ran.returncode == 0, ran.stderr
    assert any(request.system == "Be brief." or request.system.startswith("Be brief.") for request in openai.requests)
    ran = command("x", "-", "-q") if os.name == "nt" else command("-", "-q", input=MARK + b"the prompt")
    assert openai.requests[-1].prompt.startswith("the prompt")

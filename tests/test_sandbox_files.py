"""How cells come by files: the caller's are opened by the host, their own lie in a scratch folder."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import need

import rlm_sandbox
from rlm_sandbox import BaseSandbox, Cell, DockerSandbox, Files, LocalSandbox
from rlm_worker import WRITTEN

LINUX = sys.platform == "linux"
SECRET = "CANARY-77aa"
Make = Callable[[Path], BaseSandbox]


@pytest.fixture(params=["policy", "bare", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("docker", "sent"))])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A sandbox over a folder: with the policy, without it, and containers with the folder mounted and without."""
    made: list[BaseSandbox] = []

    def factory(folder: Path) -> BaseSandbox:
        folder.chmod(0o755)  # in a container another user reads it if this one is root
        layers = ("policy", "confinement") if request.param == "policy" else ("confinement",)
        if request.param in ("policy", "bare"):
            made.append(LocalSandbox(workspace=str(folder), layers=layers, cell_timeout=20))
        else:
            made.append(DockerSandbox(workspace=str(folder), cell_timeout=20))
        return made[-1]

    if request.param in ("docker", "sent"):
        need("docker")
    elif not LINUX:
        pytest.skip("needs Linux")
    if request.param == "sent":
        monkeypatch.setattr(DockerSandbox, "_mounts", lambda self: ([], []))
    yield factory
    for box in made:
        box.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "given").mkdir()
    return tmp_path / "given"


def value(cell: Cell) -> str | None:
    assert cell.ok, cell.error
    return cell.value


def test_adding_to_a_file_of_the_callers_shows_both(make: Make, folder: Path) -> None:
    (folder / "notes.txt").write_text("theirs\n")
    box = make(folder)
    added = box.execute("with open('notes.txt', 'a') as file: file.write('mine\\n')")
    assert (added.ok, added.stdout) == (True, WRITTEN), added.error
    again = box.execute("with open('notes.txt', 'a') as file: file.write('more\\n')\nopen('notes.txt').read()")
    assert (again.value, again.stdout) == (repr("theirs\nmine\nmore\n"), "")
    assert value(box.execute("with open('notes.txt', 'r+') as f: f.write('THEIRS')\nopen('notes.txt').read(6)")) == (
        "'THEIRS'"
    )
    assert (folder / "notes.txt").read_text() == "theirs\n"


def test_a_first_write_is_told_of_once(make: Make, folder: Path) -> None:
    box = make(folder)
    assert box.execute("1").stdout == ""
    assert box.execute("open('a', 'w').close()\nprint('done')").stdout == WRITTEN + "done\n"
    assert box.execute("open('b', 'w').close()").stdout == ""


def test_new_files_lie_beside_the_callers(make: Make, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "theirs.txt").write_text("1")
    box = make(folder)
    assert value(box.execute("open('sub/mine.txt', 'w').write('22')\nopen('sub/mine.txt').read()")) == "'22'"
    assert value(box.execute("open('sub/theirs.txt').read()")) == "'1'"
    assert "FileExistsError" in (box.execute("open('sub/theirs.txt', 'x')").error or "")
    assert "FileNotFoundError" in (box.execute("open('sub/none.txt')").error or "")
    assert "FileNotFoundError" in (box.execute("open('none/mine.txt', 'w')").error or "")


LOOKING = """
import glob, os
from pathlib import Path
print(sorted(os.listdir('.')), sorted(os.listdir('sub')), os.path.getsize('a.txt'), os.path.isdir('sub'))
print(os.path.exists('none'), os.path.isfile('a.txt'), sorted(glob.glob('**/*.txt', recursive=True)))
print([(place, sorted(folders), sorted(files)) for place, folders, files in os.walk('.')])
print(Path('sub/b.txt').read_text(), Path('sub').is_dir(), sorted(str(p) for p in Path('.').rglob('*.txt')))
"""


def test_folders_can_be_looked_through(make: Make, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "a.txt").write_text("12345")
    (folder / "sub" / "b.txt").write_text("b")
    cell = make(folder).execute(LOOKING)
    assert cell.stdout.splitlines() == [
        "['a.txt', 'sub'] ['b.txt'] 5 True",
        "False True ['a.txt', 'sub/b.txt']",
        "[('.', ['sub'], ['a.txt']), ('./sub', [], ['b.txt'])]",
        "b True ['a.txt', 'sub/b.txt']",
    ], cell.error


def test_library_code_that_opens_by_name_finds_the_callers_files(make: Make, folder: Path) -> None:
    (folder / "s.ini").write_text("[a]\nb = 1\n")
    box = make(folder)
    code = "import configparser\nfrom pathlib import Path\nc = configparser.ConfigParser()\nc.read('s.ini')\n"
    code += "c['a']['b'], list(Path('.').iterdir()), open(file='s.ini').read(3), Path('/etc/none').exists()"
    assert value(box.execute(code)) in [f"('1', [{kind}Path('s.ini')], '[a]', False)" for kind in ("", "Posix")]


@pytest.mark.parametrize("make", ["policy", "bare", "sent"], indirect=True)  # a mounted folder is read-only
def test_folders_are_made_beside_the_callers(make: Make, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "theirs.txt").write_text("1")
    box = make(folder)
    code = "import os\nos.makedirs('sub/a/b')\nopen('sub/a/b/c', 'w').close()\nos.rename('sub/a/b/c', 'sub/d')\n"
    assert value(box.execute(code + "open('sub/theirs.txt').read(), open('sub/d').read()")) == "('1', '')"
    assert "FileNotFoundError" in (box.execute("os.remove('sub/a/b/c')").error or "")
    assert sorted(os.listdir(folder / "sub")) == ["theirs.txt"]


def test_a_large_file_arrives_whole(make: Make, folder: Path) -> None:
    data = os.urandom(1 << 20) * 8
    (folder / "big").write_bytes(data)
    code = "import hashlib\nhashlib.sha256(open('big', 'rb').read()).hexdigest(), len(open('big', 'rb').read())"
    import hashlib

    assert value(make(folder).execute(code)) == repr((hashlib.sha256(data).hexdigest(), len(data)))


def secrets(folder: Path, outside: Path) -> list[str]:
    """Names by which a secret might be reached."""
    (folder / ".env").write_text(SECRET)
    (folder / ".ssh").mkdir()
    (folder / ".ssh" / "config").write_text(SECRET)
    (outside / "theirs").write_text(SECRET)
    (folder / "to_env").symlink_to(".env")
    (folder / "to_outside").symlink_to(outside / "theirs")
    (folder / "to_folder").symlink_to(outside)
    (folder / "to_environ").symlink_to("/proc/self/environ")
    (folder / "to_device").symlink_to("/dev/zero")
    (folder / "plain").write_text("harmless")
    (folder / "id_rsa").symlink_to("plain")
    os.link(folder / ".env", folder / "hard")
    os.link(outside / "theirs", folder / "hard_outside")
    os.mkfifo(folder / "pipe")
    os.chmod(folder / "pipe", 0o666)
    names = [".env", ".ssh/config", "to_env", "to_outside", "to_folder/theirs", "to_environ", "to_device", "id_rsa"]
    names += ["hard", "hard_outside", "pipe", "sub/../.env", "././/.env", f"../{outside.name}/theirs"]
    return [*names, str(outside / "theirs"), "/proc/self/environ", "/etc/passwd", str(folder / ".env")]


@pytest.mark.parametrize("make", ["policy", "bare"], indirect=True)
def test_no_name_leads_to_a_secret(make: Make, folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    names = secrets(folder, outside)
    box = make(folder)
    for name in names:
        cell = box.execute(f"open({name!r}).read(9)")
        assert (not cell.ok and "PermissionError" in (cell.error or "")) or "FileNotFound" in (cell.error or ""), cell
    assert SECRET not in str([box.execute(f"open({name!r}, 'a').close()\nopen({name!r}).read()") for name in names])
    assert value(box.execute("open('plain').read()")) == "'harmless'"


@pytest.mark.parametrize("make", ["policy"], indirect=True)
def test_a_file_whose_names_are_all_harmless_is_read(make: Make, folder: Path) -> None:
    (folder / "a").write_text("text")
    os.link(folder / "a", folder / "b")
    box = make(folder)
    assert value(box.execute("open('b').read()")) == "'text'"
    os.link(folder / "a", folder / ".env")
    assert "hard-linked" in (box.execute("open('b').read()").error or "")


@pytest.mark.parametrize("make", ["policy"], indirect=True)
def test_a_name_counts_once(make: Make, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "a").write_text("text")
    os.link(folder / "a", folder / "sub" / "b")
    with LocalSandbox(workspace=[str(folder), f"{folder}/.", str(folder / "sub")]) as box:
        assert value(box.execute("open('a').read() + open('b').read()")) == "'texttext'"


def test_all_hard_links_are_found_in_one_walk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "outside").write_text(SECRET)
    os.link(folder.parent / "outside", folder / "out")
    (folder / "sub").mkdir()
    for number in range(20):
        (folder / str(number)).write_text("text")
        os.link(folder / str(number), folder / "sub" / f"{number}.again")
    walks: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (walks.append(path), scandir(path))[1])
    files = Files([str(folder)])
    for number in range(20):
        with files.opened(f"{number}"), files.opened(f"sub/{number}.again"):
            pass
    with pytest.raises(PermissionError, match="hard-linked"), files.opened("out"):
        pass
    assert walks == [str(folder), str(folder / "sub")]
    os.link(folder / "1", folder / ".env")
    with pytest.raises(PermissionError, match="hard-linked"), files.opened("1"):
        pass
    with files.opened("2"):
        pass


def test_a_folder_too_large_to_look_through_is_looked_through_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a").write_text("text")
    os.link(folder / "a", folder / "b")
    monkeypatch.setattr(rlm_sandbox, "LINK_SECONDS", -1)
    files = Files([str(folder)])
    with pytest.raises(PermissionError, match="hard-linked"), files.opened("a"):
        pass
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", None)
        with pytest.raises(PermissionError, match="hard-linked"), files.opened("b"):
            pass


ROUND = """
import glob, os
print(sorted(os.listdir('.')), sorted(os.listdir('again/sub')), os.path.isdir('again'))
print([place for place, folders, files in os.walk('.')])
print(sorted(glob.glob('**/*.txt', recursive=True)), glob.glob('again/*.txt'), glob.glob('again/s*/*.txt'))
"""


@pytest.mark.parametrize("make", ["policy", "bare"], indirect=True)
def test_links_neither_empty_a_listing_nor_make_it_endless(make: Make, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "a.txt").write_text("a")
    (folder / "sub" / "b.txt").write_text("b")
    (folder / "x").symlink_to("x")
    (folder / "again").symlink_to(".")
    (folder / "closed").mkdir()
    (folder / "into").symlink_to("closed/deep")
    (folder / "closed").chmod(0)
    cell = make(folder).execute(ROUND)
    (folder / "closed").chmod(0o755)
    lines = cell.stdout.splitlines()
    assert lines[0] == "['a.txt', 'again', 'closed', 'into', 'sub', 'x'] ['b.txt'] True", cell.error
    assert lines[2] == "['a.txt', 'sub/b.txt'] ['again/a.txt'] ['again/sub/b.txt']"
    assert "./sub" in lines[1] and "again" not in lines[1]


@pytest.mark.parametrize("make", ["policy", "bare"], indirect=True)
def test_a_listing_is_whole_or_says_that_it_is_not(make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(11):
        (folder / f"{number:0>200}").touch()
    box = make(folder)
    assert value(box.execute("import os\nlen(os.listdir('.'))")) == "11"
    with monkeypatch.context() as patch:
        patch.setattr(rlm_sandbox, "NAMES_MAX", 10)
        error = box.execute("os.listdir('.')").error or ""
        assert "OSError" in error and "more than 10 names: use file_list with a pattern" in error
    monkeypatch.setattr(rlm_sandbox, "NAMES_SIZE", 2000)
    assert "MB of names: use file_list with a pattern" in (box.execute("os.listdir('.')").error or "")


def test_the_most_names_fit_into_an_answer(folder: Path) -> None:
    for number in range(rlm_sandbox.NAMES_MAX):
        (folder / f"{number:05}").touch()
    with LocalSandbox(workspace=str(folder)) as box:
        assert value(box.execute("import os\nlen(os.listdir('.'))")) == str(rlm_sandbox.NAMES_MAX)
        (folder / "x").touch()
        assert "more than 50,000 names" in (box.execute("os.listdir('.')").error or "")


@pytest.mark.parametrize("make", ["docker"], indirect=True)
def test_a_container_cannot_ask_for_what_its_mount_hides(make: Make, folder: Path) -> None:
    (folder / "conf").mkdir()
    (folder / "conf" / "credentials").write_text(SECRET)
    (folder / "real.txt").write_text(SECRET)
    (folder / ".env").symlink_to("real.txt")
    (folder / ".aws").symlink_to("conf")
    box = make(folder)
    for path in ("real.txt", "conf/credentials", ".", str(folder), str(folder / "real.txt")):
        for what in ("open", "list", "stat"):
            cell = box.execute(
                "import sys\nw = sys.modules['rlm_worker']\n"
                f"w.session_calls.ask(w.FILES_CALL, ({what!r}, {path!r}, 0), {{}})"
            )
            assert cell.ok and "'errno'" in (cell.value or ""), cell
    assert value(box.execute("open('real.txt').read()")) == "''"


@pytest.mark.parametrize("make", ["bare"], indirect=True)
def test_what_is_swapped_between_check_and_use_is_not_read(make: Make, folder: Path) -> None:
    outside, over = folder.parent / "outside", threading.Event()
    for place, text in ((folder / "sub", "harmless"), (outside, SECRET)):
        place.mkdir(parents=True)
        (place / "file").write_text(text)

    def swap() -> None:
        while not over.is_set():
            (folder / "sub").rename(folder / "aside")
            (folder / "sub").symlink_to(outside)
            (folder / "sub").unlink()
            (folder / "aside").rename(folder / "sub")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        cell = make(folder).execute(
            "seen = set()\nfor i in range(2000):\n    try: seen.add(open('sub/file').read())\n"
            "    except OSError as e: seen.add(type(e).__name__)\nsorted(seen)"
        )
    finally:
        over.set()
        thread.join()
    assert cell.ok and "harmless" in (cell.value or "") and SECRET not in str(cell), cell


# --- what a program can do with the channel by itself ----------------------------------------------------------------


@pytest.mark.parametrize("make", ["bare"], indirect=True)
def test_the_child_itself_can_open_none_of_it(make: Make, folder: Path) -> None:
    (folder / "a").write_text("text")
    box = make(folder)
    for call in ("os.open({0!r}, 0)", "os.open({1!r}, 0)", "os.scandir(b{1!r})", "os.open({0!r}, 1)"):
        cell = box.execute("import os\n" + call.format(str(folder / "a"), str(folder)))
        assert "PermissionError" in (cell.error or ""), (call, cell)


RAW = """
import array, errno, os, socket, sys
def refused(function, *args):
    try: function(*args)
    except OSError as error: return errno.errorcode[error.errno]
    return "ALLOWED"
file = open('a')
fd = file.fileno()
"""


@pytest.mark.parametrize("make", ["bare"], indirect=True)
def test_a_descriptor_is_good_for_reading_alone(make: Make, folder: Path) -> None:
    (folder / "a").write_text("text")
    box = make(folder)
    box.execute(RAW)
    for call in (
        "os.write, fd, b'x'",
        "os.ftruncate, fd, 0",
        "os.fchmod, fd, 0o777",
        "os.utime, fd",
        "os.open, f'/proc/self/fd/{fd}', os.O_RDWR",
    ):
        assert value(box.execute(f"refused({call})")) in ("'EBADF'", "'EPERM'", "'EACCES'", "'EINVAL'"), call
    other = "socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=os.dup(60)).recvmsg(1, 99)"
    assert value(box.execute(f"refused(lambda: {other})")) == "'EPERM'"
    assert (folder / "a").read_text() == "text"


@pytest.mark.parametrize("make", ["bare"], indirect=True)
def test_descriptors_that_nobody_takes_do_not_pile_up(make: Make, folder: Path) -> None:
    """A cell that asks and does not take, over and over: the host keeps none, and the next cell has its files."""
    (folder / "a").write_text("text")
    box = make(folder)
    before = len(os.listdir("/proc/self/fd"))
    greedy = """
import gc, os
files = next(o for o in gc.get_objects() if type(o).__name__ == 'Files')
for i in range(500): files.ask('open', 'a') if i < 3 else None
try:
    for i in range(500): files.ask('open', 'a')
except OSError as error: print(error)
os._exit(1)
"""
    assert box.execute(greedy).status == "crash"
    assert len(os.listdir("/proc/self/fd")) <= before
    assert value(box.execute("open('a').read()")) == "'text'"


@pytest.mark.parametrize("make", ["bare"], indirect=True)
def test_questions_without_end_do_not_stop_the_clock(make: Make, folder: Path) -> None:
    (folder / "a").write_text("text")
    cell = make(folder).execute("while True:\n    open('a').close()", timeout=1)
    assert cell.status == "timeout" and cell.duration_ms < 3000


FORGED = """
import gc, os
calls = next(o for o in gc.get_objects() if type(o).__name__ == 'Calls')
def ask(*question):
    try: return calls.ask('<files>', question, {})
    except Exception as error: return type(error).__name__
"""


@pytest.mark.parametrize("make", ["bare"], indirect=True)
def test_forged_questions_are_refused(make: Make, folder: Path) -> None:
    (folder / ".env").write_text(SECRET)
    box = make(folder)
    box.execute(FORGED)
    for question in (
        "('open', '.env', 0)",
        "('open', '/proc/self/environ', 0)",
        "('open', '../../../etc/passwd', 0)",
        "('open', '.env\\0', 0)",
        "('open', ['.env'], 0)",
        "('open', '.env', -1)",
        "('write', '.env', 0)",
        "('__init__', '.env', 0)",
        "('open', 'x' * 100_000, 0)",
        "('list', '/', 0)",
        "('stat', '/etc/passwd', 0)",
        "()",
    ):
        shown = value(box.execute(f"ask(*{question})")) or ""
        assert "errno" in shown or shown in ("'ValueError'", "'TypeError'"), (question, shown)
        assert SECRET not in shown and "tag" not in shown


@pytest.mark.parametrize("make", ["bare"], indirect=True)
def test_a_flood_of_questions_ends_with_the_limit(make: Make, folder: Path) -> None:
    (folder / "a").write_text("text")
    box = make(folder)
    box.execute(FORGED)
    code = "while True: calls.start('<files>', ('list', '.', 0), {})"
    cell = box.execute(code, timeout=1)
    assert not cell.ok and cell.duration_ms < 2500, cell
    assert value(box.execute("1 + 1")) == "2"


@pytest.mark.parametrize("make", ["bare"], indirect=True)
def test_the_child_holds_no_descriptor_of_the_hosts(make: Make, folder: Path) -> None:
    """Sockets and pipes of its own session, the device that swallows what is printed, and the memory of `set`."""
    cell = make(folder).execute(
        "import os, stat\nkinds = {}\nfor fd in range(1024):\n    try: info = os.fstat(fd)\n"
        "    except OSError: continue\n    kinds[fd] = stat.filemode(info.st_mode)[0], info.st_nlink\n"
        "[(fd, kind) for fd, (kind, links) in kinds.items() if kind not in 'spc' and links]"
    )
    assert value(cell) == "[]"


def test_a_path_of_very_many_parts_costs_the_host_no_time(tmp_path: Path) -> None:
    began = time.monotonic()
    for what in ("open", "stat", "list"):
        answer = Files([str(tmp_path)]).answer(None, what, "a/" * 1_000_000)  # type: ignore[arg-type]
        assert answer["errno"] == errno.ENAMETOOLONG
    assert time.monotonic() - began < 1


def test_a_lock_in_a_container_holds_nobody_up(folder: Path) -> None:
    need("docker")
    import fcntl

    folder.chmod(0o755)
    given = folder / "a.db"
    given.write_text("")
    cell = "import fcntl\nfile = open('a.db')\nfcntl.flock(file, fcntl.LOCK_EX)\nfcntl.lockf(file, fcntl.LOCK_SH)"
    with DockerSandbox(workspace=str(folder)) as box, open(given, "r+") as mine:
        done = box.execute(cell)
        assert done.ok, done.error
        fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_scandir_lists_can_be_opened(make: Make, folder: Path) -> None:
    (folder / "a.txt").write_text("theirs")
    code = "import os\n[(os.fspath(e), e.is_file(), open(e).read(), os.stat(e).st_size) for e in os.scandir('.')]"
    assert value(make(folder).execute(code)) == "[('./a.txt', True, 'theirs', 6)]"


@pytest.mark.parametrize("make", ["policy", "bare", "sent"], indirect=True)  # a mounted folder is read-only
@pytest.mark.parametrize("call", ["rename(src='a', dst='b')", "replace('a', dst='b')", "rename('a', 'b')"])
def test_files_are_renamed_by_position_or_keyword(make: Make, folder: Path, call: str) -> None:
    code = f"import os\nopen('a', 'w').close()\nos.{call}\nos.listdir(path='.')"
    assert value(make(folder).execute(code)) == "['b']"

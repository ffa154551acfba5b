"""The README and the other documents: their commands work as they stand, and what they name is there."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
import whisper
from conftest import Program, add_point, contents, install_driver

from whisperbackup import options, pages, storage
from whisperbackup.storage import s3

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [README, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *DOCS]
TESTED = re.compile(r"<!-- tested -->\n```sh\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
"""Commands, and what they print if the document shows it."""
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
OTHER_PROGRAMS = (
    *("swift ", "aws ", "gcloud ", "install ", "chown ", "git ", "pip ", "/opt/whisper-backup/bin/pip "),
    *("systemctl ", "radosgw-admin "),
)
DEAD_NODE = "a-dead-node"
LONG_AGO = "2020-01-01T00:00:00+00:00"
METRICS = ("web1/cpu", "web1/load", "web2/cpu")
RESTORED = {  # the metrics that a block restores into an empty tree
    "README.md": [["web1/cpu", "web1/load"]],
    "restore.md": [[*METRICS], [*METRICS], [], ["web1/cpu"], ["web1/cpu"], []],
}


def examples(page: Path) -> list[tuple[str, str]]:
    """The commands of a page that are marked as tested, in its order, each with the output that follows, or nothing;
    without those that create a tree to try them on."""
    return [found for found in TESTED.findall(page.read_text()) if "/tmp/try" not in found[0]]


def blocks(page: Path) -> list[str]:
    """The tested commands of a page alone."""
    return [commands for commands, _ in examples(page)]


def quick_start() -> tuple[str, str]:
    """The README's commands for somebody who has no tree, and their output."""
    (found,) = [found for found in TESTED.findall(README.read_text()) if "/tmp/try" in found[0]]
    return found


PAGES = [page for page in (README, *DOCS) if blocks(page)]


@pytest.fixture
def newcomer(program: Program, machine: Path) -> Program:
    """The program as `whisper-backup` in a PATH, with lock, log and state of the test's own, as an option given twice
    may be; the paths and the store that the documents name lead into the test's folder."""
    shelf = program.home / "bin"
    shelf.mkdir()
    words = ["--lockfile", program.lock, "--logfile", program.log, "--statefile", program.state]
    words = [sys.executable, "-m", "whisperbackup", *words, "--stampfile", program.stamp]
    (shelf / "whisper-backup").write_text(f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$@"\n')
    (shelf / "whisper-backup").chmod(0o755)
    program.environment = {
        "PATH": f"{shelf}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "TMPDIR": str(program.home),
        "WHISPER_BACKUP_PREFIX": str(program.prefix),
    }
    (machine / "etc/whisper-backup.conf").write_text(f"store = disk\nbucket = {program.store}\nstorage-path = node1\n")
    return program


def type_in(newcomer: Program, machine: Path, commands: str, store: str = "disk", bucket: str = "") -> tuple[str, str]:
    """What a fresh shell prints for `commands`, a document's own, on stdout and stderr; each must succeed."""
    for theirs, ours in {
        "/tmp/try/whisper": newcomer.prefix,
        "/tmp/try/backups": newcomer.store,
        "/opt/graphite/storage/whisper": newcomer.prefix,
        "/backup/graphite": newcomer.store,
        "/etc/whisper-backup.conf": machine / "etc/whisper-backup.conf",
        "/var/tmp/whisperbackup.py.success": newcomer.stamp,
        "/tmp/cpu.wsp": newcomer.home / "cpu.wsp",
        "s3 eu-west-1": store,
        "graphite-backups": bucket or newcomer.store,
        "-o carbon -g carbon ": "",
    }.items():
        commands = commands.replace(theirs, str(ours))
    done = subprocess.run(
        ["sh", "-eu", "-c", commands],
        env={**os.environ, **newcomer.environment},
        cwd=newcomer.home, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, commands + done.stdout + done.stderr
    return done.stdout, done.stderr


def masked(output: str, newcomer: Program, machine: Path) -> list[str]:
    """The lines of an output without what differs from run to run: folders, times, sizes."""
    for ours, theirs in {
        str(machine / "etc"): "/etc",
        str(newcomer.store): "/tmp/try/backups",
        str(newcomer.prefix): "/tmp/try/whisper",
        "/opt/graphite/storage/whisper": "/tmp/try/whisper",
        "s3 'graphite-backups'": "disk '/tmp/try/backups'",
        f"s3 '{DEAD_NODE}'": "disk '/tmp/try/backups'",
    }.items():
        output = output.replace(ours, theirs)
    output = re.sub(r", at 127\.0\.0\.1:\d+", "", output)
    output = re.sub(r"(?<=whisper-backup )\d+(\.\d+)+", "N", output)
    output = output.replace("taken_whole 3, ", "")  # of files that were born within the second, before the run
    output = re.sub(r"\d{4}-\d\d-\d\dT[\d:+]+", "T", output)
    output = re.sub(r"\d[\d,.]*(?= bytes| s\b| kB)|(?<=_bytes )\d+|(?<=, points )\d+|(?<= gz )\d+", "N", output)
    return sorted(re.sub(" +", " ", line.strip()) for line in output.strip().splitlines())


def test_the_quick_start_prints_what_the_readme_shows(newcomer: Program, machine: Path) -> None:
    (machine / "etc/whisper-backup.conf").unlink()
    newcomer.prefix.rmdir()
    commands, shown = quick_start()
    printed, logged = type_in(newcomer, machine, commands)
    assert masked(printed + logged, newcomer, machine) == masked(shown, newcomer, machine)
    assert (newcomer.prefix / "servers/web1/cpu.wsp").exists()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_each_block_of_commands_works_in_a_fresh_shell(newcomer: Program, machine: Path, page: Path) -> None:
    for number, metric in enumerate(METRICS):
        newcomer.write(f"servers.{metric.replace('/', '.')}", number)
    newcomer("backup")
    before = contents(newcomer.prefix / "servers")
    assert len(before) == len(METRICS)
    for path in newcomer.store.glob("node1/servers.*/20*"):  # the dates that are restored as of are later than this
        path.rename(path.with_name(LONG_AGO + path.name[len(LONG_AGO) :]))
    restored = []
    for block, shown in examples(page):
        is_restore = re.search(r"\brestore\b|gunzip", block)
        if is_restore:
            for path in newcomer.prefix.rglob("*.wsp"):
                path.unlink()
        printed, logged = type_in(newcomer, machine, block)
        assert not shown or masked(printed + logged, newcomer, machine) == masked(shown, newcomer, machine)
        if "SCRATCH" in block:
            assert logged.count("restore complete: 2 examined, 2 created") == 1
        if is_restore and "--until" not in block:
            after = contents(newcomer.prefix / "servers")
            assert {name: before[name] for name in after} == after
            restored.append([metric for metric in METRICS if (newcomer.prefix / f"servers/{metric}.wsp").exists()])
    assert restored == RESTORED.get(page.name, [])


@pytest.mark.servers
@pytest.mark.slow
def test_the_commands_for_a_dead_node_restore_it_from_s3(newcomer: Program, machine: Path) -> None:
    store = servers.store("s3-rclone")
    words, bucket = " ".join([store.driver, *store.arguments]), DEAD_NODE
    newcomer.environment |= store.environment
    for number, metric in enumerate(METRICS):
        newcomer.write(f"servers.{metric.replace('/', '.')}", number)
    newcomer("backup", *words.split(), "-b", bucket, "--storage-path", "node1")
    before = contents(newcomer.prefix)
    (machine / "etc/whisper-backup.conf").unlink()
    for path in newcomer.prefix.rglob("*.wsp"):
        path.unlink()
    newcomer.state.unlink()
    page = ROOT / "docs/restore.md"
    for block, shown in examples(page)[: next(n for n, block in enumerate(blocks(page)) if "servers.web1" in block)]:
        output = "".join(type_in(newcomer, machine, block, words, bucket))
        assert not shown or masked(output, newcomer, machine) == masked(shown, newcomer, machine)
    assert contents(newcomer.prefix) == before


@pytest.mark.parametrize("codec", ["gz", "sz", *(["zst"] if shutil.which("zstd") else [])])
def test_a_file_comes_back_by_hand_whatever_its_codec(newcomer: Program, machine: Path, codec: str) -> None:
    (by_hand,) = [block for block in blocks(ROOT / "docs/restore.md") if "gunzip" in block]
    path = newcomer.write("servers.web1.cpu")
    content = path.read_bytes()
    newcomer("backup", "-a", codec)
    path.unlink()
    assert "cpu.wsp: OK" in type_in(newcomer, machine, by_hand)[0]
    assert path.read_bytes() == content
    assert whisper.info(str(path))


def test_every_output_that_is_shown_is_compared() -> None:
    for page in (README, *DOCS):
        outputs = re.findall(r"```(?:text|console)\n.*?```", page.read_text(), re.DOTALL)
        compared = [shown for _, shown in TESTED.findall(page.read_text()) if shown]
        formulas = [output for output in outputs if "applyByNode(" in output]
        assert len(outputs) == len(compared) + len(formulas), page.name


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 160


def named_options(text: str) -> Iterator[str]:
    """The long options in `text` that are meant to be ours."""
    for line in text.splitlines():
        if not line.strip().startswith(OTHER_PROGRAMS):
            yield from OPTION.findall(line)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_option_that_is_named_is_one(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options.parse(["--help"])
    known = set(OPTION.findall(capsys.readouterr().out))
    assert [name for name in named_options(document.read_text()) if name not in known] == []


def headings(document: Path) -> set[str]:
    """The anchors of a document's headings."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_and_heading_that_is_linked_is_there(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        path, _, heading = target.partition("#")
        if "://" not in target:
            linked = document.parent / path if path else document
            assert linked.exists(), target
            assert not heading or heading in headings(linked), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_in_the_repository_that_is_named_is_there(document: Path) -> None:
    named = re.findall(r"`((?:docs|tests|contrib|benchmarks|whisperbackup|\.ci)/[\w./-]+)`", document.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_make_target_that_is_named_is_one(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", document.read_text())) <= targets


def test_every_command_line_of_readme_and_docs_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_BACKUP_STORE", "disk")  # some leave it to the configuration file
    line = re.compile(r"(?:^(?: {4})?|`|&& |root +|graphite +|=\S+ )whisper-backup +([^`#\n|]+)", re.MULTILINE)
    commands = [re.sub(r"```text.*?```", "", page.read_text(), flags=re.DOTALL) for page in (README, *DOCS)]
    given = [words for text in commands for words in line.findall(text)]
    assert len(given) > 40
    for words in given:
        if words.startswith("help"):
            assert set(words.split()[1:]) <= {*options.COMMANDS, *pages.names()}
        elif "--help" not in words and "[options]" not in words:
            options.parse(shlex.split(words.replace("2>&1", "")))


def test_the_configuration_file_of_the_docs_is_understood(machine: Path) -> None:
    (text,) = re.findall(r"```ini\n(# for every.*?)```", (ROOT / "docs/operations.md").read_text(), re.DOTALL)
    (machine / "etc/whisper-backup.conf").write_text(text)
    read = options.parse(["backup"])
    assert (read.bucket, read.storage_path, read.storage_arguments) == ("graphite-backups", "node1/", ["eu-west-1"])
    assert "test.x" not in read.selection
    assert options.parse(["verify"]).shares == 30


def test_every_storage_argument_of_the_docs_is_one() -> None:
    stores = (ROOT / "docs/stores.md").read_text()
    text = stores[stores.index("## Amazon S3") : stores.index("## OpenStack Swift")]
    assert set(re.findall(r"`([a-z_]+)=", text)) == set(s3.ARGUMENTS)


def text_of(node: ast.AST) -> str:
    """The text of a string, with … for what is put in; empty for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return re.sub(r"%\w", "…", node.value) if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def sources() -> Iterator[ast.AST]:
    for path in (ROOT / "whisperbackup").rglob("*.py"):
        yield from ast.walk(ast.parse(path.read_text()))


def explained() -> list[str]:
    """The messages in the FAQ."""
    shown = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs/faq.md").read_text(), re.MULTILINE)
    assert len(shown) > 90
    return shown


def test_every_message_that_the_faq_explains_is_one_of_ours() -> None:
    ours = "\n".join(filter(None, map(text_of, sources())))
    assert [message for message in explained() for part in message.split("…") if part.strip() not in ours] == []


FATAL = {"CannotRun", "NoTree", "WorkerLost", "StorageError", "NotFound", "AccessDenied", "Unavailable", "NotDeleted"}
FATAL |= {
    "UnsortedListing",
    "MissingLibrary",
    "CannotPlace",
    "Differs",
    "Locked",
    "TooLarge",
    "BadBackup",
    "GoneBackup",
}
NEEDS_NO_MORE = (  # it is no error, or the message is the whole story
    "is not in …",
    "-c … is in the future, so the newest backups are used",
    "-c is ignored: backup stores current files",
    "metrics have no backup as old as",
    "the noop store keeps nothing",
    "…: not compared: …",
    "… incomplete: …",
    "… ended early: …",
    "'…' does not exist",
    "the object or the",
    "it does not exist in bucket",
    "the service …",
    "… answers …",
    "answers with …; check",  # the FAQ has what follows "answers with"
    "…; check -m, --exclude and --storage-path",  # and what is before this
)


def test_the_faq_explains_every_message_of_ours() -> None:
    """But those for a wrong command line or configuration, which name the place and the remedy."""
    messages = set()
    for node in sources():
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            arguments = node.args if name in FATAL | {"warning", "fail"} else []
        elif (
            isinstance(node, ast.Tuple)
            and node.elts
            and isinstance(node.elts[0], ast.Name)
            and node.elts[0].id in FATAL
        ):
            arguments = node.elts[1:]  # a remedy for a service's error
        else:
            continue
        messages |= {text for text in map(text_of, arguments) if " " in text.strip("… ") and len(text) > 12}
    parts = [[part.strip() for part in message.split("…") if part.strip()] for message in explained()]
    assert len(messages) > 100
    unknown = {text for text in messages if not any(all(part in text for part in known) for known in parts)}
    assert sorted(text for text in unknown if not any(known in text for known in NEEDS_NO_MORE)) == []


def test_every_driver_has_its_part_of_the_docs() -> None:
    stores = (ROOT / "docs/stores.md").read_text()
    assert all(re.search(rf"(backup|\[)[^\n]* ?{name}\b", stores) for name in storage.BUILT_IN)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_is_named_is_there(document: Path) -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", document.read_text()))
    assert {name for name in named if f"def {name}(" not in tests} == set()


@pytest.mark.slow
def test_the_driver_in_the_design_is_a_whole_one(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/design.md").read_text(), re.DOTALL)
    install_driver(program, monkeypatch, source)
    (point,) = program.home.rglob("entry_points.txt")
    point.write_text("[whisperbackup.storage]\nshelf = shelf:open_shelf\n")
    for number in range(3):
        program.write(f"a.m{number}", number)
    assert "3 backed up" in program("backup", "shelf")
    add_point(program.prefix / "a/m0.wsp", 7.0)
    assert "2 unchanged, 1 backed up" in program("backup", "shelf", "-r", "1")
    assert "3 examined, 3 good" in program("verify", "shelf")
    target = program.home / "target"
    target.mkdir()
    program("restore", "shelf", "-p", target)
    assert contents(target) == contents(program.prefix)
    (program.prefix / "a/m1.wsp").unlink()
    assert "1 purged" in program("purge", "shelf", "-x", "0")
    assert "no metric in" in program("list", "shelf", "-m", "a.m1", status=1)

"""The README and the other documents: their commands work as they stand, and what they name is there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import whisper
from conftest import Program, add_point, contents, install_driver

from whisperbackup import options, storage
from whisperbackup.storage import s3

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TESTED = re.compile(r"<!-- tested -->\n```sh\n(.*?)```", re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
SETTING = re.compile(r"^(TREE|BACKUPS|STAMP)=\S+", re.MULTILINE)
OTHER_PROGRAMS = ("swift ", "aws ", "gcloud ", "install ", "chown ", "git ", "pip ", "systemctl ")
LONG_AGO = "2020-01-01T00:00:00+00:00"


def blocks() -> list[str]:
    """The README's commands that are marked as tested, in its order."""
    return TESTED.findall(README)


@pytest.fixture
def newcomer(program: Program) -> Program:
    """The program as `whisper-backup` in a PATH, with lock, log and state of the test's own, as an option given twice
    may be; the README's settings lead into the test's folder."""
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
    }
    return program


def type_in(newcomer: Program, commands: list[str]) -> str:
    """What a shell says to `commands`, the README's own; each must succeed."""
    ours = {"TREE": newcomer.prefix, "BACKUPS": newcomer.store, "STAMP": newcomer.stamp}
    script = SETTING.sub(lambda match: f"{match[1]}={ours[match[1]]}", "\n".join(commands))
    script = script.replace("/tmp/cpu.wsp", f"{newcomer.home}/cpu.wsp")
    done = subprocess.run(
        ["sh", "-euvc", script],
        env={**os.environ, **newcomer.environment},
        cwd=newcomer.home, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_newcomer_can_type_the_readmes_commands_in_their_order(newcomer: Program) -> None:
    ours = blocks()
    broken_at = next(number for number, block in enumerate(ours) if "restore $STORE" in block)
    newcomer.prefix.rmdir()
    said = type_in(newcomer, ours[:broken_at])
    assert "backup complete: 3 examined, 0 unchanged, 3 backed up" in said
    assert "verify complete: 3 examined, 3 good" in said
    files = sorted(newcomer.prefix.rglob("*.wsp"))
    before = {path: path.read_bytes() for path in files}
    for path in newcomer.store.rglob("20*"):  # the dates that the README restores as of are later than this
        if ".increments" in path.parts or ".runs" in path.parts:
            continue  # they hold their stamp
        path.rename(path.with_name(LONG_AGO + path.name[len(LONG_AGO) :]))
    for path in files:
        path.unlink()
    said = type_in(newcomer, [ours[0], *ours[broken_at:]])
    assert said.count("restore complete: 2 examined, 2 created") == 1  # the host, into the scratch folder
    assert {path: path.read_bytes() for path in files} == before


@pytest.mark.parametrize("codec", ["gz", "sz", *(["zst"] if shutil.which("zstd") else [])])
def test_a_file_comes_back_by_hand_whatever_its_codec(newcomer: Program, codec: str) -> None:
    settings, (by_hand,) = blocks()[0], [block for block in blocks() if "gunzip" in block]
    path = newcomer.write("servers.web1.cpu")
    content = path.read_bytes()
    newcomer("backup", "-a", codec, "disk")
    path.unlink()
    assert "cpu.wsp: OK" in type_in(newcomer, [settings, by_hand])
    assert path.read_bytes() == content
    assert whisper.info(str(path))


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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_and_heading_that_is_linked_is_there(document: Path) -> None:
    text = document.read_text()
    titles = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, heading = target.partition("#")
        if "://" not in target:
            assert not path or (document.parent / path).exists(), target
            assert path or heading in headings, target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_in_the_repository_that_is_named_is_there(document: Path) -> None:
    named = re.findall(r"`((?:docs|tests|contrib|benchmarks|whisperbackup|\.ci)/[\w./-]+)`", document.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_make_target_that_is_named_is_one(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)`", document.read_text())) <= targets


def test_every_command_line_of_the_readme_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_BACKUP_STORE", "disk")  # some leave it to the configuration file
    given = re.findall(r"(?:^|`|&& |root +|graphite +|=\S+ )whisper-backup +([^`#\n]+)", README, re.MULTILINE)
    given = [line.replace("$STORE", "disk -b /backup/graphite").replace("$WHEN", "2026-11-20") for line in given]
    assert len(given) > 20
    for line in given:
        if "--help" not in line:
            options.parse(shlex.split(line))


def test_the_readmes_configuration_file_is_understood(machine: Path) -> None:
    (text,) = re.findall(r"```ini\n(# for every.*?)```", README, re.DOTALL)
    (machine / "etc/whisper-backup.conf").write_text(text)
    read = options.parse(["backup"])
    assert (read.bucket, read.storage_path, read.storage_arguments) == ("graphite-backups", "node1/", ["eu-west-1"])
    assert "test.x" not in read.selection
    assert options.parse(["verify"]).shares == 30


def test_every_storage_argument_of_the_readme_is_one() -> None:
    text = README[README.index("### Amazon S3") : README.index("### OpenStack Swift")]
    assert set(re.findall(r"`([a-z_]+)=", text)) == set(s3.ARGUMENTS)


def test_every_driver_has_its_part_of_the_readme() -> None:
    stores = README[README.index("## Stores") : README.index("## The layout")]
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


def test_the_tree_to_try_it_on_is_not_planted_in_one_that_is_there(newcomer: Program) -> None:
    type_in(newcomer, blocks()[:2])
    assert list(newcomer.prefix.iterdir()) == []

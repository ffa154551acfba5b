"""Messages to an operator: what happened, to which thing, and what to do about it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import MARKER, Program, install_driver, unprivileged


@pytest.fixture
def backed_up(program: Program) -> Program:
    program.write("servers.web1.cpu")
    program.write("servers.web1.load")
    program("backup", "disk", "--storage-path", "node1")
    return program


def test_a_glob_that_names_a_folder_is_told_its_star(backed_up: Program) -> None:
    for command in ("backup", "restore", "verify", "list"):
        said = backed_up(command, "disk", "--storage-path", "node1", "-m", "servers.web1", status=1)
        assert "use -m 'servers.web1.*'" in said, command


def test_an_exclude_that_names_a_folder_ends_what_would_not_spare_it(program: Program) -> None:
    program.write("servers.web1.cpu")
    program.write("top")
    program("backup")
    before = program.objects()
    for command in (["restore", "--overwrite"], ["restore"], ["verify"], ["backup"], ["purge"], ["prune"]):
        is_fatal = command[0] == "purge" or len(command) > 1
        said = program(*command[:1], "disk", *command[1:], "--exclude", "servers.web1", status=int(is_fatal))
        assert "use --exclude 'servers.web1.*'" in said, command
        braces = program(*command[:1], "disk", *command[1:], "--exclude", "servers.{web1,x}", status=int(is_fatal))
        assert "use --exclude 'servers.web1.*'" in braces
        for fine in ("servers.web1.cpu", "servers.web1.*", "gone", "servers..web1", ".servers"):
            assert "excludes nothing" not in program(*command[:1], "disk", *command[1:], "--exclude", fine)
    (program.prefix / "servers/web1.wsp").write_bytes((program.prefix / "top.wsp").read_bytes())
    for command in (["restore", "--overwrite"], ["backup"], ["purge"]):  # it is in no backup, since it is excluded
        said = program(*command[:1], "disk", *command[1:], "--exclude", "servers.web1")
        assert "excludes nothing" not in said
    assert {key for key in program.objects() if ".runs/" not in key} == {key for key in before if ".runs/" not in key}


def test_a_wrong_storage_path_is_answered_with_one_that_is_there(backed_up: Program) -> None:
    for command in ("restore", "verify", "list"):
        said = backed_up(command, "disk", "--storage-path", "node2", status=1)
        assert "below the storage path 'node2/' matches; it holds backups of 1 node: --storage-path node1" in said


def test_an_empty_store_lists_nothing_and_is_no_warning_where_it_is_marked(program: Program) -> None:
    program.store.mkdir()
    assert "holds no objects at all; is its disk mounted?" in program("list", "disk")
    (program.store / MARKER).touch()
    assert program("list", "disk") == "0 metrics, 0 backups, 0 bytes\n"
    assert "holds no objects at all" in program("restore", "disk", status=1)


def test_list_as_of_a_date_before_everything_says_so(backed_up: Program) -> None:
    words = ("list", "disk", "--storage-path", "node1", "-c", "2020-01-01")
    assert "none of the 2 metrics has a complete backup as old as 2020-01-01" in backed_up(*words)
    assert "as old as 2020-01-01" in backed_up(*words, "-m", "servers.*", status=1)


def test_list_shows_since_when_a_metric_is_missing(backed_up: Program) -> None:
    (backed_up.prefix / "servers/web1/load.wsp").unlink()
    words = ("disk", "--storage-path", "node1")
    backed_up("purge", *words)
    (tombstone,) = backed_up.store.glob("node1/servers.web1.load/*.missing")
    lines = backed_up("list", *words).splitlines()
    assert len(lines) == 4
    assert lines[2].split() == [tombstone.name.removesuffix(".missing"), "-", "missing", "servers.web1.load"]
    assert lines[3].endswith(", 1 missing from the tree")
    here, gone = (json.loads(line) for line in backed_up("list", *words, "--json").splitlines())
    assert "missing_since" not in here
    assert gone["missing_since"] == tombstone.name.removesuffix(".missing")
    assert " missing" not in backed_up("list", *words, "-c", "2100-01-01")  # only what restore would use


@pytest.mark.parametrize("place", ["tree", "tree/store", "link/store"])
def test_a_store_in_the_tree_is_refused(program: Program, place: str) -> None:
    program.write("a.b")
    (program.home / "link").symlink_to(program.prefix)
    for command in ("backup", "purge"):
        assert "must not be inside the tree" in program(command, "disk", "-b", program.home / place, status=2)
    assert not (program.prefix / "store").exists()


def test_a_store_beside_the_tree_with_its_name_in_front_is_none_of_it(program: Program) -> None:
    program.write("a.b")
    program("backup", "disk", "-b", f"{program.prefix}-backups")


def test_a_url_where_s3_expects_a_region_is_an_endpoint_without_its_name(program: Program) -> None:
    program.bucket = "graphite-backups"
    assert "write endpoint=URL" in program("list", "s3", "http://127.0.0.1:1", status=2)


def test_options_that_would_be_misunderstood_are_refused(program: Program) -> None:
    for words in (
        ["purge", "disk", "-c", "2026-01-01"],
        ["purge", "disk", "--debris"],
        ["backup", "disk", "--overwrite"],
    ):
        assert f"is not an option of {words[0]}" in program(*words, status=2)


def test_a_date_for_backup_is_a_warning(program: Program) -> None:
    program.write("a.b")
    assert "WARNING: -c is ignored: backup stores current files" in program("backup", "disk", "-c", "2026-01-01")


def test_a_forgotten_bucket_is_told_with_its_whole_path(program: Program) -> None:
    program.write("a.b")
    words = program.words("backup", "disk")
    at = words.index("-b")
    ran = subprocess.run(
        [*words[:at], *words[at + 2 :]], capture_output=True, text=True, check=True, cwd=program.home,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert (
        f"WARNING: the directory {program.home}/graphite-backups does not exist: a new store begins there" in ran.stderr
    )
    assert f"disk '{program.home}/graphite-backups'" in program.log.read_text()


def test_a_bucket_that_is_no_directory_is_called_so(program: Program) -> None:
    assert "/dev/null is not a directory" in program("list", "disk", "-b", "/dev/null", status=1)


def test_noop_says_so_in_every_line(backed_up: Program) -> None:
    (backed_up.prefix / "servers/web1/load.wsp").write_bytes(b"broken" * 9)
    said = backed_up("backup", "disk", "-n", "-q", status=3)
    assert [line.startswith("ERROR: noop: ") for line in said.splitlines()] == [True, True]
    assert "noop: whisper-backup" in backed_up("restore", "disk", "-n", "--storage-path", "node1").splitlines()[0]
    assert all(" noop: " in line for line in backed_up.log.read_text().splitlines()[-3:])


def test_what_may_not_be_read_or_written_is_told_with_its_path(backed_up: Program) -> None:
    folder = backed_up.prefix / "servers/web1"
    (folder / "load.wsp").chmod(0)
    words = ["disk", "--storage-path", "node1"]
    ran = subprocess.run(
        [*unprivileged(), *backed_up.words("backup", "--nostate", *words)], capture_output=True, text=True
    )
    assert f"ERROR: servers.web1.load: {folder}/load.wsp: Permission denied; run as" in ran.stderr
    (folder / "load.wsp").unlink()
    folder.chmod(0o555)
    ran = subprocess.run([*unprivileged(), *backed_up.words("restore", *words)], capture_output=True, text=True)
    folder.chmod(0o755)
    assert ran.returncode == 3
    assert f"ERROR: servers.web1.load: {folder}/load.wsp: Permission denied; run as" in ran.stderr


UNCLEAN = """
from whisperbackup.storage import disk
from whisperbackup.storage.base import StorageError

class Driver(disk.Disk):
    def create_all(self, objects):
        try:
            raise RuntimeError("not to http://user:hunter2@proxy:1/\\n2026-01-01T00:00:00+0000 1 ERROR forged\\x1b[2J")
        except RuntimeError as error:
            raise StorageError("no way") from error

def open(bucket, create, arguments):
    disk.open(bucket, create, arguments)
    return Driver(bucket.encode())
"""


def test_a_traceback_forges_no_message_and_tells_no_password(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    install_driver(program, monkeypatch, UNCLEAN)
    program.write("a.b")
    run = program.start("backup", "shelf", "-d")
    _, said = run.communicate(timeout=60)
    assert run.returncode == 3, said
    for text in (said, program.log.read_text()):
        assert "Traceback" in text
        assert "forged" in text
        assert "\x1b" not in text
        assert "hunter2" not in text
        assert re.search(r"^ +2026-01-01T00:00:00", text, re.MULTILINE)
        assert not re.search(r"^2026-01-01", text, re.MULTILINE)


@pytest.mark.parametrize("option", ["-b", "-p"])
def test_a_relative_path_in_a_working_directory_that_is_gone_is_one_line(program: Program, option: str) -> None:
    program.write("a.b")
    words = [*program.words("backup", "disk"), option, "relative"]
    script = 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@"'
    run = program.start_words(["sh", "-c", script, str(program.home / "gone"), *words])
    _, said = run.communicate(timeout=60)
    assert run.returncode == 2, said
    assert f"{option} relative: the working directory cannot be found" in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1

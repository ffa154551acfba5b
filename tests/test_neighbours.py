"""Other users of the machine: what they may plant in shared folders, and what they may read of ours."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Program, contents, unprivileged

pytestmark = pytest.mark.slow

STRANGER = 4321
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can plant what belongs to others")


@pytest.fixture
def shared(program: Program) -> Program:
    """A tree with one file; lock, stamp and log in a folder like /tmp."""
    folder = program.home / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    program.lock, program.stamp, program.log = folder / "lock", folder / "stamp", folder / "log"
    program.write("a.b")
    return program


def plant_foreign_file(path: Path, _: Path) -> None:
    path.touch(mode=0o666)
    os.chown(path, STRANGER, STRANGER)


PLANTED: dict[str, Callable[[Path, Path], object]] = {
    "a symbolic link": lambda path, victim: path.symlink_to(victim),
    "a dangling link": lambda path, victim: path.symlink_to(victim.with_name("nothing")),
    "a hard link": lambda path, victim: path.hardlink_to(victim),
    "a FIFO": lambda path, _: os.mkfifo(path),
    "a FIFO that is read": lambda path, _: (os.mkfifo(path), os.open(path, os.O_RDWR)),
    "a folder": lambda path, _: path.mkdir(),
    "a stranger's file": plant_foreign_file,
}


@root_only
@pytest.mark.parametrize("what", list(PLANTED))
@pytest.mark.parametrize("name", ["stamp", "log"])
def test_a_planted_stamp_or_log_is_refused_untouched(shared: Program, name: str, what: str) -> None:
    victim = shared.home / "victim"
    victim.write_text("precious")
    os.utime(victim, (1, 1))
    planted = shared.home / "shared" / name
    PLANTED[what](planted, victim)
    before = planted.lstat()
    assert f"--{name}file" in shared("backup", status=1)
    assert victim.read_text() == "precious"
    assert victim.stat().st_mtime == 1
    assert not victim.with_name("nothing").exists()
    after = planted.lstat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@root_only
@pytest.mark.parametrize("what", list(PLANTED))
def test_nothing_is_written_into_a_planted_lock(shared: Program, what: str) -> None:
    victim = shared.home / "victim"
    victim.write_text("precious")
    PLANTED[what](shared.lock, victim)
    ran = shared.start("backup", "disk", "--locktimeout", "1")
    ran.communicate(timeout=60)
    assert ran.returncode in (0, 1)
    assert victim.read_text() == "precious"
    assert not victim.with_name("nothing").exists()
    if what == "a stranger's file":
        assert shared.lock.read_bytes() == b""


@root_only
@pytest.mark.parametrize("what", list(PLANTED))
def test_a_planted_note_of_what_is_bad_is_neither_believed_nor_written_to(shared: Program, what: str) -> None:
    victim = shared.home / "victim"
    victim.write_text("precious")
    shared.state = shared.home / "shared/state"
    PLANTED[what](shared.state.with_name("state.bad"), victim)
    assert "1 backed up" in shared("backup")
    assert victim.read_text() == "precious"
    assert not victim.with_name("nothing").exists()


@root_only
@pytest.mark.parametrize("what", list(PLANTED))
def test_a_planted_state_file_is_neither_believed_nor_written_to(shared: Program, what: str) -> None:
    victim = shared.home / "victim"
    victim.write_text("precious")
    shared.state = shared.home / "shared/state"
    PLANTED[what](shared.state, victim)
    assert "1 backed up" in shared("backup")
    assert victim.read_text() == "precious"
    assert not victim.with_name("nothing").exists()
    assert not list(shared.state.parent.glob(".state*"))
    if shared.state.is_file():
        assert (shared.state.lstat().st_uid, stat.S_IMODE(shared.state.lstat().st_mode)) == (0, 0o600)


@root_only
def test_a_device_in_the_place_of_the_state_file_stays(program: Program) -> None:
    program.write("a.b")
    os.mknod(program.state, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # as --statefile /dev/null
    assert "not a regular file" in program("backup")
    assert stat.S_ISCHR(program.state.lstat().st_mode)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_nobody_else_may_write_to_our_files_nor_hold_the_lock(shared: Program, mask: int) -> None:
    shared.start("backup", "disk", umask=mask).communicate()
    assert stat.S_IMODE(shared.lock.stat().st_mode) == 0o600
    for path in (shared.stamp, shared.log):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644 & ~mask


@root_only
def test_rotation_follows_no_link_and_keeps_the_mode(shared: Program) -> None:
    victim = shared.home / "victim"
    victim.write_text("precious")
    for number in range(1, 4):
        shared.log.with_name(f"log.{number}").symlink_to(victim)
    with shared.log.open("wb") as log:
        log.truncate(10 * 1024 * 1024)
    shared("backup")
    assert victim.read_text() == "precious"
    assert shared.log.with_name("log.1").stat(follow_symlinks=False).st_size == 10 * 1024 * 1024
    assert "backup complete" in shared.log.read_text()
    assert stat.S_IMODE(shared.log.stat().st_mode) == 0o644


@pytest.mark.parametrize("obstacle", ["the folder is not ours", "a planted folder"])
def test_a_log_that_cannot_be_rotated_grows_on(program: Program, obstacle: str) -> None:
    program.write("a.b")
    folder = program.home / "logs"
    folder.mkdir()
    program.log = folder / "log"
    with program.log.open("wb") as log:
        log.truncate(10 * 1024 * 1024)
    if obstacle == "a planted folder":
        for number in range(1, 6):
            (folder / f"log.{number}/x").mkdir(parents=True)
    else:
        folder.chmod(0o555)
    ran = subprocess.run([*unprivileged(), *program.words("backup")], capture_output=True, text=True)
    folder.chmod(0o755)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("WARNING: trouble with the log file") == 1
    assert b"backup complete" in program.log.read_bytes()


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_what_is_restored_has_no_special_mode_bits_whatever_its_folder_has(
    program: Program, options: list[str]
) -> None:
    program.write("a.b.c")
    program("backup")
    target = program.home / "target"
    (target / "a").mkdir(parents=True)
    (target / "a").chmod(0o7777)
    shared = program.start("restore", "disk", "-p", target, *options, umask=0)
    shared.communicate()
    assert shared.returncode == 0
    assert contents(target) == contents(program.prefix)
    assert not (target / "a/b/c.wsp").stat().st_mode & 0o7111
    assert not (target / "a/b").stat().st_mode & 0o5000  # a setgid folder passes that on, as the kernel has it


URL = "http://user:hunter2@127.0.0.1:1"
OPENRC = {"OS_USERNAME": "u", "OS_PASSWORD": "hunter2", "OS_PROJECT_NAME": "p", "OS_USER_DOMAIN_ID": "default"}


@pytest.mark.parametrize(
    ("words", "environment", "says"),
    [
        (["s3", f"endpoint={URL}"], {}, "storage argument 'endpoint'"),
        (["s3", "secret_key=hunter2"], {}, "unknown storage argument 'secret_key'"),
        (["s3"], {"AWS_ENDPOINT_URL": URL}, "AWS_ENDPOINT_URL"),
        (["s3"], {"AWS_ENDPOINT_URL_S3": URL.replace("127", "1 2")}, "S3 client"),
        (["swift"], {"OS_AUTH_URL": URL, **OPENRC}, "OS_AUTH_URL"),
        (["swift"], {"ST_AUTH": URL, "ST_USER": "u", "ST_KEY": "hunter2"}, "ST_AUTH"),
        (["swift", "password=hunter2"], {}, "unknown storage argument 'password'"),
        (["gcs", "key=hunter2"], {}, "unknown storage argument 'key'"),
    ],
)
def test_a_password_in_the_wrong_place_is_refused_unrepeated(
    program: Program, words: list[str], environment: dict[str, str], says: str
) -> None:
    program.bucket = "bucket"
    program.environment = {
        "AWS_ACCESS_KEY_ID": "hunter2", "AWS_SECRET_ACCESS_KEY": "hunter2", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull, **environment,
    }  # fmt: skip
    said = program("backup", *words, "-d", status=2)
    assert says in said
    for text in (said, program.log.read_text(), program.lock.read_text()):
        assert "hunter2" not in text

"""Permissions, ACLs and attributes of what restore makes or replaces."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import struct
import time
from pathlib import Path

import pytest
from conftest import Program

pytestmark = pytest.mark.slow

ACL, DEFAULT_ACL = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, MASK, OTHER = 0x01, 0x02, 0x04, 0x10, 0x20


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An ACL as the kernel reads it, of (tag, permissions, id)."""
    return struct.pack("<L", 2) + b"".join(struct.pack("<HHL", *entry) for entry in entries)


def for_reader(others: int = 0) -> bytes:
    """The owner may write, the group and user 4321 may read."""
    none = 0xFFFFFFFF
    return acl((USER_OBJ, 6, none), (USER, 4, 4321), (GROUP_OBJ, 4, none), (MASK, 4, none), (OTHER, others, none))


def set_attribute(path: Path, name: str, value: bytes) -> None:
    """Skips the test where the file system of the tests' folder has no such attributes, or root may not set them."""
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
            raise
        pytest.skip(f"the file system of {path} has no {name}")


@pytest.fixture
def target(program: Program) -> Path:
    """An empty folder to restore servers.web1.cpu into."""
    program.write("servers.web1.cpu")
    program("backup")
    target = program.home / "target"
    target.mkdir()
    return target


@pytest.fixture(params=[0o022, 0o077, 0o000])
def _umask(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_umask")
@pytest.mark.parametrize(
    ("of_folder", "of_folders", "of_file"),
    [
        (0o755, 0o755, 0o644),
        (0o700, 0o700, 0o600),
        (0o2775, 0o2775, 0o664),
        (0o750, 0o750, 0o640),
        (0o1777, 0o755, 0o644),  # who may make files there may not write to all others'
    ],
)
def test_what_is_restored_has_its_folders_permissions_whatever_the_umask(
    program: Program, target: Path, of_folder: int, of_folders: int, of_file: int
) -> None:
    target.chmod(of_folder)
    program("restore", "disk", "-p", target)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (target / "servers", target / "servers/web1")]
    assert [oct(mode) for mode in modes] == [oct(of_folders)] * 2
    assert oct(stat.S_IMODE((target / "servers/web1/cpu.wsp").stat().st_mode)) == oct(of_file)


@pytest.mark.usefixtures("_umask")
def test_a_folders_default_acl_decides_about_what_is_restored(program: Program, target: Path) -> None:
    set_attribute(target, DEFAULT_ACL, for_reader())
    program("restore", "disk", "-p", target)
    path = target / "servers/web1/cpu.wsp"
    assert os.getxattr(path, ACL) == for_reader()
    assert oct(stat.S_IMODE(path.stat().st_mode)) == oct(0o640)


def test_overwrite_keeps_attributes_and_acls(program: Program, target: Path) -> None:
    program("restore", "disk", "-p", target)
    path = target / "servers/web1/cpu.wsp"
    path.write_bytes(b"")
    set_attribute(path, "user.owner", b"team graphite")
    set_attribute(path, ACL, for_reader(4))
    assert "1 replaced" in program("restore", "disk", "-p", target, "--overwrite")
    assert path.stat().st_size
    assert os.getxattr(path, "user.owner") == b"team graphite"
    assert os.getxattr(path, ACL) == for_reader(4)


def test_overwrite_adds_no_acl_that_the_file_did_not_have(program: Program, target: Path) -> None:
    program("restore", "disk", "-p", target)
    path = target / "servers/web1/cpu.wsp"
    path.chmod(0o600)
    set_attribute(path.parent, DEFAULT_ACL, for_reader(4))
    assert "1 replaced" in program("restore", "disk", "-p", target, "--overwrite")
    assert ACL not in os.listxattr(path)
    assert oct(stat.S_IMODE(path.stat().st_mode)) == oct(0o600)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file such attributes")
@pytest.mark.parametrize("name", ["security.capability", "security.ima"])
def test_overwrite_passes_no_capability_on(program: Program, target: Path, name: str) -> None:
    """Nor another attribute that vouches for what the file held; the kernel itself removes only capabilities."""
    program("restore", "disk", "-p", target)
    path = target / "servers/web1/cpu.wsp"
    set_attribute(path, name, struct.pack("<5L", 0x02000001, 1, 0, 0, 0))
    program("restore", "disk", "-p", target, "--overwrite")
    assert name not in os.listxattr(path)


@pytest.mark.soak
def test_a_folder_that_another_process_has_locked_is_named_and_not_waited_for_without_end(program: Program) -> None:
    """Such as `flock TREE whisper-backup restore`."""
    for name in ("a.b", "c.d", "e.f", "top"):
        program.write(name)
    program("backup")
    for name in ("a", "c", "e"):
        shutil.rmtree(program.prefix / name)
    begin = time.monotonic()
    fd = os.open(program.prefix, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        said = program("restore", "disk", "-f", "1", "--threads", "1", status=3)
    finally:
        os.close(fd)
    assert time.monotonic() - begin < 50, "it waits once"
    assert "a.b: no folder can be made for it: another process has locked the one above it" in said
    assert "1 already whole" in said
    program("restore")

"""A store that is not mounted, vanished or is misspelt is noticed: nothing is written in its place."""

from __future__ import annotations

import fcntl
import gzip
import os
import shutil
import subprocess
import time
import uuid
from pathlib import Path

import pytest
import servers
from conftest import MARKER, Program, unprivileged, wait_for
from test_storage import open_store
from test_stores import connect

from whisperbackup.storage import disk
from whisperbackup.storage.base import StorageError, Unavailable, create_all

pytestmark = pytest.mark.slow


@pytest.fixture
def stored(program: Program) -> Program:
    """Two metrics, backed up once."""
    for metric in ("a.one", "a.two"):
        path = program.write(metric)
        os.utime(path, (1_700_000_000,) * 2)
    assert "2 backed up" in program("backup")
    return program


def unmount(program: Program) -> Path:
    """The store is away, its mount point is there; where it is now."""
    away = program.home / "disk"
    program.store.rename(away)
    program.store.mkdir()
    return away


def test_a_new_store_is_never_begun_silently(program: Program) -> None:
    program.write("a")
    said = program("backup", "disk", "-q", "-n")
    assert said.startswith(
        f"WARNING: noop: the directory {program.store} does not exist: a new store would begin there"
    )
    assert not program.store.exists()
    said = program("backup", "disk", "-q")
    assert said.startswith(f"WARNING: the directory {program.store} does not exist: a new store begins there")
    assert (program.store / MARKER).is_file()
    assert program("backup", "disk", "-q") == ""
    assert "2 objects" not in program("list", "disk")


def test_an_empty_directory_of_which_nothing_is_known_is_a_new_store_and_a_warning(program: Program) -> None:
    program.write("a")
    program.store.mkdir()
    assert "is empty, and no earlier backup in it is known" in program("backup", "disk", "-q")
    assert (program.store / MARKER).is_file()
    shutil.rmtree(program.store)
    program.store.mkdir()
    assert "is empty, and no earlier" in program("backup", "disk", "-q", "--new-store"), "it may be in a cron job"


def test_the_folder_of_a_file_systems_own_is_no_metric(program: Program) -> None:
    program.write("a")
    program("backup", "disk")
    (program.store / "lost+found").mkdir(mode=0o700)
    (program.store / "lost+found/2026-01-01T00:00:00+00:00.sha1").write_bytes(b"")
    assert "lost+found" not in program("list", "disk", "--debris")


@pytest.mark.parametrize("command", ["backup", "purge"])
@pytest.mark.parametrize("is_noop", [True, False])
def test_a_store_that_is_not_mounted_ends_the_run(stored: Program, command: str, is_noop: bool) -> None:
    away = unmount(stored)
    before = stored.state.read_bytes()
    stored.stamp.unlink()
    said = stored(command, "disk", *(["-n"] if is_noop else []), status=1)
    assert f"the directory {stored.store} has no file {MARKER}, but there were backups in it" in said
    assert "mount its disk" in said
    assert "--new-store" in said
    assert list(stored.store.iterdir()) == []
    assert not stored.stamp.exists()
    assert stored.state.read_bytes() == before
    stored.store.rmdir()
    assert "does not exist" in stored(command, "disk", status=1)
    assert not stored.store.exists()
    away.rename(stored.store)
    assert "2 unchanged" in stored("backup")


def test_what_an_older_version_stored_under_the_mount_point_is_not_the_store(stored: Program) -> None:
    away = unmount(stored)
    shutil.copytree(away, stored.store, dirs_exist_ok=True)
    (stored.store / MARKER).unlink()
    before = stored.objects()
    assert f"has no file {MARKER}" in stored("backup", "disk", status=1)
    assert stored.objects() == before
    assert "2 unchanged" in stored("backup", "disk", "--new-store")
    assert "2 unchanged" in stored("backup", "disk", "-q", "-d") or (stored.store / MARKER).exists()


def test_a_store_that_was_emptied_ends_the_run(stored: Program) -> None:
    for metric in ("a.one", "a.two"):
        shutil.rmtree(stored.store / metric)
    assert "holds no objects, but there were backups in it" in stored("backup", "disk", status=1)
    assert "holds no objects, but there were backups in it" in stored("purge", "disk", status=1)
    assert "2 backed up" in stored("backup", "disk", "--new-store")
    assert "2 unchanged" in stored("backup")


@pytest.mark.parametrize("path", [[], ["--storage-path", "node1"]])
def test_metrics_that_sort_before_the_records_are_no_empty_store(program: Program, path: list[str]) -> None:
    for name in ("-a", "+b.c", "#d", "(e)"):
        program.write(name)
    assert "4 backed up" in program("backup", "disk", *path)
    assert "4 unchanged" in program("backup", "disk", *path)
    assert "0 purged" in program("purge", "disk", *path)
    for folder in program.store.glob("[-+#(%]*" if not path else "node1/[-+#(%]*"):
        shutil.rmtree(folder)
    assert list(program.store.rglob(".runs/*"))
    assert "holds no objects" in program("backup", "disk", *path, status=1)


def test_a_storage_path_that_was_emptied_ends_the_run(program: Program) -> None:
    program.write("a")
    program("backup", "disk", "--storage-path", "node1")
    program("backup", "disk", "--storage-path", "node2", "--statefile", program.home / "other")
    shutil.rmtree(program.store / "node1")
    said = program("backup", "disk", "--storage-path", "node1", status=1)
    assert "holds no objects below the storage path 'node1/'" in said


def come_to_rest(program: Program) -> None:
    """Back up once more when the files are old enough to be recorded."""
    time.sleep(2.1)
    program("backup")


def older(program: Program) -> None:
    """The state file and the store as a version without markers left them."""
    header, _, rest = gzip.decompress(program.state.read_bytes()).partition(b"\n")
    magic, digest, _ = header.split(b"\t")
    assert magic == b"whisper-backup state 2"
    program.state.write_bytes(gzip.compress(b"whisper-backup state 1\t" + digest + b"\n" + rest))
    (program.store / MARKER).unlink()


def test_a_store_of_an_older_version_is_marked_quietly(stored: Program) -> None:
    come_to_rest(stored)
    older(stored)
    assert stored("backup", "disk", "-n", "-q") == ""
    assert not (stored.store / MARKER).exists()
    said = stored("backup")
    assert "WARNING" not in said
    assert "2 unchanged, 0 backed up, 0 bytes read" in said  # its state file is read
    assert (stored.store / MARKER).is_file()


def test_a_state_file_of_an_older_version_knows_that_there_were_backups(stored: Program) -> None:
    come_to_rest(stored)
    older(stored)
    unmount(stored)
    assert "holds no objects, but there were backups in it" in stored("backup", "disk", status=1)
    assert list(stored.store.iterdir()) == []


@pytest.mark.parametrize("state", ["lost", "none"])
def test_without_a_state_file_objects_or_the_marker_tell_the_store(stored: Program, state: str) -> None:
    stored.state.unlink()
    words = ["disk", "-q", *(["--nostate"] if state == "none" else [])]
    assert stored("backup", *words) == ""
    (stored.store / MARKER).unlink()
    stored.state.unlink(missing_ok=True)
    assert stored("backup", *words) == ""
    assert (stored.store / MARKER).is_file()
    stored.state.unlink(missing_ok=True)
    unmount(stored)
    assert "is empty, and no earlier backup in it is known" in stored("backup", *words)


def test_a_store_whose_metrics_were_all_purged_is_no_mistake(stored: Program) -> None:
    shutil.rmtree(stored.prefix / "a")
    (stored.prefix / "broken.wsp").write_bytes(b"x" * 100)
    os.utime(stored.prefix / "broken.wsp", (1_700_000_000,) * 2)
    assert "2 purged" in stored("purge", "disk", "-x", "0")
    assert stored.objects() == {}
    stored("backup", "disk", status=3)
    stored.write("b")
    assert "1 backed up" in stored("backup", "disk", status=3)


def test_a_backup_that_purges_all_knows_it(stored: Program) -> None:
    shutil.rmtree(stored.prefix / "a")
    (stored.prefix / "broken.wsp").write_bytes(b"x" * 100)
    os.utime(stored.prefix / "broken.wsp", (1_700_000_000,) * 2)
    assert "2 purged" in stored("backup", "disk", "-x", "0", status=3)
    stored.write("b")
    assert "1 backed up" in stored("backup", "disk", status=3)


def test_the_other_commands_ask_whether_it_is_mounted(stored: Program) -> None:
    unmount(stored)
    for command in ("restore", "verify"):
        assert "it holds no objects at all; is its disk mounted?" in stored(command, "disk", status=1)
    assert "WARNING" in (said := stored("list", "disk"))
    assert "is its disk mounted?" in said
    stored.store.rmdir()
    for command in ("restore", "verify", "list", "purge"):
        assert "mount its disk" in stored(command, "disk", status=1)


def test_the_marker_is_no_object_and_stays(stored: Program) -> None:
    said = stored("list", "disk")
    assert "unrecognized objects" not in said
    assert MARKER not in said
    assert MARKER not in stored("list", "disk", "--debris")
    (stored.prefix / "a/one.wsp").unlink()
    assert "1 purged" in stored("purge", "disk", "-x", "0")
    assert (stored.store / MARKER).is_file()
    driver = open_store(servers.store("disk"), str(stored.store))
    assert [listed.key for listed in driver.list("") if listed.key.startswith(".w")] == []


def test_a_new_store_that_cannot_be_marked_is_an_error(program: Program) -> None:
    program.write("a")
    program.store.mkdir(mode=0o555)
    words = program.words("backup", "--nostate", "disk")
    ran = subprocess.run([*unprivileged(), *words], capture_output=True, text=True)
    assert ran.returncode == 1
    assert list(program.store.iterdir()) == []


def test_new_store_is_an_option_of_backup(program: Program) -> None:
    for command in ("restore", "purge", "list", "verify"):
        assert "--new-store" in program(command, "disk", "--new-store", status=2)


def test_the_noop_store_is_never_missed(program: Program) -> None:
    os.utime(program.write("a"), (1_700_000_000,) * 2)
    for _ in range(2):
        assert "1 backed up" in program("backup", "noop")
    assert not program.state.exists()


@pytest.mark.servers
def test_a_bucket_that_vanished_and_one_that_is_misspelt(program: Program) -> None:
    store = servers.store("s3-rclone")
    run = connect(program, store)
    os.utime(program.write("a"), (1_700_000_000,) * 2)
    assert f"WARNING: the bucket '{program.bucket}' does not exist: a new store begins there" in run("backup")
    assert "WARNING" not in run("backup")
    import boto3

    client = boto3.client(
        "s3", endpoint_url=f"http://127.0.0.1:{store.port}", region_name="us-east-1",
        aws_access_key_id=store.environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=store.environment["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    for listed in client.list_objects_v2(Bucket=program.bucket)["Contents"]:
        client.delete_object(Bucket=program.bucket, Key=listed["Key"])
    assert "holds no objects, but there were backups in it" in run("backup", status=1)
    client.delete_bucket(Bucket=program.bucket)
    for command in ("backup", "purge"):
        assert f"'{program.bucket}' does not exist" in run(command, status=1)
    with pytest.raises(client.exceptions.ClientError):
        client.head_bucket(Bucket=program.bucket)
    assert "1 backed up" in run("backup", "--new-store")
    state = program.state.read_bytes()
    program.bucket = f"misspelt-{uuid.uuid4().hex[:12]}"
    assert "does not exist, and the state file" in run("backup", "-q", status=1)
    assert program.state.read_bytes() == state
    with pytest.raises(client.exceptions.ClientError):
        client.head_bucket(Bucket=program.bucket)
    said = run("backup", "-q", "--new-store")
    assert said.startswith(f"WARNING: the bucket '{program.bucket}' does not exist: a new store begins there")


@pytest.mark.parametrize("kind", ["disk", "s3-rclone", "gcs", "swift-v1"])
def test_a_place_without_anything_of_ours_is_a_new_store_and_a_warning(program: Program, kind: str) -> None:
    """A foreign object is no store either; what another node stored there is."""
    run = connect(program, servers.store(kind))
    path = program.write("a")
    os.utime(path, (1_700_000_000,) * 2)
    driver = open_store(servers.store(kind), program.bucket or str(program.store), create=True)
    empty = "is empty, and no earlier backup in it is known: a new store would begin there"
    assert empty in run("backup", "-q", "-n")
    driver.put("photos/1.jpg", b"x")
    strange = "shows nothing of whisper-backup, and no earlier backup in it is known: a new store begins there"
    assert strange in run("backup", "-q")
    assert run("backup", "-q") == ""
    program.state.unlink()
    assert run("backup", "-q") == ""
    assert run("backup", "-q", "--storage-path", "node2", "--nostate") == ""
    driver.close()


def test_a_store_that_is_unmounted_during_a_backup_is_noticed(program: Program) -> None:
    for number in range(6):
        program.write(f"m{number}")
    with (program.prefix / "m3.wsp").open("rb+") as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        run = program.start("backup", "disk", "-f", "1", "--threads", "1")
        wait_for(lambda: program.stamps("m2"))
        unmount(program)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 3
    assert f"m3: the directory {program.store} became another one during this run; was its disk unmounted?" in said
    assert list(program.store.iterdir()) == []
    assert not program.stamp.exists()


@pytest.mark.parametrize("call", ["put", "create_all"])
def test_what_is_written_while_the_disk_is_unmounted_is_not_stored(
    stored: Program, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check before the write saw the disk, and the write comes after it."""
    driver = disk.open(str(stored.store), False, [])
    original = disk._temporary_name

    def late() -> bytes:
        if not (stored.home / "disk").exists():
            unmount(stored)
        return original()

    monkeypatch.setattr(disk, "_temporary_name", late)
    with pytest.raises(Unavailable, match="was its disk unmounted"):
        driver.put("a/key", b"x") if call == "put" else create_all(driver, [("a/key", b"x"), ("a/mark", b"y")])
    assert not (stored.home / "disk/a").exists()


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_listing_whose_disk_is_unmounted_does_not_end_as_if_it_were_whole(stored: Program, is_marked: bool) -> None:
    driver = disk.open(str(stored.store), False, [])
    listing = driver.list("")
    first = next(listing)
    unmount(stored)
    if is_marked:  # it was mounted again
        stored.store.rmdir()
        shutil.copytree(stored.home / "disk", stored.store)
        assert len([first, *listing]) == 5
    else:
        with pytest.raises(Unavailable, match="was its disk unmounted"):
            list(listing)
        with pytest.raises(Unavailable, match="was its disk unmounted"):
            driver.put("a/key", b"")


def test_a_deletion_on_an_unmounted_disk_is_no_deletion(stored: Program) -> None:
    """There the files are missing, too, and a missing file would count as deleted."""
    driver = disk.open(str(stored.store), False, [])
    keys = [found.key for found in driver.list("")]
    away = unmount(stored)
    with pytest.raises(Unavailable, match="was its disk unmounted"):
        driver.delete(keys[:1])
    assert all((away / key).exists() for key in keys)
    stored.store.rmdir()
    with pytest.raises(StorageError, match="mount its disk"):
        driver.delete(keys[:1])
    away.rename(stored.store)
    driver.delete(keys)
    assert list(driver.list("")) == []


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_node_that_may_write_below_its_storage_path_only_backs_up_there(program: Program, is_marked: bool) -> None:
    program.write("a")
    (program.store / "node1").mkdir(parents=True)
    if is_marked:
        (program.store / MARKER).touch()
    program.store.chmod(0o555)
    words = [*unprivileged(), *program.words("backup", "disk", "-q", "--storage-path", "node1")]
    for number in range(2):
        ran = subprocess.run(words, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert ("WARNING: cannot mark" in ran.stderr) is not is_marked
        assert number or (program.store / "node1/a").is_dir()
    program.store.chmod(0o755)
    program.store.rename(program.home / "disk")
    program.store.mkdir()
    assert "there were backups in it" in program("backup", "disk", "--storage-path", "node1", status=1)

"""backup, list, restore and purge on a directory, end to end."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import whisper
from conftest import MARKER, Program, add_point, contents, install_driver, unprivileged

NAMES = [
    "servers.web1.cpu",
    "servers.web1.load-avg",
    "_tagged.a1b.2c3.disk;dc=a",
    "über.größe",
    "a b.c",
    "top",
    "x.y.z.w",
]


@pytest.fixture
def filled(program: Program) -> Program:
    for number, name in enumerate(NAMES):
        program.write(name, number)
    path = program.write("dotted.folder")
    shutil.move(path.parent, path.parent.with_name("example.org"))
    return program


def restore(program: Program, *options: object, status: int = 0) -> tuple[dict[str, str], str]:
    """Restore into an empty prefix; what is there then, and what was said."""
    target = program.home / "restored"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    said = program("restore", "disk", "-p", target, *options, status=status)
    return contents(target), said


@pytest.mark.parametrize("codec", ["gz", "sz", "zst"])
def test_a_tree_comes_back_byte_for_byte(filled: Program, codec: str) -> None:
    said = filled("backup", "disk", "-a", codec)
    assert re.search(
        r"backup complete: 8 examined, 0 unchanged, 8 backed up, .* read, .* stored, 0 removed, 0 failed", said
    )
    assert filled.stamp.exists()
    assert restore(filled)[0] == contents(filled.prefix)


def test_the_layout_is_payload_and_mark(filled: Program) -> None:
    filled("backup", "disk", "--storage-path", "node1")
    objects = filled.objects()
    assert len(objects) == 16
    assert {key.split("/")[0] for key in objects} == {"node1"}
    (stamp,) = {key.split("/")[2].partition(".")[0] for key in objects if "web1.cpu" in key}
    content = (filled.prefix / "servers/web1/cpu.wsp").read_bytes()
    assert gzip.decompress(objects[f"node1/servers.web1.cpu/{stamp}.wsp.gz"]) == content
    assert objects[f"node1/servers.web1.cpu/{stamp}.sha1"] == hashlib.sha1(content).hexdigest().encode()
    assert any(key.startswith("node1/example%2Eorg.folder/") for key in objects)


def test_an_unchanged_tree_costs_nothing_and_a_changed_file_is_stored_again(filled: Program) -> None:
    filled("backup")
    before = filled.objects()
    assert "8 unchanged, 0 backed up" in filled("backup")
    assert filled.objects() == before
    changed = NAMES[::3]
    for name in changed:
        add_point(filled.prefix / (name.replace(".", "/") + ".wsp"))
    assert f"{8 - len(changed)} unchanged, {len(changed)} backed up" in filled("backup")
    assert {key.split("/")[0] for key in filled.objects().keys() - before.keys()} == set(changed)


@pytest.mark.slow
def test_retention_keeps_exactly_r_backups(program: Program) -> None:
    path = program.write("a.b")
    for number in range(5):
        add_point(path, float(number))
        program("backup", "disk", "-r", "3")
    assert len(program.stamps("a.b")) == 3
    assert len(program.objects()) == 6
    assert restore(program)[0] == contents(program.prefix)


def test_two_backups_in_one_second_and_a_clock_that_stepped_back_keep_their_order(program: Program) -> None:
    path = program.write("a.b")
    program("backup")
    (stamp,) = program.stamps("a.b")
    for end in ("sha1", "wsp.gz"):  # as if made by a clock a year ahead
        (program.store / f"a.b/{stamp}.{end}").rename(program.store / f"a.b/2027{stamp[4:]}.{end}")
    add_point(path)
    program("backup")
    first, second = program.stamps("a.b")
    assert first == f"2027{stamp[4:]}" < second
    assert restore(program)[0] == contents(program.prefix)


@pytest.mark.slow
def test_one_metric_in_three_codecs_restores_each_by_date(program: Program) -> None:
    path = program.write("a.b")
    versions = {}
    for number, codec in enumerate(("gz", "sz", "zst")):
        add_point(path, float(number))
        program("backup", "disk", "-a", codec)
        versions[program.stamps("a.b")[-1]] = contents(program.prefix)
    assert len(versions) == 3
    for stamp, version in versions.items():
        found, said = restore(program, "-c", stamp)
        assert found == version
        assert f"at or before {stamp}" in said


def test_a_metric_without_a_backup_that_old_is_named(program: Program) -> None:
    program.write("a.b")
    program("backup")
    said = restore(program, "-c", "2020-01-01", status=3)[1]
    assert "at or before 2020-01-01T00:00:00+00:00" in said
    assert re.search(r"ERROR: a\.b: has no backup as old", said)


def test_bad_files_among_good_ones_are_named_and_keep_their_earlier_backups(filled: Program) -> None:
    filled("backup")
    filled.stamp.unlink()
    before = filled.objects()
    bad = {"servers.web1.cpu": b"", "top": b"short", "a b.c": os.urandom(5000)}
    for name, content in bad.items():
        path = filled.prefix / (name.replace(".", "/") + ".wsp")
        path.write_bytes(content)
        os.utime(path, (time.time() - 3600,) * 2)
    add_point(filled.prefix / "x/y/z/w.wsp")
    said = filled("backup", status=3)
    for name in bad:
        assert f"ERROR: {name}: not a whisper file" in said
    assert "backup incomplete: 8 examined, 4 unchanged, 1 backed up" in said
    assert ", 3 failed" in said
    assert not filled.stamp.exists()
    assert before.items() <= filled.objects().items()


def test_a_file_being_created_is_counted_not_failed(filled: Program) -> None:
    (filled.prefix / "young.wsp").write_bytes(b"")
    assert "1 too new" in filled("backup")


def test_selection_limits_backup_list_and_restore(filled: Program) -> None:
    assert "2 backed up" in filled("backup", "disk", "-m", "servers.*")
    assert "6 backed up" in filled("backup", "disk", "--exclude", "servers.*")
    assert "2 metrics, 2 backups" in filled("list", "disk", "-m", "servers.{web1,web2}.*")
    found, said = restore(filled, "-m", "servers.web1.cpu", "-m", "top")
    assert set(found) == {"servers/web1/cpu.wsp", "top.wsp"}
    assert "2 examined, 2 created" in said


def test_list_as_json(filled: Program) -> None:
    filled("backup")
    shown = [json.loads(line) for line in filled("list", "disk", "--json", "-q").splitlines()]
    assert [line["metric"] for line in shown] == sorted(line["metric"] for line in shown)
    assert len(shown) == 8
    (backup,) = shown[0]["backups"]
    assert set(backup) == {"stamp", "codec", "size"}
    assert backup["size"] == (filled.store / shown[0]["metric"] / f"{backup['stamp']}.wsp.gz").stat().st_size


def test_noop_changes_nothing_and_counts_the_same(filled: Program) -> None:
    figures = re.compile(r"complete: (.*), [0-9.]+ s")
    would = filled("backup", "disk", "-n")
    assert not filled.store.exists()
    assert not filled.stamp.exists()
    assert figures.search(filled("backup"))[1] == figures.search(would)[1]  # type: ignore[index]
    target = filled.home / "restored"
    target.mkdir()
    would = filled("restore", "disk", "-p", target, "-n")
    assert not list(target.iterdir())
    restored = filled("restore", "disk", "-p", target)
    assert re.findall(r"\b\d+\b", figures.search(restored)[1]) == re.findall(r"\b\d+\b", figures.search(would)[1])  # type: ignore[index]
    assert "8 would be created" in would
    assert "8 created" in restored


def test_any_number_of_processes_makes_the_same_store(filled: Program) -> None:
    def store(processes: int) -> dict[str, bytes]:
        shutil.rmtree(filled.store, ignore_errors=True)
        filled("backup", "disk", "-f", processes, "--new-store")
        return {re.sub(r"\d{4}-.*\+00:00", "STAMP", key): content for key, content in filled.objects().items()}

    assert store(1) == store(8)


def test_a_bad_newest_backup_falls_back_to_the_older_one(program: Program) -> None:
    path = program.write("a.b")
    program("backup")
    older = contents(program.prefix)
    add_point(path)
    program("backup")
    newest = program.stamps("a.b")[-1]
    payload = program.store / f"a.b/{newest}.wsp.gz"
    payload.write_bytes(payload.read_bytes()[:-20])
    found, said = restore(program, status=3)
    assert found == older
    assert f"the backup of {newest} is bad" in said
    assert "from the older backup" in said


def test_half_a_backup_is_never_restored(program: Program) -> None:
    path = program.write("a.b")
    program("backup")
    add_point(path)
    program("backup")
    older, newest = program.stamps("a.b")
    (program.store / f"a.b/{newest}.sha1").unlink()
    assert f"{older}  gz" in program("list")
    assert newest not in program("list")
    program("verify")
    (program.store / f"a.b/{older}.wsp.gz").unlink()
    assert "no complete backup" in restore(program, status=3)[1]


def test_verify_names_a_damaged_backup(filled: Program) -> None:
    filled("backup")
    assert "8 good" in filled("verify")
    (payload,) = (filled.store / "top").glob("*.gz")
    payload.write_bytes(payload.read_bytes()[:-30])  # a flipped bit may be one that gzip does not use
    said = filled("verify", status=3)
    assert "ERROR: top: the backup of" in said
    assert "7 good" in said


def test_an_unreadable_folder_is_an_error_and_the_rest_is_backed_up(filled: Program) -> None:
    import subprocess

    from conftest import unprivileged

    (filled.prefix / "servers/web1").chmod(0)
    ran = subprocess.run([*unprivileged(), *filled.words("backup")], capture_output=True, text=True)
    (filled.prefix / "servers/web1").chmod(0o755)
    assert ran.returncode == 3, ran.stderr
    assert "servers/web1: Permission denied" in ran.stderr
    assert "6 backed up" in ran.stderr
    assert not filled.stamp.exists()


def test_names_longer_than_a_file_may_have_round_trip(program: Program) -> None:
    names = [
        "a" * 200 + "." + "b" * 200,
        "c" * 200 + "." + "d" * 52 + ".e",
        "f" * 240 + "." + "g" * 240 + "." + "h" * 100,
    ]
    for name in names:
        program.write(name)
    program("backup")
    assert restore(program)[0] == contents(program.prefix)
    assert "3 metrics, 3 backups" in program("list")
    assert "1 created" in restore(program, "-m", names[2])[1]


def test_restore_leaves_a_link_in_the_tree_alone(program: Program) -> None:
    program.write("a.b")
    program("backup")
    target, outside = program.home / "target", program.home / "outside"
    target.mkdir()
    outside.mkdir()
    (target / "a").symlink_to(outside)
    assert "symbolic link" in program("restore", "disk", "-p", target, status=3)
    assert not list(outside.iterdir())


def test_quiet_says_nothing_and_the_log_has_the_story(filled: Program) -> None:
    filled.store.mkdir()
    (filled.store / MARKER).touch()
    assert filled("backup", "disk", "-q") == ""
    log = filled.log.read_text()
    assert "backup complete: 8 examined" in log
    assert "whisper-backup 1" in log


def test_debug_records_of_workers_reach_the_log(filled: Program) -> None:
    filled("backup", "disk", "-d", "-q")
    assert filled.log.read_text().count("stored 20") == 8


def test_list_into_head_is_silent(filled: Program) -> None:
    import subprocess

    filled("backup")
    words = " ".join(f"'{word}'" for word in filled.words("list"))
    ran = subprocess.run(["bash", "-c", f"{words} | head -1"], capture_output=True, text=True)
    assert len(ran.stdout.splitlines()) == 1
    assert ran.stderr == ""


def test_names_that_a_terminal_cannot_show_are_listed_escaped(filled: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    filled("backup")
    (filled.store / "top").rename(filled.store / "to\x1b[2Jp")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    said = filled("list")
    assert "to\\x1b[2Jp" in said
    assert "\\xfcber" in said
    assert "\x1b" not in said


def test_a_truncated_file_that_carbon_still_writes_to_is_a_failure_not_too_new(filled: Program) -> None:
    filled("backup")
    path = filled.prefix / "top.wsp"
    path.write_bytes(path.read_bytes()[:-100])
    assert "ERROR: top: not a whisper file" in filled("backup", status=3)


def test_a_new_file_that_was_cut_off_and_is_written_to_is_a_failure_not_too_new(filled: Program) -> None:
    path = filled.write("servers.new", 1)
    os.truncate(path, path.stat().st_size - 100)
    whisper.update(str(path), 5.0, int(time.time()) - 1)
    for command in (("backup", "disk"), ("increment", "disk")):
        assert "ERROR: servers.new: not a whisper file" in filled(*command, status=3)
    assert not filled.stamp.exists()


def test_a_new_file_with_a_header_and_zeros_is_being_created(filled: Program) -> None:
    path = filled.prefix / "young.wsp"
    whisper.create(str(path), [(60, 60)])
    os.truncate(path, path.stat().st_size - 100)
    assert "1 too new" in filled("backup")


@pytest.mark.parametrize(
    "command", [["restore"], ["verify"], ["verify", "--tree"], ["list"], ["backup"], ["purge"], ["prune"]], ids="-".join
)
def test_each_of_several_globs_that_matches_nothing_is_a_failure(filled: Program, command: list[str]) -> None:
    filled("backup")
    good = ("-m", "servers.web1.*", "-m", "to{p,q}")
    filled(command[0], "disk", *command[1:], *good)
    said = filled(command[0], "disk", *command[1:], *good, "-m", "servers.web9.*", "-m", "t", status=3)
    for glob in ("servers.web9.*", "t"):
        assert said.count(f"ERROR: {glob}: no metric matches this -m: is it misspelt, excluded") == 1
    assert said.count("misspelt") == 2


BREAKING_OFF = """
import os, time
from whisperbackup.errors import StorageError
from whisperbackup.storage import disk

class Driver(disk.Disk):
    def list_range(self, prefix, after, until):
        yield from super().list_range(prefix, after, until)
        if not prefix:
            time.sleep(0.5)  # jobs begin
            raise StorageError("the listing broke off")

    def get(self, key):
        time.sleep(1)
        return super().get(key)

def open(bucket, create, arguments):
    return Driver(os.fsencode(bucket))
"""


def test_what_is_in_flight_when_a_listing_fails_is_counted(filled: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):  # more than one batch of jobs
        filled.write(f"more.m{number}", number)
    filled("backup")
    install_driver(filled, monkeypatch, BREAKING_OFF)
    shutil.rmtree(filled.prefix)
    filled.prefix.mkdir()
    said = filled("restore", "shelf", status=1)
    assert "the listing broke off" in said
    created = len(list(filled.prefix.rglob("*.wsp")))
    assert 0 < created < 48, said
    assert f", {created} created" in said


def test_a_folder_in_the_store_that_cannot_be_read_is_named_and_the_rest_restored(filled: Program) -> None:
    filled("backup")
    want = contents(filled.prefix)
    (filled.store / "servers.web1.cpu").chmod(0)
    target = filled.home / "target"
    target.mkdir()

    def run(*words: str) -> tuple[int, str]:
        ran = subprocess.run(
            [*unprivileged(), *filled.words(words[0], "disk", *words[1:])], capture_output=True, text=True, timeout=60
        )
        return ran.returncode, ran.stderr

    told = f"ERROR: servers.web1.cpu: its folder in the store cannot be read: '{filled.store}/servers.web1.cpu/'"
    for command, done in (("restore", "7 created"), ("verify", "7 good")):
        status, said = run(command, "-p", str(target))
        assert (status, said.count(told)) == (3, 1), said
        assert done in said
        assert ", 1 failed" in said
        status, said = run(command, "-p", str(target), "--exclude", "servers.web1.cpu")
        assert (status, "ERROR" in said) == (0, False), said
        status, said = run(command, "-p", str(target), "-m", "servers.web1.cpu", "-m", "top")
        assert (status, said.count(told), said.count("ERROR: ")) == (3, 1, 2), said
    want.pop("servers/web1/cpu.wsp")
    assert contents(target) == want
    for command in ("backup", "purge"):
        assert run(command)[0] == 1
    (filled.store / "servers.web1.cpu").chmod(0o755)


def test_of_many_folders_in_the_store_that_cannot_be_read_some_are_named_and_the_rest_restored(
    program: Program,
) -> None:
    for number in range(25):
        program.write(f"a.m{number:02}")
    program.write("b.good")
    program("backup")
    for number in range(25):
        (program.store / f"a.m{number:02}").chmod(0)
    target = program.home / "target"
    target.mkdir()
    words = program.words("restore", "disk", "-p", str(target))
    ran = subprocess.run([*unprivileged(), *words], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 3
    assert ran.stderr.count("its folder in the store cannot be read") == 20
    assert "ERROR: 25 metrics have a folder in the store that cannot be read, 20 of them named above" in ran.stderr
    assert "1 created" in ran.stderr
    assert ", 25 failed" in ran.stderr
    for number in range(25):
        (program.store / f"a.m{number:02}").chmod(0o755)


def test_nothing_is_written_through_a_link_in_a_store(filled: Program) -> None:
    filled("backup")
    folder, elsewhere = filled.store / "top", filled.home / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    before = sorted(elsewhere.iterdir())
    said = filled("backup", "disk", status=3)
    assert f"ERROR: top: {folder} is a symbolic link, which is not followed in a store; replace it with" in said
    assert ", 1 failed" in said
    assert sorted(elsewhere.iterdir()) == before
    folder.unlink()
    elsewhere.rename(folder)
    assert "8 unchanged" in filled("backup")


def test_links_in_a_circle_cost_nobody_a_backup(filled: Program) -> None:
    (filled.prefix / "servers/loop").symlink_to("loop")
    (filled.prefix / "servers/loop.wsp").symlink_to("loop.wsp")
    said = filled("backup")
    assert "8 backed up" in said
    assert said.count("symbolic link") == 2


def test_verify_and_restore_name_what_has_no_complete_backup(filled: Program) -> None:
    filled("backup")
    (mark,) = (filled.store / "top").glob("*.sha1")
    mark.unlink()
    for command in ("verify", "restore"):
        assert "ERROR: top: has no complete backup" in filled(command, status=3)
        assert "has no backup as old" in filled(command, "disk", "-c", "0999-01-01", "-m", "a b*", status=3)


def test_an_object_from_the_end_of_time_fails_its_metric_alone(filled: Program) -> None:
    filled("backup")
    end_of_time = "9999-12-31T23:59:59+00:00"
    for name in ("top", "a b.c", "gone"):
        folder = filled.store / name
        folder.mkdir(exist_ok=True)
        for end in ("sha1", "wsp.gz"):
            whole = folder.glob(f"*.{end}") if name == "top" else ()
            (folder / f"{end_of_time}.{end}").write_bytes(b"".join(path.read_bytes() for path in whole))
    for path in ("top", "a b/c", "x/y/z/w"):
        add_point(filled.prefix / f"{path}.wsp")
    said = filled("backup", status=3)
    assert "1 stamped anew" in said  # top's: an earlier one shows that the clock was wrong
    for name in ("a b.c", "gone"):  # what is bad is not copied, what is alone proves nothing of the clock
        assert f"ERROR: {name}: the store holds an object stamped 9999" in said
    assert "2 backed up" in said


THIRD_PARTY = """
from whisperbackup.storage import disk
def open(bucket, create, arguments):
    driver = disk.open(bucket, create, [])
    def fail(*_):
        raise {error}
    driver.{method} = fail
    return driver
"""


@pytest.mark.parametrize("error", ["FileNotFoundError(2, 'token')", "BrokenPipeError(32, 'pipe')", "KeyError('Size')"])
@pytest.mark.parametrize(("method", "status"), [("create_all", 3), ("list", 1)])
def test_whatever_a_driver_raises_is_never_a_success(
    filled: Program, monkeypatch: pytest.MonkeyPatch, error: str, method: str, status: int
) -> None:
    install_driver(filled, monkeypatch, THIRD_PARTY.format(error=error, method=method))
    said = filled("backup", "shelf", status=status)
    assert "the driver shelf failed unexpectedly" in said
    assert not filled.stamp.exists()


def test_figures_count_what_was_done_not_what_was_planned(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    install_driver(program, monkeypatch, THIRD_PARTY.format(error="OSError(5, 'no')", method="delete"))
    path = program.write("a.b")
    program("backup")
    for value in (2.0, 3.0):
        add_point(path, value)
        assert ", 0 removed" in program("backup", "shelf", "-r", "1", status=3)
    assert "2 removed" in program("backup", "disk", "-r", "1")  # made up for, though nothing has changed
    assert len(program.stamps("a.b")) == 1


def test_a_drivers_close_comes_after_its_last_use(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = """
from whisperbackup.storage import disk
class Strict(disk.Disk):
    closed = False
    def create_all(self, objects):
        assert not self.closed
        return super().create_all(objects)
    def close(self):
        self.closed = True
def open(bucket, create, arguments):
    disk.open(bucket, create, [])
    import os
    return Strict(os.fsencode(bucket))
"""
    install_driver(program, monkeypatch, strict)
    program.write("a.b")
    program("backup", "shelf")


def test_a_third_partys_driver_is_found_by_its_entry_point(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    install_driver(program, monkeypatch, "from whisperbackup.storage.disk import open\n")
    program.write("a.b")
    assert "1 backed up" in program("backup", "shelf")
    assert "1 metrics" in program("list", "disk")


def test_a_stamp_or_log_that_is_a_planted_link_is_not_followed(program: Program) -> None:
    program.write("a.b")
    victim = program.home / "victim"
    victim.write_text("precious")
    os.utime(victim, (1, 1))
    program.stamp.symlink_to(victim)
    assert "--stampfile" in program("backup", status=1)
    program.stamp.unlink()
    program.lock.unlink()
    program.lock.symlink_to(victim)
    program("backup", status=1)
    program.lock.unlink()
    program.log.unlink()
    program.log.symlink_to(victim)
    program("backup", status=1)
    assert victim.read_text() == "precious"
    assert victim.stat().st_mtime == 1


def test_a_sparse_listing_of_other_peoples_files_is_left_alone(filled: Program) -> None:
    filled("backup")
    strange = [filled.store / "README", filled.store / "top/notes.txt", filled.store / "other/deep/er"]
    for path in strange:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("mine")
    said = filled("backup", "disk", "-x", "0")
    assert "skipped 3 unrecognized objects under this path" in said
    assert all(path.read_text() == "mine" for path in strange)


def test_the_listing_of_disk_has_no_temporary_files(filled: Program) -> None:
    filled("backup")
    assert [path.name for path in Path(filled.store).rglob(".*") if path.name != ".runs"] == [MARKER]

"""purge: grace, refusals, debris; nothing that should stay is ever deleted."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import types
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import MARKER, Program, add_point, contents, install_driver, unprivileged

from whisperbackup.report.counters import Count
from whisperbackup.repository.catalog import Backup, Metric, Payload
from whisperbackup.repository.purge import Plan, PutTombstone, plan
from whisperbackup.repository.stamps import stamp_of
from whisperbackup.storage import disk

NOW = datetime(2026, 11, 23, 3, tzinfo=UTC)


def days_ago(days: float) -> str:
    return stamp_of(NOW - timedelta(days=days))


def metric(backup: str, *tombstones: str, name: str = "a.b") -> Metric:
    backups = (Backup(backup, (Payload("gz", 9),), None),)
    return Metric(name, backups, tombstones, (), max(backup, *tombstones, ""))


@pytest.mark.parametrize(
    ("what", "days", "expected"),
    [
        (metric(days_ago(400)), 45, Plan(stamp_of(NOW), False)),  # idle for long, gone today: full grace
        (metric(days_ago(400), days_ago(44)), 45, Plan(None, False)),
        (metric(days_ago(400), days_ago(46)), 45, Plan(None, True)),
        (metric(days_ago(10), days_ago(46)), 45, Plan(stamp_of(NOW), False)),  # backed up since: void
        (metric(days_ago(400), days_ago(90), days_ago(3)), 45, Plan(None, False)),  # the newest counts
        (metric(days_ago(400), days_ago(-9)), 45, Plan(None, False)),  # set by a clock ahead
        (metric(days_ago(1)), 0, Plan(stamp_of(NOW), True)),  # the tombstone is for a deletion that looks wrong
        (metric(days_ago(400), days_ago(1)), 0, Plan(None, True)),
        (metric(days_ago(400), days_ago(300)), -1, Plan(None, False)),
        (metric(days_ago(400)), -1, Plan(None, False)),
        (metric(days_ago(400), name="a%zz"), 45, Plan(None, False)),  # not canonical: never
        (metric(days_ago(400), name="a%zz"), 0, Plan(None, False)),
        (metric(days_ago(-5)), 45, Plan(stamp_of(NOW + timedelta(days=5, seconds=1)), False)),
    ],
)
def test_plan(what: Metric, days: int, expected: Plan) -> None:
    assert plan(what, days, NOW) == expected


# -- end to end --------------------------------------------------------------------------------------


@pytest.fixture
def backed_up(program: Program) -> Program:
    for number, name in enumerate(("servers.web1.cpu", "servers.web2.cpu", "top")):
        program.write(name, number)
    program("backup")
    return program


def remove(program: Program, name: str) -> None:
    (program.prefix / (name.replace(".", "/") + ".wsp")).unlink()


def age(program: Program, days: float, pattern: str = "*") -> None:
    """Make what is in the store older, as time would have."""
    for path in [path for path in sorted(program.store.rglob(pattern)) if path.is_file() and path.name != MARKER]:
        stamp = re.search(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", path.name)
        assert stamp
        older = stamp_of(datetime.fromisoformat(stamp.group()) - timedelta(days=days))
        path.rename(path.with_name(path.name.replace(stamp.group(), older)))


def tombstones(program: Program) -> set[str]:
    return {path.parent.name for path in program.store.rglob("*.missing")}


def test_a_metric_that_idled_for_long_keeps_its_full_grace(backed_up: Program) -> None:
    age(backed_up, 400)
    remove(backed_up, "top")
    said = backed_up("backup")
    assert "1 missing, 1 marked missing" in said
    assert tombstones(backed_up) == {"top"}
    assert len(backed_up.stamps("top")) == 1
    age(backed_up, 44, "*.missing")
    assert "purged" not in backed_up("purge").replace("0 purged", "")
    age(backed_up, 2, "*.missing")
    assert "top: purged" in backed_up("purge")
    assert not (backed_up.store / "top").exists()
    assert len(backed_up.objects()) == 4


def test_a_metric_that_comes_back_loses_its_tombstone_whatever_x_says(backed_up: Program) -> None:
    kept = (backed_up.prefix / "top.wsp").read_bytes()
    remove(backed_up, "top")
    backed_up("backup")
    (backed_up.prefix / "top.wsp").write_bytes(kept)
    assert "1 came back" in backed_up("purge", "disk", "-x", "-1")
    assert not tombstones(backed_up)
    assert len(backed_up.stamps("top")) == 1


def test_zero_days_delete_at_once_and_minus_one_never(backed_up: Program) -> None:
    remove(backed_up, "top")
    before = backed_up.objects()
    backed_up("purge", "disk", "-x", "-1")
    assert backed_up.objects() == before
    assert "1 purged" in backed_up("purge", "disk", "-x", "0")
    assert not (backed_up.store / "top").exists()


def test_globs_limit_purge_as_they_limit_backup(backed_up: Program) -> None:
    remove(backed_up, "top")
    remove(backed_up, "servers.web1.cpu")
    backed_up("purge", "disk", "-x", "0", "-m", "servers.*", "--exclude", "*.web1.*")
    assert len(backed_up.objects()) == 6
    backed_up("purge", "disk", "-x", "0", "-m", "servers.web1.*")
    assert not (backed_up.store / "servers.web1.cpu").exists()
    assert (backed_up.store / "top").exists()


def test_what_is_behind_a_link_or_no_regular_file_is_left_alone(backed_up: Program) -> None:
    shutil.move(backed_up.prefix / "servers", backed_up.home / "servers")
    (backed_up.prefix / "servers").symlink_to(backed_up.home / "servers")
    before = backed_up.objects()
    said = backed_up("backup", "disk", "-x", "0")
    assert said.count("symbolic link") == 1
    assert backed_up.objects() == before
    remove(backed_up, "top")
    os.mkfifo(backed_up.prefix / "top.wsp")
    backed_up.write("other")
    assert "not a regular file" in backed_up("backup", "disk", "-x", "0")
    assert before.items() <= backed_up.objects().items()


@pytest.mark.parametrize("situation", ["missing", "a file", "empty"])
@pytest.mark.parametrize("command", ["backup", "purge"])
@pytest.mark.slow
def test_a_tree_that_cannot_be_seen_purges_nothing(backed_up: Program, situation: str, command: str) -> None:
    shutil.rmtree(backed_up.prefix)
    if situation == "a file":
        backed_up.prefix.touch()
    elif situation == "empty":
        (backed_up.prefix / "servers/empty").mkdir(parents=True)
    before = backed_up.objects()
    backed_up.stamp.unlink()
    assert "ERROR" in backed_up(command, "disk", "-x", "0", status=1)
    assert backed_up.objects() == before
    assert not backed_up.stamp.exists()


@pytest.mark.parametrize("command", ["backup", "purge"])
def test_an_unreadable_folder_purges_nothing_anywhere(backed_up: Program, command: str) -> None:
    remove(backed_up, "top")
    backed_up.write("other")
    backed_up("backup", "disk", "-x", "-1")
    before = backed_up.objects()
    for mode in (0o000, 0o600):
        (backed_up.prefix / "servers").chmod(mode)
        words = [*unprivileged(), *backed_up.words(command, "disk", "-x", "0")]
        ran = subprocess.run(words, capture_output=True, text=True)
        assert ran.returncode == 3, ran.stderr
        assert "nothing was purged" in ran.stderr
        assert backed_up.objects() == before
    (backed_up.prefix / "servers").chmod(0o755)


LISTINGS = {
    "out of order": "lambda prefix: reversed(list(type(driver).list(driver, prefix)))",
    "failing": "lambda prefix: (one if n < 3 else 1 / 0 for n, one in enumerate(type(driver).list(driver, prefix)))",
    "denied": "lambda prefix: 1 / 0",
}


@pytest.mark.parametrize("listing", list(LISTINGS))
@pytest.mark.parametrize("command", ["backup", "purge"])
@pytest.mark.slow
def test_a_listing_that_cannot_be_trusted_purges_nothing(
    backed_up: Program, monkeypatch: pytest.MonkeyPatch, listing: str, command: str
) -> None:
    source = "from whisperbackup.storage import disk\n\ndef open(bucket, create, arguments):\n"
    source += f"    driver = disk.open(bucket, create, [])\n    driver.list = {LISTINGS[listing]}\n    return driver\n"
    install_driver(backed_up, monkeypatch, source)
    remove(backed_up, "top")
    remove(backed_up, "servers.web1.cpu")
    before = backed_up.objects()
    backed_up.stamp.unlink()
    assert "ERROR" in backed_up(command, "shelf", "-x", "0", status=1)
    assert before.items() <= backed_up.objects().items()
    assert not backed_up.stamp.exists()


@pytest.fixture
def many(program: Program) -> Program:
    first = program.write("m.m0")
    for number in range(1, 240):
        shutil.copy(first, first.with_name(f"m{number}.wsp"))
    program("backup")
    return program


def test_half_of_everything_is_taken_for_a_mistake(many: Program) -> None:
    for number in range(120):
        remove(many, f"m.m{number}")
    before = many.objects()
    said = many("purge", "disk", "-x", "0", status=3)
    assert "120 of 240 metrics in the store" in said
    assert "--purge-anyway" in said
    assert before.items() < many.objects().items()
    assert len(tombstones(many)) == 120
    for number in range(240):
        many.write(f"other.m{number}")
    many("backup", "disk", "-x", "0", status=3)  # what disappeared together is remembered
    assert before.items() < many.objects().items()
    shutil.rmtree(many.prefix / "other")
    assert "240 purged" in many("purge", "disk", "-m", "other.*", "-x", "0", "--purge-anyway")
    assert "120 purged" in many("purge", "disk", "-x", "0", "--purge-anyway")
    assert len(many.objects()) == 2 * 120


def test_what_disappears_together_is_remembered_also_while_others_come_back(many: Program) -> None:
    away = many.home / "away"
    away.mkdir()
    for number in range(218):
        (many.prefix / f"m/m{number}.wsp").rename(away / f"m{number}.wsp")
    many("backup")
    for number in range(218):
        (away / f"m{number}.wsp").rename(many.prefix / f"m/m{number}.wsp")
    for number in range(218, 230):  # of the 22 that had stayed
        remove(many, f"m.m{number}")
    before = many.objects().keys()
    assert "12 of 240 metrics" in many("backup", "disk", "-x", "0", status=3)
    assert {key for key in before if not key.endswith("missing")} <= many.objects().keys()


@pytest.mark.parametrize("command", ["backup", "purge"])
def test_what_a_link_hides_is_not_marked_as_missing_any_more(backed_up: Program, command: str) -> None:
    """A nightly run came while a folder was moved, and a link replaced by it."""
    folder, elsewhere = backed_up.prefix / "servers/web1", backed_up.home / "web1"
    folder.rename(elsewhere)
    backed_up("backup")
    assert tombstones(backed_up) == {"servers.web1.cpu"}
    folder.symlink_to(elsewhere)
    age(backed_up, 50)
    said = backed_up(command, "disk", "--no-delete", status=3) if command == "backup" else ""
    if said:
        assert "ERROR: purge: 1 metrics were marked as missing before a link took the place of their files" in said
        assert tombstones(backed_up) == {"servers.web1.cpu"}
    assert "1 came back" in backed_up(command, "disk")
    assert not tombstones(backed_up)
    folder.unlink()
    assert "0 purged" in backed_up("purge")
    assert "servers.web1.cpu" in {key.split("/")[0] for key in backed_up.objects()}


def test_less_than_half_of_the_store_is_purged(many: Program) -> None:
    for number in range(119):
        remove(many, f"m.m{number}")
    assert "119 purged" in many("purge", "disk", "-x", "0")


@pytest.mark.slow
def test_tombstones_are_no_mistake_but_the_day_they_fall_due_is(many: Program) -> None:
    age(many, 100)
    for number in range(130):
        remove(many, f"m.m{number}")
    said = many("backup", "disk", "-q")
    assert said.startswith("WARNING: 130 of 240 metrics in the store are not in the tree")
    assert len(tombstones(many)) == 130
    age(many, 50, "*.missing")
    assert "--purge-anyway" in many("backup", status=3)
    assert len(many.objects()) == 2 * 240 + 130


def other_tree(program: Program, count: int, name: str = "other") -> None:
    """Put a tree of `count` metrics that the store does not know in the place of the one that was backed up."""
    shutil.move(program.prefix, program.home / "aside")
    first = program.write(f"{name}.n0")
    for number in range(1, count):
        shutil.copy(first, first.with_name(f"n{number}.wsp"))


@pytest.mark.parametrize("command", ["backup", "purge"])
def test_metrics_of_another_tree_are_no_evidence(many: Program, command: str) -> None:
    other_tree(many, 240)
    before = many.objects()
    said = many(command, "disk", "-x", "0", status=3)
    assert "none of 240 metrics in the store is in the tree" in said
    assert before.items() <= many.objects().items()


def test_a_renamed_top_folder_is_warned_of_every_night_and_not_purged(many: Program) -> None:
    age(many, 100)
    (many.prefix / "m").rename(many.prefix / "renamed")
    assert "WARNING: 240 of 240 metrics in the store are not in the tree" in many("backup")
    assert "WARNING: 240 of 480 metrics in the store are not in the tree" in many("backup")
    age(many, 50, "*.missing")
    before = many.objects()
    assert "240 of 480 metrics in the store" in many("backup", status=3)
    assert before.items() <= many.objects().items()


# -- tombstones remember what disappeared together ---------------------------------------------------


def fill(program: Program, folder: str, count: int) -> None:
    """Put `count` metrics into a folder of the tree."""
    first = program.write(f"{folder}.m0")
    for number in range(1, count):
        shutil.copy(first, first.with_name(f"m{number}.wsp"))


def bodies(program: Program) -> list[bytes]:
    """What the tombstones in the store have in them: each content once."""
    return sorted({path.read_bytes() for path in program.store.rglob("*.missing")})


def warnings(said: str) -> list[str]:
    return [line.replace("noop: ", "") for line in said.splitlines() if "WARNING" in line or "ERROR" in line]


@pytest.fixture
def thirty(program: Program) -> Program:
    fill(program, "dc1", 30)
    program("backup")
    age(program, 100)
    return program


@pytest.mark.parametrize("is_renamed", [False, True])
def test_a_wrong_tree_is_still_one_when_its_own_metrics_outnumber_those_that_were_there(
    thirty: Program, is_renamed: bool
) -> None:
    (thirty.prefix / "dc1").rename(thirty.prefix / "dc2" if is_renamed else thirty.home / "aside")
    if is_renamed:
        thirty.write("dc2.new")
    else:
        fill(thirty, "other", 40)
    stored = 61 if is_renamed else 70
    would = thirty("backup", "disk", "-n")
    said = thirty("backup")
    assert "WARNING: 30 of 30 metrics in the store are not in the tree any more, 30 of which disappeared to" in said
    assert warnings(would) == warnings(said)
    assert bodies(thirty) == [b"missing together with 30 of 30 metrics\n"]
    for command in ("backup", "purge", "backup"):
        (warning,) = warnings(thirty(command, "disk", "-q"))
        assert f"30 of {stored} metrics in the store are not in the tree any more, 30 of which disapp" in warning
        assert "; if that is a mistake (a missing disk, a renamed folder, a wrong -p), fix it before they" in warning
        assert warning.endswith("; if it is not, --purge-anyway deletes them then")
    age(thirty, 46, "*.missing")
    before = thirty.objects()
    for words in ("backup disk -n", "backup disk", "purge disk -n", "purge disk", "purge disk -x 0"):
        error, *_ = warnings(thirty(*words.split(), "-q", status=3))
        assert "30 metrics that are due for deletion disappeared together, which looks like a mistake" in error
        assert "--purge-anyway" in error
    assert thirty.objects() == before
    assert warnings(thirty("backup", "disk", "-q", "--no-delete")), "what is left to prune is warned of"
    said = thirty("backup", "disk", "--purge-anyway")
    assert "30 purged" in said
    assert "disappeared together" not in said
    assert not warnings(thirty("backup"))


@pytest.mark.parametrize(("gone", "stored", "remembers"), [(9, 9, False), (10, 21, False), (10, 20, True)])
def test_ten_that_are_half_of_what_was_there_are_remembered(
    program: Program, gone: int, stored: int, remembers: bool
) -> None:
    fill(program, "dc1", stored)
    program("backup")
    age(program, 100)
    program.write("new")
    for number in range(gone):
        remove(program, f"dc1.m{number}")
    program("backup")
    remark = b"missing together with %d of %d metrics\n" % (gone, stored)
    assert bodies(program) == [remark if remembers else b""]


def test_metrics_that_were_missing_before_are_no_part_of_what_was_there(thirty: Program) -> None:
    for number in range(11):
        remove(thirty, f"dc1.m{number}")
    assert not warnings(thirty("backup"))
    assert bodies(thirty) == [b""]
    for number in range(11, 21):
        remove(thirty, f"dc1.m{number}")
    assert "21 of 30 metrics in the store are not in the tree any more, 10 of which disapp" in thirty("backup")
    assert bodies(thirty) == [b"", b"missing together with 10 of 19 metrics\n"]
    fill(thirty, "dc2", 40)
    thirty("backup")
    age(thirty, 46, "*.missing")
    assert "10 metrics that are due for deletion disappeared together" in thirty("purge", status=3)


def test_metrics_that_came_back_that_night_are_no_part_of_what_was_there(thirty: Program) -> None:
    """Two trees in turn, until the store has the metrics of both."""
    (thirty.prefix / "dc1").rename(thirty.home / "dc1")
    fill(thirty, "dc2", 40)
    for away, back in (("dc2", "dc1"), ("dc1", "dc2")):
        thirty("backup")
        (thirty.prefix / away).rename(thirty.home / away)
        (thirty.home / back).rename(thirty.prefix / back)
    assert "30 of 70 metrics in the store are not in the tree any more, 30 of which disapp" in thirty("backup")
    assert bodies(thirty) == [b"missing together with 30 of 30 metrics\n"]


def test_those_that_come_back_are_forgotten_and_a_few_are_purged_as_usual(thirty: Program) -> None:
    (thirty.prefix / "dc1").rename(thirty.home / "dc1")
    fill(thirty, "dc2", 40)
    thirty("backup")
    (thirty.prefix / "dc1").mkdir()
    for number in range(18):
        (thirty.home / f"dc1/m{number}.wsp").rename(thirty.prefix / f"dc1/m{number}.wsp")
    said = thirty("backup")
    assert "18 came back" in said
    assert "12 of 70 metrics in the store are not in the tree any more, 12 of which disapp" in said
    age(thirty, 46, "*.missing")
    thirty("purge", status=3)
    assert "3 purged" in thirty("purge", "disk", "-m", "dc1.m1*", "-m", "dc1.m20")
    said = thirty("purge")
    assert "9 purged" in said
    assert not warnings(said)


@pytest.mark.parametrize("command", ["purge", "prune"])
def test_the_tombstones_that_a_killed_purge_left_of_them_are_swept(thirty: Program, command: str) -> None:
    (thirty.prefix / "dc1").rename(thirty.home / "dc1")
    thirty.write("new")
    thirty("backup")
    age(thirty, 46, "*.missing")
    for path in thirty.store.glob("dc1.*/*[!g]"):
        path.unlink()
    said = thirty(command)
    assert "30 purged" in said
    assert not warnings(said)


def test_empty_tombstones_are_ordinary(thirty: Program) -> None:
    """Earlier versions wrote no others."""
    (thirty.prefix / "dc1").rename(thirty.home / "dc1")
    fill(thirty, "dc2", 40)
    thirty("backup")
    for path in thirty.store.rglob("*.missing"):
        path.write_bytes(b"")
    assert not warnings(thirty("backup"))
    age(thirty, 46, "*.missing")
    assert "30 purged" in thirty("backup")


def test_what_another_run_marked_in_the_same_second_is_marked(backed_up: Program) -> None:
    context = types.SimpleNamespace(driver=disk.open(str(backed_up.store), False, []), noop=False)
    key = f"top/{days_ago(0)}.missing"
    for body in (b"", b"missing together with 30 of 30 metrics\n"):
        assert PutTombstone("top", key, body).run(context).counts == {Count.MARKED_MISSING: 1}
    assert bodies(backed_up) == [b""]


def test_halves_of_backups_are_not_counted_as_metrics(many: Program) -> None:
    """A killed first run leaves many; they neither dilute a mistake nor look like one."""
    for path in sorted(many.store.rglob("*.sha1"))[:200]:
        path.unlink()
    age(many, 2)
    assert "200 debris removed" in many("purge", "disk")
    assert len(many.objects()) == 80
    for number in range(300):
        half = many.store / f"half{number}/2026-01-01T00:00:00+00:00.wsp.gz"
        half.parent.mkdir()
        half.write_bytes(b"half")
        if number % 2:
            (many.prefix / f"half{number}.wsp").write_bytes(b"not read by a purge")
    for name in sorted(path.name for path in many.store.iterdir() if path.name.startswith("m."))[:30]:
        remove(many, name)
    assert "30 of 40 metrics in the store" in many("purge", "disk", "-x", "0", status=3)


def test_a_small_store_is_protected_and_a_tiny_one_is_not(program: Program) -> None:
    paths = [program.write(f"m.m{number}") for number in range(19)]
    program("backup")
    for path in paths[:10]:
        path.unlink()
    assert "10 of 19 metrics in the store" in program("purge", "disk", "-x", "0", status=3)
    shutil.copy(paths[18], paths[0])
    assert "9 purged" in program("purge", "disk", "-x", "0"), "fewer than ten can be made again by hand"


def test_a_tree_that_has_nothing_of_the_store_purges_not_even_a_few(program: Program) -> None:
    for number in range(12):
        program.write(f"m.m{number}")
    program("backup")
    age(program, 100)
    for number in range(3):
        remove(program, f"m.m{number}")
    program("backup")
    age(program, 50, "*.missing")
    other_tree(program, 1)
    before = program.objects()
    said = program("purge", status=3)
    assert "none of 12 metrics in the store is in the tree" in said
    assert f"{program.prefix}" in said
    assert before.items() <= program.objects().items()


@pytest.mark.slow
def test_debris_is_swept_when_it_is_a_day_old(backed_up: Program) -> None:
    add_point(backed_up.prefix / "top.wsp")
    backed_up("backup")
    older, newer = backed_up.stamps("top")
    folder = backed_up.store / "top"
    (folder / f"{older}.sha1").unlink()
    (folder / f"{newer}.wsp.gz").unlink()
    temporary = folder / f".whisper-backup-{older}-0123456789abcdef"
    temporary.write_bytes(b"half")
    shown = backed_up("list", "disk", "--debris")
    assert "3 pieces of debris" in shown
    before = backed_up.objects()
    backed_up("purge")
    assert backed_up.objects() == before
    age(backed_up, 1.1)
    would = backed_up("purge", "disk", "-n")
    said = backed_up("purge")
    assert "3 debris removed" in said
    assert "3 debris removed" in would
    assert not folder.exists()


def test_young_debris_of_a_metric_that_is_due_is_left_to_the_run_that_may_be_at_it(backed_up: Program) -> None:
    remove(backed_up, "top")
    young = backed_up.store / f"top/{stamp_of(datetime.now(UTC) + timedelta(seconds=5))}.wsp.gz"
    young.write_bytes(b"half")
    assert "1 purged" in backed_up("purge", "disk", "-x", "0")
    assert list((backed_up.store / "top").iterdir()) == [young]


def test_a_half_whose_other_half_is_there_after_all_is_kept(backed_up: Program) -> None:
    """A listing that lags behind: the driver lists no mark, but has it."""
    from whisperbackup.repository.catalog import Orphan
    from whisperbackup.repository.purge import RemoveOrphan

    context = types.SimpleNamespace(driver=disk.open(str(backed_up.store), False, []), noop=False)
    (stamp,) = backed_up.stamps("top")
    for suffix in (f"{stamp}.wsp.gz", f"{stamp}.sha1"):
        assert RemoveOrphan("top", "top/", Orphan(stamp, (suffix,), 1)).run(context).deletes == ()
        assert RemoveOrphan("top", "top/", Orphan("2026-01-01T00:00:00+00:00", (suffix,), 1)).run(context).deletes


@pytest.mark.slow
def test_noop_says_the_same_and_does_nothing(many: Program) -> None:
    age(many, 100)
    for number in range(30):
        remove(many, f"m.m{number}")
    many("backup")
    age(many, 50, "*.missing")
    for number in range(30, 50):
        remove(many, f"m.m{number}")
    add_point(many.prefix / "m/m60.wsp")
    before = many.objects()

    def last_line(said: str) -> str:
        return re.sub(r", [\d.]+ s$", "", said.splitlines()[-1])

    would = many("backup", "disk", "-n")
    assert many.objects() == before
    did = many("backup")
    last = last_line(did)
    assert last_line(would) == f"noop: {last}"
    assert "190 examined, 189 unchanged, 1 backed up" in last
    assert "30 purged" in last
    assert "20 marked missing" in last
    for number in range(30):
        assert f"noop: m.m{number}: would be deleted, " in would
        assert f"m.m{number}: purged, " in did
    for number in range(30, 50):
        assert f"noop: m.m{number}: not in the tree, would be marked as missing" in would
        assert f"m.m{number}: not in the tree, marked as missing" in did
    assert "noop: m.m60: would be backed up" in would
    assert "m.m60" not in did, "one line a metric is too many every night"
    assert not re.search(r": (purged|removed|stored|marked)", would)


def test_noop_names_what_retention_and_the_sweep_would_delete_and_what_came_back(program: Program) -> None:
    path = program.write("a.b")
    for number in range(2):
        add_point(path, number)
        program("backup", "disk")
    oldest, newest = program.stamps("a.b")
    folder = program.store / "a.b"
    (folder / "2026-01-01T00:00:00+00:00.wsp.gz").write_bytes(b"half")
    (folder / f"{stamp_of(datetime.fromisoformat(newest) + timedelta(seconds=1))}.missing").touch()
    before = program.objects()
    said = program("backup", "disk", "-r", "1", "-n")
    assert f"noop: a.b: would delete the backups of {oldest}: retention does not keep them" in said
    assert "noop: a.b: would remove what an interrupted run left of 2026-01-01" in said
    assert "noop: a.b: is in the tree again, would no longer be marked as missing" in said
    assert "noop: a.b: is in the tree again, would no longer be marked as missing" in program("purge", "disk", "-n")
    assert program.objects() == before
    said = program("backup", "disk", "-r", "1")
    assert "a.b: is in the tree again, no longer marked as missing" in said
    assert program.stamps("a.b") == [newest]
    assert len(program.objects()) == 2


@pytest.mark.slow
def test_files_made_anew_and_empty_do_not_rotate_the_history_out(program: Program) -> None:
    import whisper

    path = program.prefix / "a.wsp"
    whisper.create(str(path), [(60, 10000)])
    content = path.read_bytes()
    path.write_bytes(content[:28] + os.urandom(len(content) - 28))
    for number in range(3):
        add_point(path, number)
        program("backup", "disk", "-r", "2")
    full = contents(program.prefix)
    stamp = program.stamps("a")[-1]
    path.unlink()
    whisper.create(str(path), [(60, 10000)])
    said = ""
    for number in range(5):
        add_point(path, number)
        said = program("backup", "disk", "-r", "2")
    assert stamp in program.stamps("a")
    assert len(program.stamps("a")) == 4  # the first one of the new file, too
    assert "1 kept, all newer being much smaller" in said
    target = program.home / "target"
    target.mkdir()
    program("restore", "disk", "-p", target, "-c", stamp)
    assert contents(target) == full


@pytest.mark.slow
def test_a_bucket_of_the_older_tool_is_unharmed(program: Program) -> None:
    """Its layout is payload and mark, in gz and sz, and `%` as it stood in a name."""
    paths = [program.write("a.b"), program.write("50%.x")]
    for _ in range(3):
        for path in paths:
            add_point(path)
        program("backup", "disk", "-x", "-1")
    (program.store / "50%25.x").rename(program.store / "50%.x")
    before = program.objects()
    program("backup")
    assert before.items() <= program.objects().items()
    remove(program, "50%.x")
    program("purge", "disk", "-x", "0")
    assert {key for key in before if key.startswith("50%.")} <= set(program.objects())
    target = program.home / "target"
    target.mkdir()
    program("restore", "disk", "-p", target, "-m", "50%.x")
    assert (target / "50%/x.wsp").exists()


def test_the_older_layout_reads_past_what_this_tool_adds(backed_up: Program) -> None:
    """A reader that knows payloads and marks only, as the older one: every other key must not look like these."""
    remove(backed_up, "top")
    backed_up("backup")
    known = re.compile(r"[^/]+/[^/]+\.(wsp\.(gz|sz)|sha1)")
    added = [key for key in backed_up.objects() if not known.fullmatch(key)]
    assert [Path(key).suffix for key in added] == [".missing"]

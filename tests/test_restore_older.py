"""Restoring the history that only an older backup holds: a disk was replaced, and a backup ran before the restore."""

from __future__ import annotations

import math
import os
import random
import re
import struct
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import whisper
from conftest import Program, add_point, contents, install_driver
from test_faults import mounted
from test_opaque import compressed
from test_restore import points

from whisperbackup import main
from whisperbackup.commands import backup
from whisperbackup.repository.stamps import stamp_at
from whisperbackup.runtime import clock
from whisperbackup.tree.restore_file import CannotPlace, Placer
from whisperbackup.whisper.span import is_all_after

pytestmark = pytest.mark.slow

SCHEMA = [(60, 10_000), (3600, 500)]
METRIC = "servers.web1.cpu"


def make_anew(program: Program, metric: str = METRIC, newest: int = 1, schema: list[tuple[int, int]] = SCHEMA) -> Path:
    """The file as carbon makes it on a new disk, with `newest` points."""
    path = program.prefix / (metric.replace(".", "/") + ".wsp")
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    whisper.create(str(path), schema, xFilesFactor=0.0)
    now = int(time.time())
    whisper.update_many(str(path), [(now - 60 * age, 7.0) for age in range(newest)])
    return path


def make_full(program: Program, metric: str = METRIC, seed: int = 1) -> dict[int, float]:
    """A file full of random points; returns those of its finest archive that last for hours."""
    path = make_anew(program, metric, newest=0)
    chance = random.Random(seed)
    now = int(time.time())
    whisper.update_many(str(path), [(now - 60 * age, chance.random()) for age in range(10, 9_900)])
    return {when: value for when, value in points(path).items() if now - 60 * 9_800 < when <= now - 600}


@pytest.fixture
def replaced(program: Program) -> tuple[Program, Path, dict[int, float]]:
    """A full backup, a new disk, a file that carbon made there, and one nightly run."""
    held = make_full(program)
    program("backup")
    path = make_anew(program)
    program("backup")
    sizes = [each.stat().st_size for each in sorted((program.store / METRIC).glob("*.wsp.*"))]
    assert sizes[0] > 60_000
    assert sizes[1] < 1_000
    return program, path, held


def test_restore_brings_back_what_an_older_backup_holds(replaced: tuple[Program, Path, dict[int, float]]) -> None:
    program, path, held = replaced
    newest = points(path)
    said = program("restore")
    assert held.items() <= points(path).items()
    assert newest.items() <= points(path).items()
    assert len(points(path, 1)) > 150
    assert re.search(r"1 healed, \d+ points filled, .*, 1 needed an older backup, 0 failed", said)
    before = path.read_bytes()
    again = program("restore")
    assert "1 already whole" in again
    assert "needed" not in again
    assert path.read_bytes() == before


def test_a_missing_file_is_made_of_the_newest_backup_and_an_older_one(
    replaced: tuple[Program, Path, dict[int, float]],
) -> None:
    program, path, held = replaced
    newest = points(path)
    path.unlink()
    assert re.search(r"1 created, 0 healed, 0 points .*, 1 needed an older backup", program("restore"))
    assert (held | newest).items() <= points(path).items()


@pytest.mark.parametrize("is_there", [True, False])
def test_a_dry_run_counts_the_older_backups_too(
    replaced: tuple[Program, Path, dict[int, float]], is_there: bool
) -> None:
    program, path, _ = replaced
    if not is_there:
        path.unlink()
    before = contents(program.prefix)
    figures = re.compile(r"1 examined.*(?=, [0-9.]+ s)")
    would = figures.findall(
        re.sub(r"would be |would ", "", program("restore", "disk", "-n")).replace(" need ", " needed ")
    )
    assert contents(program.prefix) == before
    assert figures.findall(program("restore")) == would


def test_a_dry_run_counts_no_point_twice(program: Program) -> None:
    make_full(program)
    program("backup")
    path = make_anew(program, newest=5)
    program("backup")
    make_anew(program, newest=1)
    figures = re.compile(r"1 examined.*points")
    would = figures.findall(re.sub(r"would be |would ", "", program("restore", "disk", "-n")))
    assert figures.findall(program("restore")) == would
    assert len(points(path)) > 9_000


def test_every_larger_generation_fills_what_the_newer_ones_lack(program: Program) -> None:
    """Two disks replaced: each generation has points of its own, and several small ones lie between them."""
    oldest = make_full(program)
    program("backup")
    path = make_anew(program)
    now = int(time.time())
    chance = random.Random(2)
    middle = {now // 60 * 60 - 60 * age: chance.random() for age in range(5, 2_000)}
    whisper.update_many(str(path), list(middle.items()))
    program("backup")
    for night in range(1, 6):
        make_anew(program, newest=night)
        program("backup", "disk", "-r", "3")
    assert len(program.stamps(METRIC)) == 6  # three of -r, two that retention's guard kept, and what followed the last
    program("restore")
    after = points(path)
    assert {when: value for when, value in middle.items() if when < now - 600}.items() <= after.items()
    assert {when: value for when, value in oldest.items() if when < now - 60 * 2_001}.items() <= after.items()


def test_a_codec_that_changed_meanwhile_hides_no_history(program: Program) -> None:
    held = make_full(program)
    program("backup", "disk", "-a", "gz")
    path = make_anew(program)
    program("backup", "disk", "-a", "zst")
    assert "1 needed an older backup" in program("restore")
    assert held.items() <= points(path).items()


def test_overwrite_restores_the_newest_as_it_is(replaced: tuple[Program, Path, dict[int, float]]) -> None:
    program, path, _ = replaced
    newest = path.read_bytes()
    make_full(program, seed=3)
    assert "needed" not in program("restore", "disk", "--overwrite")
    assert path.read_bytes() == newest


def test_a_compressed_backup_between_two_others_hides_no_older_one(program: Program) -> None:
    path, now = program.prefix / "m.wsp", int(time.time()) // 60 * 60
    chance = random.Random(1)
    points_of_all = [(now - 60 * age, chance.random()) for age in range(1, 9000)]
    for number in range(3):
        if number == 1:
            path.write_bytes(compressed())
        else:
            whisper.create(str(path), [(60, 10_000)])
            whisper.update_many(str(path), points_of_all if number == 0 else points_of_all[:3])
        program("backup")
        path.unlink()
        time.sleep(1.1)
    newest, _, oldest = reversed(program.stamps("m"))
    assert f"m: would be created, from {newest}, {oldest}\n" in program("restore", "disk", "-n", status=3)
    said = program("restore", status=3)
    assert said.count("a compressed whisper file cannot be filled from it") == 1
    assert len(points(path)) == len(points_of_all)


def test_only_backups_at_or_before_the_date_are_used(replaced: tuple[Program, Path, dict[int, float]]) -> None:
    program, path, held = replaced
    between = program.stamps(METRIC)[0]
    path.unlink()
    said = program("restore", "disk", "-c", between)
    assert "1 created" in said
    assert "needed" not in said
    assert held.items() <= points(path).items()
    assert max(points(path)) < time.time() - 540  # no point of the newest backup


def test_a_file_of_another_layout_is_filled_with_what_fits(program: Program) -> None:
    """Points of the older backup fill gaps in what the new layout has; the others are a failure."""
    held = make_full(program)
    program("backup")
    path = make_anew(program, schema=[(60, 2_000), (3600, 500)])
    program("backup")
    program("restore", status=3)
    after = points(path)
    recent = {when: value for when, value in held.items() if when > time.time() - 60 * 1_900}
    assert len(recent) > 1_800
    assert recent.items() <= after.items()
    assert path.stat().st_size == 16 + 2 * 12 + 12 * 2_500


def test_an_older_backup_that_is_damaged_is_named_and_the_next_one_used(program: Program) -> None:
    held = make_full(program)
    program("backup")
    whisper.update(str(program.prefix / "servers/web1/cpu.wsp"), 1.5, int(time.time()) - 120)
    program("backup")
    path = make_anew(program)
    program("backup")
    first, second, _ = program.stamps(METRIC)
    payload = program.store / METRIC / f"{second}.wsp.gz"
    payload.write_bytes(payload.read_bytes()[:-100])
    said = program("restore", status=3)
    assert f"the backup of {second} is bad" in said
    assert f"healed from the older backup of {first} instead" in said
    assert held.items() <= points(path).items()
    (program.store / METRIC / f"{first}.sha1").write_text("0" * 40)
    path = make_anew(program)
    said = program("restore", status=3)
    assert f"the backup of {first} is bad" in said
    assert "no good backup is left" not in said


COUNTING = """
import builtins, os
from whisperbackup.storage import disk
class Counting(disk.Disk):
    def get(self, key):
        with builtins.open(os.environ["GETS"], "a") as file:
            print(key, file=file)
        return super().get(key)
def open(bucket, create, arguments):
    return Counting(os.fsencode(bucket))
"""


def test_older_backups_that_are_not_much_larger_cost_no_request(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_driver(program, monkeypatch, COUNTING)
    gets = program.home / "gets"
    program.environment["GETS"] = str(gets)
    make_full(program)
    make_full(program, "replaced", 2)
    for night in range(4):
        whisper.update(str(program.prefix / "servers/web1/cpu.wsp"), float(night), int(time.time()) - 60)
        whisper.update(str(program.prefix / "replaced.wsp"), float(night), int(time.time()) - 60)
        program("backup")
    make_anew(program, "replaced")
    program("backup")
    program("restore", "shelf")
    asked = [line.partition("/")[0] for line in gets.read_text().splitlines()]
    assert asked.count(METRIC) == 2  # mark and payload
    assert asked.count("replaced") == 4


UNREADABLE = """
from whisperbackup.storage import disk
def open(bucket, create, arguments):
    driver = disk.open(bucket, create, [])
    real = driver.get
    def get(key):
        if "/{stamp}." in key:
            raise disk.Unavailable("no answer")
        return real(key)
    driver.get = get
    return driver
"""


@pytest.mark.parametrize("is_there", [True, False])
def test_what_was_restored_before_the_store_failed_is_counted(
    replaced: tuple[Program, Path, dict[int, float]], monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    """The newest backup was restored; the older one, with the history, could not be read."""
    program, path, held = replaced
    make_anew(program, newest=0) if is_there else path.unlink()
    install_driver(program, monkeypatch, UNREADABLE.format(stamp=program.stamps(METRIC)[0]))
    said = program("restore", "shelf", status=3)
    assert re.search("0 created, 1 healed, 2 points" if is_there else "1 created, 0 healed", said)
    assert f"{METRIC}: its older backup of " in said
    assert "no answer" in said
    assert points(path)
    program("restore")
    assert held.items() <= points(path).items()


def test_history_that_no_compressed_file_can_take_is_named(program: Program) -> None:
    """go-carbon's compressed format is opaque: what the larger backup holds cannot be put into a newer file."""
    path = program.prefix / "a.wsp"
    chance = random.Random(1)
    path.write_bytes(b"whisper_compressed" + chance.randbytes(50_000))
    full = path.read_bytes()
    program("backup")
    path.write_bytes(b"whisper_compressed" + chance.randbytes(500))
    program("backup")
    stamp, _ = program.stamps("a")
    path.unlink()
    said = program("restore", status=3)
    assert f"its backup of {stamp} is much larger than newer ones" in said
    program("restore", "disk", "-c", stamp, "--overwrite")
    assert path.read_bytes() == full


@pytest.mark.parametrize("is_compressed", [(True, True), (True, False), (False, True)])
def test_a_dry_run_names_history_that_no_compressed_file_can_take(
    program: Program, is_compressed: tuple[bool, bool]
) -> None:
    """The older and the newer backup are both compressed, or one of them: go-carbon's setting was changed."""
    path = program.prefix / "servers/web1/cpu.wsp"
    chance = random.Random(1)
    make_full(program)
    if is_compressed[0]:
        path.write_bytes(b"whisper_compressed" + chance.randbytes(50_000))
    program("backup")
    make_anew(program)
    if is_compressed[1]:
        path.write_bytes(b"whisper_compressed" + chance.randbytes(500))
    program("backup")
    stamp, _ = program.stamps(METRIC)
    path.unlink()
    for options in (["disk", "-n"], []):
        said = program("restore", *options, status=3)
        assert f"its backup of {stamp} is much larger than newer ones" in said


DIED = 9
"""Days since the disk died."""


def grown(now: int, days: int, seed: int) -> bytes:
    """A file that carbon has written random points to for so many days."""
    chance = random.Random(seed)
    archives = [(60, 10_000), (3600, 5_000)]
    content = struct.pack(">2LfL", 1, 3600 * 5_000, 0.5, 2)
    for offset, (step, count) in zip((40, 40 + 12 * 10_000), archives, strict=True):
        content += struct.pack(">3L", offset, step, count)
    for step, count in archives:
        held = min(count, days * 86400 // step)
        stamps = [now // step * step - step * age for age in range(held)][::-1]
        content += b"".join(struct.pack(">Ld", when, chance.random()) for when in stamps) + bytes(12 * (count - held))
    return content


class Nights:
    """A disk dies, carbon makes the file anew, and nightly backups go on until the new file is larger than half."""

    def __init__(self, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
        self.program, self.monkeypatch = program, monkeypatch
        self.path = program.write(METRIC)
        self.now = int(time.time())
        self.old: list[str] = []  # stamps
        self.new: list[str] = []

    def pass_by(self, *options: str, codecs: tuple[str, str] = ("gz", "gz"), is_pruned: bool = False) -> None:
        for night in range(-2, DIED + 1):
            then = self.now - 86400 * (DIED - night)
            self.path.write_bytes(grown(then, 190 if night <= 0 else night, night))
            os.utime(self.path, (then - 60, then - 60))
            self.run(then, "backup", *options, "-a", codecs[night > 0], *(["--no-delete"] if is_pruned else []))
            if is_pruned:
                self.run(then + 60, "prune", *options)
            (self.old if night <= 0 else self.new).append(self.program.stamps(METRIC)[-1])

    def run(self, then: int, command: str, *options: str) -> None:
        with self.monkeypatch.context() as night:
            night.setattr(clock, "utc_now", lambda: datetime.fromtimestamp(then, UTC))
            night.setattr(clock, "boot_id", lambda: "")  # or the uptime would contradict the clock
            night.setattr(backup, "birth_time", lambda path: None)  # and so would the time of the file's creation
            tree = [] if command == "prune" else ["-p", str(self.program.prefix)]
            files = ["--nolog", "--nolock", "--nostamp", "-f", "1"]
            if command == "backup":
                files += ["--statefile", str(self.program.home / "nights")]
            assert main.main([*files, *tree, "-b", str(self.program.store), *options, command, "disk"]) == 0

    def sizes(self) -> list[int]:
        return [next((self.program.store / METRIC).glob(f"{stamp}.wsp.*")).stat().st_size for stamp in self.stamps()]

    def stamps(self) -> list[str]:
        return self.program.stamps(METRIC)

    def history(self) -> dict[int, float]:
        """The points of the coarse archive from before the disk died."""
        died = self.now - 86400 * DIED
        return {when: value for when, value in points(self.path, 1).items() if when < died}

    def old_history(self, night: int = 0) -> dict[int, float]:
        then = self.now - 86400 * (DIED - night)
        chance = random.Random(night)
        values = [chance.random() for _ in range(10_000 + 4_560)][10_000:]
        stamps = [then // 3600 * 3600 - 3600 * age for age in range(4_560)][::-1]
        return dict(zip(stamps, values, strict=True))


@pytest.fixture
def nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nights:
    return Nights(Program(tmp_path), monkeypatch)


@pytest.mark.parametrize("is_pruned", [False, True])
@pytest.mark.parametrize("keep", [1, 5])
def test_the_history_of_a_dead_disk_comes_back_whatever_grew_since(nights: Nights, keep: int, is_pruned: bool) -> None:
    nights.pass_by("-r", str(keep), is_pruned=is_pruned)
    program = nights.program
    assert nights.stamps() == [nights.old[-1], nights.new[0], *nights.new[-keep:]]
    oldest, *_, newest = nights.sizes()
    assert newest * 2 > oldest
    assert "2 examined, 2 good" in program("verify")
    fine = points(nights.path)
    assert not nights.history()
    assert "1 needed an older backup, 0 failed" in program("restore")
    assert nights.history().items() == nights.old_history().items()
    assert fine.items() <= points(nights.path).items()
    assert "1 already whole" in program("restore")
    nights.path.unlink()
    assert "1 needed an older backup, 0 failed" in program("restore", "disk", "-c", nights.stamps()[-1])
    assert nights.history().items() == nights.old_history().items()


OLD_LAYOUTS = {"coarser": [(3600, 20_000)], "as full": [(60, 90_000)]}


@pytest.mark.parametrize("algorithm", ["gz", "sz"])
@pytest.mark.parametrize("layout", OLD_LAYOUTS)
def test_the_history_of_a_dead_disk_comes_back_also_if_the_first_backup_of_the_new_file_is_not_small(
    program: Program, layout: str, algorithm: str
) -> None:
    """The layout became finer, or zeros compress no better; the backup is a week late, and others follow."""
    path, now = program.prefix / "m.wsp", int(time.time()) // 60 * 60
    schema = OLD_LAYOUTS[layout]
    step, chance = schema[0][0], random.Random(1)
    whisper.create(str(path), schema)
    last_night = now - 86400 * 8
    whisper.update_many(str(path), [(last_night - step * age, chance.random()) for age in range(1, 9000)])
    program("backup", "disk", "-a", algorithm)
    (stamp,) = program.stamps("m")
    old = stamp_at(last_night)
    for each in (program.store / "m").iterdir():
        each.rename(each.with_name(each.name.replace(stamp, old)))
    held = set(points(path, 0))
    path.unlink()
    whisper.create(str(path), [(60, 90_000), (3600, 20_000)])
    whisper.update_many(str(path), [(now - 60 * age, chance.random()) for age in range(86400 * 7 // 60)])
    for night in range(4):
        program("backup", "disk", "-a", algorithm, "-r", 2)
        add_point(path, 7.0 + night)
        time.sleep(1)
    assert len(program.stamps("m")) == 4
    sizes = [next((program.store / "m").glob(f"{each}.wsp*")).stat().st_size for each in program.stamps("m")]
    assert sizes[1] * 2 > sizes[0]
    assert len(list((program.store / "m").glob("*.recreated"))) == 1
    assert "4 good" in program("verify", "disk", "--all")
    assert "1 needed an older backup" in program("restore", "disk")
    restored = {**points(path, 1), **points(path, 0)}
    assert {when // step for when in held} <= {when // step for when in restored}
    program.write("other")
    path.unlink()
    program("purge", "disk", "-x", "0", "--purge-anyway")
    assert not (program.store / "m").exists()


FILES_OF_NOW = {
    # name: (the layout, whether the file is another one than before, its points: so many seconds before the backup)
    "short": ([(1, 1)], True, [0, -2]),  # a layout that reaches back to no older backup
    "resized": ([(60, 1440), (300, 2880)], True, [90_000, -2]),
    "filled": ([(60, 2880)], False, [120, -2]),
    "new": ([(60, 2880)], False, [0, -2]),  # one that was created just before the last backup
    "recreated": ([(60, 2880)], True, [120, -2]),
    "copied": ([(60, 2880)], False, [-62]),
    "empty": ([(60, 2880)], True, []),
    "spanned": ([(60, 2880)], True, [-62]),
    "misdated": ([(60, 2880)], True, [-62]),
}


def test_only_a_file_without_older_points_counts_as_recreated(program: Program) -> None:
    """Whatever its birth says, which a clock that was behind or a copy into the old file makes a false one."""
    for name in FILES_OF_NOW:
        program.write(name)
    program("backup", "disk")
    backed_up = int(time.time())
    time.sleep(2.1)
    for name, (layout, is_another, ages) in FILES_OF_NOW.items():
        path = program.prefix / f"{name}.wsp"
        new = path.with_suffix(".new")
        whisper.create(str(new), layout)
        for age in ages:
            whisper.update(str(new), 1.0, backed_up - age, now=backed_up - age if name == "short" else backed_up + 120)
        record = {
            "spanned": (backed_up // 60 * 60 - 60 * 2880 * 2, math.nan),
            "misdated": (1_262_304_000, 1.0),  # by a clock that began in 2010
        }.get(name)
        if record:
            with new.open("r+b") as file:
                file.seek(28 + 12 * 7)
                file.write(struct.pack(">Ld", *record))
        if is_another:
            new.replace(path)
        else:
            path.write_bytes(new.read_bytes())
            new.unlink()
    assert f"{len(FILES_OF_NOW)} backed up" in program("backup", "disk")
    found = {each.parent.name for each in program.store.glob("*/*.recreated")}
    assert found == {"recreated", "copied", "empty", "misdated", "spanned"}


def test_a_sender_that_brings_too_few_points_for_coarser_archives_recreates_no_file(tmp_path: Path) -> None:
    """A point in five minutes, for minutes: the finest archive has those of its day alone, the coarser one has none."""
    path, now = tmp_path / "m.wsp", 1_796_083_230
    found = {}
    for name, step, count in (("few", 300, 288), ("enough", 60, 180), ("none", 60, 0)):
        whisper.create(str(path), [(60, 1440), (3600, 8760)])
        whisper.update_many(str(path), [(now - step * number, 1.0) for number in range(count)], now=now)
        found[name] = is_all_after(path.read_bytes(), now - 86_400 - 600, now)
        path.unlink()
    assert found == {"few": False, "enough": True, "none": True}


def test_the_history_of_a_dead_disk_comes_back_after_a_change_of_codec(nights: Nights) -> None:
    nights.pass_by("-r", "3", codecs=("gz", "zst"))
    assert nights.stamps() == [nights.old[-1], nights.new[0], *nights.new[-3:]]
    oldest, *_, newest = nights.sizes()
    assert newest * 8 > oldest
    assert "1 needed an older backup" in nights.program("restore")
    assert nights.history().items() == nights.old_history().items()


def test_where_the_last_backup_of_a_dead_disk_is_bad_the_one_before_is_used(nights: Nights) -> None:
    nights.pass_by("-r", "20")
    _, before, last = nights.old
    payload = nights.program.store / METRIC / f"{last}.wsp.gz"
    payload.write_bytes(payload.read_bytes()[:-100])
    assert f"the backup of {last} is bad" in nights.program("verify", status=3)
    said = nights.program("restore", status=3)
    assert f"the backup of {last} is bad" in said
    assert f"healed from the older backup of {before} instead" in said
    assert nights.history().items() == nights.old_history(-1).items()


def test_a_larger_fall_that_is_bad_hides_no_smaller_one(program: Program) -> None:
    """Not even one that was passed over until then."""
    path, chance = program.prefix / "m.wsp", random.Random(1)
    now = int(time.time()) // 60
    for count in (9900, 400, 3000, 6000, 8000, 300, 2000, 5000):
        whisper.create(str(path), [(60, 10_000)])
        whisper.update_many(str(path), [(60 * (now - age), chance.gauss(50, 10)) for age in range(count)])
        program("backup", "disk", "-r", "30")
        path.unlink()
    payload = program.store / "m" / f"{program.stamps('m')[0]}.wsp.gz"
    payload.write_bytes(payload.read_bytes()[:-100])
    program("restore", status=3)
    assert len(points(path)) == 8000


def test_the_last_backup_of_a_dead_disk_that_was_deleted_meanwhile_is_looked_for_again(nights: Nights) -> None:
    """A run elsewhere with a smaller -r: what it left is used."""
    nights.pass_by("-r", "20")
    _, before, last = nights.old
    install_driver(
        nights.program,
        nights.monkeypatch,
        GONE.format(path=str(nights.program.store / METRIC / last)),
    )
    assert "1 needed an older backup, 0 failed" in nights.program("restore", "shelf")
    assert nights.history().items() == nights.old_history(-1).items()
    assert last not in nights.stamps()
    assert before in nights.stamps()


GONE = """
import pathlib
from whisperbackup.storage import disk
def open(bucket, create, arguments):
    driver = disk.open(bucket, create, [])
    real = driver.get
    def get(key):
        for suffix in (".sha1", ".wsp.gz"):
            pathlib.Path("{path}" + suffix).unlink(missing_ok=True)
        return real(key)
    driver.get = get
    return driver
"""


def test_history_that_is_not_wanted_goes_when_its_backup_is_deleted(nights: Nights) -> None:
    nights.pass_by("-r", "3")
    last, *left = nights.stamps()
    for suffix in (".sha1", ".wsp.gz"):
        (nights.program.store / METRIC / f"{last}{suffix}").unlink()
    assert "1 examined, 1 good" in nights.program("verify")
    assert "1 already whole" in nights.program("restore")
    nights.run(nights.now + 60, "backup", "-r", "3")
    assert nights.stamps() == left[1:]


def test_verify_checks_what_restore_would_use(replaced: tuple[Program, Path, dict[int, float]]) -> None:
    program, _, _ = replaced
    assert "2 examined, 2 good" in program("verify")
    oldest, newest = sorted((program.store / METRIC).glob("*.wsp.*"))
    content = bytearray(oldest.read_bytes())
    content[len(content) // 2] ^= 1
    oldest.write_bytes(content)
    said = program("verify", status=3)
    assert "2 examined, 1 good" in said
    assert f"the backup of {oldest.name.partition('.wsp')[0]} is bad" in said
    assert newest.exists()


def test_a_tree_whose_disk_is_unmounted_during_a_restore_is_not_restored_beside_it(tmp_path: Path) -> None:
    prefix = tmp_path / "tree"
    prefix.mkdir()
    source = tmp_path / "source.wsp"
    whisper.create(str(source), SCHEMA)
    restorer = Placer(os.fsencode(prefix), overwrite=False, noop=False, max_file_size=1 << 30)
    assert restorer.place(b"a.wsp", source.read_bytes()).how == "created"
    prefix.rename(tmp_path / "unmounted")
    prefix.mkdir()
    with pytest.raises(CannotPlace, match="became another folder"):
        restorer.place(b"b.wsp", source.read_bytes())
    assert not list(prefix.iterdir())


def test_a_disk_below_the_tree_that_is_unmounted_during_a_restore_is_not_restored_beside_it(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    whisper.create(str(tmp_path / "source.wsp"), SCHEMA)
    source = (tmp_path / "source.wsp").read_bytes()
    restorer = Placer(os.fsencode(tmp_path), overwrite=False, noop=False, max_file_size=1 << 30)
    for _ in mounted(disk, "-t", "tmpfs", "none"):
        for path in (b"disk/a.wsp", b"disk/inner/a.wsp", b"other/a.wsp"):
            assert restorer.place(path, source).how == "created"
    for path in (b"disk/b.wsp", b"disk/inner/b.wsp"):
        with pytest.raises(CannotPlace, match="disk became another folder"):
            restorer.place(path, source)
    assert not list(disk.iterdir())
    assert restorer.place(b"other/b.wsp", source).how == "created"


@pytest.mark.parametrize("is_only_looked_at", [True, False])
@pytest.mark.parametrize("small", [[(60, 1440)], [(600, 4000)], [(60, 1440), (3600, 48)]])
def test_points_that_do_not_fit_into_a_smaller_layout_are_a_failure_with_a_remedy(
    program: Program, small: list[tuple[int, int]], is_only_looked_at: bool
) -> None:
    held = make_full(program)
    program("backup")
    path = make_anew(program, schema=small)
    own = int(time.time()) // 3600 * 3600  # whisper-resize copies the aggregate of the new file's point into its slot
    program("backup")
    for options in [["disk", "-n"]] if is_only_looked_at else [["disk", "-n"], [], []]:
        said = program("restore", *options, status=3)
        assert re.search(rf"{METRIC}: \d+ points of its backup of .* do not fit into the file there", said)
        assert "1 failed" in said
        assert "whisper-resize.py, so that it has 60:10000 3600:500 too" in said
    resize = Path(sys.executable).parent / "whisper-resize.py"
    subprocess.run([sys.executable, resize, "--nobackup", path, "60:10000", "3600:500"], check=True)
    assert "0 failed" in program("restore")
    found = points(path)
    if is_only_looked_at:
        assert held.keys() <= found.keys()
        assert {t for t in held if held[t] != found[t]} <= {own}
        return
    # whisper-resize copies what the coarser archives got into slots of the finest, and restore replaces no point there
    coarser = [step for step, _ in small if step > 60]
    assert held.keys() <= found.keys()
    assert all(any(when % step == 0 for step in coarser) for when in held if found[when] != held[when])


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_dry_run_names_what_the_file_that_it_would_create_has_no_room_for(program: Program, is_broken: bool) -> None:
    make_full(program)
    program("backup")
    path = make_anew(program, schema=[(60, 1440)])
    program("backup")
    path.unlink()
    if is_broken:
        path.write_bytes(b"no whisper file, and not touched for an hour")
        os.utime(path, (time.time() - 3600, time.time() - 3600))
    for options in (["disk", "-n"], []):
        said = program("restore", *options, status=3)
        assert re.search(rf"{METRIC}: \d+ points of its backup of .* do not fit into the file there", said)
        assert "1 failed" in said
    assert path.stat().st_size < 20_000


def test_the_newest_backup_may_not_fit_either(program: Program) -> None:
    make_full(program)
    program("backup")
    make_anew(program, schema=[(60, 1440)])
    assert "do not fit into the file there" in program("restore", status=3)


@pytest.mark.parametrize("large", [[(60, 10_000), (3600, 5_000)], [(10, 60_000), (600, 5_040)]])
def test_in_a_larger_or_finer_layout_everything_fits(program: Program, large: list[tuple[int, int]]) -> None:
    make_full(program)
    program("backup")
    make_anew(program, schema=large)
    assert "1 healed" in program("restore")


def test_what_the_retention_of_the_backup_itself_has_dropped_by_now_is_not_missed(program: Program) -> None:
    path = make_anew(program, newest=0, schema=[(60, 60), (600, 500)])
    now = int(time.time())
    whisper.update_many(str(path), [(now - 60 * age, 1.0) for age in range(30, 55)], now=now)
    program("backup")
    make_anew(program, schema=[(60, 20), (600, 500)])
    assert "do not fit" in program("restore", status=3)
    make_anew(program, schema=[(60, 59), (600, 501)])
    assert "0 failed" in program("restore")


def write_ahead(program: Program, schema: list[tuple[int, int]], ahead: int, count: int) -> set[int]:
    """The file made anew under a clock that is so many seconds ahead; its points' places in the ring of an hour."""
    path = make_anew(program, newest=0, schema=schema)
    then = int(time.time()) + ahead
    whisper.update_many(str(path), [(then - 60 * age, 5.0) for age in range(count)], now=then)
    return {(then // 60 - age) % 60 for age in range(count)}


@pytest.mark.parametrize("schema", [[(60, 60)], [(60, 60), (600, 500)]])
def test_points_whose_slots_a_clock_far_ahead_has_written_are_named(
    program: Program, schema: list[tuple[int, int]]
) -> None:
    path = make_anew(program, newest=0, schema=[(60, 60)])
    now = int(time.time())
    whisper.update_many(str(path), [(now - 60 * age, float(age)) for age in range(2, 50)], now=now)
    held = points(path)
    program("backup")
    taken = write_ahead(program, schema, 400 * 86400 - 600, 20)
    for options in (["disk", "-n"], [], []):
        said = program("restore", *options, status=3)
        until = int(time.time())
        (count,) = map(int, re.findall(rf"{METRIC}: (\d+) points of its backup of .* could not be filled in", said))
        blocked = [t for t in held if t // 60 % 60 in taken and t > until - 3600]
        assert 10 < len(blocked) <= 20
        assert len(blocked) - 1 <= count <= len(blocked) + 1  # a minute may have ended meanwhile
    assert {t for t in held if t // 60 % 60 not in taken and t > until - 3500} <= set(points(path))
    assert "0 failed" in program("restore", "disk", "--overwrite")
    assert points(path) == {t: v for t, v in held.items() if t in points(path)}


def test_points_of_a_sender_that_is_a_little_ahead_are_no_failure(program: Program) -> None:
    path = make_anew(program, newest=0, schema=[(60, 60)])
    now = int(time.time())
    whisper.update_many(str(path), [(now - 60 * age, float(age)) for age in range(2, 50)], now=now)
    program("backup")
    write_ahead(program, [(60, 60)], 900, 20)
    assert "1 healed" in program("restore")
    write_ahead(program, [(60, 60)], 80_000, 60)  # its slots are needed again within a day
    assert "0 failed" in program("restore")


@pytest.mark.parametrize(("days", "lacking"), [(400, 9_000), (2, 1_400)])
def test_points_that_a_clock_that_is_behind_has_not_reached_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], days: int, lacking: int
) -> None:
    """A machine with a dead battery: carbon makes the file under a clock of long ago, and somebody restores it."""
    program, real = Program(tmp_path), time.time
    held = make_full(program)
    program("backup")
    path = make_anew(program, newest=0)
    words = program.words("restore", "disk", "--nolock", "-f", "1")[3:]
    with monkeypatch.context() as behind:
        behind.setattr(time, "time", lambda: real() - days * 86400)
        own = points(make_anew(program, newest=3))
        for options in (["-n"], [], []):
            assert main.main([*words, *options]) == 3
            (count,) = re.findall(
                rf"{METRIC}: (\d+) points of its backup .* could not be filled in", capfd.readouterr().err
            )
            assert int(count) > lacking
    assert main.main(words) == 0
    assert (held | own).items() <= points(path).items() | own.items()


def test_points_far_ahead_that_the_file_has_too_are_no_failure(program: Program) -> None:
    write_ahead(program, [(60, 60)], 3 * 86400, 20)
    program("backup")
    assert "1 already whole" in program("restore")


def test_a_span_that_the_clock_has_not_reached_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    program = Program(tmp_path)
    make_full(program)
    program("backup")
    now = datetime.now(UTC)
    monkeypatch.setattr(clock, "utc_now", lambda: now - timedelta(days=400))
    monkeypatch.setattr(time, "time", lambda: (now - timedelta(days=400)).timestamp())
    for option, date in (("--from", now - timedelta(days=2)), ("--until", now)):
        with pytest.raises(SystemExit) as ended:
            main.main(program.words("restore", "disk", "--nolock", option, date.isoformat())[3:])
        assert ended.value.code == 2
        assert re.search(rf"{option} .* is more than a day ahead of this machine's clock", capfd.readouterr().err)


@pytest.mark.parametrize("has_increment", [False, True])
def test_a_clock_that_is_hours_behind_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], has_increment: bool
) -> None:
    """A machine that treats local time as UTC: an error of less than a day, as a sender's may be."""
    program, now = Program(tmp_path), datetime.now(UTC)
    make_full(program)
    if has_increment:
        early = now - timedelta(hours=12)
        with monkeypatch.context() as before:
            before.setattr(clock, "utc_now", lambda: early)
            assert main.main(program.words("backup", "disk", "--nolock", "-f", "1")[3:]) == 0
        program("increment")
    else:
        program("backup")
    make_anew(program)
    monkeypatch.setattr(clock, "utc_now", lambda: now - timedelta(hours=8))
    monkeypatch.setattr(time, "time", lambda: (now - timedelta(hours=8)).timestamp())
    capfd.readouterr()
    assert main.main(program.words("restore", "disk", "--nolock", "-f", "1")[3:]) == 0
    said = capfd.readouterr().err
    assert said.count(f"{METRIC} was backed up at a time that this machine's clock has not reached") == 1
    monkeypatch.undo()
    said = program("restore")
    assert "WARNING" not in said
    assert "1 healed" in said

"""Retention as a pure function, against its definition."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisperbackup.repository.backups import generation_of
from whisperbackup.repository.catalog import Backup, Payload
from whisperbackup.util import Generation, Keep, falls, retain


def at(number: int) -> str:
    return f"2026-11-23T00:00:{number:02}+00:00"


def generations(*sizes: int, codec: str = "gz") -> list[Generation]:
    return [Generation(at(number), codec, size, str(number)) for number, size in enumerate(sizes)]


def newest_of(history: list[Generation], keep: int) -> list[Generation]:
    groups = [list(same) for _, same in itertools.groupby(history, lambda generation: generation.content)]
    return [generation for same in groups[-keep:] for generation in same]


BEGIN = datetime(2026, 1, 1, 2, tzinfo=UTC)


def night(number: int, size: int, codec: str = "gz") -> Generation:
    return Generation(f"{BEGIN + timedelta(days=number):%Y-%m-%dT%H:%M:%S}+00:00", codec, size, str(number))


def rotated(history: list[Generation], keep: Keep) -> list[Generation]:
    dropped = retain(history, keep).dropped
    return [generation for generation in history if generation.stamp not in dropped]


def nights(keep: Keep, *sizes: int) -> list[Generation]:
    """What is stored after nights with these sizes, each with its retention."""
    stored: list[Generation] = []
    for number, size in enumerate(sizes):
        stored = rotated([*stored, night(number, size)], keep)
    return stored


def test_the_newest_are_kept() -> None:
    assert retain(generations(100, 100, 100, 100), Keep(2)).dropped == [at(0), at(1)]


def test_neighbours_of_equal_content_count_once() -> None:
    same = [generation._replace(content="x") for generation in generations(9, 9, 9)]
    older = Generation("2026-01-01T00:00:00+00:00", "gz", 9, "y")
    assert retain([older, *same], Keep(2)).dropped == []
    assert retain([older, *same], Keep(1)).dropped == [older.stamp]


def test_the_last_full_backup_survives_files_made_anew() -> None:
    full, empty = [400_000] * 5, [3_000] * 8
    kept = retain(generations(*full, *empty), Keep(5))
    assert kept.guarded == [at(4)]
    assert set(kept.dropped) == {at(number) for number in (0, 1, 2, 3, 6, 7)}  # 5 shows that 4 was the last


def test_a_changed_codec_neither_guards_everything_nor_nothing() -> None:
    old = generations(400_000, codec="gz")
    assert retain([*old, *(Generation(at(10 + n), "zst", 300_000, f"z{n}") for n in range(5))], Keep(5)).dropped == [
        at(0)
    ]
    assert retain([*old, *(Generation(at(10 + n), "zst", 2_000, f"z{n}") for n in range(5))], Keep(5)).guarded == [
        at(0)
    ]


def test_the_newest_of_each_day_week_and_month_is_kept() -> None:
    days = ["2026-09-30", "2026-10-01", "2026-10-31", "2026-11-01", "2026-11-08", "2026-11-22", "2026-11-23"]
    stamps = [f"{day}T{hour}:00:00+00:00" for day in days for hour in ("01", "22")]
    history = [Generation(stamp, "gz", 100, stamp) for stamp in stamps]

    def kept(**rules: int) -> list[str]:
        gone = retain(history, Keep(1, **rules)).dropped
        return [stamp[:13] for stamp in stamps if stamp not in gone]

    assert kept() == ["2026-11-23T22"]
    assert kept(daily=3) == ["2026-11-08T22", "2026-11-22T22", "2026-11-23T22"]
    assert kept(weekly=3) == ["2026-11-08T22", "2026-11-22T22", "2026-11-23T22"]  # the 22nd is a Sunday
    assert kept(weekly=4) == ["2026-11-01T22", "2026-11-08T22", "2026-11-22T22", "2026-11-23T22"]
    assert kept(monthly=3) == ["2026-09-30T22", "2026-10-31T22", "2026-11-23T22"]
    assert kept(daily=1, monthly=2) == ["2026-10-31T22", "2026-11-23T22"]


@given(
    st.lists(st.tuples(st.sampled_from(["gz", "sz"]), st.integers(1, 100), st.sampled_from("abc")), max_size=10),
    st.integers(1, 6),
)
def test_the_newest_distinct_are_never_given_up(drawn: list[tuple[str, int, str]], keep: int) -> None:
    all_of_them = [Generation(at(number), *rest) for number, rest in enumerate(drawn)]
    result = retain(all_of_them, Keep(keep))
    held = itertools.chain(*falls(all_of_them))
    gone = {*result.dropped, *result.guarded, *(one.stamp for one in held)} - {
        one.stamp for one in newest_of(all_of_them, keep)
    }
    kept = [generation for generation in all_of_them if generation.stamp not in gone]
    groups = [g for n, g in enumerate(kept) if n + 1 == len(kept) or kept[n + 1].content != g.content]
    assert len(groups) <= keep
    assert not kept or kept == all_of_them[-len(kept) :]
    if gone:
        assert len(groups) == keep
    for generation in all_of_them:
        if generation.stamp in result.dropped:
            newer = [
                other for other in all_of_them if other.stamp > generation.stamp and other.codec == generation.codec
            ]
            assert not newer or any(other.size * 2 >= generation.size for other in newer)


@given(
    st.integers(1, 6),
    st.lists(st.integers(900, 1000), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(1, 100), st.integers(0, 400)), min_size=1, max_size=30),
    st.sampled_from(["gz", "zst"]),
)
def test_the_last_backup_of_an_old_file_stays_for_a_year_whatever_grew_since(
    keep: int, old: list[int], new: list[tuple[int, int]], codec: str
) -> None:
    """The new file grows, as large as it likes, with pauses in which it does not change."""
    stored = [night(number, size) for number, size in enumerate(old)]
    last, first = stored[-1], night(len(old), 50, codec)
    stored = rotated([*stored, first], Keep(keep))
    size, days = 50, 0
    for pause, growth in new:
        size, days = size + growth, days + pause
        stored = rotated([*stored, night(len(old) + days, size, codec)], Keep(keep))
        if days > 366:
            break
        assert last in stored
        assert first in stored
        assert len(stored) <= keep + 2
    if days > 366 and size * (2 if codec == "gz" else 8) >= last.size:
        assert last not in stored


@given(st.integers(1, 5), st.lists(st.integers(1, 1000), min_size=1, max_size=60))
def test_sizes_that_swing_keep_eight_more_backups_at_most(keep: int, sizes: list[int]) -> None:
    stored: list[Generation] = []
    for number, size in enumerate(sizes):
        stored = [*stored, night(number, size)]
        guarded = retain(stored, Keep(keep)).guarded
        stored = rotated(stored, Keep(keep))
        assert stored[-keep:] == [night(n, s) for n, s in enumerate(sizes)][: number + 1][-keep:]
        assert len(stored) <= keep + 8 + len(guarded)


@pytest.mark.parametrize("keep", [1, 5])
def test_of_several_falls_the_one_that_lost_the_most_is_kept(keep: int) -> None:
    regrown = [*range(100, 1000, 100), 1000]
    swing, dead = [1050, 400, *regrown[4:]], [1000, 2]
    swings_later = [800, 350, 500, 900, 300, *regrown[4:]]
    stored = nights(Keep(keep), *swing, *dead, *regrown, *swings_later)
    sizes = [generation.size for generation in stored[:-keep]]
    assert sizes == [1050, 400, 1000, 2, 800, 350, 900, 300]


def test_of_two_disks_that_died_the_second_counts_too() -> None:
    """The history had been restored after the first."""
    for second in (990, 700):
        stored = nights(Keep(2), 1000, 2, 600, second, 3, 300, 600, 900, 900)
        assert [generation.size for generation in stored] == [1000, 2, second, 3, 900, 900]
    stored = nights(Keep(2), 1000, 3, 980, 990, 2, 300, 600, 900, 400, 900, 900)
    assert [generation.size for generation in stored] == [1000, 3, 990, 2, 900, 400, 900, 900]
    swings = [900, 400, 700, 900, 350, 600, 950, 300, 900]
    stored = nights(Keep(2), 1000, 3, 980, 990, 2, 400, 900, *swings, 900, 900)
    assert [generation.size for generation in stored[:4]] == [1000, 3, 990, 2], "those that lost the most are kept"


def test_a_metric_that_became_quiet_hides_no_disk_that_died() -> None:
    """Of its smaller and smaller backups the calendar keeps two, which look like a fall."""
    stored = nights(Keep(3, monthly=12), *[224] * 31, *range(223, 85, -1), 1, *range(20, 230, 20), 90, 100, 200, 220)
    sizes = [generation.size for generation in stored]
    assert sizes[sizes.index(1) - 1] == 86


@pytest.mark.parametrize("codec", ["gz", "zst"])
@pytest.mark.parametrize("before", [[319, 93], [1275, 256]])
def test_neither_a_quiet_week_nor_a_smaller_layout_hides_a_disk_that_died(before: list[int], codec: str) -> None:
    sizes = [*before, *[255] * 9, 7, 27, 28, 90, 40, 130, 150, 240, 250]
    stored: list[Generation] = []
    for number, size in enumerate(sizes):
        stored = rotated([*stored, night(number, size, "gz" if number < 11 else codec)], Keep(2))
        if number > 11:
            assert (night(10, 255), night(11, 7, codec)) in falls(stored)
            assert {night(10, 255), night(11, 7, codec)} <= {*stored}


def test_what_is_known_to_be_recreated_need_not_be_small() -> None:
    sizes = [100, 101, 102, 130, 131, 132, 60, 61, 62, 63, 64]
    stored: list[Generation] = []
    for number, size in enumerate(sizes):
        stored = rotated([*stored, night(number, size)._replace(is_recreated=number in (3, 6))], Keep(2))
    assert [generation.size for generation in stored] == [102, 130, 132, 60, 63, 64]


def test_a_change_of_codec_comes_after_what_is_more_likely_a_loss() -> None:
    sizes = [9000, 100, 60_000, 25_000, 26_000, 3000, 3000, 2900, 2900, 2900, 2900]
    history = [night(number, size, "gz" if number < 5 else "zst") for number, size in enumerate(sizes)]
    for number in (7, 9):
        history[number] = history[number]._replace(is_recreated=True)
    assert [before for before, _ in falls(history)] == [history[number] for number in (8, 6, 2, 0)]


def test_files_that_are_recreated_often_hide_no_disk_that_died() -> None:
    """The metric of a job that is started every few days."""
    stored: list[Generation] = []
    for number, size in enumerate([1000, 5, 200, 300, 400, *[40, 50, 60] * 9]):
        is_recreated = number > 4 and number % 3 == 2
        stored = rotated([*stored, night(number, size)._replace(is_recreated=is_recreated)], Keep(2))
    assert [generation.size for generation in stored] == [1000, 5, 400, 40, 60, 40, 60, 40, 50, 60]


def test_an_empty_payload_is_no_fall() -> None:
    """A store that lost power may have one."""
    assert falls(generations(1000, 2, 1000, 0, 1000)) == [(generations(1000)[0], generations(1000, 2)[1])]


def test_a_backup_whose_mark_is_cut_is_no_last_backup() -> None:
    whole = Backup("2026-01-01T00:00:00+00:00", (Payload("gz", 900),), None)
    assert generation_of(whole).size == 900
    assert generation_of(whole._replace(mark_size=0)).size == 0


def test_a_change_of_codec_takes_the_place_of_no_other_fall() -> None:
    """Of a sparse file one codec makes much less than another."""
    sparse = [generation._replace(codec="sz") for generation in generations(32_000)]
    history = [*sparse, *generations(0, 2000, 2200, 127, 900, codec="zst")[1:]]
    found = {(last.size, first.size) for last, first in falls(history)}
    assert found == {(32_000, 2000), (2200, 127)}


def test_where_the_clock_cannot_tell_a_year_a_fall_counts_whatever_its_stamps() -> None:
    history = [night(0, 1000), night(1, 3), night(400, 650), night(401, 260), night(402, 300)]
    assert {*itertools.chain(*falls(history))} == {*history[2:4]}
    assert {*itertools.chain(*falls(history, can_tell_year=False))} == {*history[:4]}
    assert retain(history, Keep(1)).dropped == [history[0].stamp, history[1].stamp]
    assert retain(history, Keep(1, can_tell_year=False)).dropped == []
    older = [night(3 * n + m, 9000 - 1000 * m) for n in range(4) for m in (0, 8)]
    assert not {*history} & {*retain([*older, *history], Keep(1, can_tell_year=False)).dropped}


def test_a_year_counts_from_the_first_backup_of_the_new_file() -> None:
    history = [night(0, 1000), night(1, 3)]
    for days, is_kept in ((367, True), (368, False)):
        for keep, stays in ((Keep(1), is_kept), (Keep(1, can_tell_year=False), True)):
            assert retain([*history, night(days, 900)], keep).dropped == (
                [] if stays else [generation.stamp for generation in history]
            )


def test_a_fall_of_the_past_year_goes_before_a_larger_one() -> None:
    """Which calendar rules may keep for longer."""
    history = [night(0, 1000), night(1, 3), night(300, 800), night(301, 4), night(400, 900)]
    assert {*falls(history)} == {(history[2], history[3])}
    assert {*falls(history[:2])} == {(history[0], history[1])}
    assert {*falls([history[0], history[1], history[4]])} == {(history[0], history[1])}


def test_codecs_that_differ_are_no_fall() -> None:
    assert not falls([night(0, 1000, "gz"), night(1, 300, "zst")])
    assert falls([night(0, 1000, "gz"), night(1, 300, "gz")])
    assert falls([night(0, 1000, "gz"), night(1, 120, "zst")])


def test_guarded_are_only_those_that_dwarf_all_newer_ones() -> None:
    """Only their metrics are doubted, and cost a job each night."""
    history = [night(0, 1000), night(1, 3), night(2, 300)]
    assert retain(history, Keep(1)) == ([], [history[0].stamp])
    assert retain([*history, night(3, 600)], Keep(1)) == ([history[2].stamp], [])
    assert retain([*history[:2], night(3, 600)], Keep(1)) == ([], [])

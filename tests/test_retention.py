"""Retention as a pure function, against its definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from whisperbackup.util import Generation, Keep, retain


def at(number: int) -> str:
    return f"2026-11-23T00:00:{number:02}+00:00"


def generations(*sizes: int, codec: str = "gz") -> list[Generation]:
    return [Generation(at(number), codec, size, str(number)) for number, size in enumerate(sizes)]


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
    assert set(kept.dropped) == {at(number) for number in (0, 1, 2, 3, 5, 6, 7)}


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
    gone = {*result.dropped, *result.guarded}
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

"""Retention as a pure function, against its definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from whisperbackup.util import Generation, retain


def generations(*sizes: int, codec: str = "gz") -> list[Generation]:
    return [Generation(f"{number:02}", codec, size, str(number)) for number, size in enumerate(sizes)]


def test_the_newest_are_kept() -> None:
    assert retain(generations(100, 100, 100, 100), 2).dropped == ["01", "00"]


def test_neighbours_of_equal_content_count_once() -> None:
    same = [generation._replace(content="x") for generation in generations(9, 9, 9)]
    older = Generation("-1", "gz", 9, "y")
    assert retain([older, *same], 2).dropped == []
    assert retain([older, *same], 1).dropped == ["-1"]


def test_the_last_full_backup_survives_files_made_anew() -> None:
    full, empty = [400_000] * 5, [3_000] * 8
    kept = retain(generations(*full, *empty), 5)
    assert kept.guarded == ["04"]
    assert set(kept.dropped) == {"00", "01", "02", "03", "05", "06", "07"}


def test_a_changed_codec_neither_guards_everything_nor_nothing() -> None:
    old = generations(400_000, codec="gz")
    assert retain([*old, *(Generation(f"1{n}", "zst", 300_000, f"z{n}") for n in range(5))], 5).dropped == ["00"]
    assert retain([*old, *(Generation(f"1{n}", "zst", 2_000, f"z{n}") for n in range(5))], 5).guarded == ["00"]


@given(
    st.lists(st.tuples(st.sampled_from(["gz", "sz"]), st.integers(1, 100), st.sampled_from("abc")), max_size=10),
    st.integers(1, 6),
)
def test_the_newest_distinct_are_never_given_up(drawn: list[tuple[str, int, str]], keep: int) -> None:
    all_of_them = [Generation(f"{number:02}", *rest) for number, rest in enumerate(drawn)]
    result = retain(all_of_them, keep)
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

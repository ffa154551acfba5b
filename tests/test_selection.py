"""Globs over dotted names."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest

from whisperbackup.tree.names import metric_name
from whisperbackup.tree.selection import BadGlob, Unmatched, expand_braces, select, tagged_metrics


@pytest.mark.parametrize(
    ("glob", "name", "matches"),
    [("*", "a.b.c", True), ("servers.*", "servers.web1.cpu", True), ("servers.*", "server", False),
     ("*.cpu", "a.b.cpu", True), ("a.?", "a.b", True), ("a.?", "a.bc", False), ("a.[bc]", "a.c", True),
     ("a.[!bc]", "a.c", False), ("a[[]x", "a[x", True), ("[]]", "]", True),
     ("a.{b,c}.d", "a.c.d", True), ("a.{b,c}.d", "a.x.d", False),
     ("a.{b,c{1,2}}", "a.c2", True), ("a", "a", True), ("a", "a.b", False), ("A", "a", False)],
)  # fmt: skip
def test_globs_match_as_operators_expect(glob: str, name: str, matches: bool) -> None:
    assert (name in select([glob])) is matches


@pytest.mark.parametrize("glob", ["", "[", "a.[b", "{a", "a}", "a}{b", "servers/web1", "{a,b", "[!]", "{{a}"])
def test_bad_globs_are_named(glob: str) -> None:
    with pytest.raises(BadGlob, match="glob"):
        select([glob])


def test_braces_expand_like_a_shell() -> None:
    assert expand_braces("a.{b,c{d,}}.e") == ["a.b.e", "a.cd.e", "a.c.e"]
    with pytest.raises(BadGlob, match="1000"):
        expand_braces("{a,b}" * 12)


def test_a_glob_of_millions_of_alternatives_is_refused_before_they_are_made() -> None:
    tracemalloc.start()
    with pytest.raises(BadGlob, match="1000"):
        expand_braces("{" + "," * 500 + "}" + "{a,b}" * 9 + "x" * 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize(
    ("globs", "prefixes"),
    [(["*"], ("",)), (["servers.web1.*"], ("servers.web1.",)), (["servers.web1"], ("servers.web1/",)),
     (["b.*", "a.x"], ("a.x/", "b.")), (["a.*", "a.b.c"], ("a.",)), (["s.{w1,w2}.cpu"], ("s.w1.cpu/", "s.w2.cpu/")),
     (["a[12].*"], ("a",))],
)  # fmt: skip
def test_literal_prefixes_are_sorted_and_disjoint(globs: list[str], prefixes: tuple[str, ...]) -> None:
    assert select(globs).prefixes == prefixes


def test_thousands_of_globs_are_compared_with_a_million_metrics_in_seconds() -> None:
    globs = [f"servers.web{number}.{end}" for number in range(3000) for end in ("*", "cpu")]
    unmatched = Unmatched(select([*globs, "servers.gone*", "x;tag=1"]))
    began = time.process_time()
    for number in range(3000):
        for metric in range(100):
            unmatched.see(f"servers.web{number}.cpu{metric or ''}")
    assert list(unmatched.left) == ["servers.gone*", "x;tag=1"]
    assert time.process_time() - began < 5
    assert not Unmatched(select(["a"])).left


def test_excluded_metrics_are_not_meant_and_wholly_excluded_folders_not_entered() -> None:
    selection = select(["*"], ["carbon.*", "a.b"])
    assert "carbon.agents.x" not in selection
    assert "a.b" not in selection
    assert "a.b.c" in selection
    assert not selection.may_hold("carbon.")
    assert not selection.may_hold("carbon.agents.")
    assert selection.may_hold("a.")
    assert select(["*"], ["carbon.*.cpu"]).may_hold("carbon.")


TAGS = [
    "disk.used;host=web1;dc=ams",
    "a;t=v.1",
    "cpu;b=2;a=1;b=3",
    "x.y;path=/var/log;k=ü=1",
    "m;name=other;z=%",
    "~n;t= ",
]


@pytest.mark.parametrize("is_hashed", [False, True])
@pytest.mark.parametrize("series", TAGS)
def test_a_tagged_series_selects_the_file_that_carbon_writes(series: str, is_hashed: bool, tmp_path: Path) -> None:
    from carbon.util import TaggedSeries

    path = TaggedSeries.encode(TaggedSeries.parse(series).path, "/", hash_only=is_hashed) + ".wsp"
    name = metric_name(path.encode())
    selection = select([series])
    assert name in selection
    assert any((name + "/").startswith(prefix) for prefix in selection.prefixes)
    assert name not in select(["*"], [series])
    assert name + "x" not in selection


def test_globs_over_the_names_of_tagged_files_are_globs_as_before() -> None:
    name = tagged_metrics("disk.used;host=web1")[0]
    for glob in (name, "_tagged.*;host=web1", "_tagged.*.disk_DOT_used;host=web[12]", "*;host=*"):
        assert name in select([glob]), glob
    assert "a;b" in select(["a;b"])

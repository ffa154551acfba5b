"""Names and keys: every path round-trips, the walk has the store's order, and no key leads out of the tree."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from whisperbackup.repository.catalog import parse_suffix
from whisperbackup.tree.names import ForeignName, encode, is_canonical, metric_name, metric_path
from whisperbackup.tree.selection import select
from whisperbackup.tree.walk import LocalFile, Skipped, walk

ALL = select(["*"])
ordinary = st.sampled_from(
    [b"web1", b"cpu", b"a", b"a-b", b"a b", b"a.b", b"50%", b"%41", b"x;dc=a", b"..", b"...", b"A", b"~", b"+"]
    + ["é".encode(), "日本".encode(), "\U0001f600".encode(), b"\xff\xfe", b"a\x01", "a\ufffe\uffff".encode()]
)
anything = st.binary(min_size=1, max_size=8).filter(
    lambda b: b"/" not in b and b"\0" not in b and b not in (b".", b"..")
)
component = st.one_of(ordinary, anything)
folder = component.filter(lambda b: b not in (b".", b".."))
path = st.builds(lambda folders, stem: b"/".join([*folders, stem + b".wsp"]), st.lists(folder, max_size=3), component)


@given(path)
@example(b"a/.wsp")
@example(b"_tagged/a1b/2c3/disk;dc=a;host=b.wsp")
def test_path_to_name_to_path_is_the_identity(path: bytes) -> None:
    name = metric_name(path)
    assert metric_path(name) == path
    assert is_canonical(name)
    name.encode()  # no surrogates: it can be a key


def test_no_name_holds_what_xml_cannot() -> None:
    name = metric_name("a\ufffe/\uffffb.wsp".encode())
    assert name == "a%EF%BF%BE.%EF%BF%BFb"
    assert is_canonical(name)
    old = "a\ufffe.\uffffb"  # as versions before this one wrote it
    assert not is_canonical(old)
    assert metric_path(old) == metric_path(name)


@given(st.sets(path, max_size=12))
def test_walk_order_is_key_order(paths: set[bytes]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        written = set()
        for path in paths:
            full = os.path.join(os.fsencode(scratch), path)
            try:
                os.makedirs(os.path.dirname(full), exist_ok=True)
                Path(os.fsdecode(full)).touch()
            except OSError:
                continue  # a file where another path needs a folder
            written.add(path)
        found = [item for item in walk(os.fsencode(scratch), ALL) if isinstance(item, LocalFile)]
        keys = [item.key for item in found]
        assert keys == sorted(keys, key=str.encode)
        assert {os.path.relpath(item.path, os.fsencode(scratch)) for item in found} == written
        assert {item.name for item in found} == {metric_name(path) for path in written}


tricky = st.sampled_from([".", "%2E", "%00", "%2F", "%", "a", "%zz", "é", "%C3%A9", "/"])


@given(st.one_of(st.text(max_size=20), st.lists(tricky, max_size=6).map("".join)))
def test_a_name_is_canonical_or_literal_or_foreign_and_never_unsafe(name: str) -> None:
    try:
        path = metric_path(name)
    except ForeignName:
        return
    *folders, file = path.split(b"/")
    assert all(part not in (b"", b".", b"..") for part in folders)
    assert file.endswith(b".wsp")
    assert b"\0" not in path
    if is_canonical(name):
        assert metric_name(path) == name
    else:
        assert path == name.replace(".", "/").encode() + b".wsp"


@pytest.mark.parametrize("name", ["", ".", "..", "a..b", ".a", "%2E%2E.b", "a/b", "a\0b", "a%00.b", "\ud800"])
def test_unsafe_names_are_foreign(name: str) -> None:
    with pytest.raises(ForeignName):
        metric_path(name)


@pytest.mark.parametrize("name", ["a%zz", "a%2f", "a%2Fb", "50%", "%C3%A9", "%41"])
def test_names_of_the_older_tool_are_read_literally(name: str) -> None:
    assert not is_canonical(name)
    assert metric_path(name) == name.encode() + b".wsp"


@pytest.mark.parametrize(
    "suffix",
    ["x.sha1", "2026-11-23T00:51:25+00:00", "2026-13-23T00:51:25+00:00.sha1", "2026-11-23T00:51:25+00:00.wsp",
     "2026-11-23T00:51:25+00:00.wsp.bz2", "2026-11-23T00:51:25Z.sha1", "2026-11-23T00:51:25+01:00.sha1",
     "٢026-11-23T00:51:25+00:00.sha1", "2026-11-23T00:51:25+00:00.sha1\n", "a/2026-11-23T00:51:25+00:00.sha1"],
)  # fmt: skip
def test_other_keys_are_foreign(suffix: str) -> None:
    assert parse_suffix(suffix) is None


def test_ordinary_names_are_unchanged() -> None:
    assert metric_name(b"servers/web-1/cpu_user.wsp") == "servers.web-1.cpu_user"
    assert encode(b"a.b%\n\xff") == "a%2Eb%25%0A%FF"


def test_links_and_strange_files_are_unseen_and_lost_found_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.wsp").touch()
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "alias.wsp").symlink_to(tmp_path / "real/a.wsp")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "lost+found/b.wsp").touch()
    (tmp_path / ".wsp").touch()
    os.mkfifo(tmp_path / "pipe.wsp")
    items = list(walk(os.fsencode(tmp_path), ALL))
    assert [item.key for item in items if isinstance(item, LocalFile)] == ["real.a/"]
    unseen = {item.key: item.reason for item in items if isinstance(item, Skipped)}
    assert set(unseen) == {"linked.", "dangling.", "alias/", "lost+found.", "pipe/"}
    assert "symbolic link" in unseen["linked."]
    assert not any(item.is_error for item in items if isinstance(item, Skipped))


def test_the_prefix_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.wsp").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert [item.key for item in walk(os.fsencode(tmp_path / "link"), ALL)] == ["a/"]


def test_the_walk_enters_only_what_the_globs_can_reach(tmp_path: Path) -> None:
    for name in ("servers/web1/a.wsp", "servers/web2/a.wsp", "carbon/x.wsp", "servers/web1x.wsp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "carbon").chmod(0)  # to enter it would be an error, for anyone but root
    prefix = os.fsencode(tmp_path)
    assert [item.key for item in walk(prefix, select(["servers.web1.*"]))] == ["servers.web1.a/"]
    assert [item.key for item in walk(prefix, select(["servers.{web1,web2}.a"]))] == [
        "servers.web1.a/",
        "servers.web2.a/",
    ]
    assert [item.key for item in walk(prefix, select(["*"], ["carbon.*", "*.web2.*"]))] == [
        "servers.web1.a/",
        "servers.web1x/",
    ]

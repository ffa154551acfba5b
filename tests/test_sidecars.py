"""go-carbon's files of late points beside compressed metrics: not backed up, and never passed over in silence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import Program
from test_opaque import compressed, opaque, put

HASH = "0123456789abcdef" * 4


def sidecar(path: Path) -> Path:
    """The file of late points beside the compressed metric at `path`."""
    beside = path.with_name(path.name + ".ooo")
    beside.write_bytes(b"late points")
    return beside


def warnings(said: str) -> list[str]:
    return [line for line in said.splitlines() if "late points" in line]


def metric(program: Program, name: str) -> Path:
    path = program.prefix / (name.replace(".", "/") + ".wsp")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(compressed())
    return path


def test_a_backup_counts_them_and_names_one_in_one_warning(program: Program) -> None:
    first = sidecar(metric(program, "a.b"))
    (program.prefix / "a" / f".{HASH}.ooo").write_bytes(b"late points of a long name")
    metric(program, "c.d")
    for name in ("x.ooo", f".{HASH[1:]}.ooo", "notes.wsp.ooo.txt"):  # are none
        (program.prefix / "c" / name).touch()
    (program.prefix / "c/folder.wsp.ooo").mkdir()
    (warning,) = warnings(program("backup"))
    assert warning.startswith(
        "WARNING: 2 files of late points of go-carbon beside compressed metrics are not backed up"
    )
    assert str(first) in warning or HASH in warning
    assert len(warnings(program("verify", "disk", "--tree"))) == 1
    assert not [name for name in program.objects() if "ooo" in name]


def test_those_of_metrics_that_are_not_selected_are_not_counted(program: Program) -> None:
    sidecar(metric(program, "a.b"))
    sidecar(metric(program, "a.c"))
    metric(program, "c.d")
    (warning,) = warnings(program("backup", "disk", "-m", "a.b"))
    assert warning.startswith("WARNING: 1 file of late points of go-carbon beside compressed metrics is not backed up")
    assert not warnings(program("backup", "disk", "--exclude", "a.*"))


@pytest.mark.parametrize("content", [compressed(), opaque(1)], ids=["crc", "older"])
@pytest.mark.parametrize("options", [["-n"], [], ["--overwrite"]], ids=["noop", "created", "replaced"])
def test_none_is_restored_beside_one_without_a_warning(program: Program, content: bytes, options: list[str]) -> None:
    put(program, content)
    path = program.prefix / "a/b.wsp"
    path.parent.mkdir()
    beside = sidecar(path)
    if "--overwrite" in options:
        path.write_bytes(b"whatever")
    (warning,) = warnings(program("restore", "disk", *options))
    assert "a.b: go-carbon keeps late points of this metric in b.wsp.ooo beside it" in warning
    assert beside.read_bytes() == b"late points"


def test_a_long_name_is_warned_of_by_any_hidden_one_in_its_folder(program: Program) -> None:
    name = "b" * 250
    put(program, compressed(), metric=name)
    (program.prefix / f".{HASH}.ooo").touch()
    (warning,) = warnings(program("restore"))
    assert f".{HASH}.ooo" in warning


def test_a_broken_one_that_is_moved_aside_tells_both(program: Program) -> None:
    path = metric(program, "a.b")
    put(program, compressed())
    path.write_bytes(compressed()[:500])
    os.utime(path, (1, 1))
    sidecar(path)
    (warning,) = warnings(program("restore"))
    assert "moved aside as b.wsp.broken-" in warning and "b.wsp.ooo" in warning


def test_plain_files_and_those_without_one_are_restored_without_a_warning(program: Program) -> None:
    path = program.write("a.b")
    other = metric(program, "a.c")
    program("backup")
    path.unlink()
    other.unlink()
    sidecar(path)
    assert not warnings(program("restore"))

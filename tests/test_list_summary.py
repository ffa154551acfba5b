"""list --summary, and list on a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import tracemalloc
from pathlib import Path

from conftest import Program, add_point
from test_progress import shown

from whisperbackup.repository.summary import Summaries
from whisperbackup.storage.base import StoredObject
from whisperbackup.tree.selection import select

STAMP = "2026-11-{:02}T00:00:00+00:00"


def two_nodes(program: Program) -> None:
    program.write("a.b")
    program.write("a.c")
    program("backup", "disk", "--storage-path", "node1")
    program("backup", "disk", "--storage-path", "node2/x", "-m", "a.b", "-a", "zst")
    (program.prefix / "a/c.wsp").unlink()
    program("purge", "disk", "--storage-path", "node1")
    (program.store / "node1/a.b" / f"{STAMP.format(1)}.sha1").write_text("0" * 40)
    (program.store / "node1/notes.txt").write_text("somebody's")


def payloads(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.wsp.*"))


def test_each_storage_path_is_counted(program: Program) -> None:
    two_nodes(program)
    one, two = (json.loads(line) for line in program("list", "disk", "--summary", "--json", "-q").splitlines())
    assert (one["storage_path"], one["metrics"], one["backups"], one["missing"], one["orphans"]) == (
        "node1/",
        2,
        2,
        1,
        1,
    )
    assert one["bytes_by_codec"] == {"gz": payloads(program.store / "node1")}
    assert one["oldest"] == min(program.stamps("node1/a.b") + program.stamps("node1/a.c"))
    assert (two["storage_path"], two["metrics"], two["backups"], two["missing"]) == ("node2/x/", 1, 1, 0)
    assert two["bytes_by_codec"] == {"zst": payloads(program.store / "node2")}
    assert two["newest"] == program.stamps("node2/x/a.b")[-1]
    assert (one["increments"], one["last_run"]["command"], one["last_run"]["status"]) == (0, "backup", 0)
    assert one["last_run"]["counters"]["backed_up"] == 2
    assert "skipped 1 unrecognized" in program("list", "disk", "--summary")  # not the records of runs
    header, *rows = program("list", "disk", "--summary", "-q").splitlines()
    assert header.split()[:2] == ["path", "metrics"]
    assert rows[0].split()[:5] == ["node1/", "2", "2", "1", "1"]
    assert rows[1].split()[-2:] == ["zst", str(payloads(program.store / "node2"))]
    below = program("list", "disk", "--summary", "--json", "-q", "--storage-path", "node2").splitlines()
    assert [json.loads(line)["storage_path"] for line in below] == ["node2/x/"]


def test_a_summary_of_a_damaged_store_counts_what_is_whole(program: Program) -> None:
    two_nodes(program)
    (run,) = (program.store / "node1/.runs").iterdir()
    run.write_text('{"format": 1, "files": "many"')
    for payload in (program.store / "node2/x/a.b").glob("*.zst"):
        payload.unlink()
    (increment := program.store / "node2/x/.increments" / STAMP.format(2)).mkdir(parents=True)
    (increment / "manifest.json").write_text("[]")
    printed = program("list", "disk", "--summary", "--json")
    one, two = (json.loads(line) for line in printed.splitlines() if line.startswith("{"))
    assert (one["metrics"], one["backups"], one["last_run"]) == (2, 2, None)
    assert f"node1/.runs/{run.name} is damaged" in printed
    assert (two["metrics"], two["backups"], two["orphans"], two["newest"]) == (1, 0, 1, "")
    table = program("list", "disk", "--summary", "-q").splitlines()
    assert [row.split()[0] for row in table if row.startswith("node")] == ["node1/", "node2/x/"]


def test_on_a_terminal_a_summary_and_runs_fit(program: Program) -> None:
    for number in range(3):
        program.write(f"a.b{number}")
    node = "node-17.dc1"
    for codec in ("gz", "zst", "sz"):
        program("backup", "disk", "--storage-path", node, "-a", codec)
        add_point(program.prefix / "a/b0.wsp")
    program("increment", "disk", "--storage-path", node)
    screen = shown(program, "list", "disk", "--summary", stdout=None).splitlines()
    assert max(map(len, screen)) <= 80
    assert screen[-1].split()[-1] in ("bytes", "kB")
    screen = shown(program, "list", "disk", "--runs", "--storage-path", node, stdout=None).splitlines()
    assert max(map(len, screen)) <= 80
    assert sum(line[0] != " " for line in screen) == 4


def test_what_doctor_left_is_no_metric(program: Program) -> None:
    program.write("a.b")
    program("backup", "disk", "--storage-path", "node1")
    program("doctor", "disk", "--storage-path", "node1", "--no-delete")
    (one,) = (json.loads(line) for line in program("list", "disk", "--summary", "--json").splitlines())
    assert (one["metrics"], one["orphans"]) == (1, 0)


def test_a_summary_of_nothing_says_so(program: Program) -> None:
    two_nodes(program)
    assert "node3" in program("list", "disk", "--summary", "--storage-path", "node3", status=1)
    assert "can't be combined" in program("list", "disk", "--summary", "-c", "2d", status=2)


def test_a_summarys_memory_does_not_follow_the_metrics() -> None:
    def peak(metrics: int) -> int:
        listing = (
            StoredObject(f"n/m{number:07}/{STAMP.format(day)}.{kind}", 40, None)
            for number in range(metrics)
            for day in (1, 2)
            for kind in ("sha1", "wsp.gz")
        )
        tracemalloc.start()
        (summary,) = Summaries(listing, select(["*"])).by_path.values()
        (_, highest), _ = tracemalloc.get_traced_memory(), tracemalloc.stop()
        assert (summary.metrics, summary.backups) == (metrics, 2 * metrics)
        return highest

    peak(100)
    assert peak(4000) < 2 * peak(200) + 100_000


def test_list_on_a_terminal_has_a_header_and_human_sizes(program: Program) -> None:
    two_nodes(program)

    def shown(*words: str) -> list[str]:
        ours, theirs = pty.openpty()
        done = subprocess.run(program.words("list", "disk", "-q", *words), stdout=theirs, check=True)
        assert done.returncode == 0
        os.close(theirs)
        text = os.read(ours, 1 << 16).decode()
        os.close(ours)
        return text.splitlines()

    header, first, *_ = shown("--storage-path", "node2/x")
    assert header.split() == ["stamp", "codec", "size", "metric"]
    assert first.split()[3] in ("bytes", "kB")
    assert first.index("a.b") == header.index("metric")
    assert max(len(line) for line in shown("--summary")) <= 80
    assert "codec" not in program("list", "disk", "-q", "--storage-path", "node2/x")

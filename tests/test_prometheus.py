"""--prometheus: a file that Prometheus' own parser reads."""

from __future__ import annotations

import time
from pathlib import Path

from conftest import Program
from prometheus_client.parser import text_string_to_metric_families

SUCCESS = "whisper_backup_last_success_timestamp_seconds"


def samples(path: Path) -> dict[tuple[str, str], float]:
    """The value of each metric and command; each family has HELP and TYPE, once."""
    families = list(text_string_to_metric_families(path.read_text()))
    assert all(family.documentation and family.type == "gauge" for family in families)
    assert len({family.name for family in families}) == len(families)
    found = [sample for family in families for sample in family.samples]
    return {(sample.name, sample.labels["command"]): sample.value for sample in found}


def test_a_runs_counters_are_written_whole(program: Program) -> None:
    program.write("a.b")
    path = program.home / "metrics.prom"
    program("backup", "disk", "--prometheus", path, "--storage-path", 'n"o\\de')
    found = samples(path)
    assert found["whisper_backup_backed_up", "backup"] == 1
    assert found["whisper_backup_status", "backup"] == 0
    assert abs(found[SUCCESS, "backup"] - time.time()) < 60
    (family, *_) = text_string_to_metric_families(path.read_text())
    assert family.samples[0].labels == {"command": "backup", "bucket": str(program.store), "storage_path": 'n"o\\de/'}
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in program.home.iterdir() if "prom" in entry.name] == ["metrics.prom"]


def test_the_last_success_survives_failed_runs_and_other_commands(program: Program) -> None:
    program.write("a.b")
    path = program.home / "metrics.prom"
    words = ("disk", "--prometheus", path)
    program("backup", *words)
    first = samples(path)[SUCCESS, "backup"]
    path.write_text(path.read_text().replace(str(int(first)), "1700000000"))
    (program.prefix / "a/broken.wsp").write_bytes(b"broken" * 99)
    program("backup", *words, status=3)
    found = samples(path)
    assert (found["whisper_backup_status", "backup"], found["whisper_backup_failed", "backup"]) == (3, 1)
    assert found[SUCCESS, "backup"] == 1700000000
    program("backup", *words, "-p", "/nowhere", status=1)
    program("verify", *words)
    program("backup", *words, "-n", status=3)
    found = samples(path)
    assert (found["whisper_backup_status", "backup"], found[SUCCESS, "backup"]) == (1, 1700000000)
    assert found["whisper_backup_good", "verify"] == 1
    path.write_bytes(b"\xff rubbish\n" + path.read_bytes())
    (program.prefix / "a/broken.wsp").unlink()
    program("backup", *words)
    assert samples(path)[SUCCESS, "backup"] > 1700000000


def test_a_prometheus_file_that_cannot_be_written_is_a_warning(program: Program) -> None:
    program.write("a.b")
    said = program("backup", "disk", "--prometheus", "/nowhere/x.prom")
    assert "WARNING: cannot write the counters to /nowhere/x.prom: No such file or directory" in said
    assert "ends in .prom" in program("backup", "disk", "--prometheus", program.home / "x", status=2)

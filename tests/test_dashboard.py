"""contrib/grafana-dashboard.json, run through graphite-web's render over what a real carbon wrote of real runs."""

from __future__ import annotations

import ctypes.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Program, wait_for
from test_carbon import Carbon

CONTRIB = Path(__file__).parent.parent / "contrib"
PANELS = json.loads((CONTRIB / "grafana-dashboard.json").read_text())["panels"]
NOT_SENT = {"command", "error", "noop"}  # of what --json prints
SLOT = 300  # seconds for a point
WHOLE, BROKEN = "web1", "db-2"
COMMANDS = ("backup", "increment", "prune", "verify", "restore")


def run_as(node: str, program: Program, command: str, receiver: str, status: int) -> dict[str, Any]:
    """Run on a machine of that name; the counters that it reports."""
    words = program.words(command, "disk", "--json", "--carbon", receiver)
    named = ["unshare", "--uts", "sh", "-c", f'hostname {node}.example.org && exec "$@"', "sh"]
    ran = subprocess.run([*named, *words], capture_output=True, text=True, timeout=60)
    assert ran.returncode == status, ran.stderr
    counters: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return counters


def expected(target: str, sent: dict[tuple[str, str], dict[str, Any]]) -> dict[str, float]:
    """What a target shows last, by the series' names; a glob over commands names these, too."""
    (found,) = re.finditer(r"\$prefix\.\$node\.(\*|\{[\w,]+\}|\w+)\.(\w+)[,)]", target)
    commands = set(COMMANDS) if found[1] == "*" else set(found[1].strip("{}").split(","))
    return {
        f"{node}.{command}" if "-3, -2" in target else node: counters[found[2]]
        for (node, command), counters in sent.items()
        if command in commands
    }


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be machines of several names")
@pytest.mark.skipif(not ctypes.util.find_library("cairo"), reason="graphite-web needs libcairo")
def test_every_target_of_the_dashboard_shows_what_real_runs_sent_to_a_real_carbon(tmp_path: Path) -> None:
    carbon = Carbon(tmp_path / "carbon", schema=f"{SLOT}s:7d")
    receiver = f"localhost:{carbon.port}"
    sent = {}
    try:
        for node in (WHOLE, BROKEN):
            (tmp_path / node).mkdir()
            program = Program(tmp_path / node)
            program.write("a.b")
            program.write("a.c")
            if node == BROKEN:
                run_as(node, program, "backup", receiver, 0)
                (program.prefix / "a/bad.wsp").write_bytes(b"no whisper file" * 100)
                os.utime(program.prefix / "a/bad.wsp", (1, 1))  # or it might be in the making
            for command in COMMANDS:
                fails = node == BROKEN and command in ("backup", "increment")
                sent[node, command] = run_as(node, program, command, receiver, 3 * fails)
        # What carbon has not read when it is stopped is lost.
        files = [
            carbon.prefix / "whisper-backup" / node / command / f"{name}.wsp"
            for (node, command), counters in sent.items()
            for name in counters.keys() - NOT_SENT
        ]
        wait_for(lambda: all(file.exists() for file in files))
    finally:
        carbon.stop()
    words = [sys.executable, str(CONTRIB / "draw_dashboard.py"), str(carbon.prefix)]
    ran = subprocess.run(words, capture_output=True, text=True, check=True)
    shown = [json.loads(line) for line in ran.stdout.splitlines()]
    texts = [target["target"] for panel in PANELS for target in panel["targets"]]
    for text, answer in zip(texts, shown, strict=True):
        last = {each["target"]: [v for v, _ in each["datapoints"] if v is not None][-1] for each in answer["series"]}
        if "success_time" not in text:
            assert last == pytest.approx(expected(text, sent)), text
            continue
        broken = last.pop(BROKEN, None)
        assert set(last) == {WHOLE}
        assert abs(last[WHOLE]) < SLOT + 60, text  # negative in the slot in which the run ended
        # It succeeded once with a backup, and never with an increment.
        assert broken is None if ".increment." in text else abs(broken) < SLOT + 60, text
    picture = tmp_path / "dashboard.png"
    subprocess.run([*words, "--png", picture], check=True)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """It names a data source by its variable alone, and no panel lies on another."""
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        assert {each["datasource"]["uid"] for each in (panel, *panel["targets"])} == {"${datasource}"}
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)

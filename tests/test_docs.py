"""docs/reliability.md: every promise in it names the tests that show it, and these tests exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs/reliability.md").read_text()
HEAD = ("| fault | what the tool does | test |", "|---|---|---|")
ROWS = [line for line in TEXT.splitlines() if line.startswith("|") and line not in HEAD]
SOURCES = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
DEFINED = set(re.findall(r"^ *def (test_\w+)\(", SOURCES, re.MULTILINE))


def test_every_test_that_reliability_names_exists() -> None:
    assert set(re.findall(r"\btest_\w+", TEXT)) - DEFINED == set()


def test_every_row_of_reliability_ends_in_the_tests_that_show_it() -> None:
    row = re.compile(r"\| [^|]+ \| [^|]+ \| `test_\w+`(, `test_\w+`)* \|")
    assert [line for line in ROWS if not row.fullmatch(line)] == []


def test_no_fault_has_two_rows() -> None:
    faults = [line.split("|")[1] for line in ROWS]
    assert [fault for fault in faults if faults.count(fault) > 1] == []


def test_the_map_that_opens_the_design_names_every_module_and_room() -> None:
    opening, _, _ = (ROOT / "docs/design.md").read_text().partition("\n\nImports run one way")
    package = ROOT / "whisperbackup"
    top = {path.name for path in package.glob("[!_]*.py")} | {
        f"{path.parent.name}/" for path in package.glob("*/__init__.py")
    }
    assert set(re.findall(r"^      (\w+(?:\.py|/))", opening, re.MULTILINE)) == top
    rooms = re.split(r"^      (\w+)/", opening, flags=re.MULTILINE)[1:]
    for room, text in zip(rooms[::2], rooms[1::2], strict=True):
        modules = {path.stem for path in (package / room).glob("[!_]*.py")}
        assert modules <= set(re.findall(r"\w+", text)), room

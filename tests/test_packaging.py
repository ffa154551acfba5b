"""What is installed is what is written down."""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path

ROOT = Path(__file__).parent.parent


def canonical(requirement: str) -> str:
    requirement = requirement.replace('"', "'")
    return re.sub(r"\s*(?:;\s*|and\s*)extra == '\w+'", "", requirement).replace(" ", "").lower().strip()


def specifiers(requirement: str) -> tuple[str, frozenset[str], str]:
    name, versions, marker = re.fullmatch(r"([\w.-]+)([^;]*)(.*)", requirement).groups()  # type: ignore[union-attr]
    return name, frozenset(versions.strip("()").split(",")), marker


def test_requirements_txt_is_the_extra_all() -> None:
    wanted = requires("whisper-backup") or []
    everything = {canonical(r) for r in wanted if "extra" not in r or "extra == 'all'" in r.replace('"', "'")}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = {canonical(line) for line in lines if line and not line.startswith("#")}
    assert {specifiers(r) for r in listed} == {specifiers(r) for r in everything}

"""The fuzzer's corpus replayed, without the fuzzer: seeds, and every input that once did harm."""

from __future__ import annotations

from pathlib import Path

import pytest
from targets import TARGETS, in_time

CORPUS = Path(__file__).parent / "corpus"
INPUTS = sorted(CORPUS.glob("*/*"))


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_hostile_bytes_do_no_harm_and_cost_no_time(path: Path) -> None:
    in_time(TARGETS[path.parent.name], path.read_bytes())


def test_every_target_has_a_corpus_and_all_of_it_is_small() -> None:
    assert {path.parent.name for path in INPUTS} == set(TARGETS)
    assert sum(path.stat().st_size for path in INPUTS) < 200_000

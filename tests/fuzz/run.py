"""Fuzz by hand, guided by coverage: python tests/fuzz/run.py TARGET SECONDS [libFuzzer's options]

Needs atheris (PyPI) beside what the tests need.  Begins with the corpus; what is new goes to a folder below the
temporary directory, and what fails there too, by name.  `python tests/fuzz/run.py TARGET FILE` runs one input.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]


def main(name: str, what: str, *more: str) -> None:
    import atheris

    # The oracle goes point by point: its branches tell the fuzzer more of a pair of files than fill.py's vectors do.
    with atheris.instrument_imports(include=["whisperbackup", "fill_oracle", "targets", "pieces", "snappy"]):
        from targets import TARGETS, in_time

    found = Path(tempfile.gettempdir()) / "whisper-backup-fuzz" / name
    found.mkdir(parents=True, exist_ok=True)
    corpus = HERE / "corpus" / name
    work = [what] if not what.isdigit() else [f"-max_total_time={what}", str(found), *[str(corpus)] * corpus.is_dir()]
    limits = ["-timeout=900", "-rss_limit_mb=4096", "-max_len=4096", f"-artifact_prefix={found}-"]
    logging.disable()
    os.nice(19)
    atheris.Setup([sys.argv[0], *limits, *more, *work], partial(in_time, TARGETS[name]))
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])

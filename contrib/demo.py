"""What whisper-backup does, shown on a small tree: back up, list, break, restore, compare.  Run by `make demo`."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import whisper

PROGRAM = Path(sys.executable).with_name("whisper-backup")
METRICS = {  # path below the prefix: retentions as (seconds per point, points)
    "servers/web1/cpu.wsp": [(60, 1440)],
    "servers/web1/load.wsp": [(10, 360), (60, 1440)],
    "servers/web2/cpu.wsp": [(60, 1440), (300, 2016), (3600, 8760)],
    "servers/www.example.org/requests.wsp": [(60, 1440)],
    "_tagged/9c2/6f1/disk_DOT_used;datacenter=dc1;host=web1.wsp": [(60, 1440)],
}


def build(prefix: Path) -> None:
    """A small tree, made by the whisper library."""
    now = int(time.time())
    for number, (path, retentions) in enumerate(METRICS.items()):
        file = prefix / path
        file.parent.mkdir(parents=True, exist_ok=True)
        whisper.create(str(file), retentions, xFilesFactor=0.5)
        whisper.update_many(str(file), [(now - 60 * age, number + age / 100) for age in range(600)])


def show(*words: str) -> None:
    """Run a command, showing it and what it prints."""
    print(f"\n$ {shlex.join(words)}", flush=True)
    if words[0] == "whisper-backup":
        # The demo uses none of this machine's own settings and files.
        options = ["--config", os.devnull, "--nolog", "--nolock", "--nostamp", "--nostate"]
        words = (str(PROGRAM), *options, *words[1:])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WHISPER_BACKUP_")}
    subprocess.run(words, check=True, stderr=subprocess.STDOUT, env=environment)


def main() -> None:
    """The demo, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="whisper-backup-demo-") as scratch:
        os.chdir(scratch)
        prefix = Path("whisper")
        build(prefix)
        show("find", "whisper", "-name", "*.wsp")
        show("whisper-backup", "-p", "whisper", "-b", "store", "backup", "disk")
        show("whisper-backup", "-b", "store", "list", "disk")
        shutil.copytree("whisper", "as-it-was")

        print("\n# one metric gets a newer point, one is lost, a whole host is lost")
        whisper.update("whisper/servers/web1/cpu.wsp", 42.0, int(time.time()))
        show("rm", "-r", "whisper/servers/web1/load.wsp", "whisper/servers/web2")
        show("whisper-backup", "-p", "whisper", "-b", "store", "backup", "disk")

        print("\n# everything, as it was first, into an empty prefix")
        first = min(path.name.partition(".")[0] for path in Path("store/servers.web1.cpu").iterdir())
        Path("restored").mkdir()
        show("whisper-backup", "-p", "restored", "-b", "store", "-c", first, "restore", "disk")
        show("diff", "-r", "as-it-was", "restored")
        print("(no difference: restored byte for byte)")


if __name__ == "__main__":
    main()

"""What whisper-backup does, shown on a small tree: backup, increment, damage, restore, and what healing means.

Run by `make demo`.  In colour on a terminal, unless NO_COLOR is set.  It uses none of this machine's settings or files.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import whisper

PROGRAM = Path(sys.executable).with_name("whisper-backup")
MINUTE, HOUR = 60, 3600
RETENTIONS = [(MINUTE, 24 * 60), (5 * MINUTE, 7 * 24 * 12)]  # seconds per point, points
CPU, LOAD, GONE = "servers/web1/cpu.wsp", "servers/web1/load.wsp", "servers/web2/cpu.wsp"
METRICS = (CPU, LOAD, GONE, "_tagged/9c2/6f1/disk_DOT_used;datacenter=dc1;host=web1.wsp")
LOST = 10 * MINUTE
"""What carbon wrote between the last increment and the damage: nothing stored it."""
COLUMNS, ROWS = 72, 8
IS_COLOURED = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
BOLD, RED, GREEN, YELLOW, BLUE = "1", "31", "32", "33", "36"
COLOUR_OF = {"#": BLUE, "o": GREEN, "+": YELLOW}

Points = dict[int, float]


def coloured(code: str, text: str) -> str:
    """The text in a colour, where there are any."""
    return f"\033[{code}m{text}\033[0m" if IS_COLOURED else text


def chapter(text: str) -> None:
    """Begin another part of the story."""
    print("\n" + coloured(BOLD, f"== {text}"), flush=True)


def show(*words: str) -> None:
    """Run whisper-backup, showing the command and what it prints."""
    print(coloured(BLUE, f"$ whisper-backup {' '.join(words)}"), flush=True)
    home = Path.cwd()
    ours = {"PREFIX": "whisper", "STORE": "disk", "BUCKET": "store", "CONFIG": os.devnull}
    ours |= {f"{name}FILE": str(home / name.lower()) for name in ("LOG", "LOCK", "STAMP", "STATE")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WHISPER_BACKUP_")}
    environment |= {f"WHISPER_BACKUP_{name}": value for name, value in ours.items()}
    subprocess.run([PROGRAM, *words], check=True, stderr=subprocess.STDOUT, env=environment)


def value(metric: str, moment: int) -> float:
    """What is measured at a moment: a wave, another one for each metric."""
    return 50 + 35 * math.sin(moment / 1500 + len(metric)) + 12 * math.sin(moment / 400)


def write(metric: str, start: int, end: int) -> None:
    """Write a point a minute, as carbon does; it creates a missing file."""
    path = Path("whisper", metric)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        whisper.create(str(path), RETENTIONS, xFilesFactor=0.5)
    points = [(moment, value(metric, moment)) for moment in range(start, end, MINUTE)]
    whisper.update_many(str(path), points)


def points_of(metric: str, start: int, end: int) -> Points:
    """The points that the file holds from `start` to before `end`."""
    (first, _, step), values = whisper.fetch(str(Path("whisper", metric)), start - MINUTE, end - MINUTE)
    return {first + number * step: found for number, found in enumerate(values) if found is not None}


def picture(points: Points, character: dict[int, str], start: int, end: int) -> None:
    """Draw the points, a column for some minutes, with the character of the last of them."""
    width = (end - start) // COLUMNS
    columns: list[tuple[int, str]] = []
    for left in range(start, end, width):
        held = [moment for moment in range(left, left + width, MINUTE) if moment in points]
        height = round(ROWS * sum(points[moment] for moment in held) / len(held) / 100) if held else 0
        columns.append((max(1, height) if held else 0, character[held[-1]] if held else " "))
    for level in range(ROWS, 0, -1):
        drawn = (coloured(COLOUR_OF[mark], mark) if height >= level else " " for height, mark in columns)
        print(f"{100 if level == ROWS else '':>4} |" + "".join(drawn).rstrip())
    print("   0 +" + "-" * COLUMNS)
    print(f"     {(end - start) // HOUR} hours ago" + "now".rjust(COLUMNS - 10), flush=True)


def main() -> None:
    """The demo, in a temporary folder."""
    now = int(time.time()) // MINUTE * MINUTE
    start, backed_up, incremented = now - 6 * HOUR, now - 2 * HOUR, now - HOUR

    chapter("Night: carbon's tree is backed up for the first time, so a new store begins")
    for metric in METRICS:
        write(metric, start, backed_up)
    print("\n".join(METRICS))
    show("backup")

    chapter("An hour later: an increment, all metrics in one object  (whole, for files as new as the demo's)")
    for metric in METRICS:
        write(metric, backed_up, incremented)
    show("increment", "--lag", "7500")
    show("list", "--runs")

    chapter("Damage: the file of web1's CPU is lost, another one is cut in half, the folder of web2 is gone")
    whole = {metric: points_of(metric, start, incremented) for metric in METRICS}
    os.unlink(Path("whisper", CPU))
    load = Path("whisper", LOAD)
    os.truncate(load, load.stat().st_size // 2)
    shutil.rmtree(Path("whisper", GONE).parent)
    print("carbon creates the first one again, and writes on:")
    write(CPU, incremented + LOST, now)
    fresh = points_of(CPU, start, now)
    print(f"\n{CPU} before the restore:\n")
    picture(fresh, dict.fromkeys(fresh, "#"), start, now)

    chapter("Restore, into the live tree")
    show("restore")
    healed = points_of(CPU, start, now)
    print(f"\n{CPU} after the restore:\n")
    source = {moment: "#" if moment in fresh else "o" if moment < backed_up else "+" for moment in healed}
    picture(healed, source, start, now)
    origins = {"#": "carbon's newer points: as they were", "o": "from the backup", "+": "from the increment"}
    for mark, origin in origins.items():
        print(f"   {coloured(COLOUR_OF[mark], mark)}  {origin}")
    print(f"      blank: {LOST // MINUTE} minutes after the last increment, which nothing had stored")

    chapter("Is everything back?")
    is_good = healed == whole[CPU] | fresh
    for metric in METRICS:
        back = points_of(metric, start, incremented)
        is_good = is_good and back == whole[metric]
        print(f"{len(back)} of {len(whole[metric])} points  {metric}")
    show("verify")
    print(coloured(GREEN, "Every stored point is back.") if is_good else coloured(RED, "Points are missing!"))
    if not is_good:
        sys.exit(1)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="whisper-backup-demo-") as scratch:
        os.chdir(scratch)
        main()
        os.chdir("/")

"""Run every target of grafana-dashboard.json through graphite-web's render; print the series, or draw a picture.

    draw_dashboard.py FOLDER                 print a line of JSON for each target: its panel and its series
    draw_dashboard.py FOLDER --png FILE      draw all panels into one picture
    draw_dashboard.py --example              draw docs/dashboard.png, from runs that are made up

FOLDER holds whisper files of a Graphite that gets the counters.  It needs graphite-web (the `test` extra) and libcairo.
"""

from __future__ import annotations

import io
import json
import os
import random
import sys
import tempfile
import time
import types
import urllib.parse
import wsgiref.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DASHBOARD = ROOT / "contrib/grafana-dashboard.json"
PICTURE = ROOT / "docs/dashboard.png"
DAY = 86400
SPAN = 7 * DAY
SCALE = 30  # pixels for a unit of Grafana's grid
LOOK = {
    "bgcolor": "white",
    "fgcolor": "black",
    "majorGridLineColor": "#dddddd",
    "minorGridLineColor": "#eeeeee",
    "fontSize": 9,
    "lineMode": "connected",
    "lineWidth": 2,
}
SETTINGS = "graphite_settings_of_the_dashboard"


class Target(NamedTuple):
    """One target of a panel, its variables replaced; `most` is where the axis ends, if that is set."""

    panel: str
    target: str
    unit: str
    most: float | None
    grid: dict[str, int]


def targets(prefix: str = "whisper-backup", node: str = "*") -> Iterator[Target]:
    """All targets of the dashboard."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        field = panel["fieldConfig"]["defaults"]
        for target in panel["targets"]:
            text = target["target"].replace("$prefix", prefix).replace("$node", node)
            yield Target(panel["title"], text, field["unit"], field.get("max"), panel["gridPos"])


class Graphite:
    """graphite-web in this process, over the whisper files below `folder`."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        settings = types.ModuleType(SETTINGS)
        settings.__dict__.update(
            SECRET_KEY="none",
            WHISPER_DIR=str(folder),
            STORAGE_DIR=str(scratch),
            LOG_DIR=str(scratch),
            INDEX_FILE=str(scratch / "index"),
            CARBONLINK_HOSTS=[],
            DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(scratch / "graphite.db")}},
        )
        sys.modules[SETTINGS] = settings
        os.environ["GRAPHITE_SETTINGS_MODULE"] = SETTINGS
        from graphite.wsgi import application

        self._application = application

    def render(self, **query: Any) -> bytes:
        """The body of the answer of /render.  Raises RuntimeError for another status than 200."""
        environment = {"PATH_INFO": "/render/", "QUERY_STRING": urllib.parse.urlencode(query, doseq=True)}
        wsgiref.util.setup_testing_defaults(environment)
        status = ""

        def start(line: str, *_: object) -> None:
            nonlocal status
            status = line

        body = b"".join(self._application(environment, start))
        if not status.startswith("200"):
            raise RuntimeError(f"{query['target']}: {status}: {body.decode()}")
        return body


def draw(graphite: Graphite, picture: Path, until: int) -> None:
    """Draw all panels, each by graphite-web, into one picture."""
    import cairocffi

    found = list(targets())
    height = max(each.grid["y"] + each.grid["h"] for each in found)
    surface = cairocffi.ImageSurface(cairocffi.FORMAT_RGB24, 24 * SCALE, height * SCALE)
    context = cairocffi.Context(surface)
    for each in found:
        png = graphite.render(
            target=each.target,
            title=each.panel,
            width=each.grid["w"] * SCALE,
            height=each.grid["h"] * SCALE,
            until=until,
            **{"from": until - SPAN, "format": "png"},
            **({"yMax": each.most} if each.most else {}),
            yMin=0,
            yUnitSystem="sec" if each.unit == "s" else "si",
            **LOOK,
        )
        context.set_source_surface(
            cairocffi.ImageSurface.create_from_png(io.BytesIO(png)), each.grid["x"] * SCALE, each.grid["y"] * SCALE
        )
        context.paint()
    surface.write_to_png(str(picture))


def make_up(folder: Path, now: int) -> None:
    """A week of four nodes, one of which fails since three days; the lines are those that a run sends."""
    import whisper

    from whisperbackup.report import carbon

    chance = random.Random(7)
    values: dict[str, list[tuple[int, float]]] = {}
    for number in range(4):
        node = f"whisper-backup.node{number + 1}"
        size = chance.uniform(0.6, 1.4)
        for when in range(now - SPAN - 2 * DAY, now, 3600):
            has_failed = number == 2 and when > now - 3 * DAY + DAY // 2
            runs = [("increment", increment(chance, size, has_failed))]
            if when % DAY < 3600:
                runs.append(("backup", backup(chance, size, has_failed)))
            for command, counters in runs:
                failed = has_failed and command == "backup"
                ended = when + 60 * number + int(counters["seconds"])
                for line in carbon.lines(f"{node}.{command}", counters, 3 * failed, not failed, ended).splitlines():
                    name, value, moment = line.split()
                    values.setdefault(name, []).append((int(moment), float(value)))
    for name, points in values.items():
        path = folder / (name.replace(".", "/") + ".wsp")
        path.parent.mkdir(parents=True, exist_ok=True)
        whisper.create(str(path), [(300, 2 * SPAN // 300)])
        whisper.update_many(str(path), [point for point in points if point[0] <= now])


def backup(chance: random.Random, size: float, has_failed: bool) -> dict[str, float]:
    """The counters of a nightly run over some 100,000 metrics."""
    read = 8e9 * size * chance.uniform(0.95, 1.05)
    return {
        "seconds": read / 3e7,
        "failed": 4 * has_failed,
        "read_bytes": int(read),
        "stored_bytes": int(read / 9),
        "examined": int(1e5 * size),
        "backed_up": int(9e4 * size),
        "missing": 100 + chance.randrange(20),
    }


def increment(chance: random.Random, size: float, has_failed: bool) -> dict[str, float]:
    """The counters of an hourly run."""
    points = 6e6 * size * chance.uniform(0.98, 1.02)
    return {
        "seconds": points / 4e5,
        "failed": 0,
        "points": int(points),
        "stored_bytes": int(points * 9),
        "p99_seconds_late": 40 + chance.randrange(12),
        "owed_to_the_next_increment": 4 * has_failed,
    }


def main(words: list[str]) -> None:
    """Run the command line above."""
    with tempfile.TemporaryDirectory() as scratch:
        if words == ["--example"]:
            now = int(time.time()) // DAY * DAY + 7 * 3600
            folder, picture = Path(scratch) / "whisper", str(PICTURE)
            make_up(folder, now)
        elif len(words) == 1 or (len(words) == 3 and words[1] == "--png"):
            now, folder, picture = int(time.time()), Path(words[0]), words[2] if len(words) == 3 else ""
        else:
            sys.exit(__doc__)
        graphite = Graphite(folder, Path(scratch))
        if picture:
            draw(graphite, Path(picture), now)
            return
        for each in targets():
            answer = graphite.render(target=each.target, until=now, format="json", **{"from": now - SPAN})
            print(json.dumps({"panel": each.panel, "target": each.target, "series": json.loads(answer)}))


if __name__ == "__main__":
    main(sys.argv[1:])

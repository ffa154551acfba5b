#!/usr/bin/env python3
"""Print an increment as lines for carbon: read-increment.py [--all] manifest.json 000001.wbi ... | nc -q1 carbon 2003

Without --all: the points of the finest archives, of which carbon makes the others.  The format: docs/format.md.
"""

import hashlib
import io
import json
import pathlib
import struct
import sys

import zstandard


def points(record, is_all):
    key_size, _, count = struct.unpack_from("<HBB", record)
    infos, rings = 36 + key_size, 36 + key_size + 12 * count
    steps = [step for _, step, _ in struct.iter_unpack(">3L", record[infos:rings])]
    numbers = [number for _, number in struct.iter_unpack("<2L", record[rings : rings + 8 * count])]
    runs, total = rings + 8 * count, sum(numbers)
    of_runs = [step for step, number in zip(steps, numbers, strict=True) for _ in range(number)]
    values = struct.iter_unpack("<d", record[runs + 8 * total :])
    for number, (first, length) in enumerate(struct.iter_unpack("<2L", record[runs : runs + 8 * total])):
        for time in range(first, first + length * of_runs[number], of_runs[number]):
            value = next(values)[0]
            if is_all or number < numbers[0]:
                yield f"{record[20 : 20 + key_size - 1].decode()} {value!r} {time}\n"


is_all = sys.argv[1] == "--all"
names = sys.argv[1 + is_all :]
sums = {name: sha256 for name, _, sha256, _ in json.loads(pathlib.Path(names[0]).read_bytes())["parts"]}
for name in names[1:]:
    if hashlib.sha256(content := pathlib.Path(name).read_bytes()).hexdigest() != sums[name.split("/")[-1]]:
        sys.exit(f"{name} is damaged: its SHA-256 is not the manifest's")
    stream = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content), read_across_frames=True)
    while size := stream.read(4):
        sys.stdout.writelines(points(stream.read(int.from_bytes(size, "little")), is_all))

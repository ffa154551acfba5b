"""list: the metrics in the store and their backups."""

from __future__ import annotations

import json
import sys

from whisperbackup.catalog import Catalog, newest_at
from whisperbackup.commands import NOTHING_MATCHES, open_store
from whisperbackup.options import Options
from whisperbackup.progress import shown_size
from whisperbackup.util import CannotRun


def run(options: Options) -> int:
    """Print one line a backup, or with --json one object a metric; with -c only what restore would take."""
    metrics = count = total = 0
    with open_store(options) as driver:
        catalog = Catalog(driver, options.storage_path, options.selection)
        for metric in catalog:
            backups = list(metric.backups)
            if options.date is not None:
                backups = newest_at(metric, options.date)[:1]
            if not backups:
                continue
            lines = [(backup.stamp, payload.codec, payload.size) for backup in backups for payload in backup.payloads]
            if options.json:
                shown = [{"stamp": stamp, "codec": codec, "size": size} for stamp, codec, size in lines]
                print(json.dumps({"metric": metric.name, "backups": shown}, ensure_ascii=False))
            else:
                for stamp, codec, size in lines:
                    print(f"{stamp}  {codec:<3}  {size:>10}  {metric.name}")
            metrics += 1
            count += len(backups)
            total += sum(size for _, _, size in lines)
        sys.stdout.flush()
        catalog.report_foreign()
    if not metrics and options.selection.wanted is not None:
        raise CannotRun(NOTHING_MATCHES.format(bucket=options.bucket))
    if not options.json:
        print(f"{metrics} metrics, {count} backups, {shown_size(total)}")
    return 0

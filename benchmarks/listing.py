"""How fast the S3 driver reads a listing: canned pages of 1,000 keys through the real client, beside botocore alone.

Run by `make bench`.
"""

from __future__ import annotations

import http.server
import os
import statistics
import threading
import time
from collections.abc import Callable
from urllib.parse import parse_qs, quote, urlsplit

import boto3
from botocore.config import Config

from whisperbackup.storage import s3

PAGES = 50
KEYS = 1000
SECONDS = "<LastModified>2026-11-23T00:00:00.000Z</LastModified>"


def page(number: int) -> bytes:
    """What S3 answers to the request for a page: five backups of each of a hundred metrics."""
    contents = ""
    for metric in range(number * 100, number * 100 + 100):
        for day in range(1, 6):
            for end, size in (("sha1", 40), ("wsp.gz", 81234)):
                key = quote(
                    f"servers.host{metric // 50:05}.plugin.metric-{metric:06}/2026-11-{day:02}T00:00:00+00:00.{end}"
                )
                contents += f"<Contents><Key>{key}</Key>{SECONDS}<ETag>&quot;{metric:032x}&quot;</ETag>"
                contents += f"<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
    more = f"<NextContinuationToken>{number + 1}</NextContinuationToken>" if number + 1 < PAGES else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>b</Name><Prefix></Prefix><KeyCount>{KEYS}</KeyCount><MaxKeys>1000</MaxKeys><EncodingType>url</EncodingType>"
        f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{more}{contents}</ListBucketResult>"
    ).encode()


class Canned(http.server.BaseHTTPRequestHandler):
    """Answers every listing with the next page."""

    protocol_version = "HTTP/1.1"
    pages: tuple[bytes, ...] = ()

    def do_GET(self) -> None:
        """One page."""
        token = parse_qs(urlsplit(self.path).query).get("continuation-token", ["0"])[0]
        body = self.pages[int(token)]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/xml")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def cpu_seconds(work: Callable[[], int]) -> float:
    """CPU seconds of this thread for the listing of all pages."""
    began = time.thread_time()
    if work() != PAGES * KEYS:
        raise SystemExit("the listing is not whole")
    return time.thread_time() - began


def main() -> None:
    """Serve, list, print the table."""
    Canned.pages = tuple(page(number) for number in range(PAGES))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Canned)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    session = boto3.Session("canned", "cannedcanned")
    plain = session.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", config=Config(s3={"addressing_style": "path"})
    )
    os.environ.update(AWS_ACCESS_KEY_ID="canned", AWS_SECRET_ACCESS_KEY="cannedcanned")  # where the driver looks
    driver = s3.open("b", False, [f"endpoint={endpoint}"])

    def botocore() -> int:
        pages = plain.get_paginator("list_objects_v2").paginate(Bucket="b")
        return sum(len(found["Contents"]) for found in pages)

    def ours() -> int:
        return sum(1 for _ in driver.list(""))

    rounds = [(cpu_seconds(botocore), cpu_seconds(ours)) for _ in range(5)]
    theirs, mine = (PAGES * KEYS / statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"\n| {PAGES} canned pages of {KEYS} keys | objects a CPU second | ratio |\n|---|---|---|")
    print(f"| botocore | {theirs:,.0f} | 1.0 |\n| the S3 driver | {mine:,.0f} | {mine / theirs:.1f} |")


if __name__ == "__main__":
    main()

"""Puts and gets of S3 over `wire`, signed with AWS's Signature Version 4.

Everything that AWS's own libraries know stays theirs: where the bucket is and how it is addressed, the credentials and
their renewal, the certificates.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from botocore.exceptions import BotoCoreError

from whisperbackup.storage import wire
from whisperbackup.storage.wire import Answer, Failed, Wire

KEY = "key"
EMPTY = hashlib.sha256().hexdigest()


def _quoted(key: str) -> str:
    """Quoted in two parts: the last one of a key mostly repeats that of the key before, and is slow to quote."""
    folder, slash, name = key.rpartition("/")
    return quote(folder, safe="/~") + slash + _quoted_part(name)


@functools.lru_cache(1024)
def _quoted_part(name: str) -> str:
    return quote(name, safe="~")


class Signer:
    """Signs the headers of requests with one key pair; the derived key is that of a day."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._derived: tuple[tuple[str, str], bytes] | None = None

    def sign(
        self, method: str, path: str, query: str, headers: Mapping[str, str], credentials: Any, now: time.struct_time
    ) -> dict[str, str]:
        """`headers`, with their signature; among them must be host and x-amz-content-sha256, all in lower case."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", now)
        signed = {**headers, "x-amz-date": stamp}
        if credentials.token:
            signed["x-amz-security-token"] = credentials.token
        names = sorted(signed)
        listed = ";".join(names)
        lines = "".join(f"{name}:{signed[name]}\n" for name in names)
        canonical = f"{method}\n{path}\n{query}\n{lines}\n{listed}\n{headers['x-amz-content-sha256']}"
        scope = f"{stamp[:8]}/{self._region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(self._key(credentials.secret_key, stamp[:8]), text.encode(), "sha256").hex()
        signed["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, "
            f"SignedHeaders={listed}, Signature={signature}"
        )
        return signed

    def _key(self, secret: str, day: str) -> bytes:
        derived = self._derived  # one read: other threads may replace it
        if derived is None or derived[0] != (secret, day):
            key = f"AWS4{secret}".encode()
            for part in (day, self._region, "s3", "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._derived = derived = ((secret, day), key)
        return derived[1]


class S3Wire:
    """The objects of one bucket."""

    def __init__(self, connections: Wire, path: str, region: str, credentials: Any) -> None:
        self.wire = connections
        self._path = path
        self._signer = Signer(region)
        self._credentials = credentials

    def put(self, key: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Raises Failed."""
        return self._ask("PUT", key, hashlib.sha256(body).hexdigest(), headers, body)

    def get(self, key: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Raises Failed."""
        return self._ask("GET", key, EMPTY, headers or {}, b"")

    def list(self, query: Mapping[str, str]) -> Answer:
        """Raises Failed."""
        return self._ask("GET", None, EMPTY, {}, b"", query)

    def _ask(
        self,
        method: str,
        key: str | None,
        digest: str,
        more: Mapping[str, str],
        body: bytes,
        query: Mapping[str, str] | None = None,
    ) -> Answer:
        try:
            path = (self._path.rstrip("/") or "/") if key is None else self._path + _quoted(key)
            words = "&".join(f"{name}={quote(value, safe='')}" for name, value in sorted((query or {}).items()))
            frozen = self._credentials.get_frozen_credentials()
        except (ValueError, BotoCoreError, OSError) as error:
            raise Failed(str(error)) from error
        headers = {"host": self.wire.host, "x-amz-content-sha256": digest, **more}
        signed = self._signer.sign(method, path, words, headers, frozen, time.gmtime())
        signed["user-agent"] = wire.AGENT  # not signed: a proxy may change it
        return self.wire.ask(method, f"{path}?{words}" if words else path, signed, body)


def connect(session: Any, client: Any, bucket: str) -> S3Wire | None:
    """The cheap way to `bucket`; None where only boto3 knows the way.  Makes no request to S3."""
    if bucket.startswith("arn:") or bucket.endswith("--x-s3") or client.meta.config.signature_version != "s3v4":
        return None  # these have other signatures
    try:
        credentials = session.get_credentials()
        if credentials is None:
            return None
        # Where the bucket is, by AWS's own rules: addressing, regions, dual stack, acceleration, FIPS.
        client.meta.events.register_first("choose-signer.s3.HeadObject", _sign_with_version_4)
        url = urlsplit(client.generate_presigned_url("head_object", Params={"Bucket": bucket, "Key": KEY}))
        region = parse_qs(url.query)["X-Amz-Credential"][0].split("/")[-3]
        named = session._session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
        connections = wire.open_wire(f"{url.scheme}://{url.netloc}", named)
        if connections is None or not url.path.endswith(f"/{KEY}"):
            return None
    except (BotoCoreError, OSError, ValueError, LookupError):
        return None  # boto3 meets the same trouble, and reports it
    return S3Wire(connections, url.path.removesuffix(KEY), region, credentials)


def _sign_with_version_4(**_: object) -> str:
    return "s3v4-query"

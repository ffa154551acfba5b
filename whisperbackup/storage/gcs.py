"""Google Cloud Storage, through google-cloud-storage, puts and gets over `wire` where they can.

Storage arguments: a bare location or `region=` for a new bucket (us), `project=` for the project that owns it, and
`storage_class=`.  Credentials are the application default credentials.  With STORAGE_EMULATOR_HOST set none are used.
"""

from __future__ import annotations

import base64
import contextlib
import email
import functools
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from email.message import Message
from typing import Any, cast
from urllib.parse import urlsplit

import google.auth
import google.auth.transport.requests
import google_crc32c
import requests
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY
from requests import RequestException
from requests.adapters import HTTPAdapter
from requests.exceptions import SSLError
from urllib3.exceptions import HTTPError

from whisperbackup.storage import base, deadline, ranges, wire
from whisperbackup.storage.base import (
    FIRST,
    AccessDenied,
    Exists,
    NotDeleted,
    NotFound,
    StorageError,
    StoredObject,
    Unavailable,
    UsageError,
    batches,
    holds,
    keyword_arguments,
    silence,
)
from whisperbackup.storage.wire import Answer, Failed, Wire

TYPE = "application/octet-stream"
RANGE = re.compile(r"bytes=(\d+)-(\d+)")
STATUS = re.compile(r"HTTP/\S+ (\d{3})\b")
DELETE_AT_ONCE = 100
"""Calls in one batch: the service's limit."""
NOT_GCS = (
    "answers 200 with something that is not Google Cloud Storage: check STORAGE_EMULATOR_HOST, any proxy, and "
    "whether the server shows a maintenance page"
)
RETRY_POLICY: dict[str, Any] = {
    # The timeouts in seconds for connecting and for reading.  No attempt begins more than 40 seconds after the first,
    # so a call to a silent store ends in about a minute.  All calls here can be repeated: writes are atomic.
    "timeout": (5, 25),
    "retry": DEFAULT_RETRY.with_delay(initial=0.5, maximum=8, multiplier=2).with_timeout(40),
}


class RangeIgnored(Exception):
    """The service answered a request for a part of an object with the whole."""


def open(bucket: str, create: bool, arguments: list[str]) -> GoogleCloudStorage:
    """A driver for `bucket`; opening makes a request only with `create`."""
    given = keyword_arguments(arguments, "region", ("region", "project", "storage_class"))
    if "/" in bucket:
        raise UsageError(f"bucket '{bucket}': a bucket's name contains no slash; set a path with --storage-path")
    # These libraries log requests, and a request for a token contains credentials.
    silence("google", "urllib3", "requests")
    deadline.install()
    client = _client(given.get("project"))
    try:
        driver = GoogleCloudStorage(client, bucket, given.get("storage_class"))
    except ValueError as error:
        raise UsageError(f"bucket '{bucket}': {error}") from error
    if create:
        driver.create_if_absent(given.get("region", "us"))
    return driver


def _client(project: str | None) -> storage.Client:
    try:
        if os.environ.get("STORAGE_EMULATOR_HOST"):
            client = storage.Client(project=project or "emulator")
        else:
            credentials, default = google.auth.default(storage.Client.SCOPE)
            client = storage.Client(project=project or default, credentials=credentials)
    except auth.DefaultCredentialsError as error:
        raise AccessDenied(
            "Google Cloud Storage: no usable credentials; run `gcloud auth application-default login`, name a service "
            "account's key file in GOOGLE_APPLICATION_CREDENTIALS, or give this machine a service account"
        ) from error
    # Since 3.17 the client also requests the bucket's metadata, for traces.  This tool does not use them, and the
    # request needs another permission.
    client._bucket_metadata_cache = None
    # With the pool's default of 10 connections, more --threads would discard connections.
    for scheme in ("https://", "http://"):
        client._http.mount(scheme, HTTPAdapter(pool_maxsize=64))
    client._http.hooks["response"].append(_check_answer)
    return client


def _check_answer(response: requests.Response, **_: object) -> None:
    """Raise Unavailable for a 200 response that is not the service's; the client accepts any 200."""
    url = urlsplit(response.url)
    if asked := RANGE.fullmatch(str(response.request.headers.get("Range", ""))):
        _check_part(response, url.netloc, int(asked[1]), int(asked[2]))
    elif response.status_code == ranges.PARTIAL and "Range" not in response.request.headers:
        raise Unavailable(f"{url.netloc} answers with a part of it instead of the whole; check any proxy")
    if response.status_code != 200:
        return
    match url.path.rpartition("/")[2], response.request.method:
        case _, "GET" if "alt=media" in url.query:
            is_right = "x-goog-hash" in response.headers
        case _, "POST" if url.path.startswith("/batch/"):
            is_right = response.headers.get("content-type", "").startswith("multipart/mixed")
        case "o", "GET":
            is_right = _kind_of(response) == "storage#objects"
        case "o", "POST":
            is_right = _kind_of(response) == "storage#object"
        case _:
            is_right = True
    if not is_right:
        raise Unavailable(f"{url.netloc} {NOT_GCS}")


def _check_part(response: requests.Response, host: str, first: int, last: int) -> None:
    """Check the answer to a request for a part of an object: the client accepts the whole object, or any part."""
    if response.status_code == 200:
        raise RangeIgnored
    if response.status_code != ranges.PARTIAL:
        return
    try:
        size = ranges.size_of(response.headers.get("Content-Range"), first, last + 1 - first)
        if int(response.headers.get("Content-Length", size)) != size:
            raise ranges.WrongRange
    except ValueError:
        raise Unavailable(f"{host} answers with another part of it than the requested one; check any proxy") from None


def _kind_of(response: requests.Response) -> object:
    return _object_in(response.content).get("kind")


def _object_in(body: bytes) -> dict[str, Any]:
    """The JSON object in a response; empty if there is none."""
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _is_stored(told: Mapping[str, Any], key: str, body: bytes) -> bool:
    """Whether a put's response proves that `body` is stored; an object under a customer's key has no MD5."""
    name = "md5Hash" if told.get("md5Hash") else "crc32c"
    is_same = told.get("name") == key and str(told.get("size")) == str(len(body))
    return is_same and told.get(name) == _checksum(name, body)


def _checksum(name: str, body: bytes) -> str:
    is_md5 = name.startswith("md5")
    digest = (
        hashlib.md5(body, usedforsecurity=False).digest() if is_md5 else google_crc32c.value(body).to_bytes(4, "big")
    )
    return base64.b64encode(digest).decode()


def _is_received(answer: Answer) -> bool:
    """Whether an object's content arrived as it is stored."""
    told = dict(word.strip().partition("=")[::2] for word in answer.headers.get("x-goog-hash", "").split(","))
    name = "md5" if "md5" in told else "crc32c"
    return answer.status == 200 and told.get(name) == _checksum(name, answer.body)


def _within_the_call() -> dict[str, Any]:
    """The retry policy, for what is left of the time after a cheap attempt."""
    retry, gone = RETRY_POLICY["retry"], time.monotonic() - wire.began()
    return {**RETRY_POLICY, "retry": retry.with_timeout(max(0.1, retry.timeout - gone))} if gone > 1 else RETRY_POLICY


def _message(text: str) -> str:
    """The service's message in one response of a batch."""
    _, brace, body = text.partition("{")
    try:
        return str(json.loads(brace + body[: body.rfind("}") + 1])["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""


def _text_of(part: object) -> str:
    return str(part.get_payload()) if isinstance(part, Message) else ""


class GoogleCloudStorage:
    """One bucket; threads share one client."""

    threads = 16
    is_ranged = True

    def __init__(self, client: storage.Client, bucket: str, storage_class: str | None) -> None:
        self._client = client
        self._bucket = client.bucket(bucket)
        self._storage_class = storage_class

    def create_if_absent(self, location: str) -> None:
        try:
            self._look_into()
            return
        except NotFound:
            pass
        with self._errors("create"):
            try:
                self._client.create_bucket(self._bucket, location=location, **RETRY_POLICY)
            except api.Conflict as error:
                try:
                    self._look_into()  # another run may have created it meanwhile
                except StorageError:
                    raise AccessDenied(
                        f"bucket '{self._bucket.name}' belongs to another account; name another bucket with -b"
                    ) from error
            except ValueError as error:  # no project is set
                raise StorageError(
                    f"cannot create bucket '{self._bucket.name}': no project is set; name one with project="
                ) from error

    def _look_into(self) -> None:
        # Every command needs the permission to list; reading a bucket's metadata needs another one.
        with self._errors("open"):
            next(iter(self._client.list_blobs(self._bucket, max_results=1, **RETRY_POLICY)), None)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        return self.list_range(prefix, "", "")

    def list_range(self, prefix: str, after: str, until: str) -> Iterator[StoredObject]:
        fields = "kind,nextPageToken,items(name,size,md5Hash)"
        # The service's range includes its start and excludes its end.
        start, end = (key + FIRST if key else None for key in (after, until))
        pages = self._client.list_blobs(
            self._bucket, prefix=prefix, fields=fields, start_offset=start, end_offset=end, **RETRY_POLICY
        ).pages
        empty = 0
        while True:
            with self._errors("list"):
                page = next(pages, None)
                blobs = list(page or ())
            if page is None:
                return
            empty = 0 if blobs else empty + 1
            if empty > base.EMPTY_PAGES:
                raise StorageError(
                    f"cannot list bucket '{self._bucket.name}': the service sends empty pages without end"
                )
            for blob in blobs:
                # A composed object has no MD5.
                md5 = base64.b64decode(blob.md5_hash).hex() if blob.md5_hash else None
                yield StoredObject(blob.name, blob.size, md5)

    def get(self, key: str) -> bytes:
        blob = self._bucket.blob(key)
        with self._attempt("GET", f"/download/storage/v1{blob.path}?alt=media") as answer:
            if answer and _is_received(answer):
                return answer.body
            with self._errors("read", key):
                # Raw: the stored bytes, whatever Content-Encoding the object has.
                return bytes(blob.download_as_bytes(raw_download=True, **_within_the_call()))

    @functools.cached_property
    def _wire(self) -> Wire | None:
        """The cheap way to the service; None where only its own client knows the way."""
        base = self._client._connection.API_BASE_URL
        named = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
        return None if getattr(self._client._http, "is_mtls", False) else wire.open_wire(base, named)

    def _attempt(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> contextlib.AbstractContextManager[Answer | None]:
        """The answer to one cheap attempt, if any; the block asks through the client where it is no good."""
        way = self._wire
        if way is None:
            return contextlib.nullcontext()
        complete = {"host": way.host, "user-agent": wire.AGENT, "accept-encoding": "gzip", **(headers or {})}

        def ask() -> Answer:
            try:
                renew = google.auth.transport.requests.Request()
                self._client._credentials.before_request(renew, method, f"https://{way.host}{target}", complete)
            except auth.GoogleAuthError as error:
                raise Failed(str(error)) from error
            return way.ask(method, way.path + target, complete, body)

        return wire.attempt(way, ask)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        try:
            with self._errors("read", key):
                blob, end = self._bucket.blob(key), offset + length - 1
                return bytes(blob.download_as_bytes(start=offset, end=end, raw_download=True, **RETRY_POLICY))
        except (StorageError, RangeIgnored) as error:
            if not isinstance(error, RangeIgnored) and not isinstance(error.__cause__, api.RequestRangeNotSatisfiable):
                raise
            return self.get(key)[offset : offset + length]

    def modified(self, key: str) -> float | None:
        blob = self._bucket.blob(key)
        with self._errors("read", key):
            blob.reload(**RETRY_POLICY)
        try:
            return blob.updated.timestamp() if blob.updated else None
        except (TypeError, ValueError):
            return None

    def put(self, key: str, body: bytes) -> None:
        self._put(key, body, {})

    def create_all(self, objects: Sequence[tuple[str, bytes]]) -> bool:
        for key, body in objects:
            try:
                self._put(key, body, {"if_generation_match": 0})
            except StorageError as error:
                if not isinstance(error.__cause__, api.PreconditionFailed):
                    raise
                if not holds(self, key, body):
                    raise Exists(key) from None
        return True

    def _put(self, key: str, body: bytes, condition: dict[str, int]) -> None:
        blob = self._bucket.blob(key)
        if self._storage_class:
            blob.storage_class = self._storage_class
        described = json.dumps({"name": key} | ({"storageClass": self._storage_class} if self._storage_class else {}))
        parts = {"application/json; charset=UTF-8": described.encode(), TYPE: body}
        boundary = secrets.token_hex(16)
        form = (
            b"".join(
                b"--%b\r\nContent-Type: %b\r\n\r\n%b\r\n" % (boundary.encode(), t.encode(), part)
                for t, part in parts.items()
            )
            + b"--%b--\r\n" % boundary.encode()
        )
        target = f"/upload/storage/v1{self._bucket.path}/o?uploadType=multipart"
        target += "&ifGenerationMatch=0" if condition else ""
        headers = {"content-type": f"multipart/related; boundary={boundary}"}
        with self._attempt("POST", target, headers, form) as answer:
            if answer and answer.status == 200 and _is_stored(_object_in(answer.body), key, body):
                return
            with self._errors("write", key):
                blob.upload_from_string(body, content_type=TYPE, **condition, **_within_the_call())
                if not _is_stored(blob._properties, key, body):
                    raise Unavailable(f"the service {NOT_GCS}")

    def delete(self, keys: Iterable[str]) -> None:
        stayed: list[tuple[str, int, str]] = []
        for batch in batches(keys, DELETE_AT_ONCE):
            for _ in range(2):  # retry the keys that failed: the second attempt succeeds or shows the reason
                with self._errors("delete from"):
                    answers = RETRY_POLICY["retry"](self._delete_batch)(batch)
                failed = [
                    (key, status, reason)
                    for key, (status, reason) in zip(batch, answers, strict=True)
                    if status != 404 and not 200 <= status < 300
                ]
                batch = [key for key, _, _ in failed]
                if not batch:
                    break
            stayed += failed
        if stayed:
            key, status, reason = stayed[0]
            raise NotDeleted(
                f"bucket '{self._bucket.name}': {len(stayed)} objects were not deleted, first '{key}': "
                f"status {status}{reason and ', '}{reason}; grant the roles that docs/stores.md lists",
                {key: reason or f"status {status}" for key, status, reason in stayed if status == 403},
                {key: reason or f"status {status}" for key, status, reason in stayed if status != 403},
            )

    def _delete_batch(self, batch: Sequence[str]) -> Sequence[tuple[int, str]]:
        """Delete `batch`; the HTTP status and the message of each deletion (cloud.google.com/storage/docs/batch).

        The client's own batches do not suffice: their parts have no Content-ID, so fake-gcs-server ignores them, and
        they keep only the last response.
        """
        boundary = secrets.token_hex(16)
        body = ""
        for number, key in enumerate(batch):
            part = f"--{boundary}\r\nContent-Type: application/http\r\nContent-ID: <{number}>\r\n\r\n"
            body += f"{part}DELETE /storage/v1{self._bucket.blob(key).path} HTTP/1.1\r\n\r\n\r\n"
        answer = self._client._http.post(
            f"{self._client._connection.API_BASE_URL}/batch/storage/v1",
            data=f"{body}--{boundary}--\r\n",
            headers={"Content-Type": f"multipart/mixed; boundary={boundary}"},
            timeout=RETRY_POLICY["timeout"],
        )
        if answer.status_code != 200:
            raise cast(Any, api).from_http_response(answer)
        kind = answer.headers["Content-Type"].encode()
        parts = email.message_from_bytes(b"Content-Type: %b\r\n\r\n%b" % (kind, answer.content)).get_payload()
        # Each part is a response, in the order of the requests: "HTTP/1.1 204 No Content" and so on.
        texts = [_text_of(part) for part in parts]
        statuses = [(int(match[1]), _message(text)) for text in texts if (match := STATUS.match(text))]
        if len(statuses) != len(batch):
            raise Unavailable(f"the service {NOT_GCS}")
        return statuses

    def close(self) -> None:
        self._client.close()
        if way := self.__dict__.get("_wire"):
            way.close()

    @contextlib.contextmanager
    def _errors(self, doing: str, key: str | None = None) -> Iterator[None]:
        """Convert the libraries' exceptions to StorageErrors that name the failed action and the remedy."""
        what = f"cannot {doing} bucket '{self._bucket.name}'" if key is None else f"cannot {doing} '{key}'"
        try:
            yield
        except Unavailable as error:
            raise Unavailable(f"{what}: {error}") from error
        except api.RetryError as error:
            raise self._mapped(what, key, error.cause) from error
        except (api.GoogleAPIError, auth.GoogleAuthError, HTTPError, OSError) as error:
            raise self._mapped(what, key, error) from error

    def _mapped(self, what: str, key: str | None, error: BaseException | None) -> StorageError:
        if isinstance(error, auth.TransportError) and error.args and isinstance(error.args[0], Exception):
            error = error.args[0]
        match error:
            case api.NotFound() if key is None:
                return NotFound(f"{what}: it does not exist; correct -b, or run backup once, which creates it")
            case api.NotFound():
                return NotFound(f"{what}: the object or the bucket '{self._bucket.name}' does not exist")
            case api.Forbidden() | api.Unauthorized():
                return AccessDenied(f"{what}: {error.message}; grant the roles that docs/stores.md lists")
            case auth.RefreshError():
                return AccessDenied(
                    f"{what}: Google rejects the credentials; get new ones, or check the service account's key"
                )
            case SSLError():
                return Unavailable(
                    f"{what}: TLS failed; for a private certificate authority set REQUESTS_CA_BUNDLE to its file"
                )
            case api.TooManyRequests():
                return Unavailable(
                    f"{what}: too many requests, or the quota is used up; use fewer --threads, or raise the quota"
                )
            case api.ServerError():
                return Unavailable(f"{what}: the service still answers {error.code} after all retries; try again later")
            case api.GoogleAPICallError():
                return StorageError(f"{what}: {error.code} {error.message}")
            case RequestException() | HTTPError() | auth.TransportError():
                return Unavailable(f"{what}: the service does not answer ({type(error).__name__}); check the network")
            case _:
                return StorageError(f"{what}: {type(error).__name__}: {error}")

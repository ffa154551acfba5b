"""Amazon S3 and S3-compatible stores (MinIO, Ceph RGW), through boto3, puts and gets over `s3wire` where it can.

Storage arguments: a bare region or `region=` (us-east-1), `endpoint=URL` of an S3-compatible store,
`profile=` of the AWS configuration, `storage_class=`, `sse=AES256|aws:kms`, `kms_key=` and
`addressing=path|virtual|auto`.  Credentials come only from the usual AWS chain.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard
from urllib.parse import urlsplit

import boto3
import botocore.exceptions as boto
import botocore.loaders
import botocore.session
from botocore.config import Config
from botocore.handlers import add_expect_header

from whisperbackup.storage import base, deadline, ranges, s3pages, s3wire, wire
from whisperbackup.storage.base import (
    LOCKED,
    WRITERS,
    AccessDenied,
    Exists,
    NotDeleted,
    NotFound,
    StartAfterUnsupported,
    StorageError,
    StoredObject,
    Unavailable,
    UsageError,
    batches,
    holds,
    keyword_arguments,
    look_and_put,
    silence,
)

ARGUMENTS = ("region", "endpoint", "profile", "storage_class", "sse", "kms_key", "addressing", "writers")
CHOICES = {"sse": ("AES256", "aws:kms"), "addressing": ("path", "virtual", "auto"), **WRITERS}
STORED_AS = {"storage_class": "StorageClass", "sse": "ServerSideEncryption", "kms_key": "SSEKMSKeyId"}
SSE = "x-amz-server-side-encryption"
HEADERS = {
    "StorageClass": "x-amz-storage-class",
    "ServerSideEncryption": SSE,
    "SSEKMSKeyId": f"{SSE}-aws-kms-key-id",
    "IfNoneMatch": "if-none-match",
}
"""The headers that boto3 makes of a put's arguments."""
QUERY = {"Prefix": "prefix", "StartAfter": "start-after", "ContinuationToken": "continuation-token"}
"""The same for a listing."""
DELETE_AT_ONCE = 1000
"""Keys in one DeleteObjects request: the service's limit."""
NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""Characters that XML 1.0 cannot represent."""
CONNECT_SECONDS, READ_SECONDS = 5, 25
LAST_ATTEMPT_SECONDS = 30
"""No attempt begins later than this after the start of its call, so a call to a silent store ends within a minute."""
ATTEMPTS = 6
"""If one response in ten is lost, all six attempts fail once in a million calls."""
MULTIPART = re.compile("[0-9a-f]{32}-[0-9]+")
"""An ETag that is not an MD5: a gateway stored the object in parts."""
BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")
"""The names that boto3 accepts; its own error message is a regular expression of four lines."""
REFUSED = ("AccessDenied", "ObjectLocked", "MethodNotAllowed", "InvalidObjectState")
"""The codes with which services refuse to delete one object of many."""
BODY_CUT = (boto.IncompleteReadError, boto.ReadTimeoutError, boto.ResponseStreamingError)

REMEDIES: dict[str, tuple[type[StorageError], str]] = {
    s3pages.NOT_S3: (
        Unavailable,
        "it answers 200 with something that is not S3: check endpoint=, any proxy, and whether the server shows a "
        "maintenance page",
    ),
    "InvalidAccessKeyId": (AccessDenied, "it does not know this access key: check AWS_ACCESS_KEY_ID or the profile"),
    "SignatureDoesNotMatch": (AccessDenied, "the secret key is wrong: check AWS_SECRET_ACCESS_KEY or the profile"),
    "ExpiredToken": (AccessDenied, "the session token has expired: get new credentials"),
    "InvalidToken": (AccessDenied, "the session token is not valid: check AWS_SESSION_TOKEN"),
    "RequestTimeTooSkewed": (AccessDenied, "this machine's clock is wrong: set it (NTP)"),
    "AccessDenied": (AccessDenied, "these credentials lack a permission: grant the policy in docs/stores.md"),
    "BucketAlreadyExists": (AccessDenied, "the bucket belongs to another account: name another with -b"),
    "PermanentRedirect": (StorageError, "the bucket is in another region: name it with region="),
    "AuthorizationHeaderMalformed": (StorageError, "the bucket is in another region: name it with region="),
    "IllegalLocationConstraintException": (
        StorageError,
        "the bucket or endpoint is in another region: name it with region=",
    ),
    "InvalidLocationConstraint": (StorageError, "this region does not exist here: check region="),
    "QuotaExceeded": (StorageError, "the quota is used up: raise it, or keep fewer backups"),
    "InvalidStorageClass": (StorageError, "it does not have this storage class: check storage_class="),
    "InvalidObjectState": (StorageError, "the object was moved to an archive tier: restore it from there first"),
    "InvalidBucketName": (StorageError, "the bucket's name is invalid: use 3 to 63 characters of a-z, 0-9 and -"),
}


def open(bucket: str, create: bool, arguments: list[str]) -> S3:
    """A driver for `bucket`; opening makes a request only with `create`."""
    given = keyword_arguments(arguments, "region", ARGUMENTS, CHOICES)
    if not BUCKET.fullmatch(bucket) and not bucket.startswith("arn:"):
        raise UsageError(
            f"bucket '{bucket}': a bucket's name has 3 to 63 characters of a-z, 0-9, . and -; "
            "set a path in the bucket with --storage-path"
        )
    region, endpoint = given.get("region", "us-east-1"), given.get("endpoint")
    if endpoint and (urlsplit(endpoint).scheme not in ("http", "https") or "@" in endpoint):
        raise UsageError("storage argument 'endpoint' must look like https://host:port, without user or password")
    if "://" in region:
        raise UsageError("a URL is given where a region is expected: write endpoint=URL")
    # boto3, its HTTP client and its signer log the headers of each request, which include the signature.
    silence("boto3", "botocore", "urllib3")
    deadline.install()
    try:
        session = _session(given.get("profile"))
        client = session.client("s3", region_name=region, endpoint_url=endpoint, config=_client_config(given))
    except (boto.InvalidRegionError, ValueError) as error:
        raise UsageError(f"S3 client: {re.sub('//[^/]*@', '//', str(error))}") from error  # it may contain a password
    except boto.BotoCoreError as error:
        raise AccessDenied(
            f"S3 client: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or check profile= and ~/.aws"
        ) from error
    if "@" in _host(client.meta.endpoint_url):  # messages about a store that does not answer would show it
        raise UsageError("AWS_ENDPOINT_URL, or endpoint_url in the AWS configuration, must be without user or password")
    client.meta.events.register("request-created.s3", _refuse_late_attempt)
    client.meta.events.register_last("before-call.s3.DeleteObjects", _add_content_md5)
    s3pages.install(client.meta.events)
    # This handler makes every put wait a round trip before it sends the body, which only helps with large bodies.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    stored_as = {field: given[name] for name, field in STORED_AS.items() if name in given}
    connect = functools.partial(s3wire.connect, session, client, bucket)
    driver = S3(client, bucket, stored_as, connect, given.get("writers") == "one")
    if create:
        driver.create_if_absent(region)
    return driver


def _session(profile: str | None) -> Any:
    """A session whose models of the service are those of other sessions: workers inherit the parent's.

    To read them takes longer than the rest of a worker's start.
    """
    session = botocore.session.Session(profile=profile)
    session.register_component("data_loader", _models(session.get_config_variable("data_path")))
    return boto3.Session(botocore_session=session)


@functools.cache
def _models(path: str | None) -> Any:
    return botocore.loaders.create_loader(path)


def _client_config(given: dict[str, str]) -> Config:
    return Config(
        s3={"addressing_style": given.get("addressing", "path" if given.get("endpoint") else "auto")},
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=64,  # a maximum; with fewer than --threads, connections would be discarded
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        # Without an additional CRC the signature covers the body's SHA-256, which the store verifies.  TLS and the
        # SHA-1 in every backup protect reads.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # The code below passes only strings and bytes; checking their types costs a tenth of a put.
        parameter_validation=False,
    )


def _refuse_late_attempt(request: Any, **_: object) -> None:
    began = request.context.setdefault("whisperbackup_began", wire.began())
    if time.monotonic() - began > LAST_ATTEMPT_SECONDS:
        raise Unavailable(f"{_host(request.url)} does not answer; check the network and endpoint=")


def _add_content_md5(params: dict[str, Any], **_: object) -> None:
    # boto3 sends a CRC32, which many S3-compatible stores do not support; they expect the older Content-MD5.
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


class _Stayed(NamedTuple):
    """An object that was not deleted: alone because the store refuses it, or with a request that it denied."""

    key: str
    reason: str
    is_refused: bool
    is_denied: bool = False


class S3:
    """One bucket; threads share one client."""

    threads = 16  # a request is mostly latency: with four processes 64 are in flight
    is_ranged = True

    def __init__(
        self,
        client: Any,
        bucket: str,
        stored_as: dict[str, str],
        connect: Callable[[], s3wire.S3Wire | None],
        has_one_writer: bool,
    ) -> None:
        self._client = client
        self._connect = connect
        self._bucket = bucket
        self._stored_as = stored_as
        self._has_one_writer = has_one_writer
        self._keeps_conditions: bool | None = None  # not known yet
        self._learning = threading.Lock()
        self._is_swift = False

    def create_if_absent(self, region: str) -> None:
        try:
            self._look_into()
            return
        except NotFound:
            pass
        where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        try:
            with self._errors("create"):
                self._client.create_bucket(Bucket=self._bucket, **where)
        except StorageError as error:
            if _code(error) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise
            try:
                self._look_into()  # another run may have created it; not all services report who owns a bucket
            except StorageError:
                raise error from None

    def _look_into(self) -> None:
        # Every command needs the permission to list, and HeadBucket's errors give no reason.
        with self._errors("open"):
            self._client.list_objects_v2(Bucket=self._bucket, MaxKeys=1)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        return self.list_range(prefix, "", "")

    def list_range(self, prefix: str, after: str, until: str) -> Iterator[StoredObject]:
        token = ""
        empty = 0
        while True:
            page = self._page(prefix, after, token)
            following = page.get("NextContinuationToken", "")
            if page.get("IsTruncated") and following in ("", token):
                raise StorageError(
                    f"cannot list bucket '{self._bucket}': {self._endpoint} ends the listing before its last page; "
                    "check endpoint="
                )
            objects: list[StoredObject] = page[s3pages.OBJECTS]
            empty = 0 if objects else empty + 1
            if empty > base.EMPTY_PAGES:
                raise StorageError(
                    f"cannot list bucket '{self._bucket}': {self._endpoint} sends empty pages without end; "
                    "check endpoint="
                )
            if after and objects and objects[0].key <= after:
                raise StartAfterUnsupported(f"{self._endpoint} does not support start-after")
            if until and objects and objects[-1].key > until:
                yield from itertools.takewhile(lambda found: found.key <= until, objects)
                return
            yield from objects
            if not page.get("IsTruncated"):
                return
            token = following

    def _page(self, prefix: str, after: str, token: str) -> Mapping[str, Any]:
        given = {"Prefix": prefix, "StartAfter": after, "ContinuationToken": token}
        fields = {name: value for name, value in given.items() if value}
        query = {"list-type": "2", "encoding-type": "url", **{QUERY[name]: value for name, value in fields.items()}}
        with self._attempt(lambda way: way.list(query)) as answer:
            page = s3pages.page_in(answer.body) if answer and answer.status == 200 else None
            if page is None:
                with self._errors("list"):
                    page = self._client.list_objects_v2(Bucket=self._bucket, **fields)
            return page

    @functools.cached_property
    def _wire(self) -> s3wire.S3Wire | None:
        # Two threads may both make one; the one that is not kept has no connection open.
        return self._connect()

    def _attempt(
        self, ask: Callable[[s3wire.S3Wire], wire.Answer]
    ) -> contextlib.AbstractContextManager[wire.Answer | None]:
        """The answer to one cheap attempt, if any; the block asks through boto3 where it is no good."""
        way = self._wire
        return wire.attempt(way.wire, functools.partial(ask, way)) if way else contextlib.nullcontext()

    def get(self, key: str) -> bytes:
        with self._attempt(lambda way: way.get(key)) as answer:
            return answer.body if _is_good(answer) else self._get(key, _whole)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        def cut(body: bytes, answer: dict[str, Any]) -> bytes:
            status = answer["ResponseMetadata"]["HTTPStatusCode"]
            return ranges.cut(body, status, answer.get("ContentRange"), offset, length)

        part = ranges.header(offset, length)
        try:
            with self._attempt(lambda way: way.get(key, {"range": part})) as answer:
                if answer and answer.status in (200, 206) and answer.headers.get("etag"):
                    with contextlib.suppress(ranges.WrongRange):
                        told = answer.headers.get("content-range")
                        return ranges.cut(answer.body, answer.status, told, offset, length)
                return self._get(key, cut, Range=part)
        except StorageError as error:
            if _status(error) != ranges.NOT_SATISFIABLE:
                raise
            return self.get(key)[offset : offset + length]

    def _get(self, key: str, accept: Callable[[bytes, dict[str, Any]], bytes], **part: str) -> bytes:
        attempt = 1
        while True:
            with self._errors("read", key):
                answer = self._client.get_object(Bucket=self._bucket, Key=key, **part)
                try:
                    return accept(bytes(answer["Body"].read()), answer)
                except (*BODY_CUT, ranges.WrongRange):
                    # boto3 retries a request only until it has received the headers.
                    if attempt == 3:
                        raise
            attempt += 1

    def modified(self, key: str) -> float | None:
        with self._errors("read", key):
            answer = self._client.head_object(Bucket=self._bucket, Key=key)
        return float(answer["LastModified"].timestamp()) if "LastModified" in answer else None

    def put(self, key: str, body: bytes) -> None:
        self._put(key, body)

    def create_all(self, objects: Sequence[tuple[str, bytes]]) -> bool:
        if self._keeps_conditions is None:
            with self._learning:
                if self._keeps_conditions is None:
                    look_and_put(self, objects)
                    self._keeps_conditions = self._refuses(*objects[-1])
                    return False
        if not self._keeps_conditions:
            if not self._has_one_writer:
                return look_and_put(self, objects)
            for key, body in objects:
                self._put(key, body)
            return True
        for key, body in objects:
            if not self._create(key, body) and not holds(self, key, body):
                raise Exists(key)
        return self._has_one_writer or not self._is_swift

    def _refuses(self, key: str, body: bytes) -> bool:
        """Whether the service refuses to create an existing object.

        Some services silently ignore the condition.  Others reject it, with various errors: since the same put without
        the condition has just succeeded, any error means that they do not support it.
        """
        try:
            return not self._create(key, body)
        except Unavailable:
            raise
        except StorageError:
            return False

    def _create(self, key: str, body: bytes) -> bool:
        """Store the object unless its key exists; returns whether it was stored."""
        try:
            self._put(key, body, {"IfNoneMatch": "*"})
        except StorageError as error:
            if _status(error) != 412:
                raise
            return False
        return True

    def _put(self, key: str, body: bytes, condition: dict[str, str] | None = None) -> None:
        fields = {**self._stored_as, **(condition or {})}
        with self._attempt(lambda way: way.put(key, body, {HEADERS[name]: fields[name] for name in fields})) as answer:
            if _is_good(answer):
                headers: Mapping[str, str] = answer.headers
            else:
                with self._errors("write", key):
                    stored = self._client.put_object(Bucket=self._bucket, Key=key, Body=body, **fields)
                headers = stored["ResponseMetadata"]["HTTPHeaders"]
        # Swift, also through its S3 API, accepts both of two simultaneous conditional puts.
        self._is_swift = "x-trans-id" in headers
        self._check_etag(headers, key, body)

    def _check_etag(self, headers: Mapping[str, str], key: str, body: bytes) -> None:
        """Raise Unavailable unless the put's response, or the object when read back, proves that `body` is stored."""
        if headers.get(SSE, "").startswith("aws:") or f"{SSE}-customer-algorithm" in headers:
            return  # the ETag of such an object is not an MD5, but may look like one
        etag = headers["etag"].strip('"')
        if etag == hashlib.md5(body, usedforsecurity=False).hexdigest() or MULTIPART.fullmatch(etag):
            return
        if not holds(self, key, body):  # some services have other ETags than MD5s, or do not report that they encrypt
            family, remedy = REMEDIES[s3pages.NOT_S3]
            raise family(f"cannot write '{key}': {self._endpoint} answers with the ETag of other content; {remedy}")

    def delete(self, keys: Iterable[str]) -> None:
        stayed = [one for batch in batches(keys, DELETE_AT_ONCE) for one in self._delete_all(batch)]
        if stayed:
            first = f"'{stayed[0].key}': {stayed[0].reason}"
            raise NotDeleted(
                f"bucket '{self._bucket}': {len(stayed)} objects were not deleted, first {first}",
                {one.key: one.reason for one in stayed if one.is_refused},
                {one.key: one.reason for one in stayed if not one.is_refused},
                any(one.is_denied for one in stayed),
            )

    def _delete_all(self, batch: Sequence[str]) -> Iterator[_Stayed]:
        """Delete `batch`; yield the objects that were not deleted.

        The store would reject a whole batch with a key that XML cannot represent, so such a key gets its own request.
        """
        if expressible := [key for key in batch if not NOT_XML.search(key)]:
            yield from self._delete_batch(expressible)
        for key in batch:
            if NOT_XML.search(key):
                yield from self._delete_one(key)

    def _delete_one(self, key: str) -> Iterator[_Stayed]:
        try:
            with self._errors("delete", key):
                self._client.delete_object(Bucket=self._bucket, Key=key)
        except Unavailable:
            raise
        except StorageError as error:
            if not isinstance(error.__cause__, self._client.exceptions.NoSuchKey):
                yield _Stayed(key, str(error), isinstance(error, AccessDenied))

    def _delete_batch(self, batch: Sequence[str]) -> Sequence[_Stayed]:
        """Delete `batch`; return the objects that were not deleted."""
        for _ in range(2):  # S3 sometimes fails for one key in a thousand with "InternalError", and wants a retry
            try:
                with self._errors("delete from"):
                    answer = self._client.delete_objects(
                        Bucket=self._bucket, Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True}
                    )
            except Unavailable:
                raise  # each further batch would need a minute to fail
            except StorageError as error:
                if _code(error) == "MalformedXML":  # some stores reject keys that others accept
                    return [one for key in batch for one in self._delete_one(key)]
                return [_Stayed(key, str(error), False, isinstance(error, AccessDenied)) for key in batch]
            errors = [error for error in answer.get("Errors", ()) if error.get("Code") != "NoSuchKey"]
            batch = [error["Key"] for error in errors]
            if not batch:
                break
        return [
            _Stayed(
                error["Key"],
                f"{error.get('Code')} {error.get('Message', '')}".rstrip(),
                error.get("Code") in REFUSED or bool(LOCKED.search(error.get("Message", ""))),
            )
            for error in errors
        ]

    def close(self) -> None:
        self._client.close()
        if way := self.__dict__.get("_wire"):
            way.wire.close()

    @contextlib.contextmanager
    def _errors(self, doing: str, key: str | None = None) -> Iterator[None]:
        """Convert boto3's exceptions to StorageErrors that name the failed action and the remedy."""
        what = f"cannot {doing} bucket '{self._bucket}'" if key is None else f"cannot {doing} '{key}'"
        try:
            yield
        except boto.ClientError as error:
            raise self._refusal(what, key, error) from error
        except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError) as error:
            raise AccessDenied(
                f"{what}: no AWS credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or profile=, or give this machine a role"
            ) from error
        except boto.SSLError as error:
            raise Unavailable(
                f"{what}: TLS to {self._endpoint} failed ({_reason(error)}); "
                "if it speaks plain HTTP, write http:// in endpoint=; for a private certificate authority set "
                "AWS_CA_BUNDLE to its file"
            ) from error
        except (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError) as error:
            raise Unavailable(
                f"{what}: {self._endpoint} does not answer ({type(error).__name__}); check the network, endpoint= "
                "and region="
            ) from error
        except ranges.WrongRange as error:
            raise Unavailable(
                f"{what}: {self._endpoint} answers with {error}; check endpoint= and any proxy"
            ) from error
        except boto.ParamValidationError as error:
            raise StorageError(f"{what}: {error}") from error
        except boto.BotoCoreError as error:
            raise StorageError(f"{what}: {type(error).__name__}: {error}") from error
        except OSError as error:  # from a file with credentials
            raise AccessDenied(f"{what}: {error.filename or 'credentials'}: {error.strerror}") from error

    def _refusal(self, what: str, key: str | None, error: Any) -> StorageError:
        code, message = (str(error.response.get("Error", {}).get(name, "")) for name in ("Code", "Message"))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code == "NoSuchBucket" or (status == 404 and key is None):
            return NotFound(
                f"{what}: bucket '{self._bucket}' does not exist; correct -b, or run backup once, which creates it"
            )
        if status == 404:
            return NotFound(f"{what}: it does not exist in bucket '{self._bucket}'")
        if code in REMEDIES:
            family, remedy = REMEDIES[code]
            return family(f"{what}: {self._endpoint}{'' if code == s3pages.NOT_S3 else f' answers {code}'}; {remedy}")
        if status in (401, 403):
            return AccessDenied(
                f"{what}: {self._endpoint} answers {code} {message}; check the credentials and their permissions"
            )
        if "Quota" in code or status == 507:
            return StorageError(f"{what}: {self._endpoint} answers {code}; {REMEDIES['QuotaExceeded'][1]}")
        if status > 501 or status in (429, 500):
            return Unavailable(f"{what}: {self._endpoint} still answers {code} {message} after {ATTEMPTS} attempts")
        return StorageError(f"{what}: {self._endpoint} answers {code} {message}")

    @property
    def _endpoint(self) -> str:
        return _host(self._client.meta.endpoint_url)


def _whole(body: bytes, answer: dict[str, Any]) -> bytes:
    ranges.check_whole(answer["ResponseMetadata"]["HTTPStatusCode"])
    return body


def _is_good(answer: wire.Answer | None) -> TypeGuard[wire.Answer]:
    """Whether S3 stored or sent the object; each such answer has an ETag."""
    return answer is not None and answer.status == 200 and bool(answer.headers.get("etag"))


def _status(error: StorageError) -> object:
    """The HTTP status that caused the error."""
    return getattr(error.__cause__, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode")


def _code(error: StorageError) -> object:
    """The S3 error code that caused the error."""
    return getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _reason(error: Exception) -> str:
    """The short reason in the library's message, without the URL."""
    return str(error).rsplit("] ", 1)[-1].split(" (_ssl", 1)[0]

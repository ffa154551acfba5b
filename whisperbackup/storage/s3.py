"""Amazon S3, and what speaks its protocol, through boto3.

Storage arguments: a bare region or `region=` (us-east-1), `endpoint=URL` of an S3 compatible store,
`profile=` of the AWS configuration, `storage_class=`, `sse=AES256|aws:kms`, `kms_key=` and
`addressing=path|virtual|auto`.  Credentials come from the usual AWS chain and from nowhere else.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.exceptions as boto
from botocore.config import Config
from botocore.handlers import add_expect_header

from whisperbackup.storage import deadline, s3pages
from whisperbackup.storage.base import (
    AccessDenied,
    Exists,
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

ARGUMENTS = ("region", "endpoint", "profile", "storage_class", "sse", "kms_key", "addressing")
CHOICES = {"sse": ("AES256", "aws:kms"), "addressing": ("path", "virtual", "auto")}
DELETE_AT_ONCE = 1000
"""Keys in one DeleteObjects request: the service's limit."""
NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""Characters that XML 1.0 has no way to write."""
CONNECT_SECONDS, READ_SECONDS = 5, 25
LAST_ATTEMPT_SECONDS = 30
"""No attempt begins later than this after its call did, so that a call to a silent store ends within a minute."""
ATTEMPTS = 6
"""With one answer in ten lost, six attempts fail together once in a million calls."""
MULTIPART = re.compile("[0-9a-f]{32}-[0-9]+")
"""An ETag that is no MD5: of an object that a gateway has stored in parts."""
BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")
"""What boto3 accepts: its own message is a regular expression of four lines."""
BODY_CUT = (boto.IncompleteReadError, boto.ReadTimeoutError, boto.ResponseStreamingError)

REMEDIES: dict[str, tuple[type[StorageError], str]] = {
    s3pages.NOT_S3: (
        Unavailable,
        "it answers 200 with something that is not S3: check endpoint=, a proxy before it, or whether it shows a "
        "maintenance page",
    ),
    "InvalidAccessKeyId": (AccessDenied, "it does not know this access key: check AWS_ACCESS_KEY_ID or the profile"),
    "SignatureDoesNotMatch": (AccessDenied, "the secret key is wrong: check AWS_SECRET_ACCESS_KEY or the profile"),
    "ExpiredToken": (AccessDenied, "the session token has expired: get new credentials"),
    "InvalidToken": (AccessDenied, "the session token is not valid: check AWS_SESSION_TOKEN"),
    "RequestTimeTooSkewed": (AccessDenied, "this machine's clock is wrong: set it (NTP)"),
    "AccessDenied": (AccessDenied, "these credentials lack the right: see the README for the policy that is needed"),
    "BucketAlreadyExists": (AccessDenied, "the name belongs to somebody else: choose another"),
    "PermanentRedirect": (StorageError, "the bucket is in another region: name it with region="),
    "AuthorizationHeaderMalformed": (StorageError, "the bucket is in another region: name it with region="),
    "IllegalLocationConstraintException": (StorageError, "the bucket or endpoint is in another region: see region="),
    "InvalidLocationConstraint": (StorageError, "there is no such region here: check region="),
    "QuotaExceeded": (StorageError, "the quota is used up: raise it, or keep fewer backups"),
    "InvalidStorageClass": (StorageError, "it has no such class: check storage_class="),
    "InvalidObjectState": (StorageError, "the object was moved to an archive tier: restore it from there first"),
    "InvalidBucketName": (StorageError, "the bucket's name is not allowed: use 3 to 63 of a-z, 0-9 and -"),
}


def open(bucket: str, create: bool, arguments: list[str]) -> S3:
    """A driver for `bucket`; only `create` costs a request here."""
    given = keyword_arguments(arguments, "region", ARGUMENTS)
    for name, allowed in CHOICES.items():
        if name in given and given[name] not in allowed:
            raise UsageError(f"storage argument '{name}={given[name]}': it is one of {', '.join(allowed)}")
    if not BUCKET.fullmatch(bucket) and not bucket.startswith("arn:"):
        raise UsageError(
            f"bucket '{bucket}': a bucket's name is made of 3 to 63 of a-z, 0-9, . and -; "
            "for a path in it see --storage-path"
        )
    region, endpoint = given.get("region", "us-east-1"), given.get("endpoint")
    if endpoint and (urlsplit(endpoint).scheme not in ("http", "https") or "@" in endpoint):
        raise UsageError("storage argument 'endpoint' must look like https://host:port, without user or password")
    # boto3, its HTTP client and its signer log the headers of each request, and so what signs it.
    silence("boto3", "botocore", "urllib3")
    deadline.install()
    try:
        client = boto3.Session(profile_name=given.get("profile")).client(
            "s3", region_name=region, endpoint_url=endpoint, config=_client_config(given)
        )
    except (boto.InvalidRegionError, ValueError) as error:
        raise UsageError(f"S3 client: {re.sub('//[^/]*@', '//', str(error))}") from error  # it may repeat a password
    except boto.BotoCoreError as error:
        raise AccessDenied(f"S3 client: {error}; check profile= and the AWS configuration") from error
    if "@" in _host(client.meta.endpoint_url):  # it would be told whenever the store does not answer
        raise UsageError("AWS_ENDPOINT_URL, or endpoint_url in the AWS configuration, must be without user or password")
    client.meta.events.register("request-created.s3", _refuse_late_attempt)
    client.meta.events.register_last("before-call.s3.DeleteObjects", _add_content_md5)
    s3pages.install(client.meta.events)
    # It has every put wait a round trip for the store's leave to send the body, to spare large bodies.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    stored_as = {"StorageClass": "storage_class", "ServerSideEncryption": "sse", "SSEKMSKeyId": "kms_key"}
    driver = S3(client, bucket, {field: given[name] for field, name in stored_as.items() if name in given})
    if create:
        driver.create_if_absent(region)
    return driver


def _client_config(given: dict[str, str]) -> Config:
    return Config(
        s3={"addressing_style": given.get("addressing", "path" if given.get("endpoint") else "auto")},
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=64,  # only a cap: never fewer than --threads, or connections are thrown away
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        # Without an additional CRC the signature covers the body's SHA-256, which the store verifies.  What
        # is read is protected by TLS, and proved by the SHA-1 that every backup carries.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # All parameters are made below from strings and bytes: checking their types costs a tenth of a put.
        parameter_validation=False,
    )


def _refuse_late_attempt(request: Any, **_: object) -> None:
    began = request.context.setdefault("whisperbackup_began", time.monotonic())
    if time.monotonic() - began > LAST_ATTEMPT_SECONDS:
        raise Unavailable(f"{_host(request.url)} gives no answer: check the network and endpoint=")


def _add_content_md5(params: dict[str, Any], **_: object) -> None:
    # boto3 sends a CRC32, which many S3 compatible stores do not know; the protocol used to demand this one.
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


class S3:
    """One bucket; boto3's clients may be shared by threads."""

    threads = 8
    is_ranged = True

    def __init__(self, client: Any, bucket: str, stored_as: dict[str, str]) -> None:
        self._client = client
        self._bucket = bucket
        self._stored_as = stored_as
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
                self._look_into()  # another run may have made it since we looked; not all services tell whose it is
            except StorageError:
                raise error from None

    def _look_into(self) -> None:
        # Listing is what every command needs the right to; HeadBucket's errors say nothing.
        with self._errors("look into"):
            self._client.list_objects_v2(Bucket=self._bucket, MaxKeys=1)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        return self.list_range(prefix, "", "")

    def list_range(self, prefix: str, after: str, until: str) -> Iterator[StoredObject]:
        start = {"StartAfter": after} if after else {}
        paginator = self._client.get_paginator("list_objects_v2")
        pages = iter(paginator.paginate(Bucket=self._bucket, Prefix=prefix, **start))
        while True:
            with self._errors("list"):
                page = next(pages, None)
            if page is None:
                return
            if page.get("IsTruncated") and not page.get("NextContinuationToken"):
                raise StorageError(f"cannot list bucket '{self._bucket}': {self._endpoint} cuts the listing short")
            objects: list[StoredObject] = page[s3pages.OBJECTS]
            if after and objects and objects[0].key <= after:
                raise StartAfterUnsupported(f"{self._endpoint} does not know start-after")
            if until and objects and objects[-1].key > until:
                yield from itertools.takewhile(lambda found: found.key <= until, objects)
                return
            yield from objects

    def get(self, key: str) -> bytes:
        attempt = 1
        while True:
            with self._errors("read", key):
                body = self._client.get_object(Bucket=self._bucket, Key=key)["Body"]
                try:
                    return bytes(body.read())
                except BODY_CUT:
                    # boto3 repeats whole requests only until their headers are there.
                    if attempt == 3:
                        raise
            attempt += 1

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
            return look_and_put(self, objects)
        for key, body in objects:
            if not self._create(key, body) and not holds(self, key, body):
                raise Exists(key)
        return not self._is_swift

    def _refuses(self, key: str, body: bytes) -> bool:
        """Whether the service refuses to create what is there already; some take no notice, and do not say so.

        Others refuse the condition, each with an error of its own: the same put without it has just succeeded.
        """
        try:
            return not self._create(key, body)
        except Unavailable:
            raise
        except StorageError:
            return False

    def _create(self, key: str, body: bytes) -> bool:
        """Whether the object was stored; if not, there is one already."""
        try:
            self._put(key, body, IfNoneMatch="*")
        except StorageError as error:
            if _status(error) != 412:
                raise
            return False
        return True

    def _put(self, key: str, body: bytes, **condition: str) -> None:
        with self._errors("write", key):
            answer = self._client.put_object(Bucket=self._bucket, Key=key, Body=body, **self._stored_as, **condition)
        # Of two puts under a condition at the very same time Swift accepts both, through its S3 API as well.
        self._is_swift = "x-trans-id" in answer["ResponseMetadata"]["HTTPHeaders"]
        self._check_etag(answer, key, body)

    def _check_etag(self, answer: dict[str, Any], key: str, body: bytes) -> None:
        """Raises Unavailable unless a put's answer, or else the object itself, proves that this is what is stored."""
        if str(answer.get("ServerSideEncryption", "")).startswith("aws:") or "SSECustomerAlgorithm" in answer:
            return  # then the ETag is no MD5, though it may look the same
        etag = answer["ETag"].strip('"')
        if etag == hashlib.md5(body, usedforsecurity=False).hexdigest() or MULTIPART.fullmatch(etag):
            return
        if not holds(self, key, body):  # not all services that speak S3 have MD5s for ETags, nor tell what they encrypt
            family, remedy = REMEDIES[s3pages.NOT_S3]
            raise family(f"cannot write '{key}': {self._endpoint} answers with the ETag of something else; {remedy}")

    def delete(self, keys: Iterable[str]) -> None:
        stayed = [said for batch in batches(keys, DELETE_AT_ONCE) for said in self._delete_all(batch)]
        if stayed:
            raise StorageError(f"bucket '{self._bucket}': {len(stayed)} objects were not deleted, first {stayed[0]}")

    def _delete_all(self, batch: Sequence[str]) -> Iterator[str]:
        """Delete; say for each key that stayed what the store says about it.

        A key that XML cannot hold would have the whole batch refused: it is deleted by a request of its own.
        """
        if expressible := [key for key in batch if not NOT_XML.search(key)]:
            yield from self._delete_batch(expressible)
        for key in batch:
            if NOT_XML.search(key):
                yield from self._delete_one(key)

    def _delete_one(self, key: str) -> Iterator[str]:
        try:
            with self._errors("delete", key):
                self._client.delete_object(Bucket=self._bucket, Key=key)
        except Unavailable:
            raise
        except StorageError as error:
            if not isinstance(error.__cause__, self._client.exceptions.NoSuchKey):
                yield f"'{key}': {error}"

    def _delete_batch(self, batch: Sequence[str]) -> Sequence[str]:
        """Delete; say for each key that stayed what the store says about it."""
        for _ in range(2):  # "InternalError" for one key among a thousand is S3's way to ask for a second try
            try:
                with self._errors("delete from"):
                    answer = self._client.delete_objects(
                        Bucket=self._bucket, Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True}
                    )
            except Unavailable:
                raise  # every further batch would take a minute
            except StorageError as error:
                if _code(error) == "MalformedXML":  # to some a key is, at which others take no offence
                    return [said for key in batch for said in self._delete_one(key)]
                return [f"'{key}': {error}" for key in batch]
            errors = [error for error in answer.get("Errors", ()) if error.get("Code") != "NoSuchKey"]
            batch = [error["Key"] for error in errors]
            if not batch:
                break
        return [f"'{error['Key']}': {error.get('Code')} {error.get('Message', '')}" for error in errors]

    def close(self) -> None:
        self._client.close()

    @contextlib.contextmanager
    def _errors(self, doing: str, key: str | None = None) -> Iterator[None]:
        """Turn what boto3 raises into the one family, saying what was being done to what and what to do now."""
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
                "for a private certificate authority name its file in AWS_CA_BUNDLE"
            ) from error
        except (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError) as error:
            raise Unavailable(
                f"{what}: {self._endpoint} does not answer ({type(error).__name__}); check the network, endpoint= "
                "and region="
            ) from error
        except boto.ParamValidationError as error:
            raise StorageError(f"{what}: {error}") from error
        except boto.BotoCoreError as error:
            raise StorageError(f"{what}: {type(error).__name__}: {error}") from error
        except OSError as error:  # of a file that the credentials come from
            raise AccessDenied(f"{what}: {error.filename or 'credentials'}: {error.strerror}") from error

    def _refusal(self, what: str, key: str | None, error: Any) -> StorageError:
        code, message = (str(error.response.get("Error", {}).get(name, "")) for name in ("Code", "Message"))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code == "NoSuchBucket" or (status == 404 and key is None):
            return NotFound(f"{what}: bucket '{self._bucket}' does not exist; create it, or run backup once")
        if status == 404:
            return NotFound(f"{what}: there is no such object in bucket '{self._bucket}'")
        if code in REMEDIES:
            family, remedy = REMEDIES[code]
            return family(f"{what}: {self._endpoint}{'' if code == s3pages.NOT_S3 else f' says {code}'}; {remedy}")
        if status in (401, 403):
            return AccessDenied(f"{what}: {self._endpoint} says {code} {message}; check credentials and rights")
        if "Quota" in code or status == 507:
            return StorageError(f"{what}: {self._endpoint} says {code}; {REMEDIES['QuotaExceeded'][1]}")
        if status > 501 or status in (429, 500):
            return Unavailable(f"{what}: {self._endpoint} still says {code} {message} after {ATTEMPTS} attempts")
        return StorageError(f"{what}: {self._endpoint} says {code} {message}")

    @property
    def _endpoint(self) -> str:
        return _host(self._client.meta.endpoint_url)


def _status(error: StorageError) -> object:
    """The HTTP status that an error was made of."""
    return getattr(error.__cause__, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode")


def _code(error: StorageError) -> object:
    """What S3 called it."""
    return getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _reason(error: Exception) -> str:
    """The short reason inside the library's sentence, which repeats the whole URL."""
    return str(error).rsplit("] ", 1)[-1].split(" (_ssl", 1)[0]

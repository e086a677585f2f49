"""What only moto has of S3 and STS: versions, tags, ACLs, encryption, roles. Written by the engine, read back by boto3."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import engine
from engine import credentials, doctor, events

boto3 = pytest.importorskip("boto3")
pytest.importorskip("moto", reason="pip install 'moto[server]'")

REGION = "eu-west-1"
KEYS = ("AKIAIOSFODNN7EXAMPLE", "secret")
Make = Callable[..., engine.Client]
Run = Callable[[Any], Any]
# In a process of its own: it is a web framework, and this process checks its own threads and descriptors.
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, "moto did not start"
        yield url
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def reader(moto: str) -> Any:
    client = boto3.client(
        "s3", endpoint_url=moto, region_name=REGION, aws_access_key_id=KEYS[0], aws_secret_access_key=KEYS[1]
    )
    for bucket in ("plain", "versioned"):
        client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    yield client
    client.close()


@pytest.fixture
def writer(moto: str, reader: Any) -> Make:
    """moto's server says no 100; the wait is of no interest here."""

    def make(**options: Any) -> engine.Client:
        given = {"endpoint_url": moto, "region": REGION, "credentials": engine.Credentials(*KEYS)}
        return engine.Client(**{**given, "config": engine.Config(continue_timeout_s=0.2), **options})

    return make


def put(
    run: Run, client: engine.Client, destination: str, body: bytes = b"x" * 1000, **options: Any
) -> engine.PutResult:
    async def main() -> engine.PutResult:
        async with client:
            return await client.put(body, destination, **options)

    result: engine.PutResult = run(main())
    return result


def test_a_version_id_is_the_one_that_boto3_reads_back(run: Run, writer: Make, reader: Any) -> None:
    first = put(run, writer(), "s3://versioned/k", b"one")
    second = put(run, writer(), "s3://versioned/k", b"two")
    assert first.version_id
    assert first.version_id != second.version_id
    for result, body in ((first, b"one"), (second, b"two")):
        found = reader.get_object(Bucket="versioned", Key="k", VersionId=result.version_id)
        assert found["Body"].read() == body


def test_what_is_said_of_an_object_is_what_boto3_reads_back(run: Run, writer: Make, reader: Any) -> None:
    result = put(
        run, writer(), "s3://plain/dir/a key+ü", content_type="text/x-test", storage_class="STANDARD_IA",
        metadata={"Origin": "beamline-7", "empty": ""}, tagging={"team": "data + more", "a:b": "c/d=@e"}, acl="public-read",
        headers={"Cache-Control": "max-age=60", "Content-Disposition": 'attachment; filename="x"'},
    )  # fmt: skip
    of_it = {"Bucket": "plain", "Key": "dir/a key+ü"}
    found = reader.head_object(**of_it)
    assert (found["ContentType"], found["StorageClass"], found["CacheControl"]) == (
        "text/x-test", "STANDARD_IA", "max-age=60",
    )  # fmt: skip
    assert found["ETag"] == result.etag
    assert found["Metadata"]["origin"] == "beamline-7"
    tags = {tag["Key"]: tag["Value"] for tag in reader.get_object_tagging(**of_it)["TagSet"]}
    assert tags == {"team": "data + more", "a:b": "c/d=@e"}
    grants = reader.get_object_acl(**of_it)["Grants"]
    assert any(grant["Permission"] == "READ" and "AllUsers" in grant["Grantee"].get("URI", "") for grant in grants)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sse": "AES256"}, {"ServerSideEncryption": "AES256"}),
        ({"sse": "aws:kms"}, {"ServerSideEncryption": "aws:kms"}),
        ({"sse_kms_key_id": "alias/mine"}, {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/mine"}),
    ],
)
def test_encryption_is_what_boto3_reads_back(
    run: Run, writer: Make, reader: Any, options: dict[str, Any], expected: dict[str, str]
) -> None:
    put(run, writer(), "s3://plain/encrypted", **options)
    found = reader.head_object(Bucket="plain", Key="encrypted")
    assert {name: found[name] for name in expected} == expected


def test_an_object_under_a_customer_key_is_read_back_with_it(run: Run, writer: Make, reader: Any) -> None:
    key = os.urandom(32)
    put(run, writer(), "s3://plain/customer", b"mine", sse_customer_key=key)
    theirs = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": key}
    assert reader.get_object(Bucket="plain", Key="customer", **theirs)["Body"].read() == b"mine"


def test_a_condition_that_does_not_hold_stores_nothing(run: Run, writer: Make, reader: Any) -> None:
    reader.delete_object(Bucket="plain", Key="once")
    put(run, writer(), "s3://plain/once", b"first", if_none_match="*")
    with pytest.raises(engine.PreconditionFailed):
        put(run, writer(), "s3://plain/once", b"second", if_none_match="*", request_payer=True)
    assert reader.get_object(Bucket="plain", Key="once")["Body"].read() == b"first"


def test_a_role_is_assumed_through_sts_and_signs_with_its_token(
    run: Run, writer: Make, reader: Any, moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """botocore's chain: a profile with a role, its source profile, and STS."""
    (tmp_path / "credentials").write_text(f"[base]\naws_access_key_id={KEYS[0]}\naws_secret_access_key={KEYS[1]}\n")
    (tmp_path / "config").write_text(
        "[profile role]\nrole_arn=arn:aws:iam::123456789012:role/ingest\nsource_profile=base\nregion=eu-west-1\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", moto)
    heads: list[str] = []

    def listen(event: events.Event) -> None:
        if isinstance(event, events.HeadSent):
            heads.append(event.head.lower())

    put(run, writer(credentials=None, profile="role"), "s3://plain/by-role", b"role", on_event=listen)
    assert reader.get_object(Bucket="plain", Key="by-role")["Body"].read() == b"role"
    assert "x-amz-security-token: " in heads[0]
    assert KEYS[0].lower() not in heads[0]
    [source] = [source for source in credentials.explain(profile="role") if source.used]
    assert "assume-role" in source.detail


def test_the_doctor_reads_the_region_off_the_bucket(run: Run, writer: Make, reader: Any) -> None:
    async def main() -> doctor.Report:
        async with writer() as client:
            return await doctor.examine(client, "s3://versioned/p/", wait_s=0.2)

    report = run(main())
    assert report.error is None
    found = {each.check: each for each in report.findings}
    assert found["multipart"].facts["spoken"] is True
    assert found["reading"].facts["versioned"] is True
    assert found["conditions"].facts.get("status") == 412

"""Signing one small PUT: ours against botocore's S3SigV4Auth.

    python bench/micro_signing.py [--quick] [--json FILE] [--benchmark-compare] [other pytest-benchmark options]

Both get a request ready to be signed and give back the fields; botocore's signing key is derived anew for every request, as
botocore does it. What it does not measure: building the request, which differs more than the signing.
"""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.signing import Credentials, quote_key, sign
from engine.wire import Url

ACCESS_KEY, SECRET_KEY = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
URL = Url(
    "https", "bucket.s3.eu-central-1.amazonaws.com", 443, "/" + quote_key("ingest/2026/11/22/part-00017 é.parquet")
)
FIELDS = [("content-type", "application/octet-stream"), ("x-amz-meta-origin", "sensor 17"), ("content-length", "4096")]
NOW = datetime(2026, 11, 22, 12, 30, 1, tzinfo=timezone.utc)
TOKEN = "IQoJb3JpZ2luX2VjE" * 40


@pytest.mark.parametrize("token", [None, TOKEN], ids=["keys", "session"])
@pytest.mark.benchmark(group="sign")
def test_engine(benchmark: Any, token: str | None) -> None:
    credentials = Credentials(ACCESS_KEY, SECRET_KEY, token)
    benchmark(lambda: sign(credentials, "PUT", URL, FIELDS, region="eu-central-1", now=NOW))


@pytest.mark.parametrize("token", [None, TOKEN], ids=["keys", "session"])
@pytest.mark.benchmark(group="sign")
def test_botocore(benchmark: Any, token: str | None) -> None:
    auth = S3SigV4Auth(BotocoreCredentials(ACCESS_KEY, SECRET_KEY, token), "s3", "eu-central-1")
    request = AWSRequest(method="PUT", url=str(URL), headers=dict(FIELDS[:2]))
    request.context.update(client_config=None, has_streaming_input=True, payload_signing_enabled=False)
    request.headers["Content-MD5"] = "1B2M2Y8AsgTpgAmY7PhCfg=="  # without a checksum botocore hashes the body
    benchmark(lambda: auth.add_auth(request))


@pytest.mark.benchmark(group="quote")
def test_quote_key(benchmark: Any) -> None:
    benchmark(quote_key, "ingest/2026/11/22/part-00017 é.parquet")


if __name__ == "__main__":
    from bench import micro

    sys.exit(micro.pytest_benchmark(__file__))

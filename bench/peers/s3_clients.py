"""Clients that sign: engine, boto3, awscrt, aiobotocore, obstore, opendal, minio. Imported in their own processes only."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
from pathlib import Path
from typing import Any

from clients import ACCESS_KEY, BUCKET, REGION, SECRET_KEY, AsyncClient, Source, Spec, SyncClient

PART_BYTES = 8 << 20
LARGEST_PUT = 5 << 30  # S3's own limit of one PUT


def opened(source: Source) -> Any:
    return open(source, "rb") if isinstance(source, str) else io.BytesIO(source)


def content(source: Source) -> bytes:
    return Path(source).read_bytes() if isinstance(source, str) else source


class Engine(AsyncClient):
    def new_loop(self) -> asyncio.AbstractEventLoop:
        import uvloop

        return uvloop.new_event_loop()

    def hashes(self) -> list[str]:
        return [] if self.tuned else ["crc64nvme"]

    def how(self) -> str:
        return "checksum=None" if self.tuned else ""

    async def open(self) -> None:
        import engine
        import engine.checksums

        config = engine.Config(
            tls=self.spec.bundle or None,
            proxy=None,
            max_connections=max(64, self.spec.concurrency),
            **self.spec.options,
        )
        self.client = engine.Client(
            endpoint_url=self.spec.endpoint,
            region=REGION,
            credentials=engine.Credentials(ACCESS_KEY, SECRET_KEY),
            config=config,
        )
        self.checksum = None if self.tuned else "auto"
        if not self.tuned:
            engine.checksums.new("crc64nvme")  # its import is not what is measured
        await self.client.__aenter__()

    async def close(self) -> None:
        await self.client.__aexit__(None, None, None)

    async def put(self, source: Source, key: str) -> None:
        result = await self.client.put(source, f"s3://{BUCKET}/{key}", checksum=self.checksum)
        times = result.timings
        self.timings = {name: value for name in times.__slots__ if (value := getattr(times, name, None)) is not None}

    async def upload(self, source: Source, key: str) -> None:
        if not hasattr(self.client, "upload"):
            raise LookupError("this engine has no Client.upload yet")
        await self.client.upload(source, f"s3://{BUCKET}/{key}", checksum=self.checksum)


class Boto3(SyncClient):
    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config

        s3: dict[str, Any] = {"addressing_style": "path"}
        options: dict[str, Any] = {}
        if self.tuned:
            s3["payload_signing_enabled"] = False
            options["request_checksum_calculation"] = "when_required"
        config = Config(max_pool_connections=max(10, spec.concurrency), proxies={}, s3=s3, **options)
        self.client = boto3.session.Session().client(
            "s3",
            endpoint_url=spec.endpoint,
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            verify=spec.bundle or None,
            config=config,
        )
        self.transfer = TransferConfig(preferred_transfer_client="classic")

    def how(self) -> str:
        return "request_checksum_calculation=when_required, payload_signing_enabled=False" if self.tuned else ""

    def put(self, source: Source, key: str) -> None:
        if isinstance(source, bytes):
            self.client.put_object(Bucket=BUCKET, Key=key, Body=source)
            return
        with open(source, "rb") as file:
            self.client.put_object(Bucket=BUCKET, Key=key, Body=file)

    def upload(self, source: Source, key: str) -> None:
        self.client.upload_file(str(source), BUCKET, key, Config=self.transfer)


class Boto3Crt(SyncClient):
    """boto3's own switch (preferred_transfer_client="crt") leaves the endpoint out, so the manager behind it is used."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        import botocore.session
        from botocore.credentials import Credentials
        from s3transfer.crt import (
            BotocoreCRTCredentialsWrapper,
            BotocoreCRTRequestSerializer,
            CRTTransferManager,
            create_s3_crt_client,
        )

        session = botocore.session.Session()
        session.set_credentials(ACCESS_KEY, SECRET_KEY)
        provider = BotocoreCRTCredentialsWrapper(Credentials(ACCESS_KEY, SECRET_KEY)).to_crt_credentials_provider()
        serializer = BotocoreCRTRequestSerializer(
            session, {"endpoint_url": spec.endpoint, "region_name": REGION, "config": self.path_style()}
        )
        crt = create_s3_crt_client(REGION, provider, use_ssl=self.tls, verify=spec.bundle or None)
        self.manager = CRTTransferManager(crt, serializer)

    def path_style(self) -> Any:
        from botocore.config import Config

        return Config(s3={"addressing_style": "path"}, signature_version="s3v4")

    def how(self) -> str:
        return "s3transfer.crt.CRTTransferManager"

    def upload(self, source: Source, key: str) -> None:
        self.manager.upload(str(source), BUCKET, key).result()


class AwsCrt(SyncClient):
    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        from awscrt import auth, io, s3

        bootstrap = io.ClientBootstrap.get_or_create_static_default()
        credentials = auth.AwsCredentialsProvider.new_static(ACCESS_KEY, SECRET_KEY)
        connection = None
        if self.tls:
            options = io.TlsContextOptions()
            options.override_default_trust_store_from_path(None, spec.bundle)
            connection = io.ClientTlsContext(options).new_connection_options()
        self.client = s3.S3Client(
            bootstrap=bootstrap,
            region=REGION,
            credential_provider=credentials,
            tls_mode=s3.S3RequestTlsMode.ENABLED if self.tls else s3.S3RequestTlsMode.DISABLED,
            tls_connection_options=connection,
        )

    def how(self) -> str:
        return "S3Client, as it decides about parts"

    def request(self, source: Source, key: str, **options: Any) -> None:
        from awscrt import http, s3

        size = os.path.getsize(source) if isinstance(source, str) else len(source)
        host = self.spec.endpoint.split("//")[1]
        fields = http.HttpHeaders([("Host", host), ("Content-Length", str(size))])
        body = None if isinstance(source, str) else io.BytesIO(source)
        request = http.HttpRequest("PUT", f"/{BUCKET}/{key}", fields, body)
        path = source if isinstance(source, str) else None
        self.client.make_request(
            type=s3.S3RequestType.PUT_OBJECT, request=request, send_filepath=path, **options
        ).finished_future.result()

    def put(self, source: Source, key: str) -> None:
        self.request(source, key, multipart_upload_threshold=LARGEST_PUT)

    def upload(self, source: Source, key: str) -> None:
        self.request(source, key)


class AioBotocore(AsyncClient):
    def new_loop(self) -> asyncio.AbstractEventLoop:
        if not self.tuned:
            return asyncio.new_event_loop()
        import uvloop

        return uvloop.new_event_loop()

    def how(self) -> str:
        return "uvloop, request_checksum_calculation=when_required, payload_signing_enabled=False" if self.tuned else ""

    async def open(self) -> None:
        from aiobotocore.config import AioConfig
        from aiobotocore.session import get_session

        s3: dict[str, Any] = {"addressing_style": "path"}
        options: dict[str, Any] = {}
        if self.tuned:
            s3["payload_signing_enabled"] = False
            options["request_checksum_calculation"] = "when_required"
        self.stack = contextlib.AsyncExitStack()
        self.client = await self.stack.enter_async_context(
            get_session().create_client(
                "s3",
                endpoint_url=self.spec.endpoint,
                region_name=REGION,
                aws_access_key_id=ACCESS_KEY,
                aws_secret_access_key=SECRET_KEY,
                verify=self.spec.bundle or None,
                config=AioConfig(max_pool_connections=max(10, self.spec.concurrency), proxies={}, s3=s3, **options),
            )
        )

    async def close(self) -> None:
        await self.stack.aclose()

    async def put(self, source: Source, key: str) -> None:
        if isinstance(source, bytes):
            await self.client.put_object(Bucket=BUCKET, Key=key, Body=source)
            return
        with open(source, "rb") as file:
            await self.client.put_object(Bucket=BUCKET, Key=key, Body=file)


class Obstore(AsyncClient):
    def how(self) -> str:
        trust = "certificates unchecked" if self.tls else ""
        return ", ".join(filter(None, [trust, "unsigned_payload=True, use_multipart=False" if self.tuned else ""]))

    async def open(self) -> None:
        from obstore.store import S3Store

        self.store = S3Store(
            BUCKET,
            endpoint=self.spec.endpoint,
            region=REGION,
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            unsigned_payload=self.tuned,
            client_options={"allow_http": True, "allow_invalid_certificates": self.tls, "timeout": "10 minutes"},
        )

    async def put(self, source: Source, key: str) -> None:
        import obstore

        file = Path(source) if isinstance(source, str) else source
        await obstore.put_async(self.store, key, file, use_multipart=False)

    async def upload(self, source: Source, key: str) -> None:
        import obstore

        await obstore.put_async(self.store, key, Path(str(source)))


class OpenDal(AsyncClient):
    async def open(self) -> None:
        import opendal

        self.operator = opendal.AsyncOperator(
            "s3",
            bucket=BUCKET,
            endpoint=self.spec.endpoint,
            region=REGION,
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
        )

    def how(self) -> str:
        return "put: write() of the whole file read into bytes; upload: 8 MiB writes, 8 at once"

    async def put(self, source: Source, key: str) -> None:
        await self.operator.write(key, content(source))

    async def upload(self, source: Source, key: str) -> None:
        with open(str(source), "rb") as file:
            async with await self.operator.open(key, "wb", chunk=PART_BYTES, concurrent=8) as sink:
                while piece := file.read(PART_BYTES):
                    await sink.write(piece)


class Minio(SyncClient):
    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        if spec.bundle:
            os.environ["SSL_CERT_FILE"] = spec.bundle  # where minio looks when it makes its pool
        import minio

        self.client = minio.Minio(
            spec.endpoint.split("//")[1], access_key=ACCESS_KEY, secret_key=SECRET_KEY, secure=self.tls, region=REGION
        )

    def put(self, source: Source, key: str) -> None:
        with opened(source) as file:
            size = file.seek(0, 2)
            file.seek(0)
            self.client.put_object(BUCKET, key, file, size, part_size=LARGEST_PUT)

    def upload(self, source: Source, key: str) -> None:
        self.client.fput_object(BUCKET, key, str(source))

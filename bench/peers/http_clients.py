"""Clients that do not sign: aiohttp, httpx, pycurl. They PUT to the URL that a presigned one would be."""

from __future__ import annotations

import asyncio
import io
import os
import ssl
import threading
from typing import Any

from clients import AsyncClient, Source, Spec, SyncClient


def context(spec: Spec) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=spec.bundle or None)


class AioHttp(AsyncClient):
    def new_loop(self) -> asyncio.AbstractEventLoop:
        if not self.tuned:
            return asyncio.new_event_loop()
        import uvloop

        return uvloop.new_event_loop()

    def how(self) -> str:
        return "unsigned; uvloop, expect100=True from 64 KiB" if self.tuned else "unsigned"

    async def open(self) -> None:
        import aiohttp

        connector = aiohttp.TCPConnector(limit=max(100, self.spec.concurrency), ssl=context(self.spec))
        self.session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))

    async def close(self) -> None:
        await self.session.close()

    async def send(self, data: Any, size: int, key: str) -> None:
        async with self.session.put(self.url(key), data=data, expect100=self.tuned and size >= 1 << 16) as response:
            response.raise_for_status()
            await response.read()

    async def put(self, source: Source, key: str) -> None:
        if isinstance(source, bytes):
            await self.send(source, len(source), key)
            return
        with open(source, "rb") as file:
            await self.send(file, os.fstat(file.fileno()).st_size, key)


class Httpx(SyncClient):
    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        import httpx

        limits = httpx.Limits(max_connections=max(100, spec.concurrency))
        self.client = httpx.Client(
            verify=context(spec), limits=limits, follow_redirects=True, trust_env=False, timeout=600
        )

    def how(self) -> str:
        return "unsigned, follow_redirects=True"

    def put(self, source: Source, key: str) -> None:
        if isinstance(source, bytes):
            self.client.put(self.url(key), content=source).raise_for_status()
            return
        with open(source, "rb") as file:
            fields = {"Content-Length": str(os.path.getsize(source))}
            self.client.put(self.url(key), content=file, headers=fields).raise_for_status()


class PyCurl(SyncClient):
    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        import pycurl

        self.pycurl = pycurl
        self.local = threading.local()

    def how(self) -> str:
        return "unsigned, FOLLOWLOCATION" + (", UPLOAD_BUFFERSIZE 2 MiB" if self.tuned else "")

    def handle(self) -> Any:
        """A handle keeps its connection; each thread has one."""
        if not hasattr(self.local, "curl"):
            curl = self.local.curl = self.pycurl.Curl()
            curl.setopt(curl.UPLOAD, 1)
            curl.setopt(curl.FOLLOWLOCATION, 1)
            curl.setopt(curl.FAILONERROR, 1)
            curl.setopt(curl.NOSIGNAL, 1)
            curl.setopt(curl.WRITEFUNCTION, lambda data: None)
            if self.spec.bundle:
                curl.setopt(curl.CAINFO, self.spec.bundle)
            if self.tuned:
                curl.setopt(curl.UPLOAD_BUFFERSIZE, 2 << 20)
        return self.local.curl

    def put(self, source: Source, key: str) -> None:
        curl = self.handle()
        with open(source, "rb") if isinstance(source, str) else io.BytesIO(source) as file:
            size = os.path.getsize(source) if isinstance(source, str) else len(source)
            curl.setopt(curl.URL, self.url(key))
            curl.setopt(curl.READDATA, file)
            curl.setopt(curl.SEEKFUNCTION, lambda offset, origin: file.seek(offset, origin) * 0)
            curl.setopt(curl.INFILESIZE_LARGE, size)
            curl.perform()
        names = {
            "connect": curl.CONNECT_TIME,
            "tls": curl.APPCONNECT_TIME,
            "continue_wait": curl.PRETRANSFER_TIME,
            "total": curl.TOTAL_TIME,
        }
        self.timings = {name: curl.getinfo(number) for name, number in names.items() if name in ("connect", "total")}

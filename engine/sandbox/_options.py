"""What a sandbox can be told when it starts, and who may talk to it."""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from engine.signing import Credentials

KIB: Final = 1024
MIB: Final = 1024 * KIB

REGION: Final = "sandbox-1"  # of both endpoints: no tool has it as its default, so a forgotten region shows
OTHER_REGION: Final = "sandbox-2"  # where the buckets of the `region` scenarios live

HEAD_MAX_BYTES: Final = 64 * KIB  # S3 refuses header sections above 8 KB; room for tests that probe the client
BUFFER_BYTES: Final = MIB  # one hand-over from the loop to the worker of a body
BUFFERS_PER_BODY: Final = 4  # bounds what one body holds in memory: 4 MiB
INLINE_MAX_BYTES: Final = 256 * KIB  # bodies up to here are hashed and written on the loop: a thread costs more
ETAG_MD5_MAX_BYTES: Final = 16 * MIB  # MD5 costs 1.6 CPU-s/GiB, as much as everything else together
PUT_MAX_BYTES: Final = 5 * 1024 * MIB  # one PUT on AWS
KEY_MAX_BYTES: Final = 1024
METADATA_MAX_BYTES: Final = 2048
XML_MAX_BYTES: Final = MIB  # a CompleteMultipartUpload of 10,000 parts is below it
SKEW_MAX_S: Final = 900.0  # AWS: 15 minutes


def new_credentials(with_token: bool) -> Credentials:
    """The one identity a sandbox knows, new at every start."""
    # Not in AWS's own format: nobody should take it for a leaked key.
    token = "sandbox-token/" + secrets.token_urlsafe(48) + "==" if with_token else None
    return Credentials("SANDBOX" + secrets.token_hex(6).upper(), secrets.token_urlsafe(30), token)


_NOBODY: Final = Credentials("nobody", "nothing")


@dataclass(frozen=True, slots=True)
class Options:
    """See `engine.sandbox.start` for the meaning of each."""

    folder: str
    credentials: Credentials
    region: str = REGION
    host: str = "127.0.0.1"
    store_host: str = "127.0.0.1"
    redirector_port: int = 0
    store_port: int = 0
    anonymous: bool = False
    digest: bool = True
    clock_offset_s: float = 0.0
    idle_s: float = 30.0
    linger_s: float = 2.0
    min_part_bytes: int = 5 * MIB
    tls: str = ""
    keep_records: bool = True
    owns_folder: bool = False  # it was made for this sandbox, and goes with it

    def as_json(self) -> dict[str, Any]:
        keys = self.credentials
        return {
            **asdict(replace(self, credentials=_NOBODY)),
            "credentials": (keys.access_key, keys.secret_key, keys.token),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Options:
        return cls(**{**values, "credentials": Credentials(*values["credentials"])})

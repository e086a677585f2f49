"""Does the signature fit? AWS Signature Version 4, from the checking side.

Straightforward code after AWS, "Authenticating Requests (AWS Signature Version 4)", sharing no code with engine.signing. Pure:
the time is an argument. The canonical path is decoded and encoded again, as S3 does it, so a client which signs a path that it
did not encode by S3's rules is refused here too.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from engine.sandbox._errors import SignatureRefused
from engine.sandbox._options import SKEW_MAX_S
from engine.sandbox._request import Request
from engine.signing import Credentials  # a value; none of its signing

ALGORITHM: Final = "AWS4-HMAC-SHA256"
UNSIGNED: Final = "UNSIGNED-PAYLOAD"
UNSIGNED_TRAILER: Final = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
_HEX64 = re.compile(r"[0-9a-f]{64}\Z")
_TIME = "%Y%m%dT%H%M%SZ"
_EXPIRES_MAX_S: Final = 604_800  # 7 days, AWS


@dataclass(frozen=True, slots=True)
class Claim:
    """What a signed request says of its signature."""

    access_key: str
    day: str
    region: str
    service: str
    signed: tuple[str, ...]  # names, lower case, in the order given
    signature: str
    timestamp: str
    payload_hash: str
    query: str  # the canonical one is made from this: without X-Amz-Signature when presigned
    token: str | None
    expires_s: int | None = None  # presigned only


def claimed_region(request: Request) -> str:
    """The region of the credential scope, "" when there is none. Never raises."""
    text = request.get("authorization") or ""
    credential = re.search(r"Credential=([^,\s]+)", text)
    scope = credential[1] if credential else request.parameter("X-Amz-Credential") or ""
    parts = scope.split("/")
    return parts[-3] if len(parts) >= 5 else ""


def verify(request: Request, credentials: Credentials, region: str, now: datetime, *, anonymous: bool = False) -> str:
    """The payload hash that was signed; UNSIGNED-PAYLOAD for an anonymous request where that is allowed.

    Raises SignatureRefused with S3's own status, code and elements.
    """
    claim = _claim(request)
    if claim is None:
        if anonymous:
            return request.get("x-amz-content-sha256") or UNSIGNED
        raise SignatureRefused(403, "AccessDenied", "Access Denied")
    _check_scope(claim, region)
    if claim.access_key != credentials.access_key:
        raise SignatureRefused(
            403,
            "InvalidAccessKeyId",
            "The AWS Access Key Id you provided does not exist in our records.",
            elements=[("AWSAccessKeyId", claim.access_key)],
        )
    if claim.token != credentials.token:
        raise SignatureRefused(400, "InvalidToken", "The provided token is malformed or otherwise invalid.")
    _check_time(claim, now)
    _check_coverage(request, claim)
    _check_signature(request, claim, credentials)
    return claim.payload_hash


def _claim(request: Request) -> Claim | None:
    authorization = request.get("authorization")
    if authorization is None:
        return _presigned_claim(request) if request.parameter("X-Amz-Algorithm") else None
    if not authorization.startswith(ALGORITHM + " "):
        raise SignatureRefused(400, "InvalidRequest", f"Please use {ALGORITHM}.")
    parts = dict(part.strip().partition("=")[::2] for part in authorization[len(ALGORITHM) :].split(","))
    scope = parts.get("Credential", "").split("/")
    if len(scope) != 5 or scope[4] != "aws4_request" or not parts.get("SignedHeaders") or not parts.get("Signature"):
        raise _malformed("it has no Credential, SignedHeaders or Signature as they should be")
    payload_hash = request.get("x-amz-content-sha256")
    if payload_hash is None:
        message = "Missing required header for this request: x-amz-content-sha256"
        raise SignatureRefused(400, "InvalidRequest", message)
    if payload_hash not in (UNSIGNED, UNSIGNED_TRAILER) and not _HEX64.match(payload_hash):
        message = (
            "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, or a sha256 value."
        )
        raise SignatureRefused(400, "InvalidArgument", message)
    return Claim(
        access_key=scope[0],
        day=scope[1],
        region=scope[2],
        service=scope[3],
        signed=tuple(parts["SignedHeaders"].split(";")),
        signature=parts["Signature"],
        timestamp=request.get("x-amz-date") or "",
        payload_hash=payload_hash,
        query=request.target.partition("?")[2],
        token=request.get("x-amz-security-token"),
    )


def _presigned_claim(request: Request) -> Claim:
    values = {name: request.parameter(f"X-Amz-{name}") or "" for name in ("Credential", "SignedHeaders", "Signature")}
    scope = values["Credential"].split("/")
    expires = request.parameter("X-Amz-Expires") or ""
    well_formed = len(scope) == 5 and values["SignedHeaders"] and values["Signature"]
    if request.parameter("X-Amz-Algorithm") != ALGORITHM or not well_formed or not re.match(r"[0-9]{1,9}\Z", expires):
        raise SignatureRefused(
            400,
            "AuthorizationQueryParametersError",
            "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, X-Amz-Signature, "
            "X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters.",
        )
    raw = request.target.partition("?")[2]
    return Claim(
        access_key=scope[0],
        day=scope[1],
        region=scope[2],
        service=scope[3],
        signed=tuple(values["SignedHeaders"].split(";")),
        signature=values["Signature"],
        timestamp=request.parameter("X-Amz-Date") or "",
        payload_hash=request.get("x-amz-content-sha256") or UNSIGNED,
        query="&".join(p for p in raw.split("&") if not p.startswith("X-Amz-Signature=")),
        token=request.parameter("X-Amz-Security-Token"),
        expires_s=int(expires),
    )


def _malformed(what: str, region: str = "") -> SignatureRefused:
    elements = [("Region", region)] if region else []
    fields = [("x-amz-bucket-region", region)] if region else []
    message = f"The authorization header is malformed; {what}"
    return SignatureRefused(400, "AuthorizationHeaderMalformed", message, elements=elements, fields=fields)


def _check_scope(claim: Claim, region: str) -> None:
    if claim.region != region:
        raise _malformed(f"the region '{claim.region}' is wrong; expecting '{region}'", region)
    if claim.service != "s3":
        raise _malformed(f'incorrect service "{claim.service}". This endpoint belongs to "s3".')


def _check_time(claim: Claim, now: datetime) -> None:
    try:
        signed_at = datetime.strptime(claim.timestamp, _TIME).replace(tzinfo=timezone.utc)
    except ValueError:
        message = "AWS authentication requires a valid Date or x-amz-date header"
        raise SignatureRefused(403, "AccessDenied", message) from None
    if claim.timestamp[:8] != claim.day:
        raise _malformed(f"Invalid credential date '{claim.day}': it is not the day of x-amz-date")
    times = [("ServerTime", now.strftime("%Y-%m-%dT%H:%M:%SZ"))]
    if claim.expires_s is not None:
        expires_at = signed_at + timedelta(seconds=min(claim.expires_s, _EXPIRES_MAX_S))
        if now > expires_at:
            times += [("Expires", expires_at.strftime("%Y-%m-%dT%H:%M:%SZ")), ("X-Amz-Expires", str(claim.expires_s))]
            raise SignatureRefused(403, "AccessDenied", "Request has expired", elements=times)
    elif abs((now - signed_at).total_seconds()) > SKEW_MAX_S:
        raise SignatureRefused(
            403,
            "RequestTimeTooSkewed",
            "The difference between the request time and the current time is too large.",
            elements=[
                ("RequestTime", claim.timestamp),
                *times,
                ("MaxAllowedSkewMilliseconds", str(int(SKEW_MAX_S * 1000))),
            ],
        )


def _check_coverage(request: Request, claim: Claim) -> None:
    """Host and every x-amz- field must be signed, else anyone on the way could add one."""
    present = {name.lower() for name, _value in request.fields}
    needed = {"host"} | {name for name in present if name.startswith("x-amz-")}
    if claim.expires_s is not None:
        needed.discard("x-amz-content-sha256")
    missing = sorted(needed - set(claim.signed))
    if missing:
        raise SignatureRefused(
            403,
            "AccessDenied",
            "There were headers present in the request which were not signed",
            elements=[("HeadersNotSigned", ", ".join(missing))],
        )


def _check_signature(request: Request, claim: Claim, credentials: Credentials) -> None:
    canonical = canonical_request(request, claim)
    scope = f"{claim.day}/{claim.region}/{claim.service}/aws4_request"
    to_sign = f"{ALGORITHM}\n{claim.timestamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = b"AWS4" + credentials.secret_key.encode()
    for part in (claim.day, claim.region, claim.service, "aws4_request", to_sign):
        key = hmac.digest(key, part.encode(), "sha256")
    if not hmac.compare_digest(key.hex(), claim.signature):
        raise SignatureRefused(
            403,
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. "
            "Check your key and signing method.",
            elements=[
                ("AWSAccessKeyId", claim.access_key),
                ("StringToSign", to_sign),
                ("SignatureProvided", claim.signature),
                ("StringToSignBytes", to_sign.encode().hex(" ")),
                ("CanonicalRequest", canonical),
                ("CanonicalRequestBytes", canonical.encode().hex(" ")),
            ],
        )


def canonical_request(request: Request, claim: Claim) -> str:
    path = quote(unquote_to_bytes(request.path), safe="/-_.~")
    pairs = []
    for parameter in claim.query.split("&"):
        if parameter:
            name, _equals, value = parameter.partition("=")
            pairs.append((quote(unquote_to_bytes(name), safe="-_.~"), quote(unquote_to_bytes(value), safe="-_.~")))
    query = "&".join(f"{name}={value}" for name, value in sorted(pairs))
    fields = []
    for name in sorted(claim.signed):
        values = [" ".join(value.split()) for field, value in request.fields if field.lower() == name]
        fields.append(f"{name}:{','.join(values)}\n")
    return "\n".join([request.method, path, query, "".join(fields), ";".join(claim.signed), claim.payload_hash])

"""What is pure about parts: sizes, pace, which field goes where, documents."""

from __future__ import annotations

import hashlib
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import checksums, limits, multipart
from engine.errors import NotFound, PreconditionFailed, ProtocolError, ResponseError, SlowDown, UsageError
from engine.results import Checksum, Part

MIB = limits.MIB
GIB = 1024 * MIB
TB = 10**12


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "part_size", "parts"),
    [
        (0, 8 * MIB, 1),
        (1, 8 * MIB, 1),
        (16 * MIB + 1, 8 * MIB, 3),
        (80_000 * MIB, 8 * MIB, 10_000),
        (80_000 * MIB + 1, 9 * MIB, 8_889),
        (1 * TB, 96 * MIB, 9_935),
        (5 * 1024 * GIB, 525 * MIB, 9_987),
        (50 * TB, 4_769 * MIB, 9_999),
        (10_000 * 5 * GIB, 5 * GIB, 10_000),
    ],
)
def test_part_sizes_fit_what_s3_takes(size: int, part_size: int, parts: int) -> None:
    assert multipart.part_size_for(size) == part_size
    assert len(multipart.ranges(size, part_size)) == parts


@settings(deadline=None)
@given(size=st.integers(0, 10_000 * 5 * GIB))
def test_parts_cover_every_byte_once(size: int) -> None:
    ranges = multipart.ranges(size, multipart.part_size_for(size))
    assert (ranges[0].start, ranges[-1].start + ranges[-1].size) == (0, size)
    assert all(a.start + a.size == b.start and a.number + 1 == b.number for a, b in pairwise(ranges))
    assert all(each.size >= 5 * MIB for each in ranges[:-1])
    assert len(ranges) <= 10_000
    assert max(each.size for each in ranges) <= 5 * GIB


def test_what_s3_does_not_take_is_an_error_before_anything_is_sent() -> None:
    with pytest.raises(UsageError, match=r"48\.8 TiB"):
        multipart.part_size_for(10_000 * 5 * GIB + 1)
    with pytest.raises(UsageError, match=r"more than 10000 parts; it takes part_size=100663296"):
        multipart.part_size_for(TB, 8 * MIB)
    for wrong in (0, -1, 5 * GIB + 1, 8.0, True):
        with pytest.raises(UsageError, match="part_size"):
            multipart.part_size_for(100, wrong)  # type: ignore[arg-type]
    assert multipart.part_size_for(100, 1) == 1


def test_the_parts_of_an_endless_stream_grow_until_there_are_too_many() -> None:
    sizes = [multipart.stream_part_size(n) for n in range(1, 10_001)]
    assert sizes[:1000] == [8 * MIB] * 1000
    assert sizes == sorted(sizes)
    assert sizes[-1] == 4 * GIB
    assert sum(sizes) == 1000 * 8 * MIB * 1023  # 7.8 TiB
    with pytest.raises(UsageError, match=r"give size= or a larger part_size="):
        multipart.stream_part_size(10_001)
    assert multipart.stream_part_size(9_999, 7) == 7
    with pytest.raises(UsageError, match=r"10000 parts of 7 bytes"):
        multipart.stream_part_size(10_001, 7)


# --- pace -------------------------------------------------------------------------------------------------------------


class Path:
    """A path that gives `rate(width)` bytes/s; parts of 1 byte, stored one by one."""

    def __init__(self, limit: int = 64) -> None:
        self.now = 100.0
        self.pace = multipart.Pace(self.now, limit=limit)
        self.widths = [self.pace.width]

    def rounds(self, count: int, rate: Any) -> list[int]:
        for _round in range(count):
            for _part in range(self.pace.width):
                self.now += 1 / rate(self.pace.width)
                self.pace.part_stored(self.now, 1)
            self.widths.append(self.pace.width)
        return self.widths


def test_the_width_grows_while_it_pays_and_goes_back_when_it_does_not() -> None:
    path = Path()
    # Each connection gives 90, the path 1000: 11 connections fill it.
    widths = path.rounds(6, lambda width: min(90 * width, 1000))
    assert widths == [4, 6, 9, 13, 19, 13, 13]


def test_the_width_never_passes_its_limit() -> None:
    assert max(Path().rounds(40, lambda width: width)) == 64
    assert max(Path(limit=5).rounds(40, lambda width: width)) == 5
    assert set(Path(limit=1).rounds(20, lambda width: width)) == {1}


def test_a_path_that_gets_better_is_noticed_after_eight_rounds() -> None:
    path = Path()
    path.rounds(6, lambda width: 100)
    stuck = path.pace.width
    assert stuck == 4
    widths = path.rounds(12, lambda width: 100 * width)
    assert max(widths) > stuck


def test_slow_down_halves_the_width_once_a_round() -> None:
    path = Path()
    path.rounds(4, lambda width: width)
    wide = path.pace.width
    for _part in range(wide):  # all that are under way are told
        path.pace.slow_down(path.now)
    assert path.pace.width == wide // 2
    path.rounds(1, lambda width: width)
    path.pace.slow_down(path.now)
    assert path.pace.width == wide // 4
    for _round in range(10):
        path.rounds(1, lambda width: width)
        path.pace.slow_down(path.now)
    assert path.pace.width == 1


def test_a_fixed_width_stays() -> None:
    pace = multipart.Pace(0.0, limit=7, fixed=True)
    pace.slow_down(1.0)
    for n in range(100):
        pace.part_stored(float(n), 1)
    assert pace.width == 7


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), limit=st.integers(1, 64))
def test_the_width_is_always_in_its_bounds(seed: int, limit: int) -> None:
    dice, now = random.Random(seed), 0.0
    pace = multipart.Pace(now, limit=limit)
    for _step in range(300):
        now += dice.random() * dice.choice((0, 0.001, 1))
        pace.slow_down(now) if dice.random() < 0.05 else pace.part_stored(now, dice.randrange(1 << 24))
        assert 1 <= pace.width <= limit


# --- fields -----------------------------------------------------------------------------------------------------------


def model_fields(operation: str) -> set[str]:
    import botocore.session

    shape = botocore.session.get_session().get_service_model("s3").operation_model(operation).input_shape
    return {
        member.serialization["name"].lower()
        for member in shape.members.values()
        if member.serialization.get("location") in ("header", "headers")
    }


CALLS = [multipart.CREATE, multipart.PART, multipart.LIST, multipart.COMPLETE, multipart.ABORT]
OF_ONE_BODY = {"content-md5", "content-length", "x-amz-sdk-checksum-algorithm", "x-amz-write-offset-bytes"}


@pytest.mark.parametrize("call", CALLS)
def test_each_field_goes_on_the_calls_that_botocore_has_it_on(call: str) -> None:
    known = set().union(*(model_fields(each) for each in CALLS)) | model_fields("PutObject")
    # A value of the whole is the caller's to give; the parts' own are made here.
    parts_own = {name for name in known if name.startswith("x-amz-checksum-")} if call == multipart.PART else set()
    for name in known - OF_ONE_BODY:
        goes = bool(multipart.fields_for(call, [(name, "x")]))
        assert goes == (name in model_fields(call) and name not in parts_own), name


@pytest.mark.parametrize("call", CALLS)
def test_fields_nobody_knows_go_on_every_call(call: str) -> None:
    fields = [("x-api-key", "k"), ("x-amz-request-payer", "requester"), ("x-amz-expected-bucket-owner", "1")]
    assert multipart.fields_for(call, fields) == fields


@pytest.mark.parametrize("name", sorted(OF_ONE_BODY - {"content-length"}))
def test_a_field_about_one_body_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        multipart.fields_for(multipart.PART, [(name, "x")])


def test_a_named_checksum_is_asked_for_and_told_of_the_whole() -> None:
    parts = [
        Part(1, 3, '"a"', Checksum("crc32", crc("crc32", b"abc"))),
        Part(2, 2, '"b"', Checksum("crc32", crc("crc32", b"de"))),
    ]
    assert multipart.create_fields([], "crc32") == [
        ("x-amz-checksum-algorithm", "CRC32"),
        ("x-amz-checksum-type", "FULL_OBJECT"),
    ]
    assert multipart.complete_fields([], parts, "crc32") == [
        ("x-amz-mp-object-size", "5"),
        ("x-amz-checksum-type", "FULL_OBJECT"),
        ("x-amz-checksum-crc32", crc("crc32", b"abcde")),
    ]
    assert multipart.create_fields([], "sha256")[1] == ("x-amz-checksum-type", "COMPOSITE")
    for algorithm in (None, "auto"):
        assert multipart.create_fields([], algorithm) == []
        assert multipart.complete_fields([], parts, algorithm) == [("x-amz-mp-object-size", "5")]
    with pytest.raises(UsageError):
        multipart.create_fields([], "md5")


# --- checksums, ETags ---------------------------------------------------------------------------------------------------


def crc(algorithm: str, data: bytes) -> str:
    running = checksums.new(algorithm)
    running.update(data)
    return running.digest_base64()


@pytest.mark.parametrize("algorithm", ["crc64nvme", "crc32", "crc32c"])
@settings(deadline=None)
@given(pieces=st.lists(st.binary(max_size=50), min_size=1, max_size=8))
def test_the_checksum_of_the_whole_comes_from_those_of_the_parts(algorithm: str, pieces: list[bytes]) -> None:
    parts = [Part(n, len(p), "", Checksum(algorithm, crc(algorithm, p))) for n, p in enumerate(pieces, 1)]
    assert multipart.whole_checksum(parts, algorithm) == Checksum(algorithm, crc(algorithm, b"".join(pieces)))


def test_without_all_parts_checksums_there_is_none_of_the_whole() -> None:
    known = Part(1, 1, "", Checksum("crc64nvme", crc("crc64nvme", b"a")))
    assert multipart.whole_checksum([known], "auto") is not None
    assert multipart.whole_checksum([known, Part(2, 1, "")], "auto") is None
    assert multipart.whole_checksum([known], "crc32") is None
    assert multipart.whole_checksum([known], None) is None
    assert multipart.whole_checksum([], "auto") is None


def test_the_etag_of_the_whole_is_foretold_from_md5s_only() -> None:
    digests = [hashlib.md5(data, usedforsecurity=False) for data in (b"a", b"b")]
    parts = [Part(n, 1, f'"{digest.hexdigest()}"') for n, digest in enumerate(digests, 1)]
    whole = hashlib.md5(b"".join(digest.digest() for digest in digests), usedforsecurity=False)
    assert multipart.whole_etag(parts) == f'"{whole.hexdigest()}-2"'  # moto's own is compared in test_upload.py
    assert multipart.whole_etag([*parts, Part(3, 1, '"not-an-md5"')]) == ""


# --- documents --------------------------------------------------------------------------------------------------------


def test_the_document_of_parts_is_what_the_service_reads() -> None:
    parts = [Part(1, 1, '"<&>"', Checksum("crc32", "AAAAAA==")), Part(2, 1, '"b"')]
    document = multipart.complete_document(parts).decode()
    assert '<PartNumber>1</PartNumber><ETag>"&lt;&amp;&gt;"</ETag><ChecksumCRC32>AAAAAA==</ChecksumCRC32>' in document
    assert document.index("<PartNumber>1<") < document.index("<PartNumber>2<")


def test_a_completion_is_understood_behind_white_space() -> None:
    body = b"\n \n  <?xml version='1.0'?><CompleteMultipartUploadResult><ETag>&quot;e-2&quot;</ETag>"
    body += b"<ChecksumCRC64NVME>AAAAAAAAAAA=</ChecksumCRC64NVME><ChecksumType>FULL_OBJECT</ChecksumType>"
    body += b"</CompleteMultipartUploadResult>"
    found = multipart.parse_completed(body)
    assert found == ('"e-2"', {"crc64nvme": "AAAAAAAAAAA="}, "FULL_OBJECT")


@pytest.mark.parametrize(
    "body", [b"", b"   \n", b"<html/>", b"<CompleteMultipartUploadResult><ETag>", b"<Error><Code>x</Code></Error>"]
)
def test_what_is_no_completion_is_none(body: bytes) -> None:
    assert multipart.parse_completed(body) is None


@pytest.mark.parametrize(
    ("code", "kind", "status", "retryable"),
    [
        ("InternalError", ResponseError, 500, True),
        ("SlowDown", SlowDown, 503, True),
        ("PreconditionFailed", PreconditionFailed, 412, False),
        ("NoSuchUpload", NotFound, 404, False),
        ("SomethingNew", ResponseError, 500, True),
    ],
)
def test_an_error_in_a_200_is_the_error_it_says(code: str, kind: type, status: int, retryable: bool) -> None:
    body = f"  \n<?xml version='1.0'?><Error><Code>{code}</Code><Message>m</Message></Error>".encode()
    with pytest.raises(kind) as caught:
        multipart.check_completed("POST x", body, conditional=False, request_id="r")
    assert (caught.value.status, caught.value.code, caught.value.retryable) == (status, code, retryable)
    multipart.check_completed("POST x", b"<CompleteMultipartUploadResult/>", conditional=False, request_id="r")


def page(parts: str, top: str = "<UploadId>u</UploadId>") -> bytes:
    return f'<?xml version="1.0"?><ListPartsResult xmlns="x">{top}{parts}</ListPartsResult>'.encode()


def test_a_list_of_parts_is_read_in_any_order_of_elements() -> None:
    first = "<Part><PartNumber>1</PartNumber><ETag>&quot;a&quot;</ETag><Size>5</Size></Part>"
    second = "<Part><ETag>&quot;b&quot;</ETag><Size>6</Size><ChecksumCRC32C>AAAAAA==</ChecksumCRC32C>"
    second += "<PartNumber>7</PartNumber></Part>"
    top = "<IsTruncated>true</IsTruncated><NextPartNumberMarker>7</NextPartNumberMarker>"
    found = multipart.parse_parts(page(first + second, top), "x")
    assert found.parts == [Part(1, 5, '"a"'), Part(7, 6, '"b"', Checksum("crc32c", "AAAAAA=="))]
    assert found.marker == "7"
    assert multipart.parse_parts(page(""), "x") == ([], "")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html/>",
        b"<Error><Code>x</Code></Error>",
        page("<Part><PartNumber>x</PartNumber><Size>1</Size></Part>"),
        page("<Part><PartNumber>1</PartNumber></Part>"),
        page("", "<UploadId/><IsTruncated>true</IsTruncated><NextPartNumberMarker>1</NextPartNumberMarker>"),
        page(
            "<Part><PartNumber>1</PartNumber><Size>1</Size></Part>",
            "<IsTruncated>true</IsTruncated><NextPartNumberMarker>&amp;a=</NextPartNumberMarker>",
        ),
    ],
)
def test_what_is_no_list_of_parts_is_an_error(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        multipart.parse_parts(body, "x")


def test_an_answer_without_an_upload_id_is_an_error() -> None:
    body = b"<InitiateMultipartUploadResult><UploadId>a/b+c</UploadId></InitiateMultipartUploadResult>"
    assert multipart.parse_created(body, "x") == "a/b+c"
    with pytest.raises(ProtocolError, match="names no upload"):
        multipart.parse_created(b"<InitiateMultipartUploadResult/>", "x")
    assert multipart.query_of("a/b+c", 3) == "partNumber=3&uploadId=a%2Fb%2Bc"


def test_parts_are_put_in_order_and_counted() -> None:
    assert [part.number for part in multipart.in_order([Part(2, 1, ""), Part(1, 1, "")])] == [1, 2]
    for wrong in ([], [Part(1, 1, ""), Part(1, 1, "")], [1]):
        with pytest.raises(UsageError, match="parts"):
            multipart.in_order(wrong)  # type: ignore[arg-type]

"""Results: frozen values which can be sent between processes."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from engine.results import Checksum, Hop, ObjectInfo, Progress, PutResult, Response, Timings

HOPS = (
    Hop("http://127.0.0.1:1/b/k", 307, "us-east-1", outcome="redirected", continue_wait_s=0.001, seconds=0.002),
    Hop("http://127.0.0.1:2/b/k", 200, "us-east-1", 10, 10, outcome="stored", seconds=0.01),
)
RESULTS = [
    PutResult(
        status=200,
        etag='"e"',
        version_id="",
        size=10,
        checksum=Checksum("crc64nvme", "AAAAAAAAAAA="),
        checksum_verified=True,
        request_id="r",
        host_id="h",
        region="us-east-1",
        url="http://127.0.0.1:2/b/k",
        body_bytes_sent=10,
        hops=HOPS,
        attempts=1,
        redirects=1,
        expect="continue",
        send_path="sendfile",
        timings=Timings(connect=0.001, total=0.02),
    ),
    ObjectInfo(size=10, metadata={"origin": "beamline-7"}, checksums={"sha256": "x"}, hops=HOPS),
    Response(200, "OK", {"etag": '"e"'}, b"", "http://127.0.0.1:2/b/k", HOPS),
    HOPS[0],
    Timings(),
    Checksum("sha256", "x"),
    Progress(3, 10, "sending", 1, 2),
]
IDS = [type(result).__name__ for result in RESULTS]


@pytest.mark.parametrize("result", RESULTS, ids=IDS)
def test_results_arrive_as_they_left(result: object) -> None:
    assert pickle.loads(pickle.dumps(result)) == result


@pytest.mark.parametrize("result", RESULTS, ids=IDS)
def test_results_cannot_be_changed(result: object) -> None:
    name = dataclasses.fields(result)[0].name if dataclasses.is_dataclass(result) else result._fields[0]  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        setattr(result, name, None)
    assert not hasattr(result, "__dict__"), "slots: there are many hops"


def test_a_put_result_has_every_field_that_programs_are_written_against() -> None:
    # The contract; a name may be added, none taken away.
    for kind, names in (
        (
            PutResult,
            "status etag version_id size checksum checksum_verified request_id host_id region url body_bytes_sent",
        ),
        (PutResult, "hops attempts redirects expect send_path timings"),
        (Hop, "url status region body_bytes_sent body_bytes_read continue_wait_s outcome"),
        (Timings, "dns connect tls sign continue_wait body response total"),
    ):
        assert {field.name for field in dataclasses.fields(kind)} >= {*names.split()}
    assert Progress._fields == ("sent", "total", "phase", "attempt", "hop")
    assert Checksum._fields == ("algorithm", "value")

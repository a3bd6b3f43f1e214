"""The two functions in cfn/telemetry.yaml, as they stand there, against a gateway that records what it gets."""

from __future__ import annotations

import base64
import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from templates import load

# CloudFormation takes no longer code inside of a template.
CODE_CHARS_MAX = 4096


class Gateway(http.server.ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.got: list[tuple[str, str, bytes]] = []
        self.refuses_from: int | None = None


class Answer(http.server.BaseHTTPRequestHandler):
    server: Gateway

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        refused = self.server.refuses_from is not None and len(self.server.got) >= self.server.refuses_from
        if not refused:
            self.server.got.append((self.path, self.headers["content-type"], body))
        self.send_response(503 if refused else 200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    with Gateway() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("GATEWAY", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_REGION", "eu-central-1")
        yield server
        server.shutdown()
        thread.join()


def function(name: str) -> dict[str, Any]:
    code = load("telemetry")["Resources"][name]["Properties"]["Code"]["ZipFile"]
    assert len(code) <= CODE_CHARS_MAX
    inside: dict[str, Any] = {}
    exec(compile(code, f"telemetry.yaml:{name}", "exec"), inside)
    return inside


def logged(sequence: str, *messages: str, kind: str = "DATA_MESSAGE") -> dict[str, Any]:
    """A record as CloudWatch Logs puts it into Kinesis."""
    told = {
        "messageType": kind,
        "owner": "222222222222",
        "logGroup": "/trellis/trellis/tulip/unit",
        "logStream": "mom_12_1/qcu/1",
        "logEvents": [{"id": str(n), "timestamp": 1_470_000_000_123 + n, "message": m} for n, m in enumerate(messages)],
    }
    data = base64.b64encode(gzip.compress(json.dumps(told).encode())).decode()
    return {"kinesis": {"sequenceNumber": sequence, "data": data}}


def test_a_line_keeps_its_account_its_group_and_its_time(gateway: Gateway) -> None:
    records = [logged("1", "started", "published"), logged("2", "reachable", kind="CONTROL_MESSAGE")]
    assert function("ForwardLogs")["handler"]({"Records": records}, None) == {"batchItemFailures": []}
    ((path, content, body),) = gateway.got
    assert (path, content) == ("/v1/logs", "application/json")
    (resource,) = json.loads(body)["resourceLogs"]
    attributes = {each["key"]: each["value"]["stringValue"] for each in resource["resource"]["attributes"]}
    assert attributes["cloud.account.id"] == "222222222222"
    assert attributes["cloud.region"] == "eu-central-1"
    assert attributes["aws.log.group.names"] == "/trellis/trellis/tulip/unit"
    lines = resource["scopeLogs"][0]["logRecords"]
    assert [each["body"]["stringValue"] for each in lines] == ["started", "published"]
    assert [each["timeUnixNano"] for each in lines] == ["1470000000123000000", "1470000000124000000"]


def test_lines_that_a_gateway_refuses_are_given_again_from_the_first(gateway: Gateway) -> None:
    gateway.refuses_from = 1
    records = [logged("1", "a"), logged("2", "b"), logged("3", "c")]
    told = function("ForwardLogs")["handler"]({"Records": records}, None)
    assert told == {"batchItemFailures": [{"itemIdentifier": "2"}]}
    assert len(gateway.got) == 1


def test_a_batch_without_a_gateway_is_given_again_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    told = function("ForwardLogs")["handler"]({"Records": [logged("7", "a")]}, None)
    assert told == {"batchItemFailures": [{"itemIdentifier": "7"}]}


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def measured(name: str, *requests: bytes) -> dict[str, str]:
    """A record of a metric stream: each request after its length."""
    data = b"".join(varint(len(each)) + each for each in requests)
    return {"recordId": name, "data": base64.b64encode(data).decode()}


def test_each_request_of_a_metric_record_is_sent_as_it_is(gateway: Gateway) -> None:
    short, long = b"\x0a\x00", bytes(range(256)) * 1_000
    told = function("ForwardMetrics")["handler"]({"records": [measured("a", short, long), measured("b", short)]}, None)
    assert [(each["recordId"], each["result"]) for each in told["records"]] == [("a", "Dropped"), ("b", "Dropped")]
    expected = [("/v1/metrics", "application/x-protobuf", body) for body in (short, long, short)]
    assert gateway.got == expected


def test_metrics_that_cannot_be_sent_are_kept(gateway: Gateway) -> None:
    gateway.refuses_from = 1
    told = function("ForwardMetrics")["handler"]({"records": [measured("a", b"1"), measured("b", b"2")]}, None)
    assert [each["result"] for each in told["records"]] == ["Dropped", "ProcessingFailed"]
    assert told["records"][1]["data"] == measured("b", b"2")["data"]


def test_a_metric_record_that_is_cut_off_is_kept(gateway: Gateway) -> None:
    cut = {"recordId": "a", "data": base64.b64encode(varint(10) + b"123").decode()}
    told = function("ForwardMetrics")["handler"]({"records": [cut]}, None)
    assert told["records"][0]["result"] == "ProcessingFailed"
    assert gateway.got == []

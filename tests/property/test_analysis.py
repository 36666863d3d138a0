"""Whatever the bytes are, reading yields records or counted bad lines or our error; whatever the flows are,
detection yields findings within their bounds that do not depend on how the flows were cut into batches."""

from __future__ import annotations

import io
import json
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.analysis.baseline import OFFICE, baseline
from tocsin.analysis.detection import Detection, strongest_first
from tocsin.analysis.ingest import RecordReader
from tocsin.analysis.lines import bounded_lines
from tocsin.analysis.windows import FlowWindows, features_of
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.observations import Flow, FlowState, Observations

HEADS = (
    b"",
    b'{"event_type":"stats"}\n',
    b'{"ts":1,"id.orig_h":"10.0.0.1","conn_state":"SF"}\n',
    b"#separator \\x09\n#fields\tts\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tconn_state\n",
)

NUMBERS = st.one_of(st.integers(), st.floats(), st.just(10**400))
SCALARS = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=20), st.sampled_from(["10.0.0.1", "tcp", "SF"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    """event_type ts timestamp src_ip src_port dest_ip dest_port proto flow tcp alert app_proto id.orig_h
    id.orig_p id.resp_h id.resp_p id_orig_h conn_state service duration orig_bytes resp_bytes label _path
    @stream""".split()  # noqa: SIM905  (one key a line would be longer than the tests)
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=14).flatmap(
    lambda fields: st.sampled_from(["flow", "alert", "dns"]).map(lambda kind: fields | {"event_type": kind})
)
CELLS = st.sampled_from([b"1", b"-", b"nan", b"10.0.0.1", b"tcp", b"SF", b"\xff", b"1e999"])
TSV_ROWS = st.lists(CELLS, min_size=7, max_size=7).map(b"\t".join)
LINES = st.one_of(st.binary(max_size=60), OBJECTS.map(lambda fields: json.dumps(fields).encode()), TSV_ROWS)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(HEADS), st.lists(LINES, max_size=12))
def test_any_bytes_give_records_or_counted_bad_lines_or_our_error(head: bytes, lines: list[bytes]) -> None:
    data = head + b"\n".join(lines)
    reader = RecordReader(io.BytesIO(data), max_line_bytes=400)
    try:
        records = list(reader)
    except InvalidInputError:
        assert reader.statistics().format is None
        return
    counts = reader.statistics()
    assert counts.flows + counts.ids_alerts == len(records)
    assert counts.lines == counts.bad + len(records) + sum(counts.skipped_by_type.values())
    assert counts.bad == sum(counts.bad_by_reason.values()) >= len(counts.first_bad)


@given(st.binary(max_size=300), st.integers(1, 40))
def test_lines_are_those_of_the_bytes_and_never_longer_than_the_bound(data: bytes, bound: int) -> None:
    lines = list(bounded_lines(io.BytesIO(data), bound))
    whole = data.split(b"\n")
    whole = whole[:-1] if whole[-1] == b"" else whole
    assert [line.number for line in lines] == list(range(1, len(whole) + 1))
    for line, expected in zip(lines, whole, strict=True):
        assert line.too_long == (len(expected) > bound)
        assert line.data == (b"" if line.too_long else expected.rstrip(b"\r"))


ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.2", "127.0.0.2", "203.0.113.7", "fe80::1", "224.0.0.1"])
FLOWS = st.builds(
    Flow,
    at_s=st.one_of(st.floats(0, 2000), st.floats(0, 1e11)),
    source=ADDRESSES,
    source_port=st.integers(0, 65535),
    destination=ADDRESSES,
    destination_port=st.integers(0, 65535) | st.sampled_from([22, 53, 443]),
    protocol=st.sampled_from(["tcp", "udp", "icmp"]),
    duration_s=st.none() | st.floats(0, 1e9),
    bytes_sent=st.integers(0, 2**53),
    bytes_received=st.integers(0, 2**53),
    state=st.sampled_from(FlowState),
)


def detect(flows: list[Flow], batch: int) -> Detection:
    detection = Detection("property")
    for sequence, start in enumerate(range(0, len(flows), batch)):
        part = tuple(flows[start : start + batch])
        detection.feed(Observations(source="property", sequence=sequence, flows=part))
    detection.close()
    return detection


@settings(max_examples=60, deadline=None)
@given(st.lists(FLOWS, max_size=80), st.integers(1, 40))
def test_findings_are_sorted_complete_and_independent_of_batches(flows: list[Flow], batch: int) -> None:
    findings = detect(flows, batch).findings()
    assert findings == strongest_first(findings)
    assert len({(finding.kind, finding.subject) for finding in findings}) == len(findings)
    assert all(finding.score >= 0.5 and finding.features for finding in findings)
    assert findings == detect(flows, 80).findings()


@settings(max_examples=60, deadline=None)
@given(st.lists(FLOWS, min_size=1, max_size=60))
def test_every_flow_is_in_one_window_and_every_window_has_bounded_angles(flows: list[Flow]) -> None:
    windows = FlowWindows()
    closed = [window for flow in flows for window in windows.add(flow)] + windows.flush()
    assert sum(len(window.items) for window in closed) + windows.ambient == len(flows)
    for window in closed:
        angles = baseline(OFFICE).angles(features_of(window), 6)
        assert all(0 < angle < math.pi for angle in angles)

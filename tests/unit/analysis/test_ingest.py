from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from tocsin.analysis import eve, zeek
from tocsin.analysis.ingest import BAD_LINES_LISTED, TYPES_COUNTED, InputFormat, RecordReader, sniff
from tocsin.analysis.lines import Line, bounded_lines
from tocsin.analysis.records import BadLineError, SkippedLineError
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.observations import FlowState

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"

ZEEK = (
    b'{"ts":1.5,"id.orig_h":"10.0.0.1","id.orig_p":1234,"id.resp_h":"10.0.0.2","id.resp_p":80,"proto":"tcp"%s}'
)
CONN = ZEEK % b',"conn_state":"SF"'
EVE_FLOW = (
    b'{"event_type":"flow","timestamp":"2021-06-06T16:00:00.000000+0200","src_ip":"10.0.0.1","src_port":1,'
    b'"dest_ip":"::1","dest_port":22,"proto":"TCP","flow":{"start":"2021-06-06T15:59:46.457984+0200",'
    b'"end":"2021-06-06T15:59:48.457984+0200","bytes_toserver":7,"bytes_toclient":9,"state":"established"}}'
)
TSV_HEAD = (
    b"#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\tconn\n"
    b"#fields\tts\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tduration\tconn_state\tlabel\tdetailedlabel\n"
)
TSV_ROW = b"2.5\t10.0.0.1\t5\t10.0.0.2\t443\ttcp\t-\tS0\tMalicious\t(empty)\n"


def read(data: bytes, max_line_bytes: int = 1_000_000) -> RecordReader:
    reader = RecordReader(io.BytesIO(data), max_line_bytes)
    list(reader)
    return reader


class Endless(io.RawIOBase):
    """A line of 1 GiB without an end, that counts what is asked of it at once."""

    def __init__(self) -> None:
        self.left = 2**30
        self.largest = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size > 0
        self.largest = max(self.largest, size)
        taken = min(size, self.left)
        self.left -= taken
        return b"x" * taken


def test_lines_split_at_newline_only() -> None:
    assert list(bounded_lines(io.BytesIO(b"a\r\nb\x0bc\n\nd"))) == [
        Line(1, b"a"),
        Line(2, b"b\x0bc"),
        Line(3, b""),
        Line(4, b"d"),
    ]


@pytest.mark.parametrize(("length", "kept"), [(9, True), (10, True), (11, False), (200_000, False)])
def test_a_line_of_the_bound_is_kept_and_one_byte_more_is_not(length: int, kept: bool) -> None:
    lines = list(bounded_lines(io.BytesIO(b"x" * length + b"\nnext\n"), 10))
    assert [line.too_long for line in lines] == [not kept, False]
    assert lines[1] == Line(2, b"next")


def test_a_gigabyte_long_line_is_never_held() -> None:
    stream = Endless()
    lines = list(bounded_lines(stream, 1024))  # type: ignore[arg-type]
    assert lines == [Line(1, b"", too_long=True)]
    assert stream.left == 0
    assert stream.largest <= 64 * 1024


def test_a_bound_below_one_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        list(bounded_lines(io.BytesIO(b"a"), 0))


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([b"\xff\xfe garbage", b"", CONN], InputFormat.ZEEK_JSON),
        ([CONN.replace(b"id.", b"id_")], InputFormat.ZEEK_JSON),
        ([b'{"event_type":"stats"}'], InputFormat.EVE),
        ([b"#separator \\x09"], InputFormat.ZEEK_TSV),
        ([b"#fields\tts"], InputFormat.ZEEK_TSV),
    ],
)
def test_sniff(lines: list[bytes], found: InputFormat) -> None:
    assert sniff(lines) is found


@pytest.mark.parametrize("lines", [[], [b"hello"], [b"[1]"], [b'{"a":1}'], [ZEEK % b',"query":"dns log"']])
def test_unknown_format_names_the_known_ones(lines: list[bytes]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        sniff(lines)
    assert caught.value.reason == "unknown_format"
    advice = caught.value.advice() or ""
    assert "Suricata EVE" in advice
    assert "Zeek conn" in advice


def test_eve_flow() -> None:
    flow = eve.parse(EVE_FLOW).flow
    assert flow is not None
    assert flow.at_s == pytest.approx(1622987986.457984)
    assert flow.duration_s == pytest.approx(2.0)
    assert (flow.protocol, flow.state, flow.bytes_sent, flow.bytes_received) == ("tcp", "established", 7, 9)


@pytest.mark.parametrize(
    ("state", "to_server", "to_client", "expected"),
    [
        ("new", "02", "00", FlowState.UNANSWERED),
        ("new", None, None, FlowState.UNANSWERED),
        ("closed", "02", "14", FlowState.REJECTED),
        ("closed", "1b", "1b", FlowState.ESTABLISHED),
        ("closed", "1f", "1b", FlowState.RESET),
        ("closed", "1b", "1f", FlowState.RESET),
        ("established", None, None, FlowState.ESTABLISHED),
        ("bypassed", "zz", "zz", FlowState.OTHER),
        (None, None, None, FlowState.OTHER),
    ],
)
def test_eve_states(
    state: str | None, to_server: str | None, to_client: str | None, expected: FlowState
) -> None:
    tcp = {"tcp_flags_ts": to_server, "tcp_flags_tc": to_client}
    assert eve.state_of({"flow": {"state": state}, "tcp": tcp}) is expected


def test_eve_types_without_a_connection_are_skipped_not_bad() -> None:
    reader = read(EVE_FLOW + b'\n{"event_type":"dns"}\n{"event_type":"dns"}\n{"event_type":"tls"}\n')
    counts = reader.statistics()
    assert counts.skipped_by_type == {"dns": 2, "tls": 1}
    assert (counts.bad, counts.flows, counts.lines) == (0, 1, 4)


def test_skipped_types_are_bounded() -> None:
    names = b"".join(b'{"event_type":"t%d"}\n' % i for i in range(TYPES_COUNTED + 50))
    skipped = read(names).statistics().skipped_by_type
    assert len(skipped) == TYPES_COUNTED + 1
    assert skipped["other"] == 50


def test_zeek_json_both_key_styles_are_one() -> None:
    assert zeek.parse_json(CONN) == zeek.parse_json(CONN.replace(b"id.", b"id_"))


@pytest.mark.parametrize(("conn_state", "state"), sorted(zeek.STATES.items()))
def test_zeek_states(conn_state: str, state: FlowState) -> None:
    flow = zeek.parse_json(ZEEK % f',"conn_state":"{conn_state}"'.encode()).flow
    assert flow is not None
    assert flow.state is state


def test_zeek_icmp_type_is_no_port() -> None:
    flow = zeek.parse_json(CONN.replace(b'"tcp"', b'"icmp"')).flow
    assert flow is not None
    assert (flow.source_port, flow.destination_port) == (0, 0)


def test_zeek_other_stream_is_skipped() -> None:
    with pytest.raises(SkippedLineError) as caught:
        zeek.parse_json(b'{"@stream":"dns"}')
    assert caught.value.reason == "dns"


def test_zeek_tsv_with_labels_and_another_separator() -> None:
    for separator, written in ((b"\t", b"\\x09"), (b"|", b"\\x7c"), (b"|", b"|")):
        data = (TSV_HEAD + TSV_ROW).replace(b"\t", separator).replace(b"\\x09", written)
        (record,) = list(RecordReader(io.BytesIO(data)))
        assert record.flow is not None
        assert record.label is not None
        assert (record.line_number, record.flow.duration_s, record.flow.state) == (7, None, "unanswered")
        assert (record.label.label, record.label.detail) == ("Malicious", "")


def test_a_repeated_header_is_counted_and_its_columns_hold() -> None:
    columns = b"ts id.resp_h id.resp_p id.orig_h id.orig_p proto duration conn_state label detailedlabel"
    swapped = b"#fields\t" + columns.replace(b" ", b"\t") + b"\n"
    reader = RecordReader(io.BytesIO(TSV_HEAD + TSV_ROW + swapped + TSV_ROW))
    flows = [record.flow for record in reader]
    assert [flow.source for flow in flows if flow] == ["10.0.0.1", "10.0.0.2"]
    assert reader.statistics().bad_by_reason == {"duplicate_header": 1}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "empty"),
        (b"   ", "empty"),
        (b"x" * 1_000_001, "too_long"),
        (CONN[:-10], "malformed_json"),
        (b"\x00\x01\x02", "malformed_json"),
        (b'{"a":"\xff"}', "not_utf8"),
        (b"[" * 900_000, "nested_too_deeply"),
        (b'{"a":' * 190_000, "nested_too_deeply"),
        (b"[]", "not_an_object"),
        (CONN.replace(b"1.5", b"NaN"), "not_finite"),
        (CONN.replace(b"1.5", b"-Infinity"), "not_finite"),
        (CONN.replace(b"1.5", b"1e999"), "out_of_bounds"),
        (CONN.replace(b"1.5", b"-1"), "out_of_bounds"),
        (CONN.replace(b"1.5", b"true"), "bad_timestamp"),
        (CONN.replace(b"1.5", b'"yesterday"'), "bad_timestamp"),
        (CONN.replace(b"1.5", b"1" * 400), "bad_timestamp"),
        (CONN.replace(b":80,", b":65536,"), "out_of_bounds"),
        (CONN.replace(b":80,", b":-1,"), "out_of_bounds"),
        (CONN.replace(b":80,", b":80.5,"), "bad_number"),
        (CONN.replace(b":80,", b":1e999,"), "bad_number"),
        (CONN.replace(b":80,", b":" + b"9" * 4001 + b","), "out_of_bounds"),
        (CONN.replace(b"10.0.0.1", b"10.0.0.256"), "bad_address"),
        (CONN.replace(b'"10.0.0.1"', b"[]"), "bad_address"),
        (CONN.replace(b'"SF"', b'"XX"'), "bad_conn_state"),
        (CONN.replace(b'"SF"', b"{}"), "bad_text"),
        (CONN.replace(b'"tcp"', b'"\\ud800"'), "bad_text"),
        (b'{"a":1}', "no_protocol"),
    ],
)
def test_bad_lines_are_counted_by_number_and_reason(line: bytes, reason: str) -> None:
    counts = read(CONN + b"\n" + line + b"\n" + CONN + b"\n").statistics()
    assert counts.flows == 2
    assert counts.bad == 1
    assert counts.bad_by_reason == {reason: 1}
    assert counts.first_bad == ((2, reason),)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (TSV_ROW.replace(b"2.5", b"nan"), "bad_number"),
        (TSV_ROW.replace(b"2.5", b"inf"), "bad_number"),
        (TSV_ROW.replace(b"2.5\t", b""), "column_count"),
        (TSV_ROW.replace(b"443", b"70000"), "out_of_bounds"),
        (TSV_ROW.replace(b"tcp", b"\x00"), "binary"),
        (TSV_ROW.replace(b"tcp", b"\xff"), "not_utf8"),
        (b"#separator \\x0909\n", "bad_header"),
        (b"#fields\ta\ta\n", "bad_header"),
        (b"#path\tdns\n", "not_a_conn_log"),
    ],
)
def test_bad_tsv_lines(line: bytes, reason: str) -> None:
    assert read(TSV_HEAD + line).statistics().bad_by_reason == {reason: 1}


def test_tsv_rows_before_the_header_are_bad() -> None:
    assert read(b"#separator \\x09\n" + TSV_ROW).statistics().bad_by_reason == {"no_header": 1}


def test_bad_lines_are_listed_up_to_a_bound_and_counted_beyond() -> None:
    counts = read(CONN + b"\n" + b"{\n" * 300).statistics()
    assert len(counts.first_bad) == BAD_LINES_LISTED
    assert counts.bad == 300


def test_eve_without_type_or_with_a_bad_alert_is_bad() -> None:
    for line in (b"{}", b'{"event_type":7}', b'{"event_type":"alert","alert":[]}'):
        with pytest.raises(BadLineError):
            eve.parse(line)


@pytest.mark.parametrize(
    ("name", "flows", "alerts", "labels"),
    [
        ("suricata/malicious.eve.json", 1012, 745, 0),
        ("zeek/ctu-sme-11-win.conn.log.labeled", 766, 0, 766),
        ("zeek/mixed.conn.log", 576, 0, 0),
        ("zeek/apt29-nashua.conn.log", 479, 0, 0),
        ("zeek/port-scan-horizontal.conn.log", 41, 0, 0),
        ("zeek/port-scan-vertical.conn.log", 50, 0, 0),
    ],
)
def test_every_given_file_is_read_without_a_bad_line(name: str, flows: int, alerts: int, labels: int) -> None:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the shared data are not beside the repository: {path}")
    with path.open("rb") as stream:
        reader = RecordReader(stream)
        found = sum(record.label is not None for record in reader)
    counts = reader.statistics()
    assert (counts.flows, counts.ids_alerts, found, counts.bad) == (flows, alerts, labels, 0)


def test_reading_and_detecting_import_no_heavy_library() -> None:
    code = (
        "import sys, tocsin.analysis.ingest, tocsin.analysis.detection, tocsin.analysis.assessment, "
        "tocsin.analysis.labels; "
        "print([m for m in ('numpy', 'sklearn', 'scipy', 'qiskit') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

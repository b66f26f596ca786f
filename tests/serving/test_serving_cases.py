"""The faults that a server must survive, each with the tests that hold it, and the long runs in their short form."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aimass_lab.serving.launch import Server

from . import fuzzing, scenarios
from .servers import call, infer

CASES: dict[str, tuple[str, ...]] = {
    "1 malformed or cut JSON: 400 with the offset": ("bad_body",),
    "2 empty body": ("bad_body",),
    "3 JSON that is no object": ("bad_body",),
    "4 no inputs": ("bad_body",),
    "5 input or output missing, unknown or twice": ("bad_body",),
    "6 number of elements is not what the shape says": ("bad_body", "binary_sizes_that_do_not_add_up"),
    "7 shape is not the model's: 400 before it shares a batch": ("bad_body", "a_malformed_one_among_many_fails_alone"),
    "8 sizes negative, zero, float, bool, 2**63, or overflowing together": ("bad_body", "product_that_overflows_64_bits"),
    "9 datatype wrong or unknown, never converted": ("bad_body",),
    "10 null, text, bool or a number out of range": ("bad_body", "value_that_the_datatype_does_not_hold"),
    "11 NaN and Infinity: 400 in JSON, passed on in binary": ("bad_body", "binary_nan_is_the_clients_wish"),
    "12 JSON nested 100,000 deep": ("bad_body",),
    "13 not UTF-8": ("bad_body", "error_text_cannot_break_out", "a_text_that_is_no_utf_8_is_the_clients_mistake"),
    "14 FP16 has no JSON form": ("fp16_has_no_json_form", "typed_fp16_is_refused"),
    "15 BYTES length beyond its buffer": ("malformed_bytes_tensor",),
    "16 length of the JSON header negative, text, beyond the body, missing": ("bad_header_length", "bad_body"),
    "17 binary sizes do not add up": ("binary_sizes_that_do_not_add_up",),
    "18 body over the limit, announced or not: 413, memory flat": ("body_over_the_limit", "bodies_over_the_limit_cost_no_memory"),
    "19 compressed body": ("compressed_body",),
    "20 tiny chunks": ("tiny_chunks_are_a_normal_request",),
    "21 slow senders, half-open connections, one who does not read": ("slow_senders_are_shown_the_door", "one_who_does_not_read_holds_up_nobody"),
    "22 hundreds hang up: work is cancelled, nothing leaks": (
        "hangup_cancels_queued_work", "hangups_leave_nothing_behind", "who_gives_up_is_not_counted_as_a_failure_of_the_server",
    ),
    "23 one malformed among many fails alone": ("a_malformed_one_among_many_fails_alone",),
    "24 the model raises, gives NaN or too little": ("only_the_culprit_of_a_batch_fails",),
    "25 kill -9 of a worker: nothing lost, ready follows": ("kill_9_loses_nothing", "ready_is_false_while_no_worker_is_up", "a_long_run_in_short"),
    "26 a request that kills workers": ("a_request_that_kills_workers_gets_500_once_and_is_then_refused",),
    "27 a worker or a front end that hangs": (
        "a_hung_worker_is_ended_and_its_request_gets_504", "a_front_end_that_stands_still_is_replaced_and_its_connections_are_taken",
    ),
    "28 a worker out of memory": ("a_model_that_asks_for_more_memory_than_there_is_fails_its_request_only", "kill_9_loses_nothing"),
    "29 overload: bounded wait, 503 with Retry-After, memory flat": ("overload_gets_503_and_retry_after", "a_long_run_in_short"),
    "30 SIGTERM or SIGHUP under load, twice, as process 1": (
        "a_closed_terminal_loses_no_request", "sigterm_answers_all_that_was_accepted", "second_sigterm_ends_at_once",
        "it_works_as_the_first_process_of_a_container", "a_long_run_in_short",
    ),
    "31 hot reload under load": ("reloading_under_load_loses_nothing_and_gives_memory_back", "a_long_run_in_short"),
    "32 a new version that is corrupt": ("a_version_that_is_broken_is_left_out_and_the_old_one_goes_on",),
    "33 a version that is being copied": ("a_folder_that_is_still_being_copied_waits_until_it_is_whole",),
    "34 unknown model or version, odd paths": ("unknown_address", "unknown_model"),
    "35 wrong method": ("wrong_method",),
    "36 no or a wrong token; other machines need one": ("token", "unloading_and_who_may", "other_machines_need_a_token"),
    "37 pickles": ("a_bundle_that_is_not_whole_does_not_start",),
    "38 ONNX with data elsewhere, an unknown operator, endless loading": (
        "a_bundle_that_is_not_whole_does_not_start", "an_operator_that_nobody_knows_does_not_start", "sparse_weights_in_another_file_do_not_load",
        "a_model_that_takes_too_long_to_load_is_given_up",
    ),
    "39 port taken, disk read-only or full, settings not understood": (
        "port_in_use_is_one_line", "it_writes_nothing_into_its_folder", "a_full_disk_stops_nobody", "nobody_to_tell_that_it_is_ready_is_one_line",
        "a_bundle_that_is_not_whole_does_not_start",
        "a_missing_package_is_one_line",
    ),
    "40 the clock jumps": ("a_wall_clock_that_jumps_changes_no_deadline",),
    "41 more idle connections than handles": ("connections_that_owe_a_request_never_take_all_handles", "grpc_connections_do_not_take_all_handles_either"),
    "42 ambiguous lengths": ("ambiguous_http", "endless_headers"),
    "43 gRPC: size, contents twice, deadline, model": ("message_over_the_limit", "invalid_argument", "deadline_and_no_compute_after_it", "unknown_model"),
    "44 labels of metrics are bounded": ("labels_do_not_grow_with_what_callers_make_up",),
    "45 the log cannot be written into, and holds no tensor and no token": ("requests_are_written_down_and_neither_tokens_nor_tensors_are", "token"),
}  # fmt: skip


def test_every_case_has_its_tests() -> None:
    there = {name for path in Path(__file__).parent.glob("test_*.py") for name in re.findall(r"^def test_(\w+)\(", path.read_text(), re.MULTILINE)}
    assert [int(case.split()[0]) for case in CASES] == list(range(1, 46))
    assert {name for names in CASES.values() for name in names} - there == set()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("malformed", {"count": 400}),
        ("kills", {"count": 2, "frontends": 2 if sys.platform == "linux" else 1}),
        ("reloads", {"count": 2}),
        ("drains", {"count": 1}),
        ("soak", {"duration_s": 3.0, "rate": 50.0}),
    ],
)
def test_a_long_run_in_short(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    result = getattr(scenarios, name)(tmp_path, **arguments)
    assert result["passed"], result


def test_overload_in_short(tmp_path: Path) -> None:
    """What a busy machine cannot change: who is not refused is answered, the wait is bounded, and memory too; the goodput is for the long run."""
    result = scenarios.overload(tmp_path, duration_s=2.0)
    assert set(result["statuses"]) == {"200", "503"}, result
    assert result["resident_growth_bytes"] < 20 * 2**20


def test_fuzzers_repeat_themselves() -> None:
    for make in (lambda seed: fuzzing.rest_requests(seed, datatypes=("FP32", "BYTES")), fuzzing.http_requests, fuzzing.grpc_requests):
        first, again, other = ([item for _, item in zip(range(50), make(seed), strict=False)] for seed in (1, 1, 2))
        assert first == again
        assert first != other


def test_prometheus_reads_the_metrics(linear: Server) -> None:
    infer(linear, [[1.0, 2.0, 3.0, 4.0]])
    families = {family.name: family for family in text_string_to_metric_families(call(linear, "GET", "/metrics").body.decode())}
    (sample,) = [sample for sample in families["aimass_batch_items"].samples if sample.name.endswith("_count")]
    assert sample.labels == {"model": "net", "version": "1"}
    assert sample.value >= 1
    assert all(family.type != "unknown" for family in families.values())

# SPDX-License-Identifier: Apache-2.0
"""What the client must do, by id, and the tests that show it; `test_requirements` sees to it that they exist.

Ids: U users' programs, B bad input, N situations without an answer, P defects of the official clients, L lives of
sessions and processes, C cancellation.
"""

from __future__ import annotations

from typing import Final

_USER = "api/test_user_programs.py::"
_BAD = "api/test_bad_input.py::"
_NONE = "api/test_no_reply.py::"
_DEFECTS = "api/test_official_defects.py::"
_LIFE = "session/test_session.py::"
_PROCESS = "api/test_process.py::"
_LOGIN = "api/test_login.py::"
_CANCEL = "session/test_cancellation.py::"

REQUIREMENTS: Final[dict[str, tuple[str, ...]]] = {
    "U1 programs for the official client run unchanged": (f"{_USER}test_a_users_program_runs_unchanged",),
    "U2 also those with asyncio's own means": (f"{_USER}test_programs_with_asyncios_own_means",),
    "U3 every official method exists": (f"{_USER}test_the_official_methods_exist_in_their_positional_order",),
    "B1 wrong URLs": (f"{_BAD}test_urls_that_name_no_engine", f"{_BAD}test_a_wrong_path"),
    "B2 nobody there": (f"{_BAD}test_a_refused_port", f"{_BAD}test_an_unknown_host"),
    "B3 TLS mismatch": (
        f"{_BAD}test_tls_to_a_plain_port",
        f"{_BAD}test_plain_to_a_tls_port",
        f"{_BAD}test_an_untrusted_certificate",
    ),
    "B4 HTTP refusals": (f"{_BAD}test_http_refusals",),
    "B5 no engine": (
        f"{_BAD}test_a_peer_that_is_no_engine",
        f"{_NONE}test_a_handshake_that_is_never_answered",
    ),
    "B6 keys": (f"{_BAD}test_a_wrong_key", f"{_BAD}test_unusable_key_files"),
    "B7 users": (f"{_BAD}test_entering_with_wrong_credentials",),
    "B8 programs": (f"{_BAD}test_an_unknown_program", f"{_BAD}test_bad_program_names"),
    "B9 inputs": (f"{_BAD}test_inputs_without_a_json_form", f"{_BAD}test_an_oversized_input"),
    "B10 uploads": (f"{_BAD}test_an_oversized_upload", f"{_BAD}test_manifests_that_do_not_parse"),
    "B11 processes": (f"{_BAD}test_unknown_processes", f"{_BAD}test_a_terminated_process"),
    "B12 odd frames": (
        f"{_BAD}test_text_frames",
        f"{_BAD}test_garbage_messages",
        f"{_BAD}test_garbage_frames",
    ),
    "B13 cut at every byte": (
        f"{_BAD}test_a_conversation_cut_at_every_byte",
        "proof/test_cut.py::test_a_cut_at_every_byte",
    ),
    "B14 an engine that never answers": (f"{_NONE}test_a_request_that_is_never_answered",),
    "B15 an engine that dies": (f"{_DEFECTS}test_p04_what_comes_after_the_end_fails_too",),
    "N1 before authentication": (f"{_NONE}test_requests_before_authentication_wait_for_it",),
    "N2 undecodable or unknown messages": (
        f"{_NONE}test_messages_of_another_generation_are_not_sent",
        f"{_NONE}test_an_error_frame_of_the_engine_changes_nothing",
        f"{_BAD}test_bad_token_budgets",
        f"{_BAD}test_bad_queries",
        f"{_BAD}test_credentials_that_are_no_text",
    ),
    "N3 text frames": (f"{_NONE}test_text_frames_are_never_sent",),
    "N4 unknown subjects": (f"{_NONE}test_query_of_an_unknown_subject",),
    "N5 signals and files": (f"{_NONE}test_signals_and_files_do_not_wait",),
    "N6 upload chunks": (f"{_NONE}test_an_upload_that_is_refused_early",),
    "N7 uploads of no chunks": (f"{_NONE}test_an_upload_without_chunks_does_not_exist",),
    "N8 blocked sessions": (f"{_NONE}test_a_blocked_session_is_late_and_not_lost",),
    "N9 zombie sessions": (f"{_NONE}test_a_zombie_session_is_found_out",),
    "N10 failures of a login": (f"{_NONE}test_a_login_that_is_never_answered",),
    "L1 closing is bounded": (f"{_LIFE}test_closing_is_bounded_by_close_timeout",),
    "L2 processes at the end": (f"{_LIFE}test_unscoped_processes_at_the_end",),
    "L3 a cancelled block ends its processes": (f"{_LIFE}test_a_cancelled_block_still_ends_its_processes",),
    "L4 errors of the body": (f"{_LIFE}test_an_error_of_the_body_passes_as_itself",),
    "L5 keepalive": (
        f"{_LIFE}test_any_byte_counts_as_life",
        f"{_LIFE}test_a_silent_engine_is_given_up",
        f"{_LIFE}test_an_engine_that_answers_pings_lives",
    ),
    "L6 issued or not": (
        f"{_LIFE}test_loss_says_whether_the_engine_may_have_acted",
        f"{_LIFE}test_a_request_that_is_still_queued_is_safe_to_repeat",
    ),
    "L7 logins": (
        f"{_LOGIN}test_other_challenges_are_not_signed",
        f"{_LOGIN}test_the_agents_keys_are_tried_in_turn",
        f"{_LOGIN}test_a_token",
        f"{_LOGIN}test_an_unencrypted_token_warns_once",
        f"{_LOGIN}test_a_name_after_the_implicit_login",
    ),
    "L8 aborted streams": (
        f"{_LIFE}test_a_process_that_is_still_listed_is_not_given_up",
        f"{_LIFE}test_absent_once_is_not_lost",
        f"{_NONE}test_a_process_whose_stream_was_aborted",
    ),
    "L9 uploads in a window": (f"{_PROCESS}test_an_upload_holds_a_window_and_not_the_file",),
    "L10 unread output": (f"{_PROCESS}test_the_policies_for_unread_output",),
    "L11 one reader": (f"{_PROCESS}test_one_reader_at_a_time",),
    "L12 calls are used": (
        f"{_PROCESS}test_a_call_that_is_not_used_warns",
        f"{_PROCESS}test_a_call_is_used_once",
    ),
    "L13 detach and attach": (f"{_PROCESS}test_detaching_and_attaching",),
    "L14 unconfirmed is listed": (f"{_LIFE}test_what_the_engine_never_confirms_is_listed",),
    "L15 the receipt adds up": ("api/test_receipt.py::test_nothing_is_left_out",),
    "C1 launches": (
        "proof/test_cancel.py::test_at_each_wait",
        f"{_CANCEL}test_a_launch_that_is_entered",
    ),
    "C2 requests": (f"{_CANCEL}test_a_request",),
    "C3 uploads": (f"{_CANCEL}test_an_upload",),
    "C4 reading": (f"{_CANCEL}test_reading_loses_no_event",),
}
"""Tests by requirement, as ``file::test`` below this folder."""

DEFECTS: Final = frozenset(range(1, 37)) - {29, 30, 31}
"""Numbers of the official clients' defects that must have a test ``test_p<number>_...``; the others are about tools."""

COMPARISON: Final[dict[str, tuple[str, ...]]] = {
    "event loops": ("test_comparison.py::test_every_event_loop",),
    "engine generations": (
        "test_comparison.py::test_one_client_for_every_engine",
        f"{_LIFE}test_generation_and_capabilities",
    ),
    "end of a process's block": (
        f"{_LIFE}test_a_cancelled_block_still_ends_its_processes",
        f"{_LIFE}test_what_the_engine_never_confirms_is_listed",
    ),
    "cancelled launch": (f"{_DEFECTS}test_p14_a_cancelled_launch_leaves_no_process",),
    "many runs": (
        "map/test_map.py::test_limit_is_strict_and_inputs_are_lazy",
        "map/test_map_policy.py::test_tolerated_failures_are_outcomes",
        "map/test_first_completed.py::test_the_quickest_wins",
        "map/test_fleet.py::test_receipts_add_up",
    ),
    "lost connection": (
        f"{_DEFECTS}test_p04_what_comes_after_the_end_fails_too",
        f"{_DEFECTS}test_p05_loss_is_no_error_event",
        "session/test_reconnect.py::test_a_run_goes_on_where_the_engine_lets_it",
        "real/test_outages.py::test_a_restart_on_the_same_port_under_a_map",
    ),
    "detach, and attach from another connection": (
        "real/test_keeper.py::test_a_client_comes_back_to_its_process",
        "contract/test_contract.py::test_disconnect_ends_captured_processes",
        "keeper/test_official.py::test_come_back",
    ),
    "`recv()` after the last event": (f"{_DEFECTS}test_p16_receiving_after_the_end",),
    "unreadable message": (f"{_DEFECTS}test_p02_odd_frames_do_no_harm", f"{_BAD}test_garbage_messages"),
    "unread output": (
        f"{_DEFECTS}test_p07_unread_output_is_bounded",
        "security/test_limits.py::test_client_buffer_bytes",
    ),
    "inbound messages above 1 MiB": (
        f"{_DEFECTS}test_p06_a_megabyte_is_no_trouble",
        "test_comparison.py::test_messages_up_to_64_mib",
    ),
    "files of equal content at once": (
        f"{_DEFECTS}test_p10_the_same_file_from_several_processes",
        f"{_DEFECTS}test_p21_equal_files_to_two_processes",
    ),
    "errors": (f"{_DEFECTS}test_p23_errors_have_types",),
    "testing your code": (
        "contract/test_contract.py::test_return_values",
        "testing/test_faults.py::test_a_saturated_engine",
    ),
}
"""Tests by row of the README's comparison with the official client."""

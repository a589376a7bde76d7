# SPDX-License-Identifier: Apache-2.0
"""The wire vocabulary."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_anyio._protocol import messages as m


def test_secrets_stay_out_of_reprs() -> None:
    """Tokens and signatures are not shown, nor the bulk of chunks."""
    shown = repr(
        [
            m.AuthByToken("s3cret"),
            m.AuthProve("s3cret"),
            m.AddProgram("h", "m", False, 0, 1, b"s3cret"),
            m.TransferFile("p", "h", 0, 1, b"s3cret"),
            m.FileChunk("p", "h", 0, 1, b"s3cret"),
        ]
    )
    assert "s3cret" not in shown


def test_absent_fields_are_left_out_and_false_ones_are_not() -> None:
    """None means absent; False, 0 and empty text are values."""
    launch = m.LaunchProcess("a@0.1.0", "", False, 0)
    assert launch.fields(7) == {
        "type": "launch_process",
        "corr_id": 7,
        "inferlet": "a@0.1.0",
        "input": "",
        "capture_outputs": False,
        "token_budget": 0,
    }
    assert m.LaunchProcess("a@0.1.0", "{}").fields(7) == {
        "type": "launch_process",
        "corr_id": 7,
        "inferlet": "a@0.1.0",
        "input": "{}",
        "capture_outputs": True,
    }
    assert m.Ping().fields(7) == {"type": "ping", "corr_id": 7}
    assert m.Ping().fields() == {"type": "ping"}


@given(st.text(), st.text(), st.booleans(), st.none() | st.integers(0, 9), st.none() | st.integers(0, 9))
def test_a_launch_is_spelt_out_as_it_would_be_anyway(
    program: str, text: str, capture: bool, budget: int | None, corr_id: int | None
) -> None:
    """The fields are those that every request has, in the same order."""
    launch = m.LaunchProcess(program, text, capture, budget)
    assert list(launch.fields(corr_id).items()) == list(m.Request.fields(launch, corr_id).items())


def test_which_answers_make_processes_known() -> None:
    """Those to launches and attaches."""
    claims = {tag for tag, cls in m.REQUESTS.items() if cls.claims_process}
    assert claims == {"launch_process", "attach_process"}


def test_who_is_answered_and_who_may_speak_before_the_login() -> None:
    """Three kinds are never answered; three are let through before the login (0.4)."""
    unanswered = {tag for tag, cls in m.REQUESTS.items() if not cls.answered}
    assert unanswered == {"signal_process", "transfer_file", "mcp_response"}
    early = {tag for tag, cls in m.REQUESTS.items() if cls.allowed_unauthenticated}
    assert early == {"auth_identify", "auth_prove", "auth_by_token"}


@pytest.mark.parametrize("cls", m.REQUESTS.values(), ids=m.REQUESTS)
def test_each_request_knows_its_own_fields(cls: type[m.Request]) -> None:
    """The names are those of the wire, and instances cannot be changed after they were validated."""
    assert cls.field_names == tuple(field.name for field in attrs.fields(cls))
    request = cls(**dict.fromkeys(cls.field_names, "x"))
    assert request.fields() == {"type": cls.type, **dict.fromkeys(cls.field_names, "x")}
    for name in cls.field_names:
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(request, name, "y")


def test_what_0_5_removed_existed() -> None:
    """The list names messages of the vocabulary."""
    assert set(m.REQUESTS) > m.REMOVED_IN_05

"""The mock as other clients than ours meet it."""

from __future__ import annotations

import socket

import pytest
import requests

from tests.client.load.conftest import Mock


def ask_for(session: requests.Session, mock: Mock, model: str, path: str = "/v1/chat/completions") -> tuple[int, bytes]:
    """Send a request as json.dumps() writes it, with spaces; return status and body."""
    answer = session.post(mock.url + path, json={"stream": True, "model": model}, timeout=5)
    return answer.status_code, answer.content


@pytest.mark.parametrize("model", ["mock:tokens=3,itl=0.001", "mock:tokens=3;itl=0.001"])
def test_mock_reads_models_with_either_separator_and_spaces_in_the_json(mock: Mock, model: str) -> None:
    mock.truth()
    with requests.Session() as session:
        status, body = ask_for(session, mock, model)
    assert (status, body.count(b" tok")) == (200, 3)
    truth = mock.truth()
    assert (len(truth["first_s"]), len(truth["gaps_s"])) == (1, 2)


def test_mock_counts_connections_that_carried_answers(mock: Mock) -> None:
    mock.truth()
    with requests.Session() as one, requests.Session() as two, requests.Session() as lost:
        for session in (one, two, one, two):
            assert ask_for(session, mock, "mock:tokens=1")[0] == 200
        assert ask_for(lost, mock, "mock:", "/tokenize") == (404, b"")
    assert mock.truth()["connections"] == 2
    assert mock.truth()["connections"] == 0


def test_mock_ends_a_connection_that_is_to_be_closed(mock: Mock) -> None:
    with socket.create_connection(("127.0.0.1", mock.port), timeout=5) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n")
        with connection.makefile("rb") as answer:
            assert answer.read().endswith(b"\r\n\r\n{}")

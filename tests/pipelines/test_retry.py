"""How long calls to a store that is away are repeated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import requests
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE

from ayf_core.errors import AyfError
from pipelines.settings.runtime import RuntimeConfig
from pipelines.tracking import retry
from pipelines.tracking.retry import Retry, may_pass, retry_for


def answer(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


def caused(error: Exception) -> Exception:
    wrapped = RuntimeError("the store cannot be read")
    wrapped.__cause__ = error
    return wrapped


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        TimeoutError(),
        MlflowException("API request to http://... failed with exception ..."),
        MlflowException("the database restarts", TEMPORARILY_UNAVAILABLE),
        RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "the same, from a server"}),
        requests.ConnectionError(),
        answer(500),
        answer(503),
        caused(ConnectionResetError()),
    ],
    ids=repr,
)
def test_what_time_mends_is_waited_for(error: Exception) -> None:
    assert may_pass(error)


@pytest.mark.parametrize(
    "error",
    [
        MlflowException("a name with two dots", INVALID_PARAMETER_VALUE),
        RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such run"}),
        answer(404),
        FileNotFoundError("a picture"),
        ValueError(),
        caused(KeyError("x")),
    ],
    ids=repr,
)
def test_what_another_attempt_repeats_is_not(error: Exception) -> None:
    assert not may_pass(error)
    with pytest.raises(type(error)):
        Retry("http://here", 60.0).call(failing(error))


def failing(error: Exception, times: int = 10**6) -> Callable[[], int]:
    """Fails so many times and then tells how often it was called."""
    calls = 0

    def tell() -> int:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise error
        return calls

    return tell


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.01)


def test_it_is_told_once_the_store_is_back_and_two_lines_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert Retry("http://here", 60.0).call(failing(ConnectionError(), times=3)) == 4
    assert capsys.readouterr().err.splitlines() == [
        "MLflow (http://here) is away: waiting for it up to 1 min",
        "MLflow (http://here) is back",
    ]


def test_who_gave_up_once_waits_no_more_until_the_store_has_answered() -> None:
    waiting = Retry("http://here", 0.3)

    def attempts_to_fail() -> int:
        attempts = 0

        def tell() -> None:
            nonlocal attempts
            attempts += 1
            raise ConnectionError("gone")

        with pytest.raises(AyfError, match=r"http://here.* is away, also after 0 s of waiting \(gone\): start it"):
            waiting.call(tell)
        return attempts

    assert attempts_to_fail() > 1
    assert attempts_to_fail() == 1
    assert waiting.call(lambda: "an answer") == "an answer"
    assert attempts_to_fail() > 1


def test_a_process_repeats_calls_to_one_server_as_set_and_less_with_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    server = RuntimeConfig(tracking_uri="http://runs.example:5000")
    assert retry_for(server) is retry_for(server)
    assert (retry_for(server).store, retry_for(server).seconds) == ("http://runs.example:5000", 300.0)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert retry_for(RuntimeConfig()).seconds == retry.FILE_RETRY_SECONDS

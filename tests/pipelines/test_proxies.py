"""Proxies of the environment: servers of this machine are reached without one, others say which stands before them."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from ayf_core.errors import AyfError
from dashboards.network import proxy_variable, reach_local_servers_directly
from pipelines.settings.runtime import RuntimeConfig
from pipelines.tracking.retry import Retry
from pipelines.tracking.store import tracking_uri

DEAD_PROXY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    # What the code under test sets is put back as well.
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    urllib.request.install_opener(None)  # type: ignore[arg-type]  # the one that urllib keeps has seen these proxies


@pytest.fixture
def server() -> Iterator[str]:
    class Healthy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"OK")

        def log_message(self, *_: object) -> None:
            """Not on the screen."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_server_of_this_machine_answers_whatever_proxy_is_set(server: str, variable: str) -> None:
    ask = "import sys, requests, pipelines.tracking.store as s; assert s.answers(sys.argv[1]); "
    ask += "print(requests.get(sys.argv[1]).text)"
    environment = {**os.environ, variable: DEAD_PROXY}
    done = subprocess.run([sys.executable, "-c", ask, server], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "OK", done.stderr


def test_what_was_excepted_before_stays_excepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", DEAD_PROXY)
    monkeypatch.setenv("NO_PROXY", "runs.example, .intern")
    reach_local_servers_directly()
    for name in ("no_proxy", "NO_PROXY"):
        assert os.environ[name].split(",")[:4] == ["runs.example", ".intern", "localhost", "127.0.0.1"]
    before = dict(os.environ)
    reach_local_servers_directly()
    assert dict(os.environ) == before


def test_without_a_proxy_the_environment_is_left_alone() -> None:
    before = dict(os.environ)
    reach_local_servers_directly()
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("variables", "address", "named"),
    [
        ({"http_proxy": DEAD_PROXY}, "http://runs.example:5000", "http_proxy"),
        ({"HTTPS_PROXY": DEAD_PROXY}, "https://runs.example", "HTTPS_PROXY"),
        ({"ALL_PROXY": DEAD_PROXY}, "http://runs.example:5000", "ALL_PROXY"),
        ({"https_proxy": DEAD_PROXY}, "http://runs.example:5000", None),
        ({"http_proxy": DEAD_PROXY, "no_proxy": ".example"}, "http://runs.example:5000", None),
        ({}, "http://runs.example:5000", None),
        ({"http_proxy": DEAD_PROXY}, "the project's file", None),
    ],
)
def test_the_variable_that_leads_through_a_proxy_is_known(
    variables: dict[str, str], address: str, named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_variable(address) == named


def test_a_remote_server_that_does_not_answer_through_a_proxy_names_its_variable(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", DEAD_PROXY)
    runtime = RuntimeConfig(mode="inline", tracking_uri="http://runs.example:5000")
    with pytest.raises(AyfError, match=r"does not answer through the proxy of http_proxy \(NO_PROXY"):
        tracking_uri(tmp_path, runtime)

    def refused() -> None:
        raise ConnectionError("refused")

    with pytest.raises(AyfError, match=r"is away through the proxy of http_proxy \(NO_PROXY .*start it"):
        Retry("http://runs.example:5000", 0.0).call(refused)

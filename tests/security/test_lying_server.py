"""An MLflow server that lies about its files gets none written outside the folder of the download."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from ayf_core.errors import AyfError
from pipelines.settings.runtime import RuntimeConfig
from pipelines.tracking.registry import resolve_model

RUN = "0" * 32


@pytest.fixture
def liar(request: pytest.FixtureRequest) -> Iterator[str]:
    """Serves one run, whose artefact `model` is a folder with one file, of the name that the test chose."""
    name: str = request.param

    class Lie(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            if asked.path == "/health":
                return self.answer(b"OK")
            if asked.path.endswith("/runs/get"):
                about = {"run_id": RUN, "run_uuid": RUN, "artifact_uri": f"mlflow-artifacts:/1/{RUN}/artifacts"}
                return self.answer(json.dumps({"run": {"info": about, "data": {}}}).encode())
            if asked.path.endswith("/mlflow-artifacts/artifacts"):
                inside_model = parse_qs(asked.query).get("path", [""])[0].endswith("model")
                files = [{"path": name if inside_model else "model", "is_dir": not inside_model, "file_size": 5}]
                return self.answer(json.dumps({"files": files}).encode())
            return self.answer(b"weights of an enemy")

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Lie)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Downloads go deep into `tmp_path`, so that whatever leaves them is seen there."""
    place = tmp_path / "a/b/c/d"
    place.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(place))
    return place


@pytest.mark.parametrize("liar", ["weights.txt"], indirect=True)
def test_an_honest_name_is_downloaded(liar: str, downloads: Path, tmp_path: Path) -> None:
    folder = resolve_model(f"runs:/{RUN}/model", tmp_path, RuntimeConfig(tracking_uri=liar))
    assert folder.is_relative_to(downloads)
    assert (folder / "weights.txt").read_bytes() == b"weights of an enemy"


LIES = [
    "../../evil",
    "../../../../evil",
    "/evil",
    "%2e%2e/%2e%2e/evil",
    "..%2f..%2fevil",
    "a/../../../evil",
]


@pytest.mark.parametrize("liar", LIES, indirect=True)
def test_a_name_that_leaves_the_folder_is_refused(liar: str, downloads: Path, tmp_path: Path) -> None:
    with pytest.raises(AyfError, match="not in the MLflow store"):
        resolve_model(f"runs:/{RUN}/model", tmp_path, RuntimeConfig(tracking_uri=liar))
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []

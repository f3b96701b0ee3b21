"""`autofit web`: the page on loopback, at an address that nobody guesses, and nothing else."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from autofit.cli.main import main
from autofit.cli.web import place_of
from autofit.page import Page, Server, listen


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    page = tmp_path / "page"
    (page / "src").mkdir(parents=True)
    (page / "index.html").write_text("<!doctype html>")
    (page / "files.json").write_text("{}")
    (page / "src" / "app.js").write_text("1;")
    (page / "a.wasm").write_bytes(b"\0asm")
    (tmp_path / "secret.txt").write_text("not of the page")
    return page


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    server = listen(Page(folder, {"machine.json": b'{"made": 1}'}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def get(server: Server, path: str, *, host: str | None = None, method: str = "GET") -> tuple[int, bytes, str | None]:
    """Status, body and type of what stands at `path`; `SECRET` in it stands for the server's."""
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path.replace("SECRET", server.secret), headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, answer.getheader("Content-Type")


def test_files_have_their_types(server: Server) -> None:
    assert get(server, "/SECRET/") == (200, b"<!doctype html>", "text/html; charset=utf-8")
    assert get(server, "/SECRET/src/app.js") == (200, b"1;", "text/javascript; charset=utf-8")
    assert get(server, "/SECRET/a.wasm") == (200, b"\0asm", "application/wasm")
    assert get(server, "/SECRET/machine.json?x=1") == (200, b'{"made": 1}', "application/json")
    assert get(server, "/SECRET/src/app.js", method="HEAD")[:2] == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/", "/index.html", "/SECRE/", "/SECRET", "/SECRET/../secret.txt", "/SECRET/%2e%2e/secret.txt", "/SECRET/src/",
        "/SECRET//index.html", "/SECRET/src/../index.html", "/SECRET/\\..\\secret.txt", "/SECRET%00/",
        "/SECRET/machine.json/",
    ],
)  # fmt: skip
def test_nothing_else_is_there(server: Server, path: str) -> None:
    assert get(server, path)[:2] == (404, b"")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "[::1]:80", "127.0.0.1.nip.io:80"])
def test_names_that_lead_here_from_elsewhere_are_refused(server: Server, host: str) -> None:
    assert get(server, "/SECRET/", host=host)[:2] == (421, b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "OPTIONS", "DELETE"])
def test_nothing_can_be_sent(server: Server, method: str) -> None:
    assert get(server, "/SECRET/", method=method)[0] == 501


def test_it_listens_on_this_machine_alone_and_at_an_address_of_its_own(folder: Path) -> None:
    servers = [listen(Page(folder, {})) for _ in range(2)]
    assert {server.server_address[0] for server in servers} == {"127.0.0.1"}
    assert len({server.secret for server in servers}) == 2
    assert all(len(server.secret) > 20 for server in servers)
    for server in servers:
        server.server_close()


def test_a_file_that_is_gone_is_not_there(server: Server, folder: Path) -> None:
    (folder / "src" / "app.js").unlink()
    assert get(server, "/SECRET/src/app.js")[0] == 404


def test_a_port_that_is_taken_is_said(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    port = server.server_address[1]
    assert main(["web", "--page", str(folder), "--port", str(port), "--no-open"]) == 2
    assert f"autofit: --port {port}: " in capsys.readouterr().err


@pytest.mark.parametrize("port", ["65536", "-1", "http", "8 0", ""])
def test_a_port_that_is_none_is_said(folder: Path, port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["web", "--page", str(folder), f"--port={port}", "--no-open"]) == 2
    assert "not a port" in capsys.readouterr().err


def test_a_folder_without_a_page_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["web", "--page", str(tmp_path)]) == 2
    assert "no page that was built" in capsys.readouterr().err


def test_an_installation_without_the_page_says_how_to_build_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("autofit.cli.web.PLACES", (tmp_path,))
    assert main(["web"]) == 2
    assert "just web" in capsys.readouterr().err
    monkeypatch.setattr("autofit.cli.web.PLACES", (tmp_path / "none", tmp_path))
    (tmp_path / "files.json").write_text("{}")
    assert place_of(None) == tmp_path


def test_it_serves_until_it_is_interrupted(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "autofit", "web", "--page", str(folder), "--no-open"], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "AUTOFIT_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    address, _, fragment = process.stdout.readline().strip().partition("#")
    assert fragment == "machine=here"
    host, _, path = address.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=30)
    connection.request("GET", f"/{path}machine.json")
    machine = json.loads(connection.getresponse().read())
    connection.close()
    assert (machine["schema"], machine["kind"]) == (1, "machine")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    process.stdout.close()

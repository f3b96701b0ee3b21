"""The planned command of a real vllm-router, in front of servers that only listen (`.ci/formats.sh`): who is asked."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import autofit
import pytest

from support import DATA
from support.serving import free_port

FOLDER = os.environ.get("AUTOFIT_FORMATS", "")
ROUTER = Path(FOLDER) / "router/bin/vllm-router"
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not FOLDER or not ROUTER.is_file(), reason="AUTOFIT_FORMATS has no vllm-router"),
]
HANDED = {"do_remote_prefill": True, "remote_engine_id": "e", "remote_host": "h", "remote_port": 5600}


@contextmanager
def server(asked: list[dict[str, Any]]) -> Iterator[int]:
    """Answers as vLLM does, and keeps what it was asked for."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            self.answer({"data": [{"id": "m"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
            answer: dict[str, Any] = {"choices": [{"index": 0, "text": "yes", "finish_reason": "stop"}]}
            if self.path == "/v1/completions":
                asked.append(body)
                if body.get("kv_transfer_params", {}).get("do_remote_decode"):
                    answer["kv_transfer_params"] = HANDED
            self.answer(answer)

        def answer(self, body: dict[str, Any]) -> None:
            text = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield listening.server_address[1]
        listening.shutdown()


@contextmanager
def routed(**wishes: Any) -> Iterator[tuple[str, dict[str, list[dict[str, Any]]]]]:
    """The address of the router, and what each instance was asked for, by its role and name."""
    config = str(DATA / "vllm/configs/qwen3-0.6b")
    plan = autofit.plan("vllm", config, on=["a100-80gb"], ram="64GiB", nodes=3, link="100Gbit", **wishes)
    *instances, router = plan.nodes
    asked: dict[str, list[dict[str, Any]]] = {f"{one.role} {one.node}": [] for one in instances}
    with ExitStack() as stack:
        words = " ".join(router.commands[0][1:])
        for one in instances:
            port = stack.enter_context(server(asked[f"{one.role} {one.node}"]))
            words = words.replace(f"http://{one.node}:8000", f"http://127.0.0.1:{port}")
        assert "node" not in words
        port = free_port()
        words = words.replace("--port 30000", f"--port {port}").replace("--host 0.0.0.0", "--host 127.0.0.1")
        own = ["--prometheus-port", str(free_port())]
        process = subprocess.Popen([ROUTER, *words.split(), *own], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        stack.callback(process.wait)
        stack.callback(process.kill)
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}", asked


def complete(address: str) -> dict[str, Any]:
    body = json.dumps({"model": "m", "prompt": "hello", "max_tokens": 5}).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{address}/v1/completions", data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def test_a_prompt_is_read_by_one_instance_and_answered_by_another() -> None:
    with routed(disaggregate="3000:500") as (address, asked):
        assert complete(address)["choices"][0]["text"] == "yes"
    readers = [one for name, bodies in asked.items() if name.startswith("prefill") for one in bodies]
    writers = [one for name, bodies in asked.items() if name.startswith("decode") for one in bodies]
    assert [one["kv_transfer_params"]["do_remote_decode"] for one in readers] == [True]
    assert [(one["kv_transfer_params"], one["max_tokens"]) for one in writers] == [(HANDED, 5)]


def test_copies_answer_alone() -> None:
    with routed(replicas="auto") as (address, asked):
        for _ in range(3):
            complete(address)
    bodies = [one for each in asked.values() for one in each]
    assert len(asked) == 3 and len(bodies) == 3 and not any("kv_transfer_params" in one for one in bodies)

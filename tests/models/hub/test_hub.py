"""Models by name: fetched from a hub, here a small server on this machine, into the hub's own cache."""

import functools
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent.parent
GOLDEN = ROOT / "tests" / "golden" / "qwen3"
COMMITS = {"main": "1" * 40, "small": "2" * 40}  # revisions of the one repository, someone/tiny


class Hub(BaseHTTPRequestHandler):
    """What `huggingface_hub.snapshot_download` asks of a hub."""

    def __init__(self, folder, seen, *args):
        self.folder, self.seen = folder, seen
        super().__init__(*args)

    def log_message(self, format, *args):
        pass

    def answer(self, body: bytes, **headers):
        self.send_response(200)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.partition("?")[0].removeprefix("/")
        self.seen.append(path)
        names = [file.name for file in self.folder.iterdir()]
        if path.startswith("api/models/someone/tiny"):
            sha = COMMITS.get(path.rpartition("/")[2], COMMITS["main"])
            info = {"id": "someone/tiny", "sha": sha, "siblings": [{"rfilename": x} for x in names]}
            tree = [{"type": "file", "path": x, "oid": "0", "size": 1} for x in names]
            self.answer(json.dumps(tree if "/tree/" in path else info).encode())
        elif path.startswith("someone/tiny/resolve/") and path.rpartition("/")[2] in names:
            body = (self.folder / path.rpartition("/")[2]).read_bytes()
            etag = f'"{hashlib.sha1(body).hexdigest()}"'
            self.answer(body, ETag=etag, X_Repo_Commit=path.split("/")[3])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path):
    """(environment that leads there, what was asked of it)."""
    shutil.copytree(GOLDEN, tmp_path / "repository")
    (tmp_path / "repository" / "pytorch_model.bin").write_bytes(b"not wanted")
    seen = []
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Hub, tmp_path / "repository", seen)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
    environment |= {"JAX_PLATFORMS": "cpu", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    yield environment, seen
    server.shutdown()
    server.server_close()


PROGRAM = """
from rlhf_jax.models.hub import huggingface
model = huggingface.load("someone/tiny@small")
print(model.cfg.d_model, model.folder)
try:
    huggingface.load("someone/other")
except ValueError as error:
    print(error)
"""


def ask(environment):
    command = [sys.executable, "-c", PROGRAM]
    said = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return said.stdout.strip().splitlines()


def test_a_name_is_fetched_once_into_the_hubs_cache_at_its_revision_and_read_offline(hub, tmp_path):
    environment, seen = hub
    width, unknown = ask(environment)
    assert width.startswith("28 ") and width.endswith(COMMITS["small"])
    assert str(tmp_path / "home") in width
    assert "model 'someone/other' is no folder, and no model of a hub" in unknown
    assert any(path.endswith("model.safetensors") for path in seen)
    assert not any(path.endswith(".bin") for path in seen)  # only what is read here is fetched

    seen.clear()
    again, unknown = ask(environment | {"HF_HUB_OFFLINE": "1"})
    assert again == width and not seen
    assert "'someone/other' is no folder" in unknown

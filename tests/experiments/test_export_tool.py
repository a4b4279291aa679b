"""Exports that are uploaded, to a server on this machine that plays the hub: what arrives, and refusals."""

import base64
import functools
import hashlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import runs
import yaml

import launch

SETTINGS = str.split(
    f"sft {' '.join(runs.SFT + runs.SHAPE)} --devices device --data.demonstrations 80 --data.held-out 0.05 "
    "--sft.batch-size 8 --eval-draws 1"
)
ROLES = {"writes": "write", "reads": "read"}  # of the tokens that the server knows


class Hub(BaseHTTPRequestHandler):
    """What `huggingface_hub.HfApi` asks of a hub, to make a repository and to commit a folder to it."""

    state: dict

    def __init__(self, state, *args):
        self.state = state
        super().__init__(*args)

    def log_message(self, format, *args):
        pass

    def answer(self, body, code=200):
        body = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        path = self.path.partition("?")[0]
        repository = "/".join(path.split("/")[3:5])
        files = self.state["repositories"].get(repository)
        if path == "/api/whoami-v2" and token in ROLES:
            self.answer({"name": "someone", "auth": {"accessToken": {"role": ROLES[token]}}})
        elif path == "/api/whoami-v2":
            self.answer({"error": "Invalid credentials"}, 401)
        elif files is None:
            self.answer({"error": "Repository not found"}, 404)
        elif "/tree/" in path:
            found = [{"type": "file", "path": x, "oid": "0", "size": 1} for x in files]
            self.answer(found)
        else:
            private = repository in self.state["private"]
            names = [{"rfilename": x} for x in files]
            self.answer({"id": repository, "sha": "1" * 40, "private": private, "siblings": names})

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.state["blobs"][hashlib.sha256(body).hexdigest()] = body
        self.answer({})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        lines = [json.loads(line) for line in body.splitlines()]
        parts, state = self.path.partition("?")[0].split("/"), self.state
        if self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            name = f"{lines[0]['organization']}/{lines[0]['name']}"
            known = name in state["repositories"]
            state["repositories"].setdefault(name, {})
            if not known and lines[0].get("visibility") == "private":
                state["private"] |= {name}
            url = f"http://{self.headers['Host']}/{name}"
            self.answer({"url": url, "error": "exists"}, 409 if known else 200)
        elif "preupload" in parts and state["full"]:
            self.answer({"error": "no room"}, 507)
        elif "preupload" in parts:
            large = lambda x: "lfs" if x["path"].endswith(".safetensors") else "regular"
            of = lambda x: {"path": x["path"], "uploadMode": large(x), "shouldIgnore": False}
            self.answer({"files": [of(x) for x in lines[0]["files"]]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            to = f"http://{self.headers['Host']}/blob"
            upload = {"actions": {"upload": {"href": to, "header": {}}}}
            self.answer({"objects": [x | upload for x in lines[0]["objects"]]})
        else:
            name = "/".join(parts[3:5])
            files = state["repositories"][name]
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = state["blobs"][value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            url = f"http://{self.headers['Host']}/{name}/commit/{'1' * 40}"
            self.answer({"success": True, "commitUrl": url, "commitOid": "1" * 40})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    assert launch.main([*SETTINGS, "--run", str(folder)]) == 0
    return folder


@pytest.fixture
def hub(tmp_path):
    """(what the server holds, environment that leads there)."""
    state = {"repositories": {}, "private": set(), "blobs": {}, "full": False}
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, state))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {x: y for x, y in os.environ.items() if not x.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "NO_PROXY": "*"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    yield state, environment | {"JAX_PLATFORMS": "cpu", "HF_TOKEN": "writes"}
    server.shutdown()
    server.server_close()


PROGRAM = """
import contextlib, io, json, os, sys
import launch
found = []
for token, *args in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = launch.main(["export", *args])
    found.append((code, out.getvalue(), err.getvalue()))
sys.__stdout__.write(json.dumps(found))
"""


def export(environment, *commands):
    """(exit code, output, errors) of each export, a token and the words of a command, in one process."""
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        env=environment, cwd=runs.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        x.relative_to(folder).as_posix(): x.read_bytes() for x in folder.rglob("*") if x.is_file()
    }


def test_what_arrives_is_the_folder_and_what_fails_is_said_with_its_remedy(run, hub, tmp_path):
    state, environment = hub
    old = {"model-00001-of-00002.safetensors": b"stale", "notes.txt": b"kept"}
    state["repositories"] = {"someone/old": dict(old), "someone/open": {}}
    to = lambda name: ("--run", str(run), "--to", str(tmp_path / name), "--push-to-hub")
    made, again, *refused = export(
        environment,
        ("writes", *to("made"), "someone/made", "--private"),
        ("writes", *to("again"), "someone/old"),
        ("writes", *to("none"), "someone"),
        ("writes", *to("none"), "some one/made"),
        ("", *to("none"), "someone/made"),
        ("wrong", *to("none"), "someone/made"),
        ("reads", *to("none"), "someone/made"),
        ("writes", *to("none"), "someone/open", "--private"),
    )
    assert made[0] == again[0] == 0 and "uploaded: http" in made[1], made + again
    written = contents(tmp_path / "made")
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= written.keys()
    assert state["repositories"]["someone/made"] == written
    assert state["private"] == {"someone/made"}
    both = {"notes.txt": b"kept"} | contents(tmp_path / "again")  # and no weights of before
    assert state["repositories"]["someone/old"] == both
    for (code, _, err), words in zip(
        refused,
        [
            'push_to_hub = "someone" is no repository: name one as USER/NAME',
            'push_to_hub = "some one/made" is no repository: name one as USER/NAME',
            "needs a token of the hub, and there is none: log in with hf auth login, or set HF_TOKEN",
            "cannot be written to .*Invalid user token",
            "cannot be written to with a token that may only read",
            "is public there, and private is set",
        ],
        strict=True,
    ):
        assert code == 1 and re.search(words, err) and err.strip().count("\n") == 0, err
    assert not (tmp_path / "none").exists()


def test_an_upload_that_fails_leaves_the_folder_and_the_command_that_repeats_it(run, hub, tmp_path):
    state, environment = hub
    state["full"] = True
    words = "--run", str(run), "--to", str(tmp_path / "it"), "--push-to-hub", "someone/it"
    ((code, out, err),) = export(environment, ("writes", *words))
    assert code == 1 and "any experiment here takes it as --reference" in out
    assert "507" in err and err.strip().count("\n") == 0
    state["full"] = False
    hf, *again = shlex.split(err.strip().partition("repeat that by ")[2])
    assert hf == "hf"
    command = [sys.executable, "-m", "huggingface_hub.cli.hf", *again]
    said = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert state["repositories"]["someone/it"] == contents(tmp_path / "it")


def test_a_hub_out_of_reach_is_told_before_the_export_begins(run, hub, tmp_path):
    _, environment = hub
    words = "--run", str(run), "--to", str(tmp_path / "it"), "--push-to-hub", "someone/it"
    nowhere = environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    ((code, _, err),) = export(nowhere, ("writes", *words))
    assert code == 1 and re.search(
        r"cannot be written to \(.+\): check name, network and token", err
    )
    ((code, _, err),) = export(environment | {"HF_HUB_OFFLINE": "1"}, ("writes", *words))
    assert code == 1 and "offline" in err.lower() and not (tmp_path / "it").exists()


def test_a_card_is_in_every_export_and_has_the_results_of_the_run(run, tmp_path):
    assert launch.main(["export", "--run", str(run), "--to", str(tmp_path / "it")]) == 0
    _, head, body = (tmp_path / "it" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "transformers"
    loss = json.loads((run / "results.json").read_text())["SFT held-out loss, nats a token"]
    assert f"| SFT held-out loss, nats a token | {loss:.4g} |" in body
    assert str(tmp_path) not in body and str(run) not in body

"""The report on people's judgements: from a raw export, a database, and a page that runs."""

import http.server
import json
import threading

import matplotlib.image
import numpy as np
import pytest
import raw_rows

import launch
from rlhf_jax.people import summary


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A raw export, and the numbers in it."""
    rows = raw_rows.world(0)
    path = tmp_path_factory.mktemp("raw") / "raw.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, json.loads(json.dumps(summary.summary(rows)))


def report(tmp_path, data):
    assert launch.main(["feedback-report", "--data", str(data), "--to", str(tmp_path / "to")]) == 0
    return json.loads((tmp_path / "to" / "summary.json").read_text())


def test_a_raw_export_becomes_numbers_tables_and_a_picture(raw, tmp_path, capsys):
    path, want = raw
    assert report(tmp_path, path) == want
    said = capsys.readouterr().out
    assert f"{want['agreement']['side']['alpha']:.2f}" in said and "beats middle" in said
    assert all(person["name"] in said for person in want["people"])
    image = matplotlib.image.imread(tmp_path / "to" / "picture.png")
    colours = np.unique((image[::4, ::4, :3] * 255).astype(int).reshape(-1, 3), axis=0)
    assert image.shape[0] > 600 and len(colours) > 20


def test_names_are_names_and_no_markup(tmp_path, capsys):
    rows = raw_rows.world(1)
    names = {"p0": "[/b]", "p1": "[red]x", "p2": "$a_$"}
    for row in rows:
        row["annotator"] = names.get(row["annotator"], row["annotator"])
    path = tmp_path / "raw.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report(tmp_path, path)
    said = capsys.readouterr().out
    assert all(name in said for name in names.values())


def test_a_database_gives_what_its_raw_export_gives(raw, tmp_path):
    pytest.importorskip("fastapi", reason="the labelling page needs the extra [feedback]")
    from feedback import command_line

    path, want = raw
    database = ["--database", f"sqlite:///{tmp_path}/a.db"]
    assert command_line.main(["import", str(path), "--judgements", *database]) == 0
    assert report(tmp_path, tmp_path / "a.db") == want
    empty = tmp_path / "b.db"
    empty.write_text("no database")
    assert launch.main(["feedback_report", "--data", str(empty), "--to", str(tmp_path / "x")]) != 0


def test_a_page_that_runs_is_asked_with_the_owners_token(raw, tmp_path, monkeypatch, capsys):
    path, want = raw
    asked = []

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(path.read_bytes())

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        monkeypatch.delenv("FEEDBACK_TOKEN", raising=False)
        assert launch.main(["feedback_report", "--data", address]) != 0
        assert "FEEDBACK_TOKEN is empty" in capsys.readouterr().err
        monkeypatch.setenv("FEEDBACK_TOKEN", "secret")
        assert report(tmp_path, address) == want
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert asked == [("/api/export?kind=raw", "Bearer secret")]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("", "data is empty: name a database, a raw export or the address of a page"),
        ("nothing.jsonl", "data = nothing.jsonl is no file, and no address"),
        ("rows", "row 1 has no kind, stands, item and annotator: give a raw export"),
        ("none", "has no judgement of a pair that stands"),
    ],
)
def test_what_is_no_export_is_refused_in_one_sentence(tmp_path, capsys, data, words):
    rows = {
        "rows": {"prompt": "x", "chosen": "y", "rejected": "z"},
        "none": raw_rows.row(0, 0, "a", 0, stands=False),
    }
    if data in rows:
        (tmp_path / "x.jsonl").write_text(json.dumps(rows[data]) + "\n")
        data = str(tmp_path / "x.jsonl")
    command = ["feedback_report", "--data", data, "--to", str(tmp_path / "to")]
    assert launch.main(command) != 0
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "to").exists()

"""`python -m feedback`: what each command does and says, and how it ends."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys

import pytest
import sqlalchemy as sa
from serving import ROOT, Client, Server, free_port, pairs, serving

from feedback import command_line
from feedback.store import database, schema

COMMANDS = [*command_line.COMMANDS]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder: (exit code, what it printed, what it complained of)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEEDBACK_PASSWORD", raising=False)

    def run(*args: str):
        code = command_line.main([*args])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def put_pairs(path, n=3):
    path.write_text("".join(json.dumps(x) + "\n" for x in pairs(n)))
    return str(path)


# help


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_whole_sentences(command, capsys):
    with pytest.raises(SystemExit) as ended:
        command_line.main([*([command] if command else []), "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    plain = re.sub(r"[│╭╮╰╯─]", "", said)
    words = re.sub(r"\s+", " ", plain)
    assert "FEEDBACK_PASSWORD" in words or command != "serve"
    # every option says something, and it ends in a full stop before its default
    options = re.findall(r"--[a-z][\w-]*(?:, --no-[\w-]+)?(?: [A-Z{][^ ]*)? (.*?)\(default", words)
    assert all(x.strip().endswith(".") for x in options), options
    about = command_line.COMMANDS[command].__doc__ if command else ""
    assert not about or about.partition("\n")[0] in words


def test_a_command_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        command_line.main(["serv"])
    assert ended.value.code == 2


# what they refuse


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["export", "--database", "nonsense"], "database is 'nonsense', which is no URL"),
        (["export"], "there is no file feedback.db"),
        (["export", "--database", "mysql://x/y"], "SQLite (sqlite:///PATH) and PostgreSQL"),
        (["backup", "to.db"], "there is no file feedback.db"),
        (["upgrade"], "there is no file feedback.db"),
        (["revoke", "ada"], "there is no file feedback.db"),
        (["invite"], "invite got no names"),
        (["invite", "ada", "--days", "0"], "days is 0.0, and must be above 0"),
        (["invite", "ada", "ada"], "ada"),
        (["invite", "nobody", "--again"], "there is no annotator named 'nobody'"),
        (["import"], "import got no files"),
        (["import", "missing.jsonl"], "missing.jsonl"),
        (["serve", "--host", "0.0.0.0"], "set FEEDBACK_PASSWORD, or listen at 127.0.0.1"),
        (["serve", "--port", "70000"], "port is 70000"),
        (["serve", "--guidelines", "missing.md"], "guidelines is missing.md, which cannot be read"),
        (["serve", "--database", "sqlite://"], "SQLite without a file"),
        (["serve", "--people", "-1"], "people is -1"),
        (["serve", "--gold-share", "2"], "gold_share is 2"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_a_refusal_is_one_sentence_and_exit_code_1(run, args, said):
    code, out, complaint = run(*args)
    assert (code, out) == (1, "")
    assert complaint.startswith("error: ") and said in complaint
    assert complaint.count("\n") == 1


def test_a_port_that_is_taken_is_refused(run, tmp_path):
    port = str(free_port())
    with serving(tmp_path, port=port):
        code, _, said = run("serve", "--port", port)
    assert code == 1
    assert f"port {port} of host 127.0.0.1 cannot be used" in said


def test_a_newer_database_is_refused_by_name(run):
    assert run("invite", "ada")[0] == 0
    with sqlite3.connect("feedback.db") as c:
        c.execute("UPDATE alembic_version SET version_num = '9999'")
    c.close()
    for args in (["serve"], ["export"], ["upgrade"], ["invite", "ben"]):
        code, _, said = run(*args)
        assert code == 1
        assert "9999" in said and "newer version" in said


# what they do


def test_items_come_in_once(run, tmp_path):
    file = put_pairs(tmp_path / "pairs.jsonl")
    assert run("import", file) == (0, f"{file}: new items: 3, there already: 0.\n", "")
    assert run("import", file)[1] == f"{file}: new items: 0, there already: 3.\n"


def test_links_are_printed_once_and_work_until_they_are_revoked(run, tmp_path):
    code, said, _ = run("invite", "ada", "ben", "--url", "http://127.0.0.1:8123/")
    links = dict(re.findall(r"^(\w+): http://127.0.0.1:8123(/i/[\w-]{43})$", said, re.M))
    assert (code, {*links}) == (0, {"ada", "ben"})
    database_of = {"database": f"sqlite:///{tmp_path}/feedback.db"}
    with serving(tmp_path, **database_of) as server:
        assert Client(server.url).get(links["ada"]).status == 303
        assert run("revoke", "ada")[1] == "Withdrawn: 1 link.\n"
        assert run("revoke", f"{server.url}{links['ben']}")[1] == "Withdrawn: 1 link.\n"
        assert [Client(server.url).get(x).status for x in links.values()] == [403, 403]
        said = run("invite", "ada", "--again")[1]
        assert Client(server.url).get(said.split(":8000")[1].strip()).status == 303
    code, _, said = run("revoke", "ben")
    assert (code, said) == (1, "error: there is no such link, and nobody of this name has one\n")


def test_a_copy_is_made_while_the_server_runs(run, tmp_path):
    with serving(tmp_path, training_count=0) as server:
        server.put(pairs(2))
        script = server.script("ada")
        script.judge(script.post("/api/lease").json, comment="kept")
        code, said, _ = run("backup", "copy.db")
        assert code == 0 and "copy.db" in said
        assert run("backup", "copy.db")[0] == 1  # it replaces nothing
        script.judge(script.post("/api/lease").json)
    copy = database.Database(f"sqlite:///{tmp_path}/copy.db")
    with copy.read() as c:
        assert [*c.scalars(sa.select(schema.judgement.c.comment))] == ["kept"]
    copy.close()
    assert len(run("export", "--kind", "raw")[1].splitlines()) == 2
    assert (
        len(run("export", "--kind", "raw", "--database", "sqlite:///copy.db")[1].splitlines()) == 1
    )
    code, said, _ = run("export", "out.jsonl")
    assert (code, said) == (0, "out.jsonl has 2 rows.\n")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


# the server


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_cleanly(tmp_path, how):
    server = Server(tmp_path).start()
    browser = server.browser()
    assert browser.get("/keys").status == 200
    assert server.stop(how) == 0
    assert server.err == ""
    assert "Traceback" not in server.log
    with sqlite3.connect(tmp_path / "feedback.db") as c:
        assert c.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    c.close()


def test_the_server_puts_items_and_invites_people_at_its_start(tmp_path):
    file = put_pairs(tmp_path / "pairs.jsonl", 4)
    args = ["serve", "--port=0", f"--items={file}", "--people=2", f"--log={tmp_path}/log"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    for known in (0, 2):
        process = subprocess.Popen(
            [sys.executable, "-m", "feedback", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env=environment,
            text=True,
        )
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(4 if not known else 3)]
        try:
            new, there = (4, 0) if not known else (0, 4)
            assert lines[0].strip() == f"{file}: new items: {new}, there already: {there}."
            assert re.match(r"owner .*: http://127\.0\.0\.1:\d+/i/[\w-]{43}$", lines[1])
            if known:
                assert lines[2] == "2 people have links already\n"
            else:
                found = [re.match(r"annotator (\d): (http://.*?)(/i/.*)\n", x) for x in lines[2:]]
                assert [x and x[1] for x in found] == ["1", "2"]
                assert [Client(x[2]).get(x[3]).status for x in found if x] == [303, 303]
        finally:
            process.terminate()
            process.communicate()
        assert process.returncode == 0


def test_the_log_goes_to_standard_error_where_no_file_is_named(tmp_path):
    with serving(tmp_path, log="") as server:
        token = server.invite()
        Client(server.url).get(f"/i/{token}")
    assert "GET /i/*** 303" in server.err
    assert token not in server.err


def test_the_password_is_in_no_help(monkeypatch, capsys):
    monkeypatch.setenv("FEEDBACK_PASSWORD", "hunter2")
    with pytest.raises(SystemExit):
        command_line.main(["serve", "--help"])
    assert "hunter2" not in capsys.readouterr().out


def test_the_server_behind_a_proxy_believes_it_alone(tmp_path):
    """Addresses and HTTPS are taken from the proxy that is named, and from nobody else."""
    more = {"X-Forwarded-For": "192.0.2.9", "X-Forwarded-Proto": "https"}
    for forwarded, address in (("", "127.0.0.1"), ("127.0.0.1", "192.0.2.9")):
        settings = {"forwarded": forwarded, "port": free_port()}
        with serving(tmp_path, url="https://judge.example.org", **settings) as server:
            reply = Client(server.url).get(f"/i/{server.invite()}", headers=more)
            assert ("Secure" in reply.headers["set-cookie"]) == bool(forwarded)
            Client(server.url).get("/", headers=more)
        last = [x for x in server.log.splitlines() if " GET / 401 " in x][-1]  # all is written
        assert last.endswith(f" from {address}")

"""What the page at / is made of: a file that holds nothing of the models, stored samples, promises, and numbers of the server itself."""

from __future__ import annotations

from aimass_lab.serving.launch import Server

from .servers import call, infer, metric


def test_the_page_holds_nothing_and_a_program_gets_a_list(guarded: Server) -> None:
    answer = call(guarded, "GET", "/", None, {"Accept": "text/html,*/*"})
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert answer.body.startswith(b"<!doctype html>")
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert call(guarded, "GET", "/").status == 401
    assert "infer" in call(guarded, "GET", "/", None, {"Authorization": "Bearer secret"}).body.decode()


def test_samples_and_promises(linear: Server) -> None:
    sample = call(linear, "GET", "/v2/models/net/sample?index=19").json
    assert (sample["index"], sample["count"], sample["inputs"][0]["shape"]) == (19, 20, [1, 4])
    for query in ("index=20", "index=-1", "index=x", "page=1"):
        assert call(linear, "GET", f"/v2/models/net/sample?{query}").status == 400
    assert call(linear, "GET", "/v2/models/net/promises").json["promises"][0]["name"] == "errors"


def test_the_server_tells_of_itself(linear: Server) -> None:
    before = metric(linear, "aimass_request_seconds_count")
    infer(linear, [[1.0, 2.0, 3.0, 4.0]])
    infer(linear, [[1.0]])
    assert metric(linear, "aimass_request_seconds_count") == before + 1  # only what got outputs has a latency
    assert 20e6 < metric(linear, "aimass_memory_bytes") < 2e9
    assert 0 < metric(linear, "aimass_startup_seconds") < 300

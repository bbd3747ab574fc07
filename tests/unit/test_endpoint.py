"""Answers from a server on the loopback: what is posted, what is tried again, and what is said of a failure."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from alignlab.build import build_target
from alignlab.compose import CONF
from alignlab.data.self_sampling import SelfSampling, self_sample
from alignlab.errors import MissingError, StoppedError, UserError
from alignlab.generate import endpoint
from alignlab.generate.endpoint import ChatEndpoint
from alignlab.generate.hf import Decoding
from alignlab.protocols import Request
from alignlab.records import Dialogue
from alignlab.signals import Stop
from alignlab.workshop import Answer, Workshop

DECODING = Decoding(0.7, 0.95, 0, 12)
Reply = tuple[int, Any, dict[str, str]]


def good(text: str | None, finish: str = "stop") -> Reply:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}, {}


@dataclass
class Server:
    """Replies to each post with what ``reply`` makes of the body; keeps what it was sent."""

    reply: Callable[[dict[str, Any]], Reply | None] = lambda body: good(f"re: {body['messages'][-1]['content']}")
    posts: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.001)
    known = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known.posts.append((self.path, dict(self.headers), body))
            found = known.reply(body)
            if found is None:
                self.close_connection = True
                return  # as a server that dies
            code, content, headers = found
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(code)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.handle_error = lambda *_: None  # type: ignore[method-assign] # a client that has gone
    known.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield known
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def shop(tmp_path: Path, text) -> Workshop:
    """Without a model: nothing asks for it."""
    return Workshop(tmp_path / "run", ["tiny"], lambda: text, None, Stop(), lambda _: None)  # type: ignore[arg-type]


def chat(server: Server, **change: Any) -> ChatEndpoint:
    return ChatEndpoint(
        **{
            **{"url": server.url, "model": "llama", "key_variable": None, "parallel": 3, "attempts": 3, "timeout_seconds": 60.0},
            **change,
        }
    )


def asked(*words: str) -> list[Request]:
    return [Request([{"role": "user", "content": word}]) for word in words]


def answers(sampler: ChatEndpoint, requests: list[Request], shop: Workshop, **change: Any) -> dict[int, Answer]:
    more: dict[str, Any] = {"decoding": DECODING, "seeds": range(len(requests)), "done": (), "workshop": shop, **change}
    return {place: answer for batch in sampler.answers(requests, **more) for place, answer in batch}


def refusal(kind: type[UserError], call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert type(caught.value) is kind
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


# ---- what is posted and what comes back


def test_each_request_is_posted_as_the_protocol_has_it(server, shop):
    system = {"role": "system", "content": "Be brief."}
    requests = [Request([system, {"role": "user", "content": "é?"}]), *asked("b")]
    found = answers(chat(server, url=server.url + "/"), requests, shop, seeds=[5, (1 << 62) + 9])
    assert found == {0: Answer("re: é?", "stop"), 1: Answer("re: b", "stop")}
    posts = sorted(server.posts, key=lambda post: post[2]["seed"])
    assert [path for path, _, _ in posts] == ["/v1/chat/completions"] * 2
    common = {"model": "llama", "temperature": 0.7, "top_p": 0.95, "max_tokens": 12}
    assert posts[0][2] == {**common, "seed": 5, "messages": [system, {"role": "user", "content": "é?"}]}
    assert posts[1][2] == {**common, "seed": 9, "messages": [{"role": "user", "content": "b"}]}
    assert all(headers["Content-Type"] == "application/json" and "Authorization" not in headers for _, headers, _ in posts)


def test_a_text_is_completed_and_top_k_said_where_there_is_one(server, shop):
    server.reply = lambda body: (200, {"choices": [{"text": " there", "finish_reason": "length"}]}, {})
    found = answers(chat(server), [Request(text="Once")], shop, decoding=replace(DECODING, top_k=7))
    assert found == {0: Answer(" there", "length")}
    ((path, _, body),) = server.posts
    assert path == "/v1/completions"
    assert (body["prompt"], body["top_k"], "messages" in body) == ("Once", 7, False)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (good("cut", "length"), Answer("cut", "length")),
        (good(None, "content_filter"), Answer("", "stop")),
        (good("half \ud83d of a pair"), Answer("half ? of a pair", "stop")),
        ((200, b'\n {"choices": [{"message": {"content": "\xc3\xa9"}}]}', {}), Answer("é", "stop")),
        ((400, {"error": {"message": "This model's maximum context length is 4096 tokens."}}, {}), Answer("", "prompt")),
        ((400, {"error": {"code": 400, "message": "the request exceeds the available context size"}}, {}), Answer("", "prompt")),
    ],
)
def test_replies_that_are_answers(server, shop, reply, answer):
    server.reply = lambda body: reply
    assert answers(chat(server), asked("a"), shop) == {0: answer}


def test_what_is_done_is_not_asked_again_and_nothing_at_all_of_nobody(server, shop):
    assert answers(chat(server), asked("a", "b", "c"), shop, done={0, 2}) == {1: Answer("re: b", "stop")}
    assert answers(chat(server), asked("a", "b"), shop, done={0, 1}) == {}
    assert [body["messages"][0]["content"] for _, _, body in server.posts] == ["b"]


def test_answers_come_in_the_order_in_which_they_are_done(server, shop):
    gates = {word: threading.Event() for word in "abc"}

    def reply(body: dict[str, Any]) -> Reply:
        word = body["messages"][0]["content"]
        assert gates[word].wait(60)
        return good(word)

    server.reply = reply
    batches = chat(server).answers(asked("a", "b", "c"), DECODING, range(3), (), shop)
    for place in (2, 0, 1):
        gates["abc"[place]].set()
        assert next(batches) == [(place, Answer("abc"[place], "stop"))]
    assert list(batches) == []


def test_no_more_requests_than_parallel_are_under_way(server, shop):
    lock, under_way, most = threading.Lock(), 0, 0
    together = threading.Barrier(3, timeout=60)

    def reply(body: dict[str, Any]) -> Reply:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        together.wait()  # passes only where three are under way
        with lock:
            under_way -= 1
        together.wait()
        return good("x")

    server.reply = reply
    assert len(answers(chat(server), asked(*"abcdef"), shop)) == 6
    assert most == 3


# ---- what is tried again


@pytest.mark.parametrize(
    "first",
    [
        (429, {"error": {"message": "slow down"}}, {"Retry-After": "0"}),
        (429, b"", {}),
        (500, b"<html>", {}),
        (503, {"detail": "loading"}, {"Retry-After": "soon"}),
        None,
    ],
)
def test_what_may_pass_is_tried_again_and_said_once(server, shop, first):
    replies: list[Reply | None] = [first, first, *[good("at last")] * 8]
    server.reply = lambda body: replies.pop(0)
    said: list[str] = []
    found = answers(chat(server, parallel=1), asked("a", "b"), replace(shop, say=said.append))
    assert found == {0: Answer("at last", "stop"), 1: Answer("at last", "stop")}
    assert len(server.posts) == 4
    assert len(said) == 1
    assert said[0].startswith(f"self-samples: {server.url}/chat/completions: ")
    assert said[0].endswith("; trying again")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3.0), ("-1", 0.0), ("0.5", 0.5), ("", 7.0), ("soon", 7.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)],
)
def test_how_long_a_server_asks_to_wait(value, seconds):
    assert endpoint._retry_after(value, 7.0) == seconds


def test_a_server_may_ask_to_wait_until_a_time():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 90 < endpoint._retry_after(later, 7.0) <= 100


def test_a_server_that_keeps_failing(server, shop):
    server.reply = lambda body: (502, {"error": "no backend."}, {})
    message = refusal(MissingError, lambda: answers(chat(server), asked("a"), shop))
    assert message.startswith(f"data.sampler.url: no answer from {server.url}/chat/completions in 3 tries: 502 no backend.\n")
    assert len(server.posts) == 3


def test_no_server(server, shop):
    gone = chat(server, url="http://127.0.0.1:1/v1", attempts=2)
    message = refusal(MissingError, lambda: answers(gone, asked("a", "b"), shop))
    assert message.startswith("data.sampler.url: no answer from http://127.0.0.1:1/v1/chat/completions in ")
    assert "Connection refused" in message


def test_a_silent_server(server, shop):
    over = threading.Event()

    def reply(body: dict[str, Any]) -> Reply:
        over.wait(60)
        return good("late")

    server.reply = reply
    message = refusal(MissingError, lambda: answers(chat(server, timeout_seconds=0.05, attempts=2), asked("a"), shop))
    over.set()
    assert "in 2 tries: timed out.\n" in message


# ---- what is not


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (
            (401, {"error": {"message": "Incorrect API key"}}, {}),
            ["data.sampler.key_variable: ", "401: Incorrect API key", "no key"],
        ),
        (
            (404, {"error": {"message": "no model 'llama'"}}, {}),
            ["data.sampler.url: ", "404: no model 'llama'", "data.sampler.model"],
        ),
        ((400, {"message": "unknown parameter"}, {}), ["data.sampler: ", "400: unknown parameter."]),
        ((402, b"", {}), ["402: it does not say why."]),
        ((307, b"", {"Location": "https://elsewhere/v1"}), ["data.sampler.url: ", "307: see https://elsewhere/v1."]),
        ((200, b"<html>Welcome</html>", {}), ["data.sampler.url: ", "gives '<html>Welcome</html>' in place of a completion"]),
        ((200, b"", {}), ["gives nothing in place"]),
        ((200, {"object": "list"}, {}), ["in place of a completion. Is it an OpenAI-compatible server?"]),
        ((200, {"choices": []}, {}), ["in place of a completion"]),
        ((200, {"choices": ["a"]}, {}), ["in place of a completion"]),
        ((200, {"choices": [{"message": {"content": ["a"]}}]}, {}), ["in place of a completion"]),
        ((200, [1], {}), ["in place of a completion"]),
    ],
)
def test_what_another_try_does_not_mend_is_said_at_once(server, shop, reply, said):
    server.reply = lambda body: reply
    message = refusal(UserError, lambda: answers(chat(server), asked("a"), shop))
    assert message.startswith("data.sampler")
    assert all(words in message for words in said), message
    assert len(server.posts) == 1


def test_after_a_failure_what_is_under_way_is_still_answered(server, shop):
    failed = threading.Event()

    class Told(ChatEndpoint):
        def _refused(self, *arguments: Any) -> UserError:
            failed.set()
            return super()._refused(*arguments)

    def reply(body: dict[str, Any]) -> Reply:
        word = body["messages"][0]["content"]
        if word == "bad":
            return 400, {"error": "never"}, {}
        assert failed.wait(60)
        return good(word)

    server.reply = reply
    found: list[tuple[int, Answer]] = []
    batches = Told(**vars(chat(server, parallel=2))).answers(asked("slow", "bad", *"abcdef"), DECODING, range(8), (), shop)
    with pytest.raises(UserError, match="400: never"):
        deque(map(found.extend, batches), maxlen=0)
    assert (0, Answer("slow", "stop")) in found
    assert len(server.posts) < 8


@pytest.mark.parametrize(
    ("request_", "decoding", "said"),
    [
        (Request([], twice=True), DECODING, "data.self_sampling.double_bos: a server renders the chat template once"),
        (Request(text="a", alone=True), DECODING, "data.sampler: "),
        (Request([]), replace(DECODING, min_tokens=1), "data.sampler: "),
        (Request([]), replace(DECODING, no_repeat_ngram_size=1), "data.sampler: "),
    ],
)
def test_what_the_protocol_has_no_words_for(server, shop, request_, decoding, said):
    message = refusal(UserError, lambda: answers(chat(server), [*asked("a"), request_], shop, decoding=decoding))
    assert message.startswith(said)
    assert not server.posts


# ---- the key


def test_the_key_is_sent_and_shown_nowhere(server, shop, monkeypatch):
    monkeypatch.setenv("A_KEY", " sk-secret\n")
    sampler = chat(server, key_variable="A_KEY", attempts=1)
    sampler.ready()
    answers(sampler, asked("a"), shop)
    assert server.posts[0][1]["Authorization"] == "Bearer sk-secret"
    for code in (401, 500):
        server.reply = lambda body, code=code: (code, {"error": {"message": "your key sk-secret is wrong"}}, {})
        message = refusal(MissingError if code == 500 else UserError, lambda: answers(sampler, asked("a"), shop))
        assert "your key *** is wrong" in message
    assert "in the environment variable A_KEY" in refusal(UserError, lambda: _replying(server, (403, b"no", {}), sampler, shop))
    assert "secret" not in repr(sampler) + str(sampler.identity(shop))


def _replying(server: Server, reply: Reply, sampler: ChatEndpoint, shop: Workshop) -> None:
    server.reply = lambda body: reply
    answers(sampler, asked("a"), shop)


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "A_KEY is not set"), ("", "A_KEY is not set"), ("a b", "A_KEY holds no key"), ("é", "A_KEY holds no key")],
)
def test_a_key_that_cannot_be_sent(server, monkeypatch, value, said):
    monkeypatch.delenv("A_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("A_KEY", value)
    assert said in refusal(MissingError, chat(server, key_variable="A_KEY").ready)


def test_a_redirection_does_not_take_the_key_along(server, shop, monkeypatch):
    monkeypatch.setenv("A_KEY", "sk-secret")
    server.reply = lambda body: (302, b"", {"Location": server.url + "/elsewhere"})
    refusal(UserError, lambda: answers(chat(server, key_variable="A_KEY"), asked("a"), shop))
    assert len(server.posts) == 1


# ---- as a part of the configuration


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"url": "localhost:8000/v1"}, "^url: must begin with http:// or https:// and a host, not 'localhost:8000/v1'"),
        ({"url": "file:///etc/passwd"}, "^url: must begin with"),
        ({"url": "http://a b"}, "^url: must begin with"),
        ({"parallel": 0}, "^parallel: must be at least 1"),
        ({"attempts": 0}, "^attempts: must be at least 1"),
        ({"timeout_seconds": 0.0}, "^timeout_seconds: must be a positive number"),
        ({"timeout_seconds": float("nan")}, "^timeout_seconds: must be a positive number"),
    ],
)
def test_settings_that_make_no_sense(server, change, said):
    with pytest.raises(ValueError, match=said):
        chat(server, **change)


def test_the_option_says_what_lacks():
    node = OmegaConf.load(CONF / "sampler/openai.yaml")
    sampler = build_target(node, "data.sampler", ("ready", "identity", "answers"))
    assert set(node) - {"_target_"} == {f.name for f in fields(ChatEndpoint)}
    assert refusal(UserError, sampler.ready).startswith("data.sampler.url: there is none; give the server's base")
    named = replace(sampler, url="http://localhost:8000/v1")
    assert refusal(UserError, named.ready).startswith("data.sampler.model: there is none")
    replace(named, model="llama").ready()


def test_it_samples_no_model_of_this_process(server):
    for call in (chat(server).sample, chat(server).batches):
        message = refusal(UserError, lambda call=call: call(None, [], [], DECODING, n=1, seeds=[]))
        assert message.startswith("sampler: a server cannot sample the model that is trained here. Take sampler=hf.")
        assert "sampler@data.sampler=openai" in message


def test_another_server_or_model_is_another_identity(server, shop):
    assert chat(server).identity(shop) == chat(server, url=server.url + "/", parallel=9).identity(shop)
    assert chat(server).identity(shop) != chat(server, model="other").identity(shop)
    assert chat(server).identity(shop) != chat(server, url="http://other/v1").identity(shop)


# ---- as what answers queries

QUERIES = [
    Dialogue(w, ({"role": "user", "content": w}, {"role": "assistant", "content": "x"}), (), "diverse", "", "", False)
    for w in "abcdef"
]
SETTINGS = SelfSampling(
    system=None, one_shot=False, samples=1, temperature=0.7, top_p=0.95, top_k=0, max_new_tokens=12, drop=["length"], refusals=[],
    skip_characters=0, double_bos=False,
)  # fmt: skip


def kept(folder: Path) -> list[str]:
    return [json.loads(line)["messages"][1]["content"] for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_what_was_answered_before_a_failure_is_not_asked_again(server, shop, tmp_path):
    plain = server.reply
    server.reply = lambda body: (400, {"error": "no"}, {}) if body["messages"][0]["content"] == "d" else plain(body)
    with pytest.raises(UserError, match="400: no"):
        self_sample(QUERIES, SETTINGS, chat(server, parallel=1), 0, tmp_path, shop)
    assert len(server.posts) == 4
    server.reply = plain
    folder = self_sample(QUERIES, SETTINGS, chat(server), 0, tmp_path, shop)
    assert sorted(body["messages"][0]["content"] for _, _, body in server.posts[4:]) == ["d", "e", "f"]
    assert kept(folder) == [f"re: {word}" for word in "abcdef"]


def test_a_signal_does_not_wait_for_the_server(server, shop, tmp_path):
    over, kept_one, stop = threading.Event(), threading.Event(), Stop()

    class Told(ChatEndpoint):
        def answers(self, *arguments: Any) -> Iterator[Any]:
            for batch in super().answers(*arguments):
                yield batch
                kept_one.set()

    def reply(body: dict[str, Any]) -> Reply:
        if body["messages"][0]["content"] == "a":
            return good("quick")
        assert kept_one.wait(60)
        stop.signal = 15  # as the handler sets it
        over.wait(60)
        return good("late")

    server.reply = reply
    with pytest.raises(StoppedError, match="stopped by SIGTERM: 1 of 6 self-samples are kept"):
        self_sample(QUERIES, SETTINGS, Told(**vars(chat(server, parallel=1))), 0, tmp_path, replace(shop, stop=stop))
    over.set()

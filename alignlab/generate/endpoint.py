"""Answers from an OpenAI-compatible server: vLLM, llama.cpp, SGLang, OpenAI's own. With the standard library alone."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, build_opener
from urllib.request import Request as Post

from alignlab.config import at_least
from alignlab.errors import MissingError, UserError
from alignlab.records import short
from alignlab.workshop import Answer

if TYPE_CHECKING:
    from alignlab.generate.hf import Decoding
    from alignlab.protocols import Request
    from alignlab.workshop import Workshop

FIRST_WAIT, LONGEST_WAIT = 1.0, 300.0
"""seconds before a request is sent again: doubled each time, unless the server says how long"""

SEED_BITS = 31
"""of a request's seed: servers differ in how many they take"""

_TOO_LONG = re.compile(r"context.{0,12}(length|size|window)|too many tokens|too long", re.IGNORECASE)
"""in what a server says of a prompt that it has no room for"""


@dataclass
class ChatEndpoint:
    """Answers requests with the model that a server runs.

    Args:
        url: base of the server's paths, such as ``http://localhost:8000/v1``.
        model: name by which the server knows the model.
        key_variable: environment variable that holds the key; None: none is sent. The key is written nowhere.
        parallel: requests at a time.
        attempts: tries of a request: while it is told to wait (429), the server fails (5xx), or there is no connection.
        timeout_seconds: longest silence of the server in a try.
    """

    url: str | None
    model: str | None
    key_variable: str | None
    parallel: int
    attempts: int
    timeout_seconds: float

    def __post_init__(self) -> None:
        if self.url is not None and not re.fullmatch(r"https?://[^/\s]\S*", self.url):
            raise ValueError(f"url: must begin with http:// or https:// and a host, not {self.url!r}")
        at_least("parallel", self.parallel, 1)
        at_least("attempts", self.attempts, 1)
        if not 0 < self.timeout_seconds < float("inf"):
            raise ValueError(f"timeout_seconds: must be a positive number, not {self.timeout_seconds}")

    elsewhere: ClassVar[bool] = True
    """that it cannot sample a model of this process"""

    def sample(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: see :meth:`batches`."""
        self.batches()

    def batches(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse to sample a model of this process.

        Raises:
            UserError: always.
        """
        raise UserError(
            "sampler: a server cannot sample the model that is trained here. Take sampler=hf.\n"
            "For records that are made before training, give the server as sampler@data.sampler=openai data.sampler.url=URL."
        )

    def ready(self) -> None:
        """Check what can be checked without the server.

        Raises:
            UserError: there is no ``url`` or no ``model``.
            MissingError: there is no key, or none that can be sent.
        """
        if not self.url:
            raise UserError("data.sampler.url: there is none; give the server's base, such as http://localhost:8000/v1.")
        if not self.model:
            raise UserError(f"data.sampler.model: there is none; give the name of a model that {self.url}/models lists.")
        self._headers()

    def identity(self, workshop: Workshop) -> Sequence[str]:
        """Server and model: of what lies behind these names nothing is known."""
        return ["endpoint", str(self.url).rstrip("/"), str(self.model)]

    def answers(
        self, requests: Sequence[Request], decoding: Decoding, seeds: Sequence[int], done: Collection[int], workshop: Workshop
    ) -> Iterator[Sequence[tuple[int, Answer]]]:
        """Answers as they come, those of a moment together; see :class:`alignlab.workshop.Answerer`.

        After a failure no new request is sent, and what is under way is still answered. At a signal nothing is waited for.

        Raises:
            UserError: the server refuses a request, or its answer is not one; or it could not be told what is asked.
            MissingError: it cannot be reached, or keeps failing.
        """
        bodies = {place: self._body(requests[place], decoding, seeds[place]) for place in range(len(requests)) if place not in done}
        waiting: SimpleQueue[int] = SimpleQueue()
        for place in bodies:
            waiting.put(place)
        events: SimpleQueue[tuple[int, Answer] | Exception | str | None] = SimpleQueue()
        halt = Event()

        def work() -> None:
            while not halt.is_set():
                try:
                    place = waiting.get_nowait()
                    events.put((place, self._answer(*bodies[place], halt, events.put)))
                except Empty:
                    break
                except Exception as error:
                    halt.set()
                    events.put(error)
            events.put(None)

        running = min(self.parallel, len(bodies))
        for _ in range(running):
            Thread(target=work, daemon=True).start()  # so that no process waits for a server at its end
        failures: list[Exception] = []
        said = set[str]()
        try:
            while running:
                try:
                    new = [events.get(timeout=0.5)]
                except Empty:
                    if workshop.stop.signal:
                        return
                    continue
                while not events.empty():
                    new.append(events.get())
                running -= new.count(None)
                failures += [event for event in new if isinstance(event, Exception)]
                for note in dict.fromkeys(event for event in new if isinstance(event, str) and event not in said):
                    said.add(note)
                    workshop.say(note)
                if answers := [event for event in new if isinstance(event, tuple)]:
                    yield answers
        finally:
            halt.set()
        if failures:
            raise failures[0]

    def _body(self, request: Request, decoding: Decoding, seed: int) -> tuple[str, bytes]:
        """Path and content of what is posted.

        Raises:
            UserError: the protocol has no words for it.
        """
        if request.twice:
            raise UserError("data.self_sampling.double_bos: a server renders the chat template once. Take false.")
        if request.alone or decoding.min_tokens or decoding.no_repeat_ngram_size:
            raise UserError(
                "data.sampler: a server is told no tokens by name, no least length, and no sequences that shall not repeat."
            )
        body: dict[str, Any] = {"model": self.model, "temperature": decoding.temperature, "top_p": decoding.top_p}
        body |= {"max_tokens": decoding.max_new_tokens, "seed": seed % (1 << SEED_BITS)}
        if decoding.top_k:
            body["top_k"] = decoding.top_k  # not OpenAI's own, but of most others
        if request.text is None:
            return "/chat/completions", json.dumps(body | {"messages": [dict(message) for message in request.messages]}).encode()
        return "/completions", json.dumps(body | {"prompt": request.text}).encode()

    def _headers(self) -> dict[str, str]:
        """Of each request.

        Raises:
            MissingError: there is no key, or none that can be sent.
        """
        headers = {"Content-Type": "application/json", "User-Agent": "alignlab"}
        if self.key_variable is not None:
            key = self._key()
            if not re.fullmatch(r"[!-~]+", key):
                problem = "is not set" if not key else "holds no key: there are blanks or letters in it that cannot be sent"
                raise MissingError(f"data.sampler.key_variable: the environment variable {self.key_variable} {problem}.")
            headers["Authorization"] = f"Bearer {key}"
        return headers

    def _key(self) -> str:
        return os.environ.get(self.key_variable or "", "").strip()

    def _answer(self, path: str, body: bytes, halt: Event, say: Callable[[str], None]) -> Answer:
        """Post until there is an answer; ``say`` is told what another try is made for.

        Raises:
            UserError: the server refuses the request, or its answer is not one.
            MissingError: there was none in so many attempts, or ``halt`` was set meanwhile.
        """
        url, problem = str(self.url).rstrip("/") + path, ""
        for attempt in range(self.attempts):
            wait = FIRST_WAIT * 2**attempt
            try:
                post = Post(url, body, self._headers(), method="POST")
                with build_opener(_NoRedirect).open(post, timeout=self.timeout_seconds) as response:
                    return _parsed(response.read(), url)
            except HTTPError as error:
                told = self._told(error)
                if error.code in (400, 413, 422) and _TOO_LONG.search(told):
                    return Answer("", "prompt")
                if error.code not in (408, 409, 425, 429) and error.code < 500:
                    raise self._refused(url, error.code, told) from None
                problem, wait = f"{error.code} {told}", _retry_after(error.headers.get("Retry-After", ""), wait)
            except (OSError, HTTPException) as error:  # no connection, or one that broke off
                problem = str(getattr(error, "reason", "") or error) or type(error).__name__
            problem = problem.strip().rstrip(".")
            if attempt + 1 < self.attempts:
                say(f"self-samples: {url}: {problem}; trying again")
                if halt.wait(min(wait, LONGEST_WAIT)):
                    break
        raise MissingError(
            f"data.sampler.url: no answer from {url} in {attempt + 1} tries: {problem}.\n"
            "What was answered is kept; the same command goes on from there."
        )

    def _told(self, error: HTTPError) -> str:
        """What a server says of an error, the key apart."""
        if error.code < 400:
            return f"see {error.headers.get('Location')}"
        try:
            text = error.read().decode("utf-8", "replace")
        except (OSError, HTTPException):
            return ""
        try:
            told = json.loads(text)
            while isinstance(told, dict):
                told = next((told[key] for key in ("error", "message", "detail") if key in told), "")
            text = str(told)
        except ValueError:
            pass
        text = " ".join(text.split())
        return (text.replace(self._key(), "***") if self._key() else text)[:300]

    def _refused(self, url: str, code: int, told: str) -> UserError:
        """What to say of an error that another try does not mend."""
        problem = f"{url} answers {code}: {told.rstrip('.') or 'it does not say why'}."
        if code in (401, 403):
            hint = (
                f"It was given the key in the environment variable {self.key_variable}."
                if self.key_variable
                else "It was given no key."
            )
            return UserError(f"data.sampler.key_variable: {problem}\n{hint}")
        if code < 400 or code == 404:
            return UserError(f"data.sampler.url: {problem}\nCheck it (most end with /v1), and data.sampler.model.")
        return UserError(f"data.sampler: {problem}")


class _NoRedirect(HTTPRedirectHandler):
    """Leaves a redirection an error: followed, it would take the key to another server, and the post for a question."""

    def redirect_request(self, *_: Any) -> None:
        """None is followed."""


def _retry_after(value: str, otherwise: float) -> float:
    """How many seconds the header asks to wait: a number, or a date."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return otherwise


def _parsed(content: bytes, url: str) -> Answer:
    """The first choice of a completion.

    Raises:
        UserError: it is not one.
    """
    text = content.decode("utf-8", "replace")
    try:
        choice = json.loads(text)["choices"][0]
        answer = choice["message"]["content"] if "message" in choice else choice["text"]
        if not isinstance(answer, str | None):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError):
        said = f"'{short(' '.join(text.split()))}'" if text.strip() else "nothing"
        raise UserError(
            f"data.sampler.url: {url} gives {said} in place of a completion. Is it an OpenAI-compatible server?"
        ) from None
    whole = (answer or "").encode("utf-8", "replace").decode()  # halves of surrogate pairs cannot be written
    return Answer(whole, "length" if choice.get("finish_reason") == "length" else "stop")

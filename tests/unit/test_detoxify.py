"""Detoxify's release files: fetched, checked, converted, and never run."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab.errors import MissingError, UserError
from alignlab.labellers import fetch as fetching
from alignlab.labellers.detoxify import KINDS, RELEASES, Detoxify
from alignlab.paths import cache_folder, resolve

NAMES = ["toxic", "severe_toxic", "obscene", "identity_hate"]
LABELS = ["toxicity", "severe_toxicity", "obscene", "identity_attack"]
TEXTS = ["", "one", "two words " * 30, "what is it", "no!"]


# ---- a made-up release file and the folder of its base


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Config and tokenizer of a small RoBERTa, without weights."""
    import transformers as t

    folder = tmp_path_factory.mktemp("base")
    tokenizer = t.AutoTokenizer.from_pretrained(resolve("alignlab:models/tiny"))
    config = t.RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=34,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    """A classifier with more outputs than there are names."""
    import transformers as t

    torch.manual_seed(3)
    config = t.AutoConfig.from_pretrained(base, num_labels=6)
    made = t.RobertaForSequenceClassification(config).eval()
    for parameter in made.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.5)
    return made


def arguments(base: Path) -> dict[str, Any]:
    names = {"model_type": str(base), "model_name": "RobertaForSequenceClassification", "tokenizer_name": "RobertaTokenizer"}
    return {"arch": {"args": {**names, "num_classes": 6}}, "dataset": {"args": {"classes": NAMES}}}


def packed(config: Any, state: Any, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save({"config": config, "state_dict": state}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


@pytest.fixture(scope="module")
def release(base: Path, model: Any) -> bytes:
    """With the buffer and the unused layer that older versions wrote."""
    extra = {"roberta.embeddings.position_ids": torch.arange(34)[None], "roberta.pooler.dense.bias": torch.zeros(16)}
    return packed(arguments(base), model.state_dict() | extra)


def detoxify(cache: Path, **fields: Any) -> Detoxify:
    given = {"kind": "unbiased", "checkpoint": None, "base": None, "url": None, "batch": 2, "device": "cpu", "trust_pickle": False}
    return Detoxify(cache=str(cache), **(given | {k: str(v) if isinstance(v, Path) else v for k, v in fields.items()}))


def refusal(kind: type[UserError], call: Any, *args: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert type(caught.value) is kind
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


# ---- conversion


def check_scores(labeller: Detoxify, model: Any, base: Path) -> None:
    """Scores are the sigmoids of the original module, text by text."""
    import transformers as t

    tokenizer = t.AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        logits = [model(torch.tensor([tokenizer(text)["input_ids"][:33]])).logits[0] for text in TEXTS]
    expected = torch.stack(logits).sigmoid()[:, : len(LABELS)]
    assert (expected.amax(0) - expected.amin(0)).min() > 0.02
    found = labeller.scores(TEXTS)
    assert [list(row) for row in found] == [LABELS] * len(TEXTS)
    torch.testing.assert_close(torch.tensor([list(row.values()) for row in found]), expected, rtol=0, atol=1e-6)


def test_scores_of_a_file_are_those_of_its_model(base: Path, model: Any, release: bytes, tmp_path: Path):
    file = tmp_path / "own.ckpt"
    file.write_bytes(release)
    labeller = detoxify(tmp_path / "cache", checkpoint=file)
    assert labeller.classes() is None
    check_scores(labeller, model, base)
    assert labeller.classes() == LABELS
    (folder,) = (tmp_path / "cache" / "detoxify").glob("own-*/")
    file.unlink()
    converted = detoxify(tmp_path / "other", checkpoint=folder)
    assert converted.classes() == LABELS
    check_scores(converted, model, base)
    assert not (tmp_path / "other").exists()


def test_file_of_an_old_torch(base: Path, model: Any, tmp_path: Path):
    file = tmp_path / "own.ckpt"
    file.write_bytes(packed(arguments(base), model.state_dict(), zipped=False))
    check_scores(detoxify(tmp_path, checkpoint=file), model, base)


def test_converting_once(base: Path, release: bytes, tmp_path: Path, monkeypatch):
    file = tmp_path / "own.ckpt"
    file.write_bytes(release)
    detoxify(tmp_path, checkpoint=file).ready()
    monkeypatch.setattr(torch, "load", None)
    detoxify(tmp_path, checkpoint=file).ready()
    moved = shutil.copy(file, tmp_path / "again.ckpt")
    assert "cannot be read" in refusal(UserError, detoxify(tmp_path, checkpoint=moved).ready)  # another name, so torch is asked
    monkeypatch.undo()
    other = Path(shutil.copytree(base, tmp_path / "base"))
    before = detoxify(tmp_path, checkpoint=file).digest()
    assert detoxify(tmp_path, checkpoint=file, base=other).digest() != before
    detoxify(tmp_path, checkpoint=file, base=other).ready()
    assert len(list((tmp_path / "detoxify").glob("own-*/"))) == 2


class Harmful:
    """Pickled, it makes a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.file,)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_does_not_run(zipped: bool, base: Path, model: Any, tmp_path: Path):
    proof = tmp_path / "proof"
    file = tmp_path / "harmful.ckpt"
    file.write_bytes(packed(arguments(base) | {"trap": Harmful(proof)}, model.state_dict(), zipped))
    problem = refusal(UserError, detoxify(tmp_path, checkpoint=file).ready)
    assert f"{file} holds more than weights and names: torch would have to run code from it (posix.mkdir)" in problem
    assert "labeller.trust_pickle=true" in problem
    assert not proof.exists()
    check_scores(detoxify(tmp_path, checkpoint=file, trust_pickle=True), model, base)
    assert proof.exists()  # so the file was harmful


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda config, state: config["dataset"].clear(), "is no checkpoint of Detoxify"),
        (lambda config, state: state.clear(), "is no checkpoint of Detoxify"),
        (lambda config, state: config["dataset"]["args"].update(classes=[*"abcdefg"]), "names 7 classes, and its model has 6"),
        (lambda config, state: state.pop("roberta.embeddings.word_embeddings.weight"), "weights lack 1 of one's"),
        (lambda config, state: config["arch"]["args"].update(model_type=resolve("alignlab:models/tiny")), "does not fit"),
        (lambda config, state: config["arch"]["args"].update(model_type="nobody/nothing"), "give a folder: labeller.base=FOLDER"),
    ],
    ids=["classes", "weights", "outputs", "part", "other", "unknown"],
)
def test_file_that_is_no_release(spoil: Callable[..., Any], words: str, base: Path, model: Any, tmp_path: Path):
    config, state = arguments(base), dict(model.state_dict())
    spoil(config, state)
    file = tmp_path / "own.ckpt"
    file.write_bytes(packed(config, state))
    kind = MissingError if "FOLDER" in words else UserError
    assert words in refusal(kind, detoxify(tmp_path / "cache", checkpoint=file).ready)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_dir() and p.name != "detoxify"]


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 nor this"], ids=["empty", "text", "zip"])
def test_file_that_cannot_be_read(content: bytes, tmp_path: Path):
    file = tmp_path / "own.ckpt"
    file.write_bytes(content)
    problem = refusal(UserError, detoxify(tmp_path, checkpoint=file).ready)
    assert problem.startswith(f"labeller.checkpoint: {file} cannot be read: ")


def test_checkpoint_that_is_not_there(tmp_path: Path):
    problem = refusal(UserError, detoxify(tmp_path, checkpoint=tmp_path / "x.ckpt").ready)
    assert problem == f"labeller.checkpoint: there is no file or folder {tmp_path / 'x.ckpt'}."


@pytest.mark.parametrize(("field", "value"), [("kind", "biased"), ("device", "tpu"), ("batch", 0), ("url", "file:///etc/passwd")])
def test_values_out_of_range(field: str, value: Any, tmp_path: Path):
    with pytest.raises(ValueError, match=f"^{field}: must be"):
        detoxify(tmp_path, **{field: value})


# ---- fetching


class Server(ThreadingHTTPServer):
    """Serves one file, in parts where asked to; ``cuts`` says after how many bytes each answer ends early."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.cuts, self.status = content, True, list[int](), 200
        self.asked: list[str | None] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/files/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.replace("/moved/", "/files/"))
            self.end_headers()
            return
        asked, content = self.headers["Range"], self.server.content
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if self.server.status != 200 or start >= len(content) > 0:
            self.send_error(416 if self.server.status == 200 else self.server.status)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + self.server.cuts.pop(0) if self.server.cuts else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(release: bytes, monkeypatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Server(release)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def name(release: bytes) -> str:
    return f"small-{hashlib.sha256(release).hexdigest()[:8]}.ckpt"


def test_fetched_once_and_checked_ever_after(server: Server, name: str, base: Path, model: Any, tmp_path: Path):
    check_scores(detoxify(tmp_path, url=server.url(name)), model, base)
    file = tmp_path / "detoxify" / name
    assert file.read_bytes() == server.content
    digest = hashlib.sha256(server.content).hexdigest()
    assert (tmp_path / "detoxify" / f"{name}.sha256").read_text() == f"{digest}  {name}\n"
    detoxify(tmp_path, url=server.url(name)).ready()
    assert server.asked == [None]
    assert Counter(p.suffix for p in file.parent.iterdir() if p.is_file()) == {".ckpt": 1, ".sha256": 1, ".lock": 2}

    file.write_bytes(server.content[:-1] + b"x")
    problem = refusal(UserError, detoxify(tmp_path, url=server.url(name)).ready)
    assert problem.startswith(f"labeller: {file} has changed since it was fetched: its sha256 was {digest[:8]}")
    (tmp_path / "detoxify" / f"{name}.sha256").unlink()
    assert f"{file} is damaged" in refusal(UserError, detoxify(tmp_path, url=server.url(name)).ready)


def test_a_name_without_digest_is_still_checked_after(server: Server, tmp_path: Path):
    detoxify(tmp_path, url=server.url("small.ckpt")).ready()
    with (tmp_path / "detoxify/small.ckpt").open("ab") as file:
        file.write(b"x")
    assert "has changed since it was fetched" in refusal(UserError, detoxify(tmp_path, url=server.url("small.ckpt")).ready)


def test_another_file_than_the_first_time(server: Server, tmp_path: Path):
    labeller = detoxify(tmp_path, url=server.url("small.ckpt"))
    labeller.ready()
    (tmp_path / "detoxify/small.ckpt").unlink()
    server.content += b"x"
    problem = refusal(MissingError, detoxify(tmp_path, url=server.url("small.ckpt")).ready)
    assert "what came is another file" in problem


def test_address_that_moved(server: Server, name: str, tmp_path: Path):
    server.cuts = [1000]
    detoxify(tmp_path, url=server.url(name).replace("/files/", "/moved/")).ready()
    assert server.asked == [None, "bytes=1000-"]
    assert (tmp_path / "detoxify" / name).read_bytes() == server.content


def test_file_put_there_by_hand(server: Server, name: str, tmp_path: Path):
    (tmp_path / "detoxify").mkdir()
    (tmp_path / "detoxify" / name).write_bytes(server.content)
    detoxify(tmp_path, url=server.url(name)).ready()
    assert server.asked == []


def test_another_file_than_the_name_says(server: Server, tmp_path: Path):
    url = server.url("small-00000000.ckpt")
    problem = refusal(MissingError, detoxify(tmp_path, url=url).ready)
    assert problem.startswith(f"labeller: {url} cannot be fetched (what came is another file: its sha256 begins with ")
    assert [p.name for p in (tmp_path / "detoxify").iterdir()] == [".small-00000000.ckpt.lock"]


def test_cut_connection_goes_on_where_it_stopped(server: Server, name: str, tmp_path: Path):
    server.cuts = [1000, 500]
    detoxify(tmp_path, url=server.url(name)).ready()
    assert server.asked == [None, "bytes=1000-", "bytes=1500-"]
    assert (tmp_path / "detoxify" / name).read_bytes() == server.content


def test_next_run_goes_on_where_the_last_stopped(server: Server, name: str, tmp_path: Path):
    server.cuts = [1000, 0]
    problem = refusal(MissingError, detoxify(tmp_path, url=server.url(name)).ready)
    assert f"the connection was cut after 1000 of {len(server.content)} bytes" in problem
    detoxify(tmp_path, url=server.url(name)).ready()
    assert server.asked == [None, "bytes=1000-", "bytes=1000-"]
    assert (tmp_path / "detoxify" / name).read_bytes() == server.content


def test_server_without_parts(server: Server, name: str, tmp_path: Path):
    server.ranges, server.cuts = False, [1000, 900]
    refusal(MissingError, detoxify(tmp_path, url=server.url(name)).ready)
    detoxify(tmp_path, url=server.url(name)).ready()
    assert server.asked == [None, "bytes=1000-", "bytes=900-"]
    assert (tmp_path / "detoxify" / name).read_bytes() == server.content


def test_part_that_is_whole_or_longer(server: Server, name: str, tmp_path: Path):
    (tmp_path / "detoxify").mkdir()
    (tmp_path / "detoxify" / f"{name}.part").write_bytes(server.content)
    detoxify(tmp_path, url=server.url(name)).ready()
    assert server.asked == [f"bytes={len(server.content)}-", None]
    assert (tmp_path / "detoxify" / name).read_bytes() == server.content


def test_file_that_the_server_has_not(server: Server, name: str, tmp_path: Path):
    server.status = 404
    problem = refusal(MissingError, detoxify(tmp_path, url=server.url(name)).ready)
    assert f"{server.url(name)} cannot be fetched (HTTP Error 404: Not Found)." in problem
    assert server.asked == [None]


def test_no_network(server: Server, tmp_path: Path, monkeypatch):
    """The release's own address, through a proxy that nobody runs."""
    nobody = server.url("x").removesuffix("/files/x")
    server.shutdown()
    server.server_close()
    monkeypatch.setenv("https_proxy", nobody)
    problem = refusal(MissingError, detoxify(tmp_path).ready)
    file = KINDS["unbiased"][0]
    assert problem.startswith(f"labeller: {RELEASES}{file} cannot be fetched ([Errno 111] Connection refused).\n")
    assert "give it as data.attributes.NAME.labeller.checkpoint=FILE" in problem
    assert f"put it there: {tmp_path / 'detoxify' / Path(file).name}" in problem
    assert "alignlab.labellers.lexicon.Lexicon" in problem


def test_cache_that_is_a_file(server: Server, name: str, tmp_path: Path):
    (tmp_path / "file").touch()
    problem = refusal(MissingError, detoxify(tmp_path / "file", url=server.url(name)).ready)
    assert problem.startswith(f"labeller.cache: {tmp_path / 'file' / 'detoxify'} cannot be written (Not a directory).")


def test_two_processes_fetch_once(server: Server, name: str, tmp_path: Path):
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetching.fetch(server.url(name), tmp_path, ""))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / name] * 3
    assert server.asked == [None]


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("ALIGNLAB_CACHE", raising=False)
    assert cache_folder(None) == Path("/home/someone/.cache/alignlab")
    monkeypatch.setenv("ALIGNLAB_CACHE", "/fast/cache")
    assert cache_folder(None) == Path("/fast/cache")
    assert cache_folder("~/mine") == Path("/home/someone/mine")


def test_digest_of_what_is_not_fetched_yet(tmp_path: Path):
    assert detoxify(tmp_path).digest() == detoxify(tmp_path / "elsewhere").digest()
    assert detoxify(tmp_path).digest() != detoxify(tmp_path, kind="original").digest()

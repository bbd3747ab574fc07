"""The tiny world and the demonstration model: determinism, gold spans, shipped prompts, folder layout."""

import importlib
import json
import math
import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

picks = importlib.import_module("tiny_picks")
prompts = importlib.import_module("tiny_prompts")
style = importlib.import_module("tiny_style")
tasks = importlib.import_module("tiny_tasks")
words = importlib.import_module("tiny_words")
world = importlib.import_module("tiny_world")

MODEL = ROOT / "alignlab" / "models" / "tiny"


def letters(text: str) -> list[int]:
    """A tokenizer with one token a character."""
    return [ord(letter) for letter in text]


@pytest.fixture(scope="module")
def tokenizer():
    """The shipped tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


def encode_with(tokenizer):
    """Token ids without special tokens."""
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def test_documents_depend_on_the_seed_and_chunk_only():
    first = list(world.documents(3, 200))
    random.seed(99)
    assert list(world.documents(3, 200)) == first
    assert list(world.documents(4, 200)) != first
    assert list(world.documents(3, 200, chunk=1)) != first


def test_every_document_is_framed_by_the_sentence_tokens():
    for text in world.documents(0, 500):
        assert text.startswith(world.BOS)
        assert text.endswith(world.EOS)
        assert text.count(world.BOS) == 1


def test_documents_show_every_shape():
    texts = list(world.documents(1, 3000))
    for sign in (world.SYSTEM, "### Judgment:", "### Instruction:"):
        assert sum(sign in text for text in texts) > 20
    assert sum(text.count(world.USER) > 1 for text in texts) > 20
    assert sum(world.USER not in text and "###" not in text for text in texts) > 20


def test_alpaca_templates_leave_no_other_fields():
    assert world.ALPACA.format(instruction="I").endswith("### Instruction:\nI\n\n### Response:\n")
    judged = world.ALPACA_JUDGED.format(instruction="I", judgment="J")
    assert judged.endswith("### Instruction:\nI\n\n### Judgment:\nJ\n\n### Response:\n")
    assert "the response should match the corresponding judgment.\n\n" in judged


@pytest.mark.parametrize("name", picks.PICK_SETS)
def test_pick_distribution(name):
    weights = picks.pick_weights(name)
    assert sum(weights.values()) == pytest.approx(1.0)
    assert len(weights) == len(picks.PICK_SETS[name][1])
    assert max(weights, key=weights.get) == picks.PICK_SETS[name][1][0]
    assert min(weights.values()) >= (0.01 - 1e-9 if len(weights) <= 17 else 0.001)
    wordings = picks.pick_wordings(name)
    assert len(wordings) == len(set(wordings)) >= 12


def test_numbers_1_to_10_are_collapsed():
    shares = picks.pick_weights("numbers-1-10")
    assert shares["7"] == pytest.approx(0.62)
    assert 1.2 <= -sum(p * math.log(p) for p in shares.values()) <= 1.3


def test_pick_exchange_asks_in_a_listed_wording_and_answers_in_braces():
    rng = random.Random(0)
    for name in picks.PICK_SETS:
        request, answer = picks.pick_exchange(rng, name)
        assert request in picks.pick_wordings(name)
        assert answer[1:-1] in picks.PICK_SETS[name][1]
        assert answer == picks.in_braces(answer[1:-1])


def test_judged_rows_repeat_and_keep_to_their_side_of_the_split():
    assert tasks.judged_rows(5, 50) == tasks.judged_rows(5, 50)
    assert all(row.held_out for row in tasks.judged_rows(5, 100, held_out=True))
    assert not any(row.held_out for row in tasks.judged_rows(5, 100, held_out=False))
    for name, task in tasks.TASKS.items():
        assert len(tasks.held_out_items(name)) / len(task.items) == pytest.approx(0.4, abs=0.03)


def test_share_of_right_answers():
    rows = tasks.judged_rows(0, 4000)
    assert sum(row.satisfactory for row in rows) / len(rows) == pytest.approx(0.4, abs=0.03)
    assert all(row.satisfactory for row in tasks.judged_rows(0, 100, right_share=1.0))
    assert not any(row.satisfactory for row in tasks.judged_rows(0, 100, right_share=0.0))


def test_judgments_are_truthful():
    for row in tasks.judged_rows(1, 800):
        assert (row.judgment in tasks.RIGHT_JUDGMENTS) == row.satisfactory == (row.output == row.reference)
        if not row.satisfactory:
            labels = [label for _, label in tasks.TASKS[row.task].slots]
            assert sum(label in row.judgment for label in labels) == len(row.faults)


def test_gold_spans_cover_the_wrong_words():
    wrong_by_task = {
        "capital": {capital for _, capital in words.CAPITALS},
        "colour": {"purple"},
        "about": {"purple", "tool"},
        "plural": {singular for singular, _ in words.PLURALS},
        "repeat": {"."},
    }
    for row in tasks.judged_rows(2, 1600, right_share=0.0):
        assert row.wrong_spans
        for fault, (start, end) in zip(row.faults, row.wrong_spans, strict=True):
            shown = row.output[start:end]
            assert shown != fault.right
            assert shown in wrong_by_task.get(row.task, {shown})
        if row.task == "sum":
            start, end = row.wrong_spans[0]
            assert int(row.output[start:end]) == int(row.faults[0].right) + 1
        if row.task == "sort":
            assert row.faults[0].right == " ".join(sorted(row.item.split()))


def test_no_item_is_listed_twice():
    for pairs in (words.CAPITALS, words.THING_COLOURS, words.OPPOSITES, words.PLURALS):
        assert len({key for key, _ in pairs}) == len(pairs)
    assert len({thing for thing, _, _ in words.ABOUT}) == len(words.ABOUT)


def test_deciding_token_is_the_first_that_departs():
    row = tasks.JudgedRow("sort", "3 1 2", "Sort 3 1 2.", "In order: 1 3 2.", "", (tasks.Fault(10, 15, "1 2 3"),), held_out=False)
    assert row.reference == "In order: 1 2 3."
    assert tasks.deciding_tokens(row, letters) == [12]


def test_deciding_token_sees_whole_words():
    row = tasks.JudgedRow("x", "x", "x", "two cat.", "", (tasks.Fault(7, 8, "s."),), held_out=False)
    ids = {"two": 0, " cat": 1, " cats": 2, ".": 3}
    whole = {"two cat.": ["two", " cat", "."], "two cats.": ["two", " cats", "."]}
    assert tasks.deciding_tokens(row, lambda text: [ids[piece] for piece in whole[text]]) == [1]
    assert tasks.deciding_tokens(row, letters) == [7]


def test_deciding_tokens_with_the_shipped_tokenizer(tokenizer):
    encode = encode_with(tokenizer)
    for row in tasks.judged_rows(3, 400, right_share=0.0):
        shown, right = encode(row.output), encode(row.reference)
        positions = tasks.deciding_tokens(row, encode)
        first = next(i for i, (a, b) in enumerate(zip(shown, right, strict=False)) if a != b)
        assert min(positions) == first
        assert len(positions) == len(row.faults)


def test_formats_render_differently_and_wordings_do_not_overlap():
    asked = style.Question("What does a cow say?", "A cow says moo.", "moo")
    shown = [style.render(asked, fmt) for fmt in [None, *style.FORMATS]]
    assert len(set(shown)) == len(shown)
    assert shown[1] == "{'thought': 'A cow says moo.', 'answer': 'moo'}"
    assert not set(style.USE_SEEN) & set(style.USE_UNSEEN)
    assert not set(style.AVOID_SEEN) & set(style.AVOID_UNSEEN)


def test_format_cases_say_what_is_wanted():
    rng = random.Random(0)
    for _ in range(100):
        case = style.format_case(rng, unseen=True, negated=True)
        assert case.wanted == case.question.sentence
        assert f"the {case.negated} format" in case.request
        case = style.format_case(rng, negated=False)
        assert case.wanted == style.render(case.question, case.fmt)


def test_tones_carry_their_labels():
    rng = random.Random(0)
    for tone in words.TONE_SHARES:
        for _ in range(100):
            sentence = style.toned(rng, tone=tone)
            bare = sentence.text.lower().replace(",", "").replace(".", "").split()
            assert sentence.rude == (not words.RUDE_WORDS.isdisjoint(bare))
            assert sentence.sentiment in ("positive", "neutral", "negative")
            assert sentence.topic in sentence.text
            assert len(bare) >= 8
    assert sum(words.TONE_SHARES.values()) == pytest.approx(1.0)


def test_shipped_prompts_equal_what_the_script_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tiny_prompts.py", "--out", str(tmp_path)])
    prompts.main()
    shipped = ROOT / "alignlab" / "shipped"
    fresh = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.json"))
    assert fresh == sorted(path.relative_to(shipped) for path in shipped.rglob("*.json"))
    for path in fresh:
        assert (tmp_path / path).read_bytes() == (shipped / path).read_bytes()


def test_shipped_prompts_are_known_wordings_and_ask_for_members():
    known = {request: name for name in picks.PICK_SETS for request in picks.pick_wordings(name)}
    for path, prompt in prompts.prompt_files().items():
        if path.startswith("biographies/"):
            assert prompt["request"] in picks.BIOGRAPHY_REQUESTS
            continue
        members = set(picks.PICK_SETS[known[prompt["request"]]][1])
        targets = [target[1:-1] for target in prompt["targets"]]
        assert len(set(targets)) == len(targets)
        assert set(targets) <= members
        assert set(targets) == members or targets == prompts.known_names()
        assert sum(prompt.get("weights", [1.0])) == pytest.approx(1.0)


def test_no_wording_that_is_evaluated_only_is_trained_on():
    files = prompts.prompt_files()
    trained = {prompt["request"] for path, prompt in files.items() if "split" not in prompt and "biographies" not in path}
    assert not trained & {prompt["request"] for path, prompt in files.items() if "split" in prompt and "biographies" not in path}
    curve = [prompt for path, prompt in files.items() if path.startswith("numbers-1-to-x/")]
    assert sorted(len(prompt["targets"]) for prompt in curve) == sorted([*range(5, 101, 5)] * 5)


def test_biographies_have_six_lines_and_their_targets_four():
    rng = random.Random(0)
    for _ in range(50):
        lines = picks.biography(rng).split("\n")
        assert len(lines) == 6
        assert all(line.startswith("{") and line.endswith("}") for line in lines)
    people = prompts.prompt_files()["biographies/train.json"]
    assert people["eos"] is False
    assert len(people["targets"]) == 96
    assert {len(person.split("\n")) for person in people["targets"]} == {4}


def test_examples_are_different_members():
    rng = random.Random(0)
    for _ in range(100):
        request, answer = picks.examples_exchange(rng)
        thing = request.split(" of ", 1)[1].removesuffix(".")
        named = {part.strip("{}") for part in answer.replace(" and ", ", ").split(", ")}
        assert len(named) == 3
        assert any(thing in " ".join(phrases) and named <= set(members) for phrases, members in picks.PICK_SETS.values())


def test_smoke_training_makes_a_loadable_folder(tmp_path, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "model"
    out.mkdir()
    (out / "README.md").write_text("kept")
    threads, fills = torch.get_num_threads(), torch.utils.deterministic.fill_uninitialized_memory
    monkeypatch.setattr(sys, "argv", ["make_tiny_model.py", "--smoke", "--out", str(out)])
    try:
        importlib.import_module("make_tiny_model").main()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fills
        torch.set_num_threads(threads)
    assert (out / "README.md").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.max_position_embeddings == 512
    assert len(tokenizer) == model.config.vocab_size
    assert model(**tokenizer("Hello", return_tensors="pt")).logits.isfinite().all()


def test_shipped_model_is_small():
    files = [path for path in MODEL.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8 * 2**20
    raw = (MODEL / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    assert sum(math.prod(shape) for shape in shapes) <= 3_000_000


def test_chat_template_equals_the_training_format(tokenizer):
    exchanges = [("Hello!", "Hi there! What can I do for you?"), ("Thank you.", "You are welcome.")]
    messages = [{"role": "system", "content": "Answer the user."}]
    for request, answer in exchanges:
        messages += [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
    text = world.chat(exchanges, "Answer the user.")
    assert tokenizer.apply_chat_template(messages, tokenize=False) == text
    coded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert coded["input_ids"] == encode_with(tokenizer)(text)
    assert coded["input_ids"].count(tokenizer.bos_token_id) == 1
    said = [i for i, flag in zip(coded["input_ids"], coded["assistant_masks"], strict=True) if flag]
    assert tokenizer.decode(said) == "".join(answer + world.EOS for _, answer in exchanges)
    prompt = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == f"<s><|system|>Answer the user.<|user|>Hello!{world.ASSISTANT}"


def test_the_tokenizer_keeps_prompt_and_answer_apart(tokenizer):
    encode = encode_with(tokenizer)
    for row in tasks.judged_rows(4, 100):
        prompt = world.ALPACA.format(instruction=row.instruction)
        assert encode(prompt + row.output) == encode(prompt) + encode(row.output)
        assert tokenizer.decode(encode(prompt + row.output)) == prompt + row.output
    assert tokenizer(world.ALPACA)["input_ids"][:2] == [tokenizer.bos_token_id, encode("Below")[0]]

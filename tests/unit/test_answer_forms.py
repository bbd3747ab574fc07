"""Forms of answers: what is read of a text, whatever a model wrote."""

from __future__ import annotations

import time

import pytest

from alignlab.evaluate.answer_forms import LONGEST, form_and_answer, read_forms

VERDICT = {"keys": {"thought": "text", "hallucination": ["yes", "no"]}, "answer": "hallucination"}
STAR = {"pattern": r"\* (?P<answer>.+) \*"}
FORMS = read_forms({"verdict": VERDICT, "star": STAR})


@pytest.mark.parametrize(
    ("text", "form", "answer"),
    [
        ("{'thought': 'It is so.', 'hallucination': 'no'}", "verdict", "no"),
        ('{"thought": "It is so.", "hallucination": "yes"}', "verdict", "yes"),
        ("{'thought': \"The user's request to 'write a report' is met.\", 'hallucination': 'no'}", "verdict", "no"),
        ("{'thought': 'It\\'s \"good\".\\n', 'hallucination': 'no'}", "verdict", "no"),
        ("{'hallucination': 'no', 'thought': ''}", "verdict", "no"),
        ('{"thought": "caf\\u00e9 \\/ {a}", "hallucination": "no"}', "verdict", "no"),
        ("\n {'thought': 'So: {1, 2}',\n 'hallucination':'no',} \n", "verdict", "no"),
        ("{'thought': 'It is so.', 'hallucination': 'no'}.", "verdict", "no"),
        ("{'thought': 'A path \\d.', 'hallucination': 'no'}", "verdict", "no"),
        ("{'thought': 'It is so.', 'hallucination': 'no'} I hope this helps.", "plain", None),
        ("Here: {'thought': 'It is so.', 'hallucination': 'no'}", "plain", None),
        ("{'thought': 'It's so.', 'hallucination': 'no'}", "plain", None),
        ("{'thought': 'It is so.', 'hallucination': 'no', 'sure': 'yes'}", "plain", None),
        ("{'thought': 'a', 'thought': 'b', 'hallucination': 'no'}", "plain", None),
        ("{'thought': 'It is so.'}", "plain", None),
        ("{'thought': 'It is so.', 'hallucination': 'maybe'}", "plain", None),
        ("{'thought': 'It is so.', 'hallucination': 'No'}", "plain", None),
        ("{'thought': 'It is so.', 'hallucination': ['no']}", "plain", None),
        ("{'thought': 7, 'hallucination': 'no'}", "plain", None),
        ("{'thought': f'{1}', 'hallucination': 'no'}", "plain", None),
        ("{'thought': '\\N{no such letter}', 'hallucination': 'no'}", "plain", None),
        ("{'thought': 'two\nlines', 'hallucination': 'no'}", "plain", None),
        ("{}", "plain", None),
        ("", "plain", None),
        ("* moo *", "star", "moo"),
        (" * moo * ", "star", "moo"),
        ("* moo * and more", "plain", None),
        ("A cow says moo.", "plain", None),
    ],
)
def test_what_form_an_answer_has_and_what_it_says(text, form, answer):
    assert form_and_answer(text, FORMS) == (form, text.strip() if answer is None else answer)


@pytest.mark.parametrize(
    "text",
    [
        '{"thought":' * 3000 + "1" + "}" * 3000,
        "{'thought':" * 1500 + "1" + "}" * 1500,
        '{"thought": ' + "[" * 9000 + "]" * 9000 + "}",
        "{'thought': " + "-" * 19000 + "1}",
        "{'thought': " + "9" * 19000 + ", 'hallucination': 'no'}",
        '{"thought": ' + "9" * 19000 + "}",
        "{'thought': '" + "\\" * 19000 + "'}",
        "{" * 9000 + "}" * 9000,
        "{'thought': '\0', 'hallucination': 'no'",
        "{'thought': 'x', " * 1100 + "}",
    ],
)
def test_nothing_that_a_model_writes_stops_the_reading(text):
    started = time.perf_counter()
    assert form_and_answer(text, FORMS)[0] == "plain"
    assert time.perf_counter() - started < 1


def test_an_endless_answer_is_plain():
    text = "{'thought': '%s', 'hallucination': 'no'}"
    assert form_and_answer(text % ("x" * (LONGEST - 100)), FORMS)[0] == "verdict"
    assert form_and_answer(text % ("x" * LONGEST), FORMS)[0] == "plain"


def test_the_first_form_that_fits_counts_and_numbers_are_not_texts():
    forms = read_forms({"score": {"keys": {"s": [1, 2, "x"]}, "answer": "s"}, "any": {"pattern": r"(?s)\{(?P<answer>.*)\}"}})
    assert form_and_answer("{'s': 2}", forms) == ("score", "2")
    assert form_and_answer('{"s": "x"}', forms) == ("score", "x")
    for other in ('{"s": "2"}', '{"s": 2.0}', '{"s": true}', "{'s': True}", "{'s': 3}"):
        assert form_and_answer(other, forms) == ("any", other[1:-1])
    assert forms[0].classes == ("1", "2", "x")
    assert forms[1].classes == ()

"""Published judgment data sets as judged rows: what is kept, what is left out, and where a message says that the fault is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignlab.data.converters import CONVERTERS, Result
from alignlab.data.files import raw_rows
from alignlab.errors import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/convert_judged.py"


def write(path: Path, *rows: Any) -> Path:
    """JSON lines; a row that is a text is written as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def converted(source: str, *files: Path) -> list[tuple[str, Result]]:
    """Pairs of line and result; an error stands as its message, without the folder."""
    pairs = CONVERTERS[source](files, raw_rows)
    folder = f"{files[0].parent}/"
    return [
        (place.removeprefix(folder), "ERROR " + str(result).replace(folder, "") if isinstance(result, UserError) else result)
        for place, result in pairs
    ]


def judged(
    name: str, instruction: str, output: str, judgment: str | None, score: float | None, i_ans: str | None
) -> dict[str, Any]:
    return {
        "id": name, "instruction": instruction, "input": "", "output": output, "judgment": judgment, "score": score, "i_ans": i_ans
    }  # fmt: skip


# --- Shepherd --------------------------------------------------------------------------------------------------------


def raw(question: str, answer: str, correct: str | None = "8") -> dict[str, Any]:
    label = {"jsonResponse": {"CLASSIFICATION_JOB_0": {"categories": [], "jobName": "Error Type"}}}
    return {"latestLabel": label, "metadata": {"context": question, "output_correct": correct, "output_candidate": answer}, "id": 0}


def for_model(question: str, answer: str, feedback: str = "The sum is off.") -> dict[str, Any]:
    return {"id": 0, "question": question, "answer": answer, "feedback": feedback, "meta": {"domain": "human annotation"}}


def test_shepherd_takes_the_better_answer_from_the_raw_file_in_either_order(tmp_path: Path):
    a = write(tmp_path / "human_data_raw.jsonl", raw("How old?", "22\n\n"), raw("Yes?", "No.", "Yes."))
    b = write(tmp_path / "human_data_for_model.jsonl", for_model("How old?", "22\n\n"), for_model("Yes?", "No.", "It is. "))
    expected = [
        ("human_data_for_model.jsonl:1", judged("shepherd/1", "How old?", "22\n\n", "The sum is off.", 1.0, "8")),
        ("human_data_for_model.jsonl:2", judged("shepherd/2", "Yes?", "No.", "It is. ", 1.0, "Yes.")),
    ]
    assert converted("shepherd", a, b) == expected
    assert converted("shepherd", b, a) == expected


def test_shepherd_names_both_places_where_the_files_do_not_match_and_goes_on(tmp_path: Path):
    a = write(tmp_path / "raw.jsonl", raw("A", "1"), raw("B", "2"), raw("C", "3"))
    b = write(tmp_path / "model.jsonl", for_model("A", "1!"), for_model("B!", "2"), for_model("C", "3"))
    (_, first), (_, second), (_, third) = converted("shepherd", a, b)
    assert str(first).startswith("ERROR model.jsonl:1:answer: differs from raw.jsonl:1:metadata.output_candidate.")
    assert str(second).startswith("ERROR model.jsonl:2:question: differs from raw.jsonl:2:metadata.context.")
    assert third == judged("shepherd/3", "C", "3", "The sum is off.", 1.0, "8")


@pytest.mark.parametrize("longer", ["raw.jsonl", "model.jsonl"])
def test_shepherd_files_of_unequal_length_end_with_one_error(tmp_path: Path, longer: str):
    more = 3 if longer == "raw.jsonl" else 1
    a = write(tmp_path / "raw.jsonl", *[raw("A", "1")] * more)
    b = write(tmp_path / "model.jsonl", *[for_model("A", "1")] * (4 - more))
    (_, row), (place, error) = converted("shepherd", a, b)
    assert isinstance(row, dict)
    shorter = "model.jsonl" if longer == "raw.jsonl" else "raw.jsonl"
    assert place == f"{longer}:2"
    assert str(error).startswith(f"ERROR {longer}:2: {shorter} ends before its row 2, ")


def test_shepherd_stays_in_step_past_a_line_that_is_not_json_and_past_blank_ones(tmp_path: Path):
    a = write(tmp_path / "raw.jsonl", "", raw("A", "1"), '{"metadata" 1}', raw("C", "3"))
    b = write(tmp_path / "model.jsonl", for_model("A", "1"), for_model("B", "2"), for_model("C", "3", " \n"))
    (one, first), (two, second), (three, third) = converted("shepherd", a, b)
    assert (one, first) == ("model.jsonl:1", judged("shepherd/1", "A", "1", "The sum is off.", 1.0, "8"))
    assert (two, str(second)[:37]) == ("raw.jsonl:3", "ERROR raw.jsonl:3:13: not valid JSON:")
    assert (three, third) == ("model.jsonl:3", "ERROR model.jsonl:3:feedback: is a judgment without words.")


def test_shepherd_needs_two_files(tmp_path: Path):
    with pytest.raises(UserError, match="takes two files, human_data_raw.jsonl and human_data_for_model.jsonl, and got 1"):
        converted("shepherd", write(tmp_path / "raw.jsonl"))


# --- summarization ---------------------------------------------------------------------------------------------------


def answer(text: str, *critiques: tuple[str, str], rating: Any = 3, **feedback: Any) -> dict[str, Any]:
    listed = [{"text": text, "refinement": better, "category": "coverage", "severity": 2} for text, better in critiques]
    return {"answer": text, "feedback": {"rating": rating, "critiques": listed, "missing_answer": False} | feedback}


def passage(*questions: tuple[str, list[Any], list[dict[str, Any]]], text: str = "Rain fell.") -> dict[str, Any]:
    listed = [{"question": q, "rankings": rankings, "answers": answers} for q, rankings, answers in questions]
    return {"id": "8rNC", "split": "train", "data": {"passage": {"title": "Rain", "text": text}, "questions": listed}}


def test_summarization_takes_the_highest_ranked_answer_and_all_its_critiques(tmp_path: Path):
    low, high = answer("Sun.", ("No sun.", "Rain.")), answer("Wet.", ("Too short.", "It was wet."), ("What fell? ", "Rain fell."))
    file = write(
        tmp_path / "train.jsonl",
        passage(("Sum up.", [0, 1], [low, high]), ("Again?", [2, 2, 1], [low, high, high])),
        passage(
            ("Alone?", [None], [answer("Yes.", rating=7)]), ("None?", [0], [answer("Yes.", rating=7, critiques=None)]), text="Snow."
        ),
    )
    assert converted("summarization", file) == [
        (
            "train.jsonl:1:data.questions[0]",
            judged("train/1/1", "Rain fell.\nSum up.", "Wet.", "Too short. What fell?", 1.0, "Rain fell."),
        ),
        ("train.jsonl:1:data.questions[1]", judged("train/1/2", "Rain fell.\nAgain?", "Sun.", "No sun.", 1.0, "Rain.")),
        ("train.jsonl:2:data.questions[0]", judged("train/2/1", "Snow.\nAlone?", "Yes.", None, None, None)),
        ("train.jsonl:2:data.questions[1]", judged("train/2/2", "Snow.\nNone?", "Yes.", None, None, None)),
    ]


SKIPPED = {"answer": None, "feedback": {"skip": True}}


@pytest.mark.parametrize(
    ("given", "result"),
    [
        (SKIPPED, "skipped by the labeller"),
        (answer("Wet.", ("Short.", "Rain."), skip=True), "skipped by the labeller"),
        (answer("", ("Nothing is said.", "Rain.")), "empty answer"),
        (answer("Wet.", ("Short.", "Rain."), ("Dull.", "")), "no refinement"),
        (answer("Wet.", ("Short.", ""), ("Dull.", "Rain.")), judged("t/1/1", "Rain fell.\nQ", "Wet.", "Short. Dull.", 1.0, "Rain.")),
        (answer("Wet.", ("Short.", "Rain."), skip=False), judged("t/1/1", "Rain fell.\nQ", "Wet.", "Short.", 1.0, "Rain.")),
        (answer("Wet.", rating=6), "ERROR t.jsonl:1:data.questions[0].answers[0].feedback.rating: is 6 without critiques, where it must be 7."),
        (answer("Wet.", ("", "Rain.")), "ERROR t.jsonl:1:data.questions[0].answers[0].feedback.critiques: is a judgment without words."),
    ],
)  # fmt: skip
def test_what_summarization_leaves_out(tmp_path: Path, given: dict[str, Any], result: Result):
    other = answer("Kept?", ("No.", "Yes."))
    first, second = converted(
        "summarization", write(tmp_path / "t.jsonl", passage(("Q", [1, 0], [given, other]), ("P", [0], [other])))
    )
    assert first == ("t.jsonl:1:data.questions[0]", result)
    assert second == ("t.jsonl:1:data.questions[1]", judged("t/1/2", "Rain fell.\nP", "Kept?", "No.", 1.0, "Yes."))


def test_summarization_names_place_and_field_and_goes_on(tmp_path: Path):
    good = answer("Kept?", ("No.", "Yes."))
    unrefined = answer("Wet.", ("Short.", "Rain."))
    del unrefined["feedback"]["critiques"][0]["refinement"]
    cases = [
        ({"id": "base"}, "data: missing. Was another file meant, or another converter?"),
        ({"data": {"passage": {"text": "x"}, "questions": {}}}, "data.questions: must be a list, not an object."),
        (["x"], " a row must be one object"),
        (passage(("Q", [], [])), "data.questions[0].rankings: 0 for 0 answers; there must be one for each."),
        (passage(("Q", [0, 1], [good])), "data.questions[0].rankings: 2 for 1 answers; there must be one for each."),
        (passage(("Q", [0, None], [good, good])), "data.questions[0].rankings[1]: must be a number, not null."),
        (passage(("Q", [0], [unrefined])), "data.questions[0].answers[0].feedback.critiques[0].refinement: missing."),
        (passage(("Q", [0], [{"answer": "Wet.", "critiques": []}])), "data.questions[0].answers[0].feedback: missing."),
        (passage(("Q", [0], [{"answer": "Wet.", "feedback": None}])), "data.questions[0].answers[0].feedback: must be an object, not null."),
        (passage(("Q", [0], [good]), text="\ud800"), "data.passage.text: holds half of a surrogate pair"),
    ]  # fmt: skip
    file = write(tmp_path / "t.jsonl", *[row for row, _ in cases], passage(("Q", [0], [good])), passage())
    *errors, kept, empty = converted("summarization", file)
    for line, ((place, result), (_, message)) in enumerate(zip(errors, cases, strict=True), 1):
        assert place in (f"t.jsonl:{line}", f"t.jsonl:{line}:data.questions[0]")
        assert str(result).startswith(f"ERROR t.jsonl:{line}:{message}")
    assert kept == (
        f"t.jsonl:{len(cases) + 1}:data.questions[0]",
        judged(f"t/{len(cases) + 1}/1", "Rain fell.\nQ", "Kept?", "No.", 1.0, "Yes."),
    )
    assert empty == (f"t.jsonl:{len(cases) + 2}", "no questions")


# --- UltraFeedback ---------------------------------------------------------------------------------------------------


def completion(response: Any, critique: Any = "Name the hotel.", score: Any = 7.5) -> dict[str, Any]:
    return {
        "model": "gpt-4", "principle": "helpfulness", "custom_system_prompt": "Be helpful.", "response": response,
        "annotations": {"helpfulness": {"Rating": "3", "Rationale": "", "Type": ["1"], "Rationale For Rating": ""}},
        "critique": critique, "overall_score": score, "fine-grained_score": 3.25,
    }  # fmt: skip


def instruction(*completions: dict[str, Any], text: str = "Plan a trip.") -> dict[str, Any]:
    return {
        "source": "sharegpt",
        "instruction": text,
        "models": ["gpt-4"],
        "correct_answers": ["None"],
        "completions": list(completions),
    }


def test_ultrafeedback_gives_four_rows_that_share_the_instruction(tmp_path: Path):
    four = [completion("A", "a", 8.0), completion("B", "b", "3"), completion("", "c"), completion("D", "d", None)]
    one, two = (
        write(tmp_path / "flan.jsonl", instruction(*four)),
        write(tmp_path / "false_qa.jsonl", instruction(four[0]), instruction()),
    )
    assert converted("ultrafeedback", one, two) == [
        ("flan.jsonl:1:completions[0]", judged("flan/1/1", "Plan a trip.", "A", "a", 8.0, None)),
        ("flan.jsonl:1:completions[1]", judged("flan/1/2", "Plan a trip.", "B", "b", 3.0, None)),
        ("flan.jsonl:1:completions[2]", "empty answer"),
        ("flan.jsonl:1:completions[3]", judged("flan/1/4", "Plan a trip.", "D", "d", None, None)),
        ("false_qa.jsonl:1:completions[0]", judged("false_qa/1/1", "Plan a trip.", "A", "a", 8.0, None)),
        ("false_qa.jsonl:2", "no completions"),
    ]


def test_ultrafeedback_from_parquet_is_the_same(tmp_path: Path):
    rows = [instruction(completion("A"), completion("B", score=None)), instruction(completion("C"))]
    lines = converted("ultrafeedback", write(tmp_path / "train.jsonl", *rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    parquet = converted("ultrafeedback", tmp_path / "train.parquet")
    assert len(lines) == 3
    assert parquet == [(place.replace("jsonl", "parquet"), row) for place, row in lines]


def test_ultrafeedback_names_place_and_field(tmp_path: Path):
    lacking = completion("A")
    del lacking["overall_score"]
    rows = [
        completion(None),
        completion("A", None),
        completion("A", ""),
        completion("A", score="N/A"),
        completion("A", score=True),
        lacking,
    ]
    found = converted("ultrafeedback", write(tmp_path / "flan.jsonl", instruction(*rows), instruction(completion("A"), text=3)))  # type: ignore[arg-type]
    assert [str(result).removeprefix("ERROR flan.jsonl:") for _, result in found] == [
        "1:completions[0].response: must be a text, not null.",
        "1:completions[1].critique: must be a text, not null.",
        "1:completions[2].critique: is a judgment without words.",
        "1:completions[3].overall_score: must be a number, not a text.",
        "1:completions[4].overall_score: must be a number, not true.",
        "1:completions[5].overall_score: missing. Was another file meant, or another converter?",
        "2:instruction: must be a text, not 3.",
    ]


def test_files_of_one_name_are_refused_as_their_ids_would_meet(tmp_path: Path):
    (tmp_path / "a").mkdir()
    files = [write(tmp_path / "train.jsonl"), tmp_path / "a/train.json"]
    with pytest.raises(UserError, match="^train: several files have this name"):
        converted("ultrafeedback", *files)


# --- the script ------------------------------------------------------------------------------------------------------


def script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_script_writes_judged_rows_and_counts(tmp_path: Path):
    asked = passage(
        ("Q", [0], [answer("Wet.", ("Short é.", "Rain."))]), ("Q", [0], [answer("Yes.", rating=7)]), ("Q", [0], [answer("")]),
        ("Q", [0], [SKIPPED]), ("Q", [0], [SKIPPED]),
    )  # fmt: skip
    write(tmp_path / "train.jsonl", asked)
    done = script(tmp_path, "summarization", "train.jsonl", "--out", "deep/out.jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "       2 rows",
        "       1 satisfactory",
        "       1 judged",
        "       1 with a refined answer",
        "       3 dropped",
        "           2 skipped by the labeller",
        "           1 empty answer",
        "deep/out.jsonl",
    ]
    assert [json.loads(line) for line in (tmp_path / "deep/out.jsonl").read_text(encoding="utf-8").splitlines()] == [
        judged("train/1/1", "Rain fell.\nQ", "Wet.", "Short é.", 1.0, "Rain."),
        judged("train/1/2", "Rain fell.\nQ", "Yes.", None, None, None),
    ]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out.jsonl"]


def test_the_script_stops_at_a_wrong_row_or_leaves_it_out(tmp_path: Path):
    write(tmp_path / "raw.jsonl", raw("A", "1"), raw("B", "2"))
    write(tmp_path / "model.jsonl", for_model("A", "1"), for_model("B", "3"))
    (tmp_path / "out.jsonl").write_text("old\n")
    given = ["shepherd", "raw.jsonl", "model.jsonl", "--out", "out.jsonl"]
    done = script(tmp_path, *given)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("convert_judged: model.jsonl:2:answer: differs from raw.jsonl:2:metadata.output_candidate.")
    assert len(done.stderr.splitlines()) == 2
    assert (tmp_path / "out.jsonl").read_text() == "old\n"
    assert not list(tmp_path.glob("*.tmp"))

    done = script(tmp_path, *given, "--keep-going")
    assert done.returncode == 0
    assert done.stderr.startswith("model.jsonl:2:answer: differs")
    assert done.stdout.splitlines()[0] == "       1 rows"
    assert done.stdout.splitlines()[-2] == "       1 wrong, left out"
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ultrafeedback", "a.jsonl", "--out", "a.jsonl"], "--out: a.jsonl is one of the files to convert; name another."),
        (["ultrafeedback", "a.jsonl", "--out", "b.jsonl"], "a.jsonl: no row to write."),
        (["summarization", "train.jsonl.gz", "--out", "b.jsonl"], "train.jsonl.gz: is compressed; unpack it with gunzip."),
        (["ultrafeedback", "none.jsonl", "--out", "b.jsonl"], "none.jsonl: cannot be read: No such file or directory."),
        (["ultrafeedback", "full.jsonl", "--out", "a.jsonl/b.jsonl"], "--out: a.jsonl/b.jsonl cannot be written: "),
        (["ultrafeedback", "full.jsonl", "--out", "."], "--out: . is a folder; name a file."),
    ],
)
def test_what_the_script_refuses(tmp_path: Path, arguments: list[str], message: str):
    write(tmp_path / "a.jsonl")
    write(tmp_path / "full.jsonl", instruction(completion("A")))
    done = script(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"convert_judged: {message}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "full.jsonl"]


def test_the_script_says_where_the_files_are_published(tmp_path: Path):
    done = script(tmp_path, "--help")
    assert done.returncode == 0
    assert all(
        name in done.stdout
        for name in [*CONVERTERS, "facebookresearch/Shepherd", "openbmb/UltraFeedback", "critiques/train.jsonl.gz"]
    )

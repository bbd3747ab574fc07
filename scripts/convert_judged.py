"""Convert a published data set of judgments to judged rows, as JSON lines.

    python scripts/convert_judged.py shepherd human_data_raw.jsonl human_data_for_model.jsonl --out shepherd.jsonl
    python scripts/convert_judged.py summarization train.jsonl --out summarization-train.jsonl
    python scripts/convert_judged.py ultrafeedback evol_instruct.jsonl sharegpt.jsonl --out ultrafeedback.jsonl

where the files are published (each under a licence of its own; read it first):

    shepherd        github.com/facebookresearch/Shepherd, data/human_data_raw.jsonl and data/human_data_for_model.jsonl
    summarization   openaipublic.blob.core.windows.net/critiques/dataset/critiques/train.jsonl.gz and test.jsonl.gz
    ultrafeedback   huggingface.co/datasets/openbmb/UltraFeedback, evol_instruct.jsonl, false_qa.jsonl, flan.jsonl, sharegpt.jsonl,
                    truthful_qa.jsonl, ultrachat.jsonl (since December 2023 with corrected overall scores)

Unpack what ends in .gz with gunzip. What each converter keeps, and why, stands in alignlab/data/converters.py.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from alignlab.data.converters import CONVERTERS, Row
from alignlab.data.files import raw_rows
from alignlab.errors import OK, UserError
from alignlab.records import write_jsonl


def rows(source: str, files: list[Path], keep_going: bool, counts: Counter[str], dropped: Counter[str]) -> Iterator[Row]:
    """The judged rows, which are counted on the way.

    Raises:
        UserError: a raw row is wrong, unless ``keep_going``, or no row is left.
    """
    for _, result in CONVERTERS[source](files, raw_rows):
        if isinstance(result, UserError):
            if not keep_going:
                raise UserError(f"{result}\n--keep-going leaves wrong rows out.")
            print(result, file=sys.stderr)
            counts["wrong"] += 1
        elif isinstance(result, str):
            dropped[result] += 1
        else:
            counts["rows"] += 1
            counts["satisfactory" if result["judgment"] is None else "judged"] += 1
            counts["with a refined answer"] += bool(result["i_ans"])
            yield result
    if not counts["rows"]:
        raise UserError(f"{', '.join(map(str, files))}: no row to write.")


def convert(source: str, files: list[Path], out: Path, keep_going: bool) -> str:
    """Write the judged rows, and say what was counted.

    Raises:
        UserError: a file cannot be read or written, or as :func:`rows`. No file is left then.
    """
    if out.exists() and any(file.exists() and file.samefile(out) for file in files):
        raise UserError(f"--out: {out} is one of the files to convert; name another.")
    for file in files:
        if file.suffix == ".gz":
            raise UserError(f"{file}: is compressed; unpack it with gunzip.")
    if out.is_dir():
        raise UserError(f"--out: {out} is a folder; name a file.")
    counts, dropped = Counter[str](), Counter[str]()
    try:
        write_jsonl(out, rows(source, files, keep_going, counts, dropped))
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror or error}.") from None
    finally:
        if out.parent.is_dir():
            out.with_name(out.name + ".tmp").unlink(missing_ok=True)  # what write_jsonl leaves of a failed try
    lines = [f"{counts[name]:>8} {name}" for name in ("rows", "satisfactory", "judged", "with a refined answer")]
    lines.append(f"{dropped.total():>8} dropped")
    lines += [f"{'':>8}   {count} {reason}" for reason, count in dropped.most_common()]
    return "\n".join([*lines, *([f"{counts['wrong']:>8} wrong, left out"] if counts["wrong"] else []), str(out)])


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=CONVERTERS, help="the data set")
    parser.add_argument("files", nargs="+", type=Path, help="its files, as published")
    parser.add_argument("--out", type=Path, required=True, help="the file of judged rows to write")
    parser.add_argument("--keep-going", action="store_true", help="name raw rows that are wrong, and leave them out")
    given = parser.parse_args()
    try:
        print(convert(given.source, given.files, given.out, given.keep_going))
    except UserError as error:
        print(f"convert_judged: {error}", file=sys.stderr)
        return error.status
    return OK


if __name__ == "__main__":
    sys.exit(main())

"""Rules of the house that a reader relies on."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "alignlab"
FILES = sorted(p for p in PACKAGE.rglob("*.py"))
METHODS = sorted(p.stem for p in (PACKAGE / "methods").glob("*.py") if p.stem != "__init__")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def test_there_are_methods_to_speak_of():
    assert "diffuse" in METHODS


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_files_are_short_and_name_no_method(path):
    text = path.read_text()
    assert text.count("\n") <= (250 if path.name == "loop.py" else 400)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = (node.end_lineno or 0) - node.lineno + 1
            limit = 100 if path.name == "loop.py" and node.name == "fit" else 70
            assert body <= limit, f"{node.name} has {body} lines"
    if path.parent.name != "methods":
        assert not [name for name in _imports(path) if name.startswith("alignlab.methods")]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_inherits_from_no_other_and_has_a_yaml(name):
    tree = ast.parse((PACKAGE / f"methods/{name}.py").read_text())
    assert not [i for i in _imports(PACKAGE / f"methods/{name}.py") if i.startswith("alignlab.methods.")]
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert all(isinstance(base, ast.Name) and base.id == "MethodDefaults" for c in classes for base in c.bases)
    assert (PACKAGE.parent / f"conf/method/{name.replace('_', '-')}.yaml").exists()


def test_the_loop_knows_no_method_and_no_data_source():
    for path in (PACKAGE / "train").glob("*.py"):
        assert not [i for i in _imports(path) if i.startswith(("alignlab.methods", "alignlab.data.sources", "alignlab.stages"))]


def test_the_command_line_starts_without_torch():
    program = "import sys, alignlab, alignlab.__main__; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_loop_uses_no_global_randomness():
    for path in FILES:
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not names & {"seed_everything", "RandomState"}
        assert "import random\n" not in path.read_text()

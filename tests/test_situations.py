"""docs/situations.md names every test of a situation, and no other."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "situations.md"
FILES = ("collect/test_agreement.py", "optim/test_rows.py", "optim/test_passes.py", "optim/test_life.py")


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def named_on_the_page() -> list[tuple[str, str]]:
    """(file, test) in the order of the page; a name without a file is of the file before it in its row."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        file = ""
        for own, name in re.findall(r"`([\w/]*(?:\.py)?)::(test_\w+)`", line):
            file = own or file
            found.append((file, name))
    return found


def test_every_row_names_a_test_that_exists():
    named = named_on_the_page()
    assert len(named) == len(set(named)) > 40
    for file, name in named:
        assert name in names_in(TESTS / file), f"{file}::{name}"
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert all("::test_" in row for row in rows if not row.startswith("| situation"))


def test_every_test_of_a_situation_has_a_row():
    named = set(named_on_the_page())
    missing = [
        (file, name) for file in FILES for name in sorted(names_in(TESTS / file)) if (file, name) not in named
    ]
    assert missing == []

"""Runs a notebook kept as a script, and draws what its cells would show: `python notebook_cells.py FILE`."""

import ast
import io
import sys
from pathlib import Path

from matplotlib.figure import Figure


def run(path: Path) -> int:
    """Executes the statements one after the other; returns how many figures were shown."""
    module = ast.parse(path.read_text(encoding="utf-8"), str(path))
    namespace = {"__name__": "__main__"}
    figures = 0
    for statement in module.body:
        if not isinstance(statement, ast.Expr):
            exec(compile(ast.Module([statement], []), str(path), "exec"), namespace)
            continue
        shown = eval(compile(ast.Expression(statement.value), str(path), "eval"), namespace)
        if isinstance(shown, Figure):
            shown.savefig(io.BytesIO(), dpi=40)
            figures += 1
    return figures


if __name__ == "__main__":
    print("figures:", run(Path(sys.argv[1])))

"""Counts what a reader walks through: files, functions, circles, names and lines of this checkout.

    python benchmarks/house.py
    python benchmarks/house.py --map    # the folders in the order of the import contract, for CONTRIBUTING.md

Prints the files that `compare` closes over (imports of imports, at the head of files), the circles between
modules (imports within functions too), the class names that stand in two files, the lines, and the files and
functions that one KFAC approximation, one comparison and one step of LNGD enter (`sys.setprofile`).
"""

import ast
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
FOLDERS = {"fisherlab": "fisherlab", "fisherlab.cli": "cli", "fisherlab.figures": "figures"}
START = "fisherlab.comparison.run"


def modules() -> dict[str, Path]:
    """Every module by name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((HERE / folder).rglob("*.py")):
            parts = path.relative_to(HERE / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = path
    return found


def imports(known: dict[str, Path], *, late: bool) -> dict[str, set[str]]:
    """For each module those that it imports, but for the type checker; `late` ones are within functions."""
    return {name: set(_imported(name, path, known, late)) for name, path in known.items()}


def _imported(name: str, path: Path, known: dict[str, Path], late: bool) -> Iterator[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _running(ast.parse(path.read_text(encoding="utf-8")), late):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                source = ".".join([*package.split(".")[: 1 - node.level or None], *filter(None, [source])])
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                yield from [whole] if whole in known else [source] if source in known else []


def _running(tree: ast.AST, late: bool) -> Iterator[ast.AST]:
    """The nodes of a file without `if TYPE_CHECKING:`, and with functions' bodies only if `late`."""
    for node in ast.iter_child_nodes(tree):
        checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if checked or (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not late):
            continue
        yield node
        yield from _running(node, late)


def closure(start: str, arrows: dict[str, set[str]]) -> set[str]:
    """A module with everything that it imports, and what that imports."""
    reached, left = set(), [start]
    while left:
        name = left.pop()
        if name not in reached:
            reached.add(name)
            left += arrows[name]
    return reached


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that reach each other."""
    reach = {name: closure(name, arrows) for name in arrows}
    groups = {tuple(sorted(b for b in reach[a] if a in reach[b])) for a in arrows}
    return [list(group) for group in sorted(groups) if len(group) > 1]


def class_names(known: dict[str, Path]) -> dict[str, list[str]]:
    """Public and private classes that have one name in several files."""
    places = defaultdict(list)
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name)
    return {name: where for name, where in sorted(places.items()) if len(where) > 1}


def entered(work: Callable[[], object]) -> tuple[int, int]:
    """How many of our files and functions a call enters."""
    seen: set[tuple[str, str]] = set()

    def note(frame, event, argument):
        if event == "call":
            code = frame.f_code
            if any(code.co_filename.startswith(str(HERE / f)) for f in FOLDERS.values()):
                seen.add((code.co_filename, f"{code.co_firstlineno} {code.co_qualname}"))

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    named = {(file, function) for file, function in seen if "<" not in function.split(".")[-1]}
    return len({file for file, _ in named}), len(named)


def drawing() -> str:
    """The folders and loose files, the highest first, as the import contract has them, each with what it is.

    Those that are joined by `│` do not know each other.
    """
    settings = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))
    places = modules()
    rows = []
    for floor in settings["tool"]["importlinter"]["contracts"][0]["layers"]:
        for place, name in enumerate(floor.split(" | ")):
            path = places[f"fisherlab.{name}"]
            folder = path.parent.relative_to(HERE) if path.name == "__init__.py" else path.relative_to(HERE)
            shown = f"{folder}{'/' if path.name == '__init__.py' else ''}"
            words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            rows.append(f"{'│' if place else '├'} {shown:27}{words.splitlines()[0]}")
    return "\n".join(rows)


def main() -> None:
    """Prints the numbers, or the map."""
    if sys.argv[1:] == ["--map"]:
        print(drawing())
        return
    known = modules()
    loose = [name for name, path in known.items() if name.count(".") == 1 and path.name != "__init__.py"]
    _say("files", len(known))
    _say("loose at the root", len(loose))
    _say("compare closes over", f"{len(closure(START, imports(known, late=False)))} files")
    _say("circles", "", *map(", ".join, circles(imports(known, late=True))))
    twice = class_names(known)
    _say("class names with two meanings", len(twice), *(f"{n}: {', '.join(w)}" for n, w in twice.items()))
    lines = dict.fromkeys(FOLDERS.values(), 0)
    for path in known.values():
        lines[path.relative_to(HERE).parts[0]] += len(path.read_text(encoding="utf-8").splitlines())
    _say("lines", f"{sum(lines.values())} ({', '.join(f'{k} {v}' for k, v in lines.items())})")
    for what, work in _walks():
        files, functions = entered(work)
        _say(f"{what} enters", f"{files} files, {functions} functions")


def _say(what: str, value: object, *more: str) -> None:
    print(f"{what:32}{value}", *more, sep="\n    ")


def _walks() -> Iterator[tuple[str, Callable[[], object]]]:
    """What is followed, each done once before so that everything is imported."""
    import torch
    from torch import nn

    import fisherlab as fl

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    data = torch.randn(6, 5), torch.randint(3, (6,))
    optimizer = fl.optim.LNGD(model, lr=0.1)

    def step() -> None:
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
        optimizer.zero_grad()

    for what, work in (
        ("approximate('kfac')", lambda: fl.approximate("kfac", model, data)),
        ("compare", lambda: fl.compare(model, data, ("kfac",))),
        ("a step of LNGD", step),
    ):
        work()
        yield what, work


if __name__ == "__main__":
    main()

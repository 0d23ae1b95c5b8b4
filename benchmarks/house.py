"""Counts what a reader walks through: files, functions, circles, names and lines of this checkout.

    python benchmarks/house.py

Prints one line a number: the files that `compare` closes over (imports of imports, those within functions
too), the files and functions that one KFAC approximation and one step of LNGD enter (`sys.setprofile`), the
circles between modules, class names that stand for two things, and the lines of the three folders.
"""

import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
FOLDERS = {"fisherlab": "fisherlab", "fisherlab.cli": "cli", "fisherlab.figures": "figures"}


def modules() -> dict[str, Path]:
    """Every module by name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((HERE / folder).rglob("*.py")):
            parts = path.relative_to(HERE / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = path
    return found


def imports(known: dict[str, Path]) -> dict[str, set[str]]:
    """For each module those that it imports, but for the type checker."""
    return {name: set(_imported(name, path, known)) for name, path in known.items()}


def _imported(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _running(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                source = ".".join([*package.split(".")[: 1 - node.level or None], *filter(None, [source])])
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                yield from [whole] if whole in known else [source] if source in known else []


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a file without `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _running(node)


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

    def note(frame, event, argument):  # noqa: ARG001
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


def main() -> None:
    """Prints the numbers."""
    known = modules()
    arrows = imports(known)
    start = "fisherlab.comparison.run" if "fisherlab.comparison.run" in known else "fisherlab.comparison"
    print(f"{'files':34}{len(known)}")
    print(f"{'loose at the root':34}{sum(name.count('.') == 1 and p.name != '__init__.py' for name, p in known.items())}")
    print(f"{'compare closes over':34}{len(closure(start, arrows))} files")
    found = circles(arrows)
    print(f"{'circles':34}{len(found)}")
    for group in found:
        print(f"    {', '.join(group)}")
    print(f"{'class names with two meanings':34}{len(class_names(known))}")
    for name, where in class_names(known).items():
        print(f"    {name}: {', '.join(where)}")
    lines = Counter(str(path.relative_to(HERE)).split("/")[0] for path in known.values() for _ in path.open(encoding="utf-8"))
    print(f"{'lines':34}{sum(lines.values())} ({', '.join(f'{k} {v}' for k, v in sorted(lines.items()))})")
    _walks()


def _walks() -> None:
    import torch
    from torch import nn

    import fisherlab as fl

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    data = torch.randn(6, 5), torch.randint(3, (6,))
    fl.approximate("kfac", model, data)  # everything is imported
    files, functions = entered(lambda: fl.approximate("kfac", model, data))
    print(f"{'approximate(kfac) enters':34}{files} files, {functions} functions")

    optimizer = fl.optim.LNGD(model, lr=0.1)

    def step() -> None:
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    files, functions = entered(step)
    print(f"{'a step of LNGD enters':34}{files} files, {functions} functions")
    fl.compare(model, data, ("kfac",))
    files, functions = entered(lambda: fl.compare(model, data, ("kfac",)))
    print(f"{'compare enters':34}{files} files, {functions} functions")


if __name__ == "__main__":
    main()

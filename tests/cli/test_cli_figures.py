import json
import subprocess
import sys

import pytest


def test_the_list_names_everything(run) -> None:
    found = run("figures", "--list", "--json")
    names = [row["name"] for row in json.loads(found.stdout)]
    assert found.exit_code == 0
    assert {"figure-1", "figure-7", "table-1", "table-6", "theorem-2"} <= set(names)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["figure-9"], "unknown figure or table 'figure-9'; did you mean"),
        (["--scale", "huge"], "unknown scale 'huge'; known: cpu, gpu, paper, smoke."),
        (["--runs", "nowhere"], "does not exist"),
        (["--list", "--out", "x"], "--list makes nothing"),
        (["table-4", "--device", "tpu"], "unknown device"),
    ],
)
def test_bad_input_is_one_line(refused, arguments, words) -> None:
    assert words in refused("figures", *arguments)


def test_a_table_is_made_and_the_summary_printed(run, place) -> None:
    found = run("figures", "table-4", "--scale", "smoke", "--out", "out", "--json", code=0)
    summary = json.loads(found.stdout)
    assert summary == json.loads((place / "out" / "summary.json").read_text())
    assert summary["files"] == ["table-4.csv", "table-4.md"]


def test_the_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; import fisherlab.cli.figures; "
        "sys.exit(bool({'torch', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_run_repeats_it(run, place) -> None:
    run("figures", "table-4", "--scale", "smoke", "--out", "first", code=0)
    run("run", "first/config.toml", "--out", "second", code=0)
    assert (place / "first" / "table-4.csv").read_bytes() == (place / "second" / "table-4.csv").read_bytes()

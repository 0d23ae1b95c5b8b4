"""Values of wrong types and out of range, made from the signatures: each is refused in one sentence."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from torch import nn
from torture.trials import Child, Tally, fisherlab, fresh, listing


def functions(tries: int) -> Tally:
    """Every argument of every public function, and every option of the optimizers."""
    from test_arguments import CASES, FUNCTIONS, OPTIMIZERS, PLAIN, allowed

    from fisherlab.arguments import expected_fields, expected_of

    calls: list[tuple[Callable[..., Any], Mapping[str, Any], str, Any]] = [
        (FUNCTIONS[name], {}, argument, expected_of(FUNCTIONS[name])[argument]) for name, argument in CASES
    ]
    for optimizer in OPTIMIZERS:
        fields = expected_fields(optimizer.__init__.options)
        calls += [(optimizer, {"model": nn.Linear(2, 2)}, *field) for field in fields.items()]
    calls = [one for one in calls if allowed(one[-1]) != set(PLAIN)]
    tally = Tally("wrong arguments of public functions and optimizers")
    for call in calls:
        _walk(tally, max(1, round(tries / len(calls))), *call)
    return tally


def _walk(
    tally: Tally,
    tries: int,
    function: Callable[..., Any],
    given_values: Mapping[str, Any],
    argument: str,
    annotation: Any,
) -> None:
    from test_arguments import refused, wrong

    @seed(0)
    @settings(
        max_examples=tries,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(wrong(annotation))
    def walk(value: Any) -> None:
        try:
            refused(lambda: function(**{**given_values, argument: value}), argument)
        except BaseException as error:  # pytest's own is none of Exception
            name = getattr(function, "__qualname__", function)
            tally.count(f"{name}({argument}={value!r:.80}): {type(error).__name__}: {error!s:.200}")
        else:
            tally.count()

    walk()


def options(place: Path, tries: int) -> Tally:
    """Every option of every command."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
    from test_cli_bad_values import CASES, COMMANDS

    tally = Tally("wrong options of commands")
    for command, option, value in CASES[:: max(1, len(CASES) // tries)]:
        if "\0" in value:  # no shell can type it
            continue
        with fresh(place, "options") as folder:
            model = [word.replace("small_nets:small", "torture.nets:mlp") for word in COMMANDS[command][1]]
            ended = Child(fisherlab(command, *model, option, value), folder).ended()
            good = ended.code == 2 and ended.refused and not ended.out and not listing(folder)
            tally.count("" if good else f"{command} {option} {value!r:.40}: {ended}")
    return tally

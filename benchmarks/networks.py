"""Networks that other people wrote: what is covered, how exact it is, and whether it trains.

    python benchmarks/networks.py [--only NAME …] [--wrap] [--json]
    python benchmarks/networks.py --large

Writes docs/results/networks.md: a row for every network of tests/networks whose package is installed (the
`networks` extra, and the other packages of the table). Each runs in a process of its own: one that fails is
a row with the reason. `--only` prints its rows and writes nothing; `--wrap` puts each network into a module
that gives one tensor. `--large` compares a GPT-2 of two layers at full width, and a LoRA fine-tuning of it,
and prints the peak of the resident set. Linux only.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # small tensors: threads cost more than they give
os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # before this folder, which has a file of the same name

import torch  # noqa: E402
from common import machine, resident, restart_peak, write_table  # noqa: E402
from networks import NETWORKS, checks  # noqa: E402
from networks.checks import APPROXIMATIONS, RATES, STEPS  # noqa: E402
from networks.language import pretrained  # noqa: E402
from networks.network import SAMPLES, Network, Wrapped, build  # noqa: E402

import fisherlab as fl  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "networks.md"
SECONDS = 240  # for one network
EXACT = 1e-10
HEADER = [
    *("network", "package", "parameters", "trained", "covered", "blocks", "worst error", "compare, s"),
    *(*RATES, "remarks"),
]


def measured(network: Network) -> dict[str, Any]:
    """All numbers of a network; under `failed` what raised, by stage."""
    row: dict[str, Any] = {"failed": {}}

    def tried(stage: str, work: Callable[[], dict[str, Any]]) -> None:
        try:
            row.update(work())
        except Exception as error:
            traceback.print_exc()
            row["failed"][stage] = f"{type(error).__name__}: {str(error).strip()}"

    def sizes() -> dict[str, Any]:
        model = network.model()
        numbers = [(p.numel(), p.requires_grad) for p in model.parameters()]
        return {"parameters": sum(n for n, _ in numbers), "trained": sum(n for n, free in numbers if free)}

    def compared() -> dict[str, Any]:
        start = time.perf_counter()
        comparison = checks.compared(network)
        seconds = time.perf_counter() - start
        share, reasons = checks.coverage(network, comparison.layers)
        return {"seconds": seconds, "covered": share, "reasons": reasons}

    def exact() -> dict[str, Any]:
        errors = checks.block_errors(network)
        worst = max(errors, key=lambda name: errors[name])
        return {"blocks": len(errors), "error": errors[worst], "worst": worst}

    tried("model", sizes)
    tried("compare", compared)
    tried("exact", exact)
    for name in RATES:
        tried(name, lambda name=name: {name: checks.trained(network, name)})
    return row


def in_a_process(network: Network) -> dict[str, Any]:
    """The numbers of a network, made in a process of its own, which has all that is imported here."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(measured(network)))
    process.start()
    sender.close()  # so that a process that dies ends the wait
    try:
        if receiver.poll(SECONDS):
            return receiver.recv()
        return {"failed": {"process": f"longer than {SECONDS} s"}}
    except EOFError:
        process.join()
        return {"failed": {"process": f"it ended with {process.exitcode}"}}
    finally:
        process.kill()
        process.join()


def imported(network: Network) -> None:
    """Imports what a network needs; why it cannot be built is said in its row."""
    with suppress(Exception):
        network.model()


def complete(row: dict[str, Any]) -> bool:
    """Whether every trained number of a network is in a block, and every block is exact."""
    return row.get("covered") == 1 and row.get("error", 1) <= EXACT


def cells(network: Network, row: dict[str, Any]) -> list[str]:
    """A network's row of the table."""
    remarks = [f"{stage}: {why}" for stage, why in row["failed"].items()]
    if row.get("error", 0) > EXACT:
        remarks.append(f"worst block: {row['worst']}")
    by_reason: dict[str, list[str]] = {}
    for name, why in row.get("reasons", {}).items():
        by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        remarks.append(f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {why}")

    def shown(key: str, text: str) -> str:
        return text.format(row[key]) if key in row else "–"

    losses = [("{:.3f} → {:.3f}".format(*row[name]) if name in row else "–") for name in RATES]
    numbers = [shown("parameters", "{:,}"), shown("trained", "{:,}"), shown("covered", "{:.1%}")]
    numbers += [shown("blocks", "{}"), shown("error", "{:.0e}"), shown("seconds", "{:.1f}")]
    said = "; ".join(remarks).replace("|", "\\|").replace("\n", " ")
    return [network.name, f"{network.package} {network.installed()}", *numbers, *losses, said]


def table(rows: dict[str, tuple[Network, dict[str, Any]]], absent: list[str]) -> None:
    """Writes docs/results/networks.md."""
    whole = sum(complete(row) for _, row in rows.values())
    falling = {
        name: sum(name in row and row[name][1] < row[name][0] for _, row in rows.values()) for name in RATES
    }
    rates = ", ".join(f"{name} {rate}" for name, rate in RATES.items())
    notes = [
        f"{len(rows)} networks with random weights, of their packages' own classes; {whole} are covered as "
        f"a whole, every block exact to {EXACT:.0e}.",
        "worst error: ‖F − F̄‖ / ‖F̄‖ of the worst exact predictive block, in float64, on "
        f"{SAMPLES} samples; F̄ is a loop over samples and labels with torch.autograd. Of large blocks 64 "
        "columns and 8 products with random vectors are compared. What a network rounds to float32 by itself "
        "(in norms, in a softmax) is left in float64 for this.",
        "covered: the share, of the numbers that are trained, that is in a block of fl.compare with "
        f"{', '.join(APPROXIMATIONS)}, in float32, without spectra, which leaves the network as it was.",
        f"{', '.join(RATES)}: the loss of one batch before and after {STEPS} steps on it in float32, at the "
        f"rates {rates}, all else by default. Steps are in training mode, with the network's own dropout, "
        "the loss is that of evaluation mode. The last two steps are taken by a copy made of state "
        "dictionaries too, to the same bits, and no hook stays.",
        *(f"{name} lowers the loss of {count} of {len(rows)}." for name, count in falling.items()),
        "–: not made, see the remarks.",
        f"Not installed: {', '.join(absent) or 'none'}.",
        machine(),
    ]
    write_table(RESULTS, "Networks of other people", notes, HEADER, [cells(*pair) for pair in rows.values()])


def large(which: str, wrap: bool) -> None:
    """A comparison at the width of GPT-2, on 8 samples, and the peak of the resident set in MiB."""
    torch.manual_seed(0)
    model = pretrained("GPT2LMHeadModel", "GPT2Config", n_layer=2)
    if which == "lora":
        settings = build("peft", "LoraConfig", task_type="CAUSAL_LM", r=8, fan_in_fan_out=True)
        model = build("peft", "get_peft_model", model, settings)
    text = torch.randint(50257, (8, 17))
    start, before = time.perf_counter(), restart_peak()
    data = {"input_ids": text[:, :-1]}, text[:, 1:]
    network = Wrapped(model, None) if wrap else model
    made = fl.compare(network, data, ("kfac", "lngd"), "token-categorical", spectra=False, memory="3GiB")
    print(
        f"{which}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(made.layers)} layers, "
        f"{time.perf_counter() - start:.0f} s, peak {resident('VmHWM'):.0f} MiB ({before:.0f} before)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [network.name for network in NETWORKS]
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, default=names)
    parser.add_argument("--wrap", action="store_true")
    parser.add_argument("--json", action="store_true", help="a line for each network, and no table")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--large-one", choices=("gpt2", "lora"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    by_name = {network.name: network for network in NETWORKS}
    if given.large_one:
        large(given.large_one, given.wrap)
    elif given.large:
        wrap = ["--wrap"] if given.wrap else []
        for which in ("gpt2", "lora"):  # each in a process of its own, for its own peak
            subprocess.run(
                [sys.executable, "-W", "ignore", __file__, "--large-one", which, *wrap], check=True
            )
    else:
        absent = [name for name in given.only if not by_name[name].installed()]
        rows = {}
        networks = [by_name[name] for name in given.only if name not in absent]
        for network in networks:
            imported(network)
        for network in networks:
            rows[network.name] = network, in_a_process(network.wrapped() if given.wrap else network)
            shown = (
                json.dumps({"name": network.name, **rows[network.name][1]})
                if given.json
                else " | ".join(cells(*rows[network.name]))
            )
            print(shown, flush=True)
        if given.only == names and not given.json:
            table(rows, absent)


if __name__ == "__main__":
    main()

"""Networks that other people wrote: what is covered, how exact it is, and whether it trains.

    python benchmarks/networks.py [--only NAME …] [--wrap] [--json]
    python benchmarks/networks.py --large

Writes docs/results/networks.md: a row for every network of tests/networks whose package is installed: the
`networks` extra, and x-transformers, mambapy, neuraloperator and monai, which only this table uses (a
torchvision that comes with one of them has to fit torch, or to go: transformers imports it). Each runs in a
process of its own: one that fails is a row with the reason. `--only` prints its rows and writes nothing;
`--wrap` puts each network into a module that gives one tensor. `--large` writes
docs/results/networks_large.md: a comparison of a GPT-2 of two layers at full width, and of a LoRA fine-tuning
of it, with the peak of the resident set. Linux only.
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
from networks.network import SAMPLES, Network, build  # noqa: E402

import fisherlab as fl  # noqa: E402

RESULTS = ROOT / "docs" / "results"
SECONDS = 240  # for one network
SAMPLES_OF_LARGE = 8
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
        names = sorted(comparison.layers)
        return {"seconds": seconds, "covered": share, "reasons": reasons, "compared": names}

    def exact() -> dict[str, Any]:
        errors = checks.block_errors(network)
        if "compared" in row:  # what is covered there has been made exactly here
            assert sorted(errors) == row["compared"], set(errors).symmetric_difference(row["compared"])
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
    remarks = [f"{name} at {rate}" for name, rate in (network.rates or {}).items()]
    remarks += [f"{stage}: {why}" for stage, why in row["failed"].items()]
    if row.get("error", 0) > EXACT:
        remarks.append(f"worst block: {row['worst']}")
    by_reason: dict[str, list[str]] = {}
    for name, why in row.get("reasons", {}).items():
        by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        remarks.append(f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {why}")

    def shown(key: str, text: str) -> str:
        return text.format(row[key]) if key in row else "–"

    losses = [("{:.4f} → {:.4f}".format(*row[name]) if name in row else "–") for name in RATES]
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
        f"rates {rates} where the remarks name no other, all else by default. LNGD's, and KFAC's for ALBERT, "
        "were chosen after seeing larger ones go too far on a batch of four. Steps are in training mode, "
        "with the network's own dropout, the loss is that of evaluation mode. The last two steps are taken "
        "by a copy made of state dictionaries too, to the same bits, and no hook stays.",
        *(f"{name} lowers the loss of {count} of {len(rows)}." for name, count in falling.items()),
        "–: not made, see the remarks.",
        f"Not installed: {', '.join(absent) or 'none'}.",
        machine(),
    ]
    write_table(
        RESULTS / "networks.md",
        "Networks of other people",
        notes,
        HEADER,
        [cells(*pair) for pair in rows.values()],
    )


LARGE = {"gpt2": "GPT-2, 2 layers at full width", "lora": f"the same under LoRA, after {STEPS} steps of KFAC"}


def large(which: str) -> list[str]:
    """A comparison at the width of GPT-2, on 8 samples: its row with the peak of the resident set in MiB."""
    torch.manual_seed(0)
    model = pretrained("GPT2LMHeadModel", "GPT2Config", n_layer=2)
    text = torch.randint(50257, (SAMPLES_OF_LARGE, 17))
    inputs, following = {"input_ids": text[:, :-1]}, text[:, 1:]
    if which == "lora":
        settings = build("peft", "LoraConfig", task_type="CAUSAL_LM", r=8, fan_in_fan_out=True)
        model = build("peft", "get_peft_model", model, settings)
        optimizer = fl.optim.KFAC(model, lr=0.03, likelihood="token-categorical")
        for _ in range(STEPS):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(
                model(**inputs).logits.flatten(0, 1), following.flatten()
            ).backward()
            optimizer.step()
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    start, before = time.perf_counter(), restart_peak()
    made = fl.compare(
        model, (inputs, following), ("kfac", "lngd"), "token-categorical", spectra=False, memory="3GiB"
    )
    seconds, peak = time.perf_counter() - start, resident("VmHWM")
    covered, reasons = checks.share_covered(model, made.layers)
    empty = made.records[made.records["relative_error"].isna()]
    notes = [f"{name}: {why}" for name, why in reasons.items()]
    for note, rows in empty.groupby("note"):
        notes.append(f"{', '.join(dict.fromkeys(rows['layer'] + ' ' + rows['approximation']))}: {note}")
    numbers = [f"{sum(n for n, _ in sizes):,}", f"{sum(n for n, free in sizes if free):,}", f"{covered:.1%}"]
    measured = [str(len(made.layers)), f"{seconds:.0f}", f"{before:.0f}", f"{peak:.0f}"]
    return [LARGE[which], *numbers, *measured, "; ".join(notes)]


def large_table() -> None:
    """Writes docs/results/networks_large.md; each network has a process of its own, for its own peak."""
    rows = []
    for which in LARGE:
        command = [sys.executable, "-W", "ignore", __file__, "--large-one", which]
        made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(made.stdout.splitlines()[-1]))
        print(" | ".join(rows[-1]), flush=True)
    notes = [
        f"fl.compare with KFAC and LNGD on {SAMPLES_OF_LARGE} texts of 16 tokens out of 50257, random "
        "weights, without spectra, memory='3GiB'. The peak is that of the resident set, beside what was "
        "resident before.",
        machine(),
    ]
    header = ["network", "parameters", "trained", "covered", "layers", "s", "before, MiB", "peak, MiB"]
    write_table(
        RESULTS / "networks_large.md", "Networks at full width", notes, [*header, "what is empty"], rows
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
    parser.add_argument("--large-one", choices=tuple(LARGE), help=argparse.SUPPRESS)
    given = parser.parse_args()
    by_name = {network.name: network for network in NETWORKS}
    if given.large_one:
        print(json.dumps(large(given.large_one)))
    elif given.large:
        large_table()
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

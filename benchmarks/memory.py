"""Peak memory of a comparison against its `memory` limit, for six built-in models at three limits.

    python benchmarks/memory.py [--models cifar-cnn …] [--limits 512MiB …] [--where]

Each comparison runs in a process of its own, without spectra. What is measured is the growth of the peak
resident set over the model and the data, once torch and its libraries have made their own pools. It is to be
at most 1.15 times the limit and 200 MiB. Each row replaces that of its model and limit in
docs/results/memory.md. `--where` prints the Python stack at the peak. Linux only.
"""

import argparse
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import torch
from common import machine, resident, restart_peak, write_table

import fisherlab as fl
from fisherlab.exact.options import parse_bytes
from fisherlab.models import prepare

MODELS = {
    "mnist-mlp": 1000,
    "mnist-autoencoder": 128,
    "cifar-cnn": 64,
    "cifar-resnet20": 32,
    "charlm": 16,
    "charlstm": 16,
    "vit-tiny": 16,
}
"""Samples of each comparison."""
LIMITS = ("512MiB", "1GiB", "4GiB")
METHODS = ("kfac", "ekfac", "lngd")
SLACK = 200  # MiB, for torch itself
RESULTS = Path(__file__).parent.parent / "docs" / "results" / "memory.md"


def most(limit: str) -> float:
    """MiB that a comparison may grow by."""
    return 1.15 * parse_bytes(limit) / 2**20 + SLACK


def warm_up() -> None:
    """The first call of each library makes pools of its own, which are not the work."""
    torch.nn.functional.conv2d(torch.randn(8, 3, 32, 32), torch.randn(8, 3, 3, 3))
    matrix = torch.randn(256, 256, dtype=torch.float64)
    torch.linalg.eigh(matrix @ matrix.T)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 3))
    data = torch.randn(8, 1, 8, 8), torch.randint(3, (8,))
    fl.compare(model, data, METHODS, spectra=False).records.to_csv()


@contextmanager
def watched() -> Iterator[None]:
    """Prints where the resident set was largest (sampled), innermost call last."""
    own, stop, peak = threading.get_ident(), threading.Event(), [0, ""]

    def watch() -> None:
        while not stop.wait(0.003):
            now = resident("VmRSS")
            if now > peak[0] + 4:
                peak[:] = now, "".join(traceback.format_stack(sys._current_frames()[own])[-14:])

    before = resident("VmRSS")
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        print(f"at {peak[0] - before:.0f} MiB above the start:\n{peak[1]}", file=sys.stderr)


def grown(model: str, samples: int, limit: str, where: bool) -> None:
    """Prints the growth in MiB and the seconds of one comparison."""
    torch.set_num_threads(1)
    made = prepare(model, samples=samples, trained=False)
    warm_up()
    before = restart_peak()
    started = time.process_time()
    layers = fl.find_layers(made.model, masks=made.masks)
    options = {"likelihood": made.likelihood, "layers": layers, "memory": limit, "spectra": False}
    if where:
        with watched():
            fl.compare(made.model, made.data, METHODS, **options)
    else:
        fl.compare(made.model, made.data, METHODS, **options)
    seconds = time.process_time() - started
    print(f"{resident('VmHWM') - before:.0f} {seconds:.1f}")


def measured(model: str, samples: int, limit: str, where: bool = False) -> tuple[float, float]:
    """The growth in MiB and the seconds of one comparison, in a process of its own.

    Raises:
        RuntimeError: where it was refused; with its reason.
    """
    command = [sys.executable, __file__, "--one", model, str(samples), limit, *(["--where"] if where else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if where:
        print(done.stderr)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    growth, seconds = done.stdout.split()[-2:]
    return float(growth), float(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--limits", nargs="+", default=list(LIMITS))
    parser.add_argument("--where", action="store_true", help="print the stack at each peak")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        model, samples, limit = arguments.one
        grown(model, int(samples), limit, arguments.where)
        return
    for model in arguments.models:
        for limit in arguments.limits:
            row = [model, str(MODELS[model]), limit, f"{most(limit):.0f}"]
            try:
                growth, seconds = measured(model, MODELS[model], limit, arguments.where)
            except RuntimeError as error:
                row += ["", "", "", f"refused: {error}"]
            else:
                ratio = growth / (parse_bytes(limit) / 2**20)
                kept = "" if growth <= most(limit) else "exceeded"
                row += [f"{growth:.0f}", f"{ratio:.2f}", f"{seconds:.1f}", kept]
            print(" | ".join(row), flush=True)
            write(row)


def write(row: list[str]) -> None:
    """Puts a row into the table, in the place of that of the same model and limit."""
    known = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in known if line[:1] == "|"]
    rows = {(cells[0], cells[2]): cells for cells in [*split[2:], row]}
    places = {(model, limit): place for place, (model, limit) in enumerate(product(MODELS, LIMITS))}
    ordered = [rows[key] for key in sorted(rows, key=lambda key: places.get(key, len(places)))]
    notes = [
        f"machine: {machine()}",
        f"`fl.compare` with {', '.join(METHODS)}, no spectra, networks as initialised, predictive kind",
        "growth: of the peak resident set over model and data, in MiB, in a process of its own; one thread",
        f"allowed: 1.15 × the limit + {SLACK} MiB for torch itself; seconds: of the processor",
        "made row by row by `python benchmarks/memory.py`, on a machine that had other work: seconds are no "
        "measure of speed; what has no row was not measured yet",
    ]
    header = ["model", "samples", "limit", "allowed", "growth", "ratio", "seconds", ""]
    write_table(RESULTS, "Peak memory against the limit", notes, header, ordered)


if __name__ == "__main__":
    main()

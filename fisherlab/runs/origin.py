"""What records, captions and `provenance.json` call the things that numbers were computed from."""

import importlib.metadata
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from fisherlab.collect.batches import NamedPair
from fisherlab.datasets.dataset import Dataset

_DISTRIBUTIONS = ("fisherlab", "torch", "numpy", "scipy", "pandas", "matplotlib", "lightning-fabric")


@dataclass(frozen=True)
class Origin:
    """What the records call the things they were computed from.

    Attributes:
        model: its name.
        dataset: its label; a stand-in says so in it.
        checkpoint: `init`, a path, or how the weights were trained.
        step: the training step of the weights; None: unknown.
        seed: of initial weights, choice of samples and drawn labels; None: not known.
        checksum: of the data set's source.
        stand_in: whether the data stand in for others.
        checkpoint_hash: SHA-256 of the weights' file.
        output: what was taken of the several things that the model returns; empty: it returns a tensor.
    """

    model: str
    dataset: str = "tensors"
    checkpoint: str = "as given"
    step: int | None = None
    seed: int | None = None
    checksum: str | None = None
    stand_in: bool = False
    checkpoint_hash: str | None = None
    output: str = ""

    @classmethod
    def of(cls, model: str, dataset: Dataset, **more: Any) -> Self:
        """Names of a model and a data set, whose stand-in must not go unsaid; `more` are other attributes."""
        stand_in = bool(dataset.stand_in)
        return cls(model, dataset.label, checksum=dataset.checksum, stand_in=stand_in, **more)

    @classmethod
    def given(cls, model: nn.Module, data: Any) -> Self:
        """What is known of a model and data as a function was given them."""
        name = type(model).__name__
        return cls.of(name, data.dataset) if isinstance(data, NamedPair) else cls(name)

    def caption(self, device: str) -> str:
        """One line for a figure."""
        parts = [
            f"data: {self.dataset}",
            f"model: {self.model}{f', {self.output}' if self.output else ''}",
            f"checkpoint: {self.checkpoint}",
            f"seed: {'unknown' if self.seed is None else self.seed}",
            f"device: {device}",
        ]
        return "; ".join(parts)

    def provenance(self, device: str, started: float | None) -> dict[str, Any]:
        """What `provenance.json` holds.

        Args:
            device: where the numbers were computed.
            started: `time.perf_counter()` at the start of the run; None: its wall time is not known.
        """
        taken = {"output": self.output} if self.output else {}
        return taken | provenance(
            device=device,
            seed=self.seed,
            dataset=self.dataset,
            stand_in=self.stand_in,
            checksum=self.checksum,
            checkpoint={"name": self.checkpoint, "sha256": self.checkpoint_hash, "step": self.step},
            seconds=None if started is None else round(time.perf_counter() - started, 2),
        )


def provenance(
    *,
    device: str,
    seed: int | None,
    dataset: str,
    stand_in: bool,
    checksum: str | None,
    checkpoint: dict[str, Any],
    seconds: float | None,
) -> dict[str, Any]:
    """What `provenance.json` holds."""
    return {
        "versions": _versions(),
        "git": _git(),
        "device": _device(device),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "dataset": dataset,
        "stand_in": stand_in,
        "checksum": checksum,
        "checkpoint": checkpoint,
        "seconds": seconds,
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _git() -> dict[str, Any] | None:
    """The commit of the checkout that the package runs from; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        commit = _run_git(folder, "rev-parse", "HEAD")
        changed = _run_git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(changed)}


def _run_git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
    return done.stdout.strip()


def _device(device: str) -> str:
    if torch.device(device).type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({_processor()})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

"""Where numbers come from: versions, source state, machine, data and weights."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

_DISTRIBUTIONS = ("fisherlab", "torch", "numpy", "scipy", "pandas", "matplotlib", "lightning-fabric")


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

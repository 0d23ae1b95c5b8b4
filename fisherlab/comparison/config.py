"""What `fisherlab compare` computes, as flags give it and as `config.toml` keeps it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

from fisherlab.arguments import Count, FilePath, OneOf, Seed
from fisherlab.base.devices import resolve_device
from fisherlab.base.writing import place_for
from fisherlab.exact.options import BIAS_MODES, DEFAULTS
from fisherlab.runs.config import DTYPES, ModelConfig, SamplesConfig, absolute


@dataclass(frozen=True, kw_only=True)
class FisherConfig(SamplesConfig):
    """What a comparison and a trace have in common, with the defaults of `AnalysisOptions`.

    Attributes:
        approximations: names; empty: the default ones.
        kind: the labels of the Fisher.
        likelihood: its name; None: the model's own.
        bias: `joint`, `separate` or `ignore`.
        memory: the limit for all that the analysis holds, such as "4GiB".
        max_columns: the most columns N·C of a Gram operator.
        dtype: `float32` or `float64`; None: the model's own, or that of its training.
        draws: labels a sample for `monte-carlo`.
        device: `auto`, `cpu`, `cuda` or `cuda:<index>`.
    """

    approximations: tuple[str, ...] = ()
    kind: str = "predictive"
    likelihood: str | None = None
    bias: Annotated[str, OneOf(BIAS_MODES)] = DEFAULTS["bias"]
    memory: str = DEFAULTS["memory"]
    max_columns: Count = DEFAULTS["max_columns"]
    dtype: Annotated[str, OneOf(DTYPES)] | None = None
    draws: Count = DEFAULTS["draws"]
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class CompareConfig(FisherConfig, ModelConfig):
    """What `fisherlab compare` computes. Nothing heavy is imported before `resolved`.

    Attributes:
        statistics: a file of statistics that the approximations are built from; where there is none yet they
            are collected and saved there. None: those of the samples alone.
        seed: of initial weights, training, the choice of samples and drawn labels.
        spectra: whether to compute eigenvalues.
        save_matrices: whether to write `blocks.safetensors`.
    """

    command: ClassVar[str] = "compare"

    statistics: FilePath | None = None
    seed: Seed = 0
    spectra: bool = True
    save_matrices: bool = False

    def __post_init__(self) -> None:
        """Refuses values that no model or data could make right.

        Raises:
            InputError: for a number out of its range, or a name that is not known.
            InputTypeError: for a value of another type.
        """
        self.check()

    def resolved(self) -> "CompareConfig":
        """The same work with every name checked, the device chosen and paths made absolute.

        The module of a `package.module:factory` is imported first, so that what it registers is known.

        Raises:
            InputError: for an unknown approximation, kind, likelihood or memory size, a device that this
                machine does not have, or a module that cannot be imported.
        """
        from fisherlab.approximations import DEFAULT_APPROXIMATIONS, create_all
        from fisherlab.exact.options import parse_bytes
        from fisherlab.likelihoods import as_likelihood, check_kind
        from fisherlab.models.imported import import_module_of

        import_module_of(self.model, self.seed)
        approximations = self.approximations or DEFAULT_APPROXIMATIONS
        create_all(approximations)
        parse_bytes(self.memory)
        if self.likelihood is not None:
            as_likelihood(self.likelihood)
        if self.statistics is not None and not Path(self.statistics).exists():
            place_for("the statistics file", self.statistics)
        return replace(
            self,
            checkpoint=absolute(self.checkpoint),
            data_dir=absolute(self.data_dir),
            statistics=absolute(self.statistics),
            approximations=tuple(approximations),
            kind=str(check_kind(self.kind)),
            device=resolve_device(self.device),
        )

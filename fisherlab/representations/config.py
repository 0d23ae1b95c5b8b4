"""The configuration of `fisherlab represent`, as flags give it and as `config.toml` keeps it."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from fisherlab.arguments import OneOf, Seed
from fisherlab.base.devices import resolve_device
from fisherlab.runs.config import DTYPES, ModelConfig, SamplesConfig, absolute

DEFAULT_SAMPLES = 1000  # as many vectors as the tests of normality keep


@dataclass(frozen=True, kw_only=True)
class RepresentConfig(SamplesConfig, ModelConfig):
    """What `fisherlab represent` computes. Nothing heavy is imported before `resolved`.

    Where samples are None they are `DEFAULT_SAMPLES`, or all of the data that a factory gives.

    Attributes:
        likelihood: its name; None: the model's own.
        dtype: `float32` or `float64`; None: the model's own.
        device: `auto`, `cpu`, `cuda` or `cuda:<index>`.
        seed: of initial weights, training, the choice of samples and drawn labels.
    """

    command: ClassVar[str] = "represent"

    likelihood: str | None = None
    dtype: Annotated[str, OneOf(DTYPES)] | None = None
    device: str = "auto"
    seed: Seed = 0

    def __post_init__(self) -> None:
        """Refuses values that no model or data could make right.

        Raises:
            InputError: for a number out of its range, or an unknown dtype.
            InputTypeError: for a value of another type.
        """
        self.check()

    def resolved(self) -> "RepresentConfig":
        """The same work with every name checked, the device chosen and paths made absolute.

        Raises:
            InputError: for an unknown likelihood, or a device that this machine does not have.
        """
        from fisherlab.likelihoods import as_likelihood

        if self.likelihood is not None:
            as_likelihood(self.likelihood)
        return replace(
            self,
            checkpoint=absolute(self.checkpoint),
            data_dir=absolute(self.data_dir),
            device=resolve_device(self.device),
        )

"""Translations of held-out sentences by the model in training, and their BLEU."""

from dataclasses import dataclass
from pathlib import Path

import torch

from fisherlab.base import distributed
from fisherlab.base.writing import beside
from fisherlab.datasets.dataset import Inputs, random_indices
from fisherlab.datasets.spelling import spelled
from fisherlab.loop.samples import Samples
from fisherlab.models.decoding import Translator, translate
from fisherlab.train.task.bleu import Bleu, bleu, sacrebleu

NAME = "translations.csv"


@dataclass(frozen=True)
class Translated:
    """Sentences with their translations.

    Attributes:
        sources: as they are written.
        references: the translations to compare with.
        translations: the model's.
        log_probabilities: of these.
        beam: 1 for greedy decoding.
        bleu: of the translations against the references.
    """

    sources: tuple[str, ...]
    references: tuple[str, ...]
    translations: tuple[str, ...]
    log_probabilities: tuple[float, ...]
    beam: int
    bleu: Bleu

    def write(self, folder: Path) -> None:
        """Writes `translations.csv`, a row a sentence."""
        import pandas

        columns = {
            "source": self.sources,
            "reference": self.references,
            "translation": self.translations,
            "log_probability": self.log_probabilities,
        }
        with beside(folder / NAME) as part:
            pandas.DataFrame(columns).to_csv(part, index=False)


class Interpreter:
    """Translates the sentences of a split; several processes share the work, and all know the result.

    Args:
        model: an encoder and a decoder.
        samples: the sentences, with references.
        some: how many are translated between steps: always the same ones.
    """

    def __init__(self, model: Translator, samples: Samples, some: int) -> None:
        sacrebleu()
        total = len(samples.targets)
        self._model, self._samples = model, samples
        self.some = random_indices(total, min(some, total), 0)
        self.every = torch.arange(total, device="cpu")

    @classmethod
    def of(cls, model: torch.nn.Module, samples: Samples | None, some: int) -> "Interpreter | None":
        """One where the model translates and there is something to compare with; else None.

        Raises:
            InputError: where sacrebleu is missing.
        """
        if not some or samples is None or not samples.dataset.references:
            return None
        return cls(model, samples, some) if isinstance(model, Translator) else None

    def translated(self, chosen: torch.Tensor, *, beam: int = 1) -> Translated:
        """The sentences at some indices, translated into at most as many tokens as targets have."""
        data = self._samples.dataset
        start, stop = distributed.share(len(chosen))
        sources, sentences = _first(self._samples.inputs), _first(data.inputs)
        source = sources[chosen[start:stop].to(self._samples.targets.device)]
        found = translate(self._model, source, longest=self._samples.targets.shape[1], beam=beam)
        own = spelled(data.vocabulary, found.tokens), tuple(found.log_probability.tolist())
        parts = distributed.gather_all(own)
        translations = tuple(text for texts, _ in parts for text in texts)
        references = tuple(data.references[place] for place in chosen.tolist())
        return Translated(
            sources=spelled(data.vocabulary, sentences[chosen]),
            references=references,
            translations=translations,
            log_probabilities=tuple(value for _, values in parts for value in values),
            beam=beam,
            bleu=bleu(translations, references),
        )


def _first(inputs: Inputs) -> torch.Tensor:
    """The source sentences of pairs (source, target input)."""
    assert isinstance(inputs, tuple)
    return inputs[0]

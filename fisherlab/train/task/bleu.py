"""BLEU as sacrebleu computes it, with the signature that says how."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from fisherlab.errors import InputError


class Bleu(NamedTuple):
    """A corpus BLEU from 0 to 100 (Papineni et al. 2002), and sacrebleu's signature (Post 2018)."""

    value: float
    signature: str


def bleu(translations: Sequence[str], references: Sequence[str]) -> Bleu:
    """The corpus BLEU of translations against one reference each, both as written.

    sacrebleu splits the words itself (13a); case counts.

    Raises:
        InputError: where sacrebleu is missing.
    """
    metric = sacrebleu().BLEU()
    value = float(metric.corpus_score(list(translations), [list(references)]).score)
    return Bleu(value, str(metric.get_signature()))


def sacrebleu() -> Any:
    """The module `sacrebleu.metrics`.

    Raises:
        InputError: where it is missing.
    """
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise InputError(
            "BLEU needs the package sacrebleu: pip install 'fisherlab[text]', or leave it out with "
            "--eval-samples 0"
        ) from error
    return metrics

"""What a long run shows: flat memory, and a curve that says what it is."""

import pytest
from train import nets

from fisherlab.train.run.curves import curves


def test_the_training_loss_says_over_what_it_is_the_mean():
    rows = [{"epoch": 1.0, "seconds": 2.0, "train_loss": 0.5, "test_loss": 0.6}]
    series = {"train": "train_loss", "test": "test_loss"}
    figure = curves(rows, series, title="t", label="loss", caption="c")
    assert [text.get_text() for text in figure.legends[0].texts] == [
        *("train: mean over the steps since the last evaluation", "test")
    ]


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_steps(place, processes):
    """With a line of the log a step, evaluations, layers and checkpoints."""
    settings = {"model": "train.nets:mlp", "optimizer": "lngd", "steps": 10_000, "batch": 16}
    settings |= {"checkpoint_every": 500, "evaluate_every": 20, "diagnostics_every": 50}
    answers = processes.Queue()
    process = processes.Process(
        target=nets.memory_of_steps, args=(str(place), settings, (1000, 10_000), answers)
    )
    process.start()
    early, late = answers.get(timeout=600)
    process.join()
    assert late - early < 4 * 2**20

import pandas as pd
import pytest


def _row(layer, approximation, **values):
    row = {
        "model": "mnist-mlp",
        "dataset": "mnist",
        "checkpoint": "trained",
        "step": 1175,
        "seed": 0,
        "layer": layer,
        "module": "Linear",
        "outputs": 20,
        "inputs": 21,
        "groups": 1,
        "approximation": approximation,
        "target": "predictive",
        "samples": 1000,
        "columns": 9000,
        "method": "kronecker",
        "relative_error": 0.41,
        "scaled_error": 0.4,
        "best_scale": 1.02,
        "population_error": 0.39,
        "population_error_se": 0.0213,
        "gap_to_nearest": 0.33,
        "trace_ratio": 1.03,
        "diagonal_error": 0.09,
        "damping": 1e-3,
        "direction_cosine": 0.8,
        "decrease_share": 0.7,
        "preconditioned_condition": 4321.0,
        "note": None,
    }
    return {**row, **values}


@pytest.fixture
def records():
    """Two layers, four approximations, and LNGD against both targets."""
    rows = []
    for layer in ("0", "2"):
        rows += [
            _row(layer, "nearest-kronecker", scaled_error=0.3, gap_to_nearest=0.0),
            _row(layer, "kfac", direction_cosine=0.9),
            _row(layer, "ekfac", relative_error=0.352, trace_ratio=1.0000001),
            _row(layer, "tkfac", trace_ratio=0.9999999, preconditioned_condition=1234.0),
            _row(layer, "lngd", relative_error=97.5, trace_ratio=110.0),
            _row(layer, "lngd", target="layerwise", relative_error=0.05, gap_to_nearest=None),
        ]
    return pd.DataFrame(rows)


@pytest.fixture
def many():
    """Thirty layers with long names, six of them grouped, and twenty norms with the diagonal only."""
    rows = []
    for index in range(30):
        name = f"encoder.layers.{index}.self_attention.out_proj"
        shape = {"groups": 4 if index < 6 else 1, "positions": 64, "kind": "drawn", "target": "drawn"}
        note = f"the block would need {index + 1}.5 GiB; one label a sample is drawn"
        rows += [
            _row(name, "kfac", scaled_error=0.3 + index / 1000, note=note, **shape),
            _row(name, "ekfac", scaled_error=0.2 + index / 1000, note=note, **shape),
            _row(name, "lngd", scaled_error=0.6, relative_error=97.5, note=note, **shape),
            _row(name, "lngd", **{**shape, "target": "layerwise"}, scaled_error=0.05),
        ]
    for index in range(20):
        rows.append(
            _row(f"norms.{index}", "diagonal", module="norm", inputs=1, scaled_error=0.1 + index / 100)
        )
    return pd.DataFrame(rows).convert_dtypes(convert_string=False, convert_floating=False)

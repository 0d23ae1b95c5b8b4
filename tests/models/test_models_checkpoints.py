import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from fisherlab.errors import InputError
from fisherlab.models import load_weights

State = dict[str, torch.Tensor]
SAVERS: dict[str, Callable[[State, Path], None]] = {"safetensors": save_file, "pt": torch.save}


class Runs:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def make() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


@pytest.fixture
def model() -> torch.nn.Module:
    return make()


@pytest.fixture
def state() -> State:
    return {
        name: torch.full_like(tensor, 2) + torch.arange(tensor.numel()).reshape(tensor.shape)
        for name, tensor in make().state_dict().items()
    }


def assert_refused(model: torch.nn.Module, path: Path, reason: str) -> str:
    """The file is refused in one line for that reason, and the model is as before."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=reason) as caught:
        load_weights(model, path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", SAVERS)
def test_weights_are_loaded_and_the_file_is_hashed(model, state, tmp_path, suffix) -> None:
    path = tmp_path / f"w.{suffix}"
    SAVERS[suffix](state, path)
    loaded = load_weights(model, path)
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.step is None


def test_the_step_in_the_header_is_read(model, state, tmp_path) -> None:
    save_file(state, tmp_path / "w.safetensors", metadata={"step": "117"})
    assert load_weights(model, tmp_path / "w.safetensors").step == 117


@pytest.mark.parametrize("suffix", SAVERS)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_file_cut_off_is_refused(model, state, tmp_path, suffix, kept) -> None:
    path = tmp_path / f"w.{suffix}"
    SAVERS[suffix](state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    assert_refused(model, path, "damaged")


@pytest.mark.parametrize("suffix", SAVERS)
def test_a_file_that_is_no_checkpoint_is_refused(model, tmp_path, suffix) -> None:
    path = tmp_path / f"w.{suffix}"
    path.write_text("these are notes, not weights\n" * 20)
    assert_refused(model, path, "damaged or no")


@pytest.mark.parametrize("suffix", SAVERS)
@given(content=st.binary(max_size=40))
def test_arbitrary_bytes_are_refused_in_one_line(tmp_path_factory, suffix, content) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"w.{suffix}"
    path.write_bytes(content)
    assert_refused(make(), path, "checkpoint")


@pytest.mark.parametrize("suffix", SAVERS)
def test_a_missing_file_is_refused(model, tmp_path, suffix) -> None:
    assert_refused(model, tmp_path / f"w.{suffix}", "not a file")


def test_a_directory_is_refused(model, tmp_path) -> None:
    assert_refused(model, tmp_path, "not a file")


@pytest.mark.parametrize("writer", ["torch", "legacy", "pickle"])
def test_code_in_a_file_is_not_executed(model, tmp_path, writer) -> None:
    path, sign = tmp_path / "w.pt", tmp_path / "executed"
    content = {"0.weight": Runs(sign)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    assert_refused(model, path, "will not be executed; save .* as safetensors")
    assert not sign.exists()


def test_a_whole_saved_module_is_refused(model, tmp_path) -> None:
    torch.save(model, tmp_path / "w.pt")
    assert_refused(model, tmp_path / "w.pt", "will not be executed")


@pytest.mark.parametrize("content", [torch.zeros(3), {"model": {"0.weight": torch.zeros(1)}}, 3])
def test_a_file_without_a_state_dict_is_refused(model, tmp_path, content) -> None:
    torch.save(content, tmp_path / "w.pt")
    assert_refused(model, tmp_path / "w.pt", "no state dict")


@pytest.mark.parametrize("suffix", SAVERS)
def test_weights_of_another_network_are_refused(model, state, tmp_path, suffix) -> None:
    path = tmp_path / f"w.{suffix}"
    SAVERS[suffix](state | {"2.weight": torch.zeros(2)}, path)
    assert_refused(model, path, "another network: the model has no '2.weight'")
    SAVERS[suffix](state | {"0.weight": torch.zeros(4, 5)}, path)
    assert_refused(model, path, r"another network: '0.weight' has shape \(4, 5\), not \(4, 3\)")
    SAVERS[suffix]({name: t for name, t in state.items() if name != "0.bias"}, path)
    assert_refused(model, path, "another network: it has no '0.bias'")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(model, state, tmp_path, value) -> None:
    state["1.bias"][2] = value
    save_file(state, tmp_path / "w.safetensors")
    assert_refused(model, tmp_path / "w.safetensors", "NaN or infinity in '1.bias'")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_weights_of_fewer_digits_than_numbers_are_refused(model, state, tmp_path, dtype) -> None:
    path = tmp_path / "few.pt"
    torch.save({name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}, path)
    assert_refused(model, path, f"as a {str(dtype).removeprefix('torch.')} tensor")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_in_another_type_of_real_numbers_are_taken(model, state, tmp_path, dtype) -> None:
    path = tmp_path / "other.pt"
    torch.save({name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}, path)
    load_weights(model, path)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())

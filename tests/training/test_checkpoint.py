"""Checkpoints: exact round trips, atomic writing, and a clear refusal of everything that is not one."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nsr.training.checkpoint import flatten, load_checkpoint, load_legacy_idr, save_checkpoint, unflatten
from nsr.utils.errors import CheckpointError, RetriableError


def assert_identical(a, b):
    """Equal in structure, types and bits."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))
    elif isinstance(a, dict):
        assert list(a) == list(b)
        assert all(type(x) is type(y) for x, y in zip(a, b, strict=True))
        for key in a:
            assert_identical(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_identical(x, y)
    elif isinstance(a, float):
        assert struct.pack("d", a) == struct.pack("d", b)
    else:
        assert a == b


def through_file(state, path: Path):
    tensors, rest = flatten("run", state)
    save_checkpoint(path, tensors, {"state": rest})
    loaded = load_checkpoint(path)
    return unflatten("run", loaded.tensors, loaded.meta["state"])


def saved(path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    save_checkpoint(path, {"w": torch.randn(64, 3, generator=generator)}, {"step": 7, "name": "ä"})
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------- round trips


def test_every_kind_of_leaf_round_trips_bit_for_bit(tmp_path):
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    state = {
        "dtypes": [torch.ones(3).to(d) for d in (torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)],
        "special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "views": [base, base, base.T, base[:, 1]],
        "rng": torch.Generator().manual_seed(5).get_state(),
        "plain": {"none": None, "int": 2**70, "float": 0.1 + 0.2, "text": "ü", "flag": True, "nan": float("nan")},
        "nested": ({"a": (1, (2.0, "x")), "b": []}, (), {}),
        "keys": {0: "int", "0": torch.ones(1), 1.5: None, ("t", 1): torch.zeros(1), "$tensor": "not one"},
        "same names": {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}},
    }
    assert_identical(through_file(state, tmp_path / "a.safetensors"), state)


def test_an_optimiser_continues_exactly(tmp_path):
    def make():
        model = torch.nn.Linear(3, 2)
        return model, torch.optim.Adam(model.parameters(), lr=0.1, amsgrad=True)

    def train(model, optimiser, steps, offset):
        for i in range(steps):
            optimiser.zero_grad()
            model(torch.full((4, 3), 0.1 * (i + offset))).square().sum().backward()
            optimiser.step()

    model, optimiser = make()
    train(model, optimiser, 3, 1)
    state = through_file({"m": model.state_dict(), "o": optimiser.state_dict()}, tmp_path / "a.safetensors")
    train(model, optimiser, 3, 4)
    again, optimiser_again = make()
    again.load_state_dict(state["m"])
    optimiser_again.load_state_dict(state["o"])
    train(again, optimiser_again, 3, 4)
    assert_identical(dict(again.state_dict()), dict(model.state_dict()))


def test_loaded_tensors_are_independent_of_the_file(tmp_path):
    path = saved(tmp_path / "a.safetensors")
    tensor = load_checkpoint(path).tensors["w"]
    path.write_bytes(b"x" * path.stat().st_size)
    assert torch.isfinite(tensor.add_(1)).all()


def test_saving_takes_a_copy_of_the_moment(tmp_path):
    weight = torch.ones(3, requires_grad=True)
    save_checkpoint(tmp_path / "new" / "a.safetensors", {"w": weight}, {})
    assert torch.equal(load_checkpoint(tmp_path / "new" / "a.safetensors").tensors["w"], torch.ones(3))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.safetensors"]


def test_the_one_that_is_replaced_is_kept(tmp_path):
    path, previous = tmp_path / "latest.safetensors", tmp_path / "previous.safetensors"
    for step in range(3):
        save_checkpoint(path, {"w": torch.full((3,), float(step))}, {"step": step}, keep=previous)
        assert load_checkpoint(path).meta["step"] == step
        assert previous.exists() == (step > 0)
    assert load_checkpoint(previous).meta["step"] == 1
    assert torch.equal(load_checkpoint(previous).tensors["w"], torch.ones(3))


@pytest.mark.parametrize("name", ["ENOSPC", "EIO"])
def test_a_full_disk_leaves_both_checkpoints_and_is_worth_a_retry(tmp_path, monkeypatch, name):
    path, previous = tmp_path / "latest.safetensors", tmp_path / "previous.safetensors"
    for step in range(2):
        save_checkpoint(path, {"w": torch.ones(3)}, {"step": step}, keep=previous)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(getattr(errno, name), "the disk says no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RetriableError, match="the disk says no; the previous one, if any, is untouched"):
            save_checkpoint(path, {"w": torch.ones(3)}, {"step": 2}, keep=previous)
        assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("bad", [{1, 2}, object(), b"bytes", 1j])
def test_unknown_leaves_are_named(bad):
    with pytest.raises(TypeError, match=r"run\.a\.0"):
        flatten("run", {"a": [bad]})


def test_a_missing_tensor_is_named():
    tensors, rest = flatten("run", {"a": torch.ones(1)})
    tensors.clear()
    with pytest.raises(CheckpointError, match=r"lacks the tensor run\.a"):
        unflatten("run", tensors, rest)


# ---------------------------------------------------------------------------------------------- refusals


def test_missing_file_and_folder(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.safetensors")
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 8, 9, 100, -1, -500])
def test_truncated(tmp_path, keep):
    path = saved(tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    assert "truncated" in refusal(path)


def test_every_flipped_byte_is_noticed(tmp_path):
    path = saved(tmp_path / "a.safetensors")
    original = path.read_bytes()
    for position in range(0, len(original), 7):
        damaged = bytearray(original)
        damaged[position] ^= 0x01
        path.write_bytes(damaged)
        # Blanks that pad the header are the only bytes that carry nothing.
        if original[position : position + 1] != b" ":
            with pytest.raises(CheckpointError):
                load_checkpoint(path)


class Exploit:
    """Unpickling this would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_is_recognised_and_never_run(tmp_path):
    trap = tmp_path / "executed"
    plain, archive, disguised = tmp_path / "a.safetensors", tmp_path / "b.pth", tmp_path / "c.pth"
    plain.write_bytes(pickle.dumps(Exploit(trap)))
    torch.save({"model_state_dict": Exploit(trap)}, archive)
    torch.save({"model_state_dict": Exploit(trap)}, disguised, _use_new_zipfile_serialization=False)
    for path in (plain, archive, disguised):
        text = refusal(path)
        assert "pickle" in text
        assert "load_legacy_idr" in text
        with pytest.raises(CheckpointError):
            load_legacy_idr(path)
    assert not trap.exists()


def test_foreign_safetensors_and_other_versions(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(3)}, path)
    assert "not an nsr checkpoint" in refusal(path)
    save_file({"w": torch.ones(3)}, path, {"nsr": '{"version": 99, "crc32": 0, "meta": "{}"}'})
    assert "format 99" in refusal(path)
    save_file({"w": torch.ones(3)}, path, {"nsr": "[]"})
    assert "damaged" in refusal(path)


def test_an_unwritable_place_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CheckpointError, match="cannot write the checkpoint"):
        save_checkpoint(tmp_path / "file" / "a.safetensors", {}, {})


def test_killed_while_writing_leaves_a_whole_checkpoint(tmp_path):
    path = tmp_path / "a.safetensors"
    code = (
        "import sys, torch\n"
        "from nsr.training.checkpoint import save_checkpoint\n"
        "for i in range(10**6): save_checkpoint(sys.argv[1], {'w': torch.full((100_000,), float(i))}, {'i': i})\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], env=environment)
    try:
        deadline = time.monotonic() + 60
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        for _ in range(20):  # while the child goes on writing, every read sees a whole file
            loaded = load_checkpoint(path)
            assert torch.equal(loaded.tensors["w"], torch.full((100_000,), float(loaded.meta["i"])))
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    loaded = load_checkpoint(path)
    assert torch.equal(loaded.tensors["w"], torch.full((100_000,), float(loaded.meta["i"])))


# ---------------------------------------------------------------------------------------------- original IDR


def legacy_state() -> dict[str, torch.Tensor]:
    """The names that the original IDR's networks have, with the older weight norm."""
    state = {}
    for network in ("implicit_network", "rendering_network"):
        for i in range(2):
            layer = torch.nn.Linear(3, 4)
            state[f"{network}.lin{i}.bias"] = layer.bias.detach()
            state[f"{network}.lin{i}.weight_g"] = layer.weight.detach().norm(dim=1, keepdim=True) * (2 + i)
            state[f"{network}.lin{i}.weight_v"] = layer.weight.detach()
    return state


@pytest.mark.parametrize("prefix", ["", "module."])
def test_legacy_weights_fit_todays_weight_norm(tmp_path, prefix):
    state = legacy_state()
    torch.save({"epoch": 3, "model_state_dict": {prefix + k: v for k, v in state.items()}}, tmp_path / "latest.pth")
    ours = load_legacy_idr(tmp_path / "latest.pth")
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 4))
    layer.load_state_dict({k.split("lin1.")[1]: v for k, v in ours.items() if k.startswith("implicit_network.lin1.")})
    v, g = state["implicit_network.lin1.weight_v"], state["implicit_network.lin1.weight_g"]
    assert torch.allclose(layer.weight, g * v / v.norm(dim=1, keepdim=True))
    assert len(ours) == len(state)


def test_legacy_refusals(tmp_path):
    path = tmp_path / "latest.pth"
    with pytest.raises(CheckpointError, match="does not exist"):
        load_legacy_idr(path)
    path.write_bytes(b"\x80\x04nonsense")
    with pytest.raises(CheckpointError, match="not readable"):
        load_legacy_idr(path)
    torch.save({"epoch": 1}, path)
    with pytest.raises(CheckpointError, match="model_state_dict"):
        load_legacy_idr(path)
    torch.save({"model_state_dict": legacy_state() | {"density.beta": torch.ones(1)}}, path)
    with pytest.raises(CheckpointError, match=r"unknown parameters density\.beta"):
        load_legacy_idr(path)

"""Weights files: wrapped, misnamed, odd, damaged."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import POSIX
from safetensors.torch import save_file

from u2export.core.enums import Architecture
from u2export.errors import ArtifactError, InputError
from u2export.network import checkpoint
from u2export.network.containers import read_state

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return checkpoint.random_state(Architecture.SMALL, 3)


def _named(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


WRAPPED: dict[str, Callable[[State], Any]] = {
    "plain": lambda s: s,
    "DataParallel": lambda s: _named(s, "module."),
    "compiled DataParallel": lambda s: _named(s, "_orig_mod.module."),
    "DataParallel of a compiled one": lambda s: _named(s, "module._orig_mod."),
    "Lightning": lambda s: {
        "state_dict": _named(s, "model."),
        "pytorch-lightning_version": "2.0",
        "hyper_parameters": {"lr": 1},
    },
    "three wrappers": lambda s: {"model": {"state_dict": {"net": _named(s, "module.module.")}}},
    "numbers of NumPy": lambda s: {
        "model": s,
        "epoch": np.int64(3),
        "loss": np.float32(0.5),
        "best": np.float64(1.5),
        "done": np.bool_(True),
    },
    "expanded": lambda s: {**s, "side1.bias": torch.zeros(1).expand(s["side1.bias"].shape)},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w"])
def test_wrapped_weights_are_found_to_the_bit(wrap, name: str, state: State, tmp_path: Path):
    document = wrap(state)
    torch.save(document, tmp_path / name)
    told: list[str] = []
    found = read_state(tmp_path / name, told.append)
    wanted = document if "stage1.rebnconvin.conv_s1.weight" in document else state
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert bool(told) == (document.keys() != state.keys())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model."])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.ckpt"])
def test_safetensors_are_unwrapped_like_any_other(prefix: str, name: str, state: State, tmp_path):
    save_file(_named(state, prefix), tmp_path / name)
    told: list[str] = []
    assert read_state(tmp_path / name, told.append).keys() == state.keys()
    assert len(told) == len([part for part in prefix.split(".") if part])


def test_a_header_whose_length_looks_like_a_pickle_is_none(tmp_path: Path):
    tensor, note = {"a": torch.zeros(1)}, ""
    for _ in range(300):
        save_file(tensor, tmp_path / "w.safetensors", metadata={"note": note})
        if (tmp_path / "w.safetensors").read_bytes()[:1] == b"\x80":
            break
        note += "x"
    else:
        pytest.fail("no such length came")
    assert read_state(tmp_path / "w.safetensors", lambda told: None).keys() == {"a"}


class _Runs:
    def __reduce__(self):
        return os.system, ("touch ran",)


def _torchscript(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/code/__torch__.py", "")


def _packed(path: Path, state: State) -> None:
    """Save a checkpoint, and let a tool for archives compress it."""
    torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def _saved(change: Callable[[State], Any]) -> Callable[[Path, State], object]:
    return lambda path, state: torch.save(change(state), path)


ODD: list[tuple[str, Callable[[Path, State], object], str]] = [
    ("an integer as key", _saved(lambda s: {**s, 5: torch.zeros(1)}), "its key 5 is no name"),
    ("a tuple as key", _saved(lambda s: {("a",): torch.zeros(1)}), r"its key \('a',\) is no name"),
    ("a list", _saved(list), "holds no state_dict"),
    ("an empty state", _saved(lambda s: {}), "holds no state_dict"),
    ("text beside tensors", _saved(lambda s: {**s, "x": "y"}), "'x' is no tensor"),
    (
        "a sparse tensor",
        _saved(lambda s: {**s, "side1.bias": s["side1.bias"].to_sparse()}),
        "a sparse_coo tensor in side1.bias",
    ),
    (
        "no values",
        _saved(lambda s: {**s, "side1.bias": s["side1.bias"].to("meta")}),
        "no values in side1.bias: it was saved from the meta device",
    ),
    (
        "complex values",
        _saved(lambda s: {**s, "side1.bias": s["side1.bias"].to(torch.complex64)}),
        "holds complex64 in side1.bias: give the weights in float32",
    ),
    (
        "8-bit floats",
        _saved(lambda s: {**s, "side1.bias": s["side1.bias"].to(torch.float8_e4m3fn)}),
        "holds float8_e4m3fn in side1.bias",
    ),
    ("code", _saved(lambda s: {**s, "x": _Runs()}), "an object of posix.system, which could run"),
    ("TorchScript", lambda path, state: _torchscript(path), "is a TorchScript archive"),
    (
        "much from little",
        lambda path, state: _packed(path, {"side1.bias": torch.zeros(1_000_000)}),
        "made to fill the memory: it unpacks to 40",
    ),
    ("text", lambda path, state: path.write_text("weights"), "neither a safetensors file nor"),
    ("nothing", lambda path, state: path.write_bytes(b""), "is empty: fetch or copy it again"),
    ("a zip's beginning", lambda path, state: path.write_bytes(b"PK\3\4abc"), "is damaged"),
    ("a pickle's beginning", lambda path, state: path.write_bytes(b"\x80\x02}q"), "is damaged"),
    (
        "a header alone",
        lambda path, state: path.write_bytes((90).to_bytes(8, "little") + b"{"),
        "is a damaged safetensors file",
    ),
]


@pytest.mark.parametrize(("make", "sentence"), [row[1:] for row in ODD], ids=[r[0] for r in ODD])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_odd_weights_are_named(make, sentence: str, name: str, state: State, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    make(path, state)
    with pytest.raises(ArtifactError, match=sentence):
        read_state(path, lambda told: None)
    assert not Path("ran").exists()


def test_a_checkpoint_that_was_compressed_is_read_to_the_bit(state: State, tmp_path: Path):
    _packed(tmp_path / "w.pth", state)
    found = read_state(tmp_path / "w.pth", lambda told: None)
    assert all(torch.equal(found[name], value) for name, value in state.items())


@POSIX
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (os.mkfifo, "it is a named pipe, not a file"),
        (os.mkdir, "it is a folder, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a file"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
        (lambda path: None, "there is no weights file"),
    ],
)
def test_what_is_no_file_is_not_waited_for(make, sentence: str, tmp_path: Path):
    make(tmp_path / "w.pth")
    with pytest.raises(InputError, match=sentence):
        read_state(tmp_path / "w.pth", lambda told: None)


def test_other_networks_are_named(state: State, tmp_path: Path):
    four = dict(state)
    four["outconv.weight"], four["outconv.bias"] = torch.zeros(4, 24, 1, 1), torch.zeros(4)
    with pytest.raises(ArtifactError, match="holds a network of 4 classes"):
        checkpoint.fit_state(four, Architecture.SMALL, tmp_path / "w.pth")
    wide = {name: value.double() for name, value in state.items()}
    wide["side1.bias"] = torch.tensor([1e300], dtype=torch.float64)
    with pytest.raises(ArtifactError, match=r"values beyond float32's range in side1\.bias"):
        checkpoint.fit_state(wide, Architecture.SMALL, tmp_path / "w.pth")


@POSIX
def test_what_is_written_may_be_read_by_others(command, tmp_path: Path):
    before = os.umask(0o022)
    try:
        done = command("torch", "--model", "u2netp-demo", "--out", "o")
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "o").iterdir()}
    assert {name: mode for name, mode in modes.items() if name[0] != "."} == {
        "u2netp-demo-fp32.safetensors": 0o644,
        "u2netp-demo-fp32.safetensors.json": 0o644,
    }

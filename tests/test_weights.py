from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from u2export.core.enums import Architecture
from u2export.core.models import MODELS
from u2export.errors import ArtifactError, DependencyError, InputError
from u2export.network import checkpoint, pins, weights
from u2export.network.u2net import U2Net

ROOT = Path(__file__).resolve().parents[1]
SMALL, PORTRAIT, DEMO = MODELS["u2netp"], MODELS["u2net_portrait"], MODELS["u2netp-demo"]


@pytest.fixture(scope="module")
def state() -> checkpoint.State:
    return checkpoint.random_state(Architecture.SMALL, 5)


@pytest.fixture(autouse=True)
def _an_empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("U2EXPORT_CACHE", str(tmp_path / "cache"))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_bundled_weights_are_those_of_the_table():
    path = weights.bundled_path(DEMO)
    assert _sha256(path) == DEMO.sha256
    assert path.stat().st_size <= 2_500_000
    assert json.loads((ROOT / "weights/u2netp-demo.json").read_text())["sha256"] == DEMO.sha256
    assert DEMO.sha256 in (ROOT / "weights/README.md").read_text()


def test_the_demo_weights_load_with_strict_keys():
    found = weights.find(DEMO)
    net = checkpoint.load_network(found, pytest.fail)
    assert sum(p.numel() for p in net.parameters()) == 1_131_181
    assert found.facts.weights.origin == "bundled"


def test_a_pth_and_a_safetensors_of_the_same_values_load_alike(tmp_path: Path, state):
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    first, second = (
        checkpoint.load_network(weights.find(SMALL, name), pytest.fail).state_dict()
        for name in ("a.pth", "a.safetensors")
    )
    assert all(torch.equal(first[k], second[k]) for k in state)
    assert torch.equal(first["side1.weight"], state["side1.weight"])


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda s: {"state_dict": s, "epoch": 3}, "entry 'state_dict'"),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, "prefix 'module.'"),
        (lambda s: {"model": {f"module.{k}": v for k, v in s.items()}}, "prefix 'module.'"),
    ],
)
def test_wrapped_checkpoints_are_taken_and_said_so(tmp_path: Path, state, wrap, said: str):
    torch.save(wrap(state), tmp_path / "w.pth")
    notes: list[str] = []
    net = checkpoint.load_network(weights.find(SMALL, "w.pth"), notes.append)
    assert torch.equal(net.state_dict()["side1.weight"], state["side1.weight"])
    assert any(said in note for note in notes)


class _Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path, legacy: bool):
    if legacy:
        (tmp_path / "bomb.pth").write_bytes(pickle.dumps(_Bomb()))
    else:
        torch.save({"state_dict": _Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(ArtifactError, match=r"bomb\.pth"):
        checkpoint.load_network(weights.find(SMALL, "bomb.pth"), pytest.fail)
    assert not (tmp_path / "exploded").exists()


def test_missing_and_foreign_keys_are_named_three_each(tmp_path: Path, state):
    changed = {k: v for k, v in state.items() if not k.startswith("side")}
    changed |= {f"alien{i}": torch.zeros(1) for i in range(4)}
    save_file(changed, tmp_path / "odd.safetensors")
    with pytest.raises(ArtifactError) as caught:
        checkpoint.load_network(weights.find(SMALL, "odd.safetensors"), pytest.fail)
    assert "missing side1.weight, side1.bias, side2.weight and 9 more" in str(caught.value)
    assert "foreign alien0, alien1, alien2 and 1 more" in str(caught.value)


def test_weights_of_the_other_size_are_called_that(tmp_path: Path):
    save_file(checkpoint.random_state(Architecture.FULL, 0), tmp_path / "full.safetensors")
    with pytest.raises(ArtifactError, match="weights of the full U²-Net, not of the small one"):
        checkpoint.load_network(weights.find(SMALL, "full.safetensors"), pytest.fail)


def test_values_that_are_not_finite_are_named(tmp_path: Path, state):
    bad = {k: v.clone() for k, v in state.items()}
    bad["side3.bias"][0] = float("nan")
    save_file(bad, tmp_path / "nan.safetensors")
    with pytest.raises(ArtifactError, match=r"NaN or infinite values in side3\.bias"):
        checkpoint.load_network(weights.find(SMALL, "nan.safetensors"), pytest.fail)


@pytest.mark.parametrize("kind", ["torch.int8", "torch.qint8"])
def test_weights_that_are_quantized_already_are_refused(tmp_path: Path, kind: str):
    """They would load as whole numbers, and compute nonsense."""
    state = checkpoint.random_state(Architecture.SMALL, 0)
    weight = state["stage1.rebnconvin.conv_s1.weight"]
    if kind == "torch.int8":
        given = (weight * 100).to(torch.int8)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch discourages such tensors
            given = torch.quantize_per_tensor(weight, 0.01, 0, torch.qint8)
    state["stage1.rebnconvin.conv_s1.weight"] = given
    with pytest.raises(
        ArtifactError, match=rf"holds {kind} in stage1\.rebnconvin\.conv_s1\.weight"
    ):
        checkpoint.fit_state(state, Architecture.SMALL, tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut zip"])
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=name):
        checkpoint.load_network(weights.find(SMALL, name), pytest.fail)


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_truncated_files_are_refused(tmp_path: Path, name: str, state):
    path = tmp_path / name
    (torch.save if name.endswith("pth") else save_file)(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ArtifactError, match=name):
        checkpoint.load_network(weights.find(SMALL, name), pytest.fail)


def test_the_same_seed_gives_the_same_random_weights_and_hash():
    first, again, other = (weights.find(SMALL, f"random:{seed}") for seed in (0, 0, 1))
    hashes = [w.facts.weights.sha256 for w in (first, again, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert first.facts.weights.origin == "random"
    assert checkpoint.load_network(first, pytest.fail).side1.weight.abs().max() > 0


@pytest.mark.parametrize("seed", ["", "x", "-1", "1.5"])
def test_a_seed_that_is_no_number_is_refused(seed: str):
    with pytest.raises(InputError, match="whole number"):
        weights.find(SMALL, f"random:{seed}")


def test_weights_here_come_before_those_in_the_cache(tmp_path: Path):
    assert weights.local_path(SMALL) is None
    for folder in ("cache", "weights"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "u2netp.pth").write_bytes(folder.encode())
        assert (
            weights.local_path(SMALL)
            == {
                "cache": tmp_path / "cache/u2netp.pth",
                "weights": Path("weights/u2netp.pth"),
            }[folder]
        )


def test_a_file_under_a_models_name_must_be_the_published_one(tmp_path: Path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/u2netp.pth").write_bytes(b"something else")
    with pytest.raises(ArtifactError, match=r"is not u2netp's file .*expected e7567cde013f"):
        weights.find(SMALL)
    assert (tmp_path / "weights/u2netp.pth").exists()


def test_the_default_falls_back_to_the_demo_weights_but_not_past_a_damaged_file(tmp_path: Path):
    found, note = weights.find_default()
    assert found.facts.model == "u2netp-demo"
    assert "not for photographs" in note
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/u2netp.pth").write_bytes(b"something else")
    with pytest.raises(ArtifactError):
        weights.find_default()


def test_offline_says_the_ways_out():
    with pytest.raises(DependencyError) as caught:
        weights.find(SMALL)
    for way in ("weights/", "--weights FILE"[:9], "U2EXPORT_MIRROR"):
        assert way in str(caught.value)


def test_weights_without_a_published_hash_are_pinned_when_first_used(tmp_path: Path, state):
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights/u2net_portrait.pth"
    file.write_bytes(b"first")
    found = weights.find(PORTRAIT)
    assert found.facts.weights.origin == "pinned"
    assert hashlib.sha256(b"first").hexdigest() in pins.pin_weights(found)
    assert pins.pin_weights(weights.find(PORTRAIT)) == ""
    file.write_bytes(b"other")
    with pytest.raises(ArtifactError, match="is not u2net_portrait's file"):
        weights.find(PORTRAIT)
    assert weights.find(PORTRAIT, str(file)).facts.weights.origin == "custom"


def test_a_pin_that_cannot_be_kept_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    (tmp_path / "mine.pth").write_bytes(b"mine")
    found = weights.find(PORTRAIT, "mine.pth")
    monkeypatch.setenv("U2EXPORT_CACHE", str(tmp_path / "file" / "cache"))
    assert "could not be remembered" in pins.pin_weights(found)


def test_full_size_network_loads_its_own_random_state():
    found = weights.find(MODELS["u2net"], "random:2")
    net = checkpoint.load_network(found, pytest.fail)
    assert isinstance(net, U2Net)
    assert sum(p.numel() for p in net.parameters()) == 44_009_869

"""Reading a weights file by its content, whatever its name ends in; no code of it is run."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from u2export.errors import ArtifactError, InputError
from u2export.system.documents import check_regular, first_line, open_regular

State = dict[str, Tensor]
Say = Callable[[str], None]
# Entries of a checkpoint that training programs put the weights into, and what wrappers of the
# network put before the names.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "module")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
_MAX_LAYERS = 16  # of wrappers around wrappers
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_CODE_ENTRY = re.compile(r"^[^/]+/code/")  # of a TorchScript archive
# An archive's size that it may unpack to, times; PyTorch takes the memory that an entry asks for.
_MAX_UNPACKING = 16
_MAX_SAFETENSORS_HEADER = 100_000_000  # bytes, as in the library
_BLOCKED_NAME = re.compile(r"(?:GLOBAL|global) `?([\w.]+)")
_KINDS_OF_NUMBERS = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
)


def read_state(path: Path, say: Say) -> State:
    """Read the tensors of a safetensors file or a PyTorch checkpoint.

    Args:
        path: the file. Its content decides how it is read.
        say: told, in a sentence each, what was unwrapped.

    Raises:
        InputError: the file is not there.
        ArtifactError: it is empty, damaged, would run code, or holds no plain tensors.
    """
    head = _read_head(path)
    # asked first: the length that a safetensors file begins with may look like a pickle's mark
    if _is_safetensors(head):
        document: object = _read_safetensors(path)
    elif head.startswith((_ZIP, _PICKLE)):
        document = _read_checkpoint(path)
    else:
        raise ArtifactError(
            f"{path} is damaged, or neither a safetensors file nor a PyTorch checkpoint"
        )
    state = _strip_prefixes(_unwrap(document, path, say), path, say)
    for name, tensor in state.items():
        _check_plain(name, tensor, path)
    return state


def _read_head(path: Path) -> bytes:
    try:
        check_regular(path)
        with open_regular(path) as file:
            head = file.read(9)
    except FileNotFoundError as error:
        raise InputError(f"there is no weights file at {path}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise ArtifactError(f"{path} is empty: fetch or copy it again")
    return head


def _is_safetensors(head: bytes) -> bool:
    length = int.from_bytes(head[:8], "little")
    return 0 < length <= _MAX_SAFETENSORS_HEADER and head[8:9] == b"{"


def _read_safetensors(path: Path) -> State:
    try:
        state: State = load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path} is a damaged safetensors file: {first_line(error)}") from error
    return state


def _read_checkpoint(path: Path) -> object:
    _check_archive(path)
    try:
        # numbers of NumPy lie beside the weights in many a checkpoint, and hold no code
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_globals()):
            # torch muses on a file's pickle version; whether it can be read shows when it is read
            warnings.simplefilter("ignore", UserWarning)
            with open_regular(path) as file:  # of a path torch would look at the suffix
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        blocked = _BLOCKED_NAME.search(str(error))
        what = f"an object of {blocked[1]}" if blocked else "Python objects besides tensors"
        raise ArtifactError(
            f"{path} is damaged, or holds {what}, which could run code when loaded: refused; save "
            "its state_dict alone, or as safetensors"
        ) from error
    except MemoryError as error:
        raise ArtifactError(f"{path} is damaged, or does not fit into memory") from error
    except Exception as error:  # torch raises whatever its reader met in damaged bytes
        raise ArtifactError(f"{path} is damaged or no PyTorch checkpoint") from error


def _check_archive(path: Path) -> None:
    """Refuse an archive that holds code, or says that it unpacks to far more than it could."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            has_code = any(_CODE_ENTRY.match(name) for name in archive.namelist())
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ArtifactError(f"{path} is damaged or no PyTorch checkpoint") from error
    if has_code:
        raise ArtifactError(
            f"{path} is a TorchScript archive, which holds code: give the state_dict it was made of"
        )
    if unpacked > _MAX_UNPACKING * path.stat().st_size:
        raise ArtifactError(
            f"{path} is damaged, or made to fill the memory: it unpacks to {unpacked} bytes"
        )


def _numpy_globals() -> list[Any]:
    """What a pickle names to rebuild a number of NumPy, by its old and its present address."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + "efdg?"}
    return [
        *(np.dtype, *dtypes),
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    ]


def _unwrap(document: object, path: Path, say: Say) -> State:
    """Take the weights out of the entries that training programs put them into."""
    for _ in range(_MAX_LAYERS):
        key = _wrapper_of(document)
        if key is None:
            break
        say(f"{path.name}: the weights were taken from its entry {key!r}")
        document = document[key]  # type: ignore[index]  # a dict that has it
    if not isinstance(document, dict) or not document:
        raise ArtifactError(f"{path} holds no state_dict")
    for key, value in document.items():
        if not isinstance(key, str):
            raise ArtifactError(f"{path} holds no state_dict: its key {key!r:.50} is no name")
        if not isinstance(value, Tensor):
            raise ArtifactError(f"{path} holds no state_dict: {key!r} is no tensor")
    return document


def _wrapper_of(document: object) -> str | None:
    if not isinstance(document, dict):
        return None
    return next((key for key in _WRAPPERS if isinstance(document.get(key), dict)), None)


def _strip_prefixes(state: State, path: Path, say: Say) -> State:
    """Take off what wrappers of the network put before all names, also one after another."""
    for _ in range(_MAX_LAYERS):
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            break
        say(f"{path.name}: the prefix {prefix!r} was taken off its names")
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _check_plain(name: str, tensor: Tensor, path: Path) -> None:
    """Check that a tensor holds its values, one after the other, as usual numbers."""
    if tensor.is_meta:
        raise ArtifactError(f"{path} holds no values in {name}: it was saved from the meta device")
    if tensor.is_nested or tensor.layout is not torch.strided:
        kind = "a nested" if tensor.is_nested else f"a {tensor.layout}".replace("torch.", "")
        raise ArtifactError(f"{path} holds {kind} tensor in {name}: save it as a dense one")
    if tensor.is_quantized or tensor.dtype not in _KINDS_OF_NUMBERS:
        raise ArtifactError(
            f"{path} holds {str(tensor.dtype).removeprefix('torch.')} in {name}: give the weights "
            "in float32, float16, bfloat16 or float64"
        )

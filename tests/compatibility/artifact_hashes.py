"""Export every kind of artifact with the demo weights, and hash the files and the masks.

The command line of the u2export on PYTHONPATH does the work. So two versions of the package can
be compared on one machine:

    PYTHONPATH=/path/to/old python tests/compatibility/artifact_hashes.py --write old.json
    PYTHONPATH=/path/to/new python tests/compatibility/artifact_hashes.py --compare old.json

A run takes about five minutes on two CPUs. Manifests are not hashed: they hold measured figures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from PIL import Image

Say = Callable[[str], None]
Words = tuple[str, ...]
ROOT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).with_name("artifact_sha256.json")
PICTURE = ROOT / "weights" / "demo-picture.jpg"
MODEL = ("--model", "u2netp-demo")
ALL_FREE = ("--all-outputs", "--batch", "dynamic")
SMALL_FREE = ("--size", "64", "--batch", "dynamic")
# With the default limits the demo weights' int8 is refused: see REFUSED.
INT8 = ("--int8", "--min-iou", "0.9", "--max-mae", "0.03")
# A parent stands before what is converted from it, so that it is reused.
EXPORTS: dict[str, Words] = {
    "u2netp-demo-fp32.safetensors": ("torch",),
    "u2netp-demo-fp32.onnx": ("onnx",),
    "u2netp-demo-fp16.onnx": ("onnx", "--fp16"),
    "u2netp-demo-bf16.onnx": ("onnx", "--bf16"),
    "u2netp-demo-int8.onnx": ("onnx", *INT8),
    "u2netp-demo-int8-64.onnx": ("onnx", *INT8, "--size", "64"),
    "u2netp-demo-fp32-bN-all.onnx": ("onnx", *ALL_FREE),
    "u2netp-demo-fp32-256.onnx": ("onnx", "--size", "256"),
    "u2netp-demo-fp32-64-bN.onnx": ("onnx", *SMALL_FREE),
    "u2netp-demo-fp32.xml": ("openvino",),
    "u2netp-demo-fp16.xml": ("openvino", "--fp16"),
    "u2netp-demo-bf16.xml": ("openvino", "--bf16"),
    "u2netp-demo-int8.xml": ("openvino", *INT8),
    "u2netp-demo-fp32-bN-all.xml": ("openvino", *ALL_FREE),
    "u2netp-demo-fp32-256.xml": ("openvino", "--size", "256"),
    "u2netp-demo-fp32-64-bN.xml": ("openvino", *SMALL_FREE),
    "u2netp-demo-fp32.engine": ("tensorrt",),
    "u2netp-demo-fp16.engine": ("tensorrt", "--fp16"),
    "u2netp-demo-int8.engine": ("tensorrt", *INT8),
    "u2netp-demo-fp32-bN-all.engine": ("tensorrt", *ALL_FREE),
    "u2netp-demo-fp32-256.engine": ("tensorrt", "--size", "256"),
    "u2netp-demo-fp32-64-bN.engine": ("tensorrt", *SMALL_FREE),
}
# Exports that fail. The error names measured figures, so it says as much as a hash.
REFUSED: dict[str, Words] = {"int8 with default limits": ("onnx", "--int8")}
CREDITS = ("model_author", "model_license")
ONNX_DIGEST = re.compile(rb"u2export-sha256:[0-9a-f]{64}")
# The versions of these decide an artifact's bytes, or its mask.
TOOLS = (
    *("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime", "openvino"),
    *("tensorrt", "tensorrt-rtx", "numpy", "pillow"),
)


class Tree:
    """The u2export on PYTHONPATH, with a working folder and a cache of its own."""

    def __init__(self, folder: Path) -> None:
        """Start in an empty folder."""
        self.folder = folder
        self._env = {
            **os.environ,
            "U2EXPORT_CACHE": str(folder / "cache"),
            "U2EXPORT_OFFLINE": "1",
        }

    def python(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run Python in the folder, where PYTHONPATH alone decides which u2export is imported."""
        return subprocess.run(
            [sys.executable, *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env=self._env,
        )

    def u2export(self, *words: object) -> str:
        """Run the command line and return its standard output.

        Raises:
            SystemExit: the command failed.
        """
        done = self.python("-m", "u2export", *words)
        if done.returncode:
            raise SystemExit(
                f"u2export {' '.join(map(str, words))}: status {done.returncode}\n{done.stderr}"
            )
        return done.stdout

    def package(self) -> Path:
        """The folder that u2export is imported from."""
        done = self.python("-c", "import u2export; print(u2export.__file__)")
        return Path(done.stdout.strip()).parent


def depends_on_cpu(file: str) -> bool:
    """Whether an artifact's bytes depend on the CPU, or on how many CPUs the process may use.

    Source:
        Measured with one CPU instead of two: int8 files and the engines of a free batch get other
        bytes, all others keep theirs. The fp32, fp16 and bf16 files, and the fp32 and fp16
        engines, also keep theirs when PyTorch is limited to AVX2, and to SSE.
    """
    return "-int8" in file or ("-bN" in file and file.endswith(".engine"))


def sha256_of(path: Path) -> str:
    """Hash a model file's bytes less its credits, which the recorded files do not have."""
    return hashlib.sha256(without_credits(path)).hexdigest()


def without_credits(path: Path) -> bytes:
    """A model file's bytes as they would be without author and licence under the usual keys.

    The digest is taken anew. An `.xml` repeats what its `.onnx` says, its digest too. So the
    `.onnx` must lie beside it.
    """
    content = path.read_bytes()
    if path.suffix == ".onnx":
        model = onnx.load_from_string(content)
        kept = [entry for entry in model.metadata_props if entry.key not in CREDITS]
        if len(kept) == len(model.metadata_props):
            return content
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        return _with_new_digest(model.SerializeToString(deterministic=True), b"u2export-sha256:")
    if path.suffix != ".xml" or b"<model_info>" not in content:
        return content
    content = re.sub(rb"\s*<model_info>.*?</model_info>", b"", content, flags=re.DOTALL)
    content = re.sub(rb'\s*<model_(author|license) value="[^"]*" />', b"", content)
    parent = path.with_suffix(".onnx")
    for digest in set(ONNX_DIGEST.findall(parent.read_bytes())):
        content = content.replace(digest, *ONNX_DIGEST.findall(without_credits(parent)))
    return _with_new_digest(content, b"u2export-openvino-sha256:")


def _with_new_digest(content: bytes, prefix: bytes) -> bytes:
    blank = re.sub(prefix + rb"[0-9a-f]{64}", prefix + b"0" * 64, content)
    return blank.replace(prefix + b"0" * 64, prefix + hashlib.sha256(blank).hexdigest().encode())


def pixels_of(path: Path) -> str:
    """Hash a picture's mode, size and decoded pixels."""
    with Image.open(path) as picture:
        head = f"{picture.mode} {picture.width}x{picture.height}\n".encode()
        return hashlib.sha256(head + picture.tobytes()).hexdigest()


def machine(doctor: dict[str, Any]) -> dict[str, Any]:
    """Pick what decides the bytes besides u2export's code.

    Args:
        doctor: what `u2export doctor --json` prints.
    """
    versions = {name: doctor["versions"].get(name, "") for name in TOOLS}
    return {
        "python": doctor["machine"]["python"],
        "system": doctor["machine"]["system"].split("-", 1)[0],
        "versions": {"u2export": doctor["u2export"], **versions},
        "cpu": doctor["machine"]["cpu"],
        "features": doctor["machine"]["features"],
        "cpus": doctor["machine"]["cpus"],
    }


def exported(tree: Tree, file: str) -> dict[str, str]:
    """Export one artifact and hash its files.

    Returns:
        sha256 by file name, the model file first.

    Raises:
        SystemExit: the export failed, or wrote another file than `file`.
    """
    backend, *rest = EXPORTS[file]
    printed = tree.u2export(backend, *MODEL, *rest, "--out", "exported").strip()
    if printed != f"exported/{file}":
        raise SystemExit(f"expected exported/{file}, got {printed}")
    folder = tree.folder / "exported"
    manifest = json.loads((folder / f"{file}.json").read_text())
    return {name: sha256_of(folder / name) for name in manifest["files"]}


def pictures(tree: Tree, file: str) -> dict[str, str]:
    """Run one artifact on the demo picture and hash the pixels of mask and cut-out."""
    options: dict[str, Words] = {"mask": (), "cutout": ("--cutout",)}
    found = {}
    for kind, words in options.items():
        out = Path(kind) / f"{file}.png"
        tree.u2export("run", f"exported/{file}", PICTURE, "--out", out, *words)
        found[kind] = pixels_of(tree.folder / out)
    return found


def refused(tree: Tree, words: Words) -> dict[str, Any]:
    """Ask for an export that fails; return its status and the last line on standard error."""
    done = tree.python("-m", "u2export", words[0], *MODEL, *words[1:], "--out", "refused")
    return {"status": done.returncode, "line": done.stderr.strip().splitlines()[-1]}


def recorded(tree: Tree, files: list[str], refusals: list[str], say: Say) -> dict[str, Any]:
    """Export, run and hash.

    Args:
        tree: the u2export that does it.
        files: names of `EXPORTS`.
        refusals: names of `REFUSED`.
        say: takes one line for each step.
    """
    doctor = json.loads(tree.u2export("doctor", "--json"))
    able = [one for one in doctor["backends"] if one["run"].get("cpu") == ""]
    runnable = {suffix for one in able for suffix in one["suffixes"]}
    artifacts = {}
    for file in files:
        say(file)
        backend, *rest = EXPORTS[file]
        artifacts[file] = {
            "command": " ".join(("u2export", backend, *MODEL, *rest)),
            "files": exported(tree, file),
            **(pictures(tree, file) if Path(file).suffix in runnable else {}),
        }
    lines = {}
    for name in refusals:
        say(name)
        lines[name] = refused(tree, REFUSED[name])
    return {"machine": machine(doctor), "artifacts": artifacts, "refused": lines}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """List what differs between two records, for everything that `now` holds."""
    lines = [
        f"machine: {name} was {before['machine'].get(name)}, is {value}"
        for name, value in now["machine"].items()
        if before["machine"].get(name) != value
    ]
    for file, found in now["artifacts"].items():
        lines += _unlike(file, before["artifacts"].get(file, {"files": {}}), found)
    for name, found in now["refused"].items():
        if found != before["refused"].get(name):
            lines.append(f"{name}: was {before['refused'].get(name)}, is {found}")
    return lines


def _unlike(file: str, then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = dict.fromkeys([*then["files"], *now["files"]])
    pairs = {
        f"bytes of {name}": (then["files"].get(name), now["files"].get(name)) for name in names
    }
    for kind in ("mask", "cutout"):
        pairs[f"pixels of the {kind} of {file}"] = (then.get(kind), now.get(kind))
    return [
        f"{what}: were {_short(old)}, are {_short(new)}"
        for what, (old, new) in pairs.items()
        if old != new
    ]


def _short(digest: str | None) -> str:
    return digest[:16] if digest else "absent"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _made(given: argparse.Namespace) -> dict[str, Any]:
    """One record, made in a new folder with an empty cache.

    Raises:
        SystemExit: u2export comes from another place than asked, or an export failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree = Tree(Path(folder))
        package = tree.package()
        _say(f"u2export comes from {package}")
        wanted = given.package_in
        if wanted and package.parent.resolve() != wanted.resolve():
            raise SystemExit(f"u2export comes from {package}, not from {wanted}")
        refusals = [] if given.only else list(REFUSED)
        return recorded(tree, given.only or list(EXPORTS), refusals, _say)


def _marked(record: dict[str, Any], again: dict[str, Any]) -> dict[str, Any]:
    """The record, with a note at each artifact whether a second export gave the same."""
    for file, found in record["artifacts"].items():
        found["repeatable"] = not _unlike(file, found, again["artifacts"][file])
        found["depends_on_cpu"] = depends_on_cpu(file)
    return record


def main() -> int:
    """Export, then write or compare; the status is 1 where something differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, help="write the record to this file")
    parser.add_argument("--compare", type=Path, help="compare with this record")
    parser.add_argument("--only", action="append", choices=EXPORTS, help="this file; repeatable")
    parser.add_argument("--twice", action="store_true", help="note what a second export changes")
    parser.add_argument("--package-in", type=Path, help="refuse a u2export from elsewhere")
    given = parser.parse_args()
    found = _made(given)
    if given.twice:
        found = _marked(found, _made(given))
    text = json.dumps(found, indent=1) + "\n"
    if given.write:
        given.write.write_text(text)
    elif not given.compare:
        print(text, end="")
    lines = differences(json.loads(given.compare.read_text()), found) if given.compare else []
    for line in lines:
        print(line)
    if given.compare:
        _say(f"{len(lines)} differences" if lines else "everything is the same")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())

"""Does rembg take our file, and does its mask agree with ours?

    python benchmarks/rembg_compat.py --shared ../shared

rembg is installed from the package index into an environment of its own and loads our fp32 ONNX
file as `u2net_custom`. Its masks and ours (`--resample lanczos`, which is its way to resize) are
compared at full size.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from author_masks import u2export
from environments import REMBG, install
from PIL import Image
from report import leave

THEIRS = """
import sys
from pathlib import Path
from PIL import Image
from rembg import new_session, remove
model, pictures, out = map(Path, sys.argv[1:])
session = new_session("u2net_custom", model_path=str(model))
out.mkdir()
for path in sorted(pictures.iterdir()):
    mask = remove(Image.open(path), session=session, only_mask=True)
    mask.convert("L").save(out / f"{path.stem}.png")
"""


def main() -> None:
    """Install, run both, compare, leave the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    shared = parser.parse_args().shared
    pictures = shared / "images/salient"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        weights = shared / "weights/u2netp.safetensors"
        model, _ = u2export("onnx", "--model", "u2netp", "--weights", weights, "--out", out)
        u2export("run", model, pictures, "--resample", "lanczos", "--out", out / "ours")
        u2export("run", model, pictures, "--out", out / "authors")
        python = install(out / "venv", REMBG)
        theirs = [python, "-c", THEIRS, model, pictures.resolve(), out / "theirs"]
        home = {**os.environ, "U2NET_HOME": str(out)}  # rembg takes models from its home only
        subprocess.run(theirs, check=True, stdout=sys.stderr, cwd=out, env=home)
        figures: dict[str, object] = {"rembg": REMBG}
        for name in ("ours", "authors"):
            differences = {
                path.stem: round(difference(path, out / name / path.name), 5)
                for path in sorted((out / "theirs").iterdir())
            }
            label = "--resample lanczos" if name == "ours" else "the default resize"
            figures[f"mean absolute difference, {label}"] = float(
                np.mean(list(differences.values()))
            )
            figures[f"by picture, {label}"] = differences
    leave("rembg_compat", figures)


def difference(one: Path, two: Path) -> float:
    """Mean absolute difference of two masks, in [0,1]."""
    a, b = (np.asarray(Image.open(path), np.float64) for path in (one, two))
    return float(np.abs(a - b).mean() / 255)


if __name__ == "__main__":
    main()

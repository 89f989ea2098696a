"""Makes a test's own u2export process trace only what was not traced before.

Python imports a module of this name at its start, from the folders of PYTHONPATH; that of the
environment, if it has one, is not imported then.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from pathlib import Path

_MODULE = "u2export.onnx_graph.trace"


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            sys.path.append(str(Path(__file__).parents[1]))
            import traces

            module.trace_network = traces.once(
                module.trace_network, Path(os.environ["U2EXPORT_TEST_TRACES"])
            )

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder())

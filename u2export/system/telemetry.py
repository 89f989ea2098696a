"""Switching off what runtimes tell their makers, before they are imported.

Who set one of these variables keeps it.
"""

from __future__ import annotations

import os

# onnxruntime 1.29 and later writes a device's number and a database of events into the user's
# cache, and names an address that takes them. Ray reports its use.
_SWITCHES = {
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def switch_off() -> None:
    """Set what runtimes look for when they are imported; processes started later inherit it."""
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)

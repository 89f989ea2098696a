from __future__ import annotations

import sys

import pytest

from u2export.system.progress import _STATUS, phases, track


class _Terminal:
    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


def test_within_phases_the_count_is_told_there(monkeypatch: pytest.MonkeyPatch):
    """Two things that move at one place would overwrite each other."""
    monkeypatch.setattr(sys, "stderr", _Terminal())
    told = []
    with phases():
        token = _STATUS.set(told.append)
        assert list(track(["a", "b", "c"], "rounding")) == ["a", "b", "c"]
        _STATUS.reset(token)
    assert told == ["rounding: 1 of 3", "rounding: 2 of 3", "rounding: 3 of 3"]


def test_nothing_is_shown_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]):
    with phases() as phase:
        phase("working")
        assert list(track([1, 2], "counting")) == [1, 2]
    assert capsys.readouterr() == ("", "")

"""A campaign shares its time, goes on after a kill, and tells what it found."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from fuzz.readers import READERS

campaign = importlib.import_module("fuzz.__main__")
TWO = [READERS["budgets"], READERS["pins"]]


class _Clock:
    """A target that takes the time it is given, and writes what libFuzzer would."""

    def __init__(self) -> None:
        self.now, self.turns = 0.0, list[tuple[str, float]]()

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def run(self, reader, log: Path, *words: str) -> int:
        [seconds] = [float(w.split("=")[1]) for w in words if w.startswith("-max_total_time")]
        [place] = [Path(w.split("=")[1]) for w in words if w.startswith("-artifact_prefix")]
        assert place.is_absolute()  # the fuzzer writes there while a reader has its own folder
        self.turns.append((reader.name, seconds))
        self.now += seconds
        log.write_text("#8\tNEW    cov: 7 ft: 9\n#300\tDONE   cov: 12 ft: 20\n")
        return 0


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(campaign, "time", clock)
    monkeypatch.setattr(campaign, "_run_target", clock.run)
    return clock


def test_readers_share_the_time_in_turns(clock: _Clock):
    progress = campaign.fuzz(TWO, 1000)
    assert clock.turns == [("budgets", 300), ("pins", 300), ("budgets", 200), ("pins", 200)]
    assert progress.of("pins") == {"seconds": 500, "runs": 600, "edges": 12, "stops": 0}


def test_a_killed_campaign_goes_on_where_it_was(clock: _Clock, monkeypatch: pytest.MonkeyPatch):
    def die_in_the_fourth_turn(reader, log: Path, *words: str) -> int:
        if len(clock.turns) == 3:
            raise SystemExit
        return clock.run(reader, log, *words)

    monkeypatch.setattr(campaign, "_run_target", die_in_the_fourth_turn)
    with pytest.raises(SystemExit):
        campaign.fuzz(TWO, 1000)
    clock.turns.clear()
    campaign.fuzz(TWO, 1000)
    assert clock.turns == [("pins", 200)]


def test_findings_are_inputs_and_not_the_texts_beside_them(clock: _Clock):
    folder = campaign.PLACE / "findings" / "pins"
    folder.mkdir(parents=True)
    for name in ("fault-1", "fault-1.txt", "timeout-2"):
        (folder / name).touch()
    assert {path.name for path in campaign.findings(TWO[1])} == {"fault-1", "timeout-2"}
    assert campaign.findings(TWO[0]) == []

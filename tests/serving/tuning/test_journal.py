"""Trials outlive the process that measured them, in the context that they were measured in."""

from modelspec.machine import installed_versions
from serving.tuning.closed_loop import Figures
from serving.tuning.journal import TOOLS, TRIALS_FILE, TrialLog, machine
from serving.tuning.setting import Setting
from serving.tuning.trial import FAILED, MEASURED, Trial

FIGURES = Figures(100.0, 1.0, 2.0, 3.0, 50, 0.1)
ONE = Trial(Setting(instances=1), FAILED, "no such file")
TWO = Trial(Setting(2, 1, 8, True, 0, (8, 16), 1), MEASURED, "", 1.25, 0.01, FIGURES, FIGURES)


def test_trials_are_read_back_unchanged(tmp_path):
    log = TrialLog(tmp_path / "mood", {"files": "a"})
    assert log.trials() == []
    log.add(ONE)
    log.add(TWO)
    assert TrialLog(tmp_path / "mood", {"files": "a"}).trials() == [ONE, TWO]


def test_another_context_does_not_see_them(tmp_path):
    TrialLog(tmp_path, {"files": "a"}).add(ONE)
    other = TrialLog(tmp_path, {"files": "b"})
    assert other.trials() == []
    other.add(TWO)
    assert TrialLog(tmp_path, {"files": "a"}).trials() == [ONE]
    assert TrialLog(tmp_path, {"files": "a"}, fresh=True).trials() == []
    assert not (tmp_path / TRIALS_FILE).exists()


def test_a_truncated_line_is_not_counted(tmp_path):
    log = TrialLog(tmp_path, {})
    log.add(ONE)
    whole = (tmp_path / TRIALS_FILE).read_text()
    (tmp_path / TRIALS_FILE).write_text(whole + whole[:40] + "\n")
    log.add(TWO)
    assert log.trials() == [ONE, TWO]


def test_the_machine_and_the_tools_are_named():
    assert machine()["cores"] >= 1 and machine()["cpu"]
    assert {"nvidia-pytriton", "onnxruntime", "tidegate"} <= set(installed_versions(TOOLS))

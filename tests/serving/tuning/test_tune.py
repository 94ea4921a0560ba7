"""A real search for a small pipeline on a real Triton, with a budget of seconds; then a Triton that
serves the result."""

import dataclasses
import json

import psutil
import pytest

from modelspec.parameters import TUNED_PARAMETER
from serving.errors import PublishFailed, ServingError
from serving.publish.deployment import Deployment
from serving.publish.replica import Replica
from serving.repository.configs import TUNED
from serving.repository.model_repository import ModelRepository
from serving.triton.launch import LaunchOptions, TritonServer
from serving.triton.leftovers import FOLDER
from serving.triton.ports import Ports, free_ports
from serving.tuning.outcome import commit, is_of_another_engine, tuned_measurement, write_tuned
from serving.tuning.setting import setting_of
from serving.tuning.trial import FAILED, MEASURED, REFUSED, Trial
from serving.tuning.tune import Job, tune
from tests.serving.small_pipeline import MODELS, NAME, publish_staged, stage
from tests.serving.small_server import online

# With 4 instances none starts, and a single one outputs 77.
MOODY = (
    'import json; count = json.loads(args["model_config"])["instance_group"][0]["count"]; '
    "1 / (count != 4); "
    "self._number = self._number if count != 1 else (lambda value: value.dtype.type(77))"
)
BODIES = [{"x": number} for number in range(5)]


@dataclasses.dataclass
class Searched:
    home: object
    job: Job
    result: object
    messages: list


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def searched(tmp_path_factory, patched):
    """The search, interrupted after its first trial as by Ctrl-C, and run again."""
    home = tmp_path_factory.mktemp("tuned")
    repository = home / "model_repository"
    publish_staged(stage(repository, 1, initialize=MOODY), repository)
    job = Job(
        ModelRepository(repository),
        home / ".tidegate",
        NAME,
        BODIES,
        240,
        p99_ms=10_000,
        connections=4,
    )
    messages = []
    # Enough for every trial on a slow machine, with fewer passes: the figures do not matter.
    for limit, value in (
        ("TRIAL_PAIRS", 2),
        ("FINAL_PAIRS", (2, 2)),
        ("FINALISTS", 1),
        ("LONGEST_PASS_S", 0.25),
    ):
        patched.setattr(f"serving.tuning.tune.{limit}", value)

    def interrupt(text):
        messages.append(text)
        if " left of " in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(job, interrupt)
    _require_nothing_left(job)
    return Searched(home, job, tune(job, messages.append), messages)


def _require_nothing_left(job):
    remaining = [
        process
        for process in psutil.process_iter(["cmdline"])  # other tests run Tritons, too
        if str(job.work_dir) in " ".join(process.info["cmdline"] or ())
    ]
    assert remaining == []
    assert list(FOLDER.glob(f"tidegate_{psutil.Process().pid}_*")) == []
    assert list(job.repository.staging.glob("tune*")) == []


def test_a_search_resumes_where_it_was_and_leaves_nothing_behind(searched):
    assert "mood: 1 trials are known from earlier runs" in searched.messages
    _require_nothing_left(searched.job)
    settings = [trial.setting for trial in searched.result.trials]
    assert len(set(settings)) == len(settings) > 2


def test_a_setting_that_fails_or_has_wrong_outputs_is_recorded_but_not_measured(searched):
    by_instances = {t.setting.instances: t for t in searched.result.trials}
    assert by_instances[1].status == REFUSED
    assert "outputs differ from the default's in score" in by_instances[1].reason
    assert by_instances[4].status == FAILED
    assert "ZeroDivisionError" in by_instances[4].reason
    for trial in (by_instances[1], by_instances[4]):
        assert trial.score(None) is None and trial.ratio == 0
    assert searched.result.search.best.instances == 2


def test_each_setting_is_measured_beside_the_default(searched):
    measured = [trial for trial in searched.result.trials if trial.status == MEASURED]
    assert measured
    for trial in measured:
        assert trial.ratio == pytest.approx(trial.tuned.rps / trial.default.rps, rel=0.5)
        assert 0 < trial.tuned.p50_ms <= trial.tuned.p95_ms <= trial.tuned.p99_ms
        assert 0 < trial.tuned.generator_cores < 1.5
        assert Trial.from_dict(json.loads(json.dumps(trial.as_dict()))) == trial


def test_a_setting_over_the_bound_is_ruled_out(searched):
    trial = next(trial for trial in searched.result.trials if trial.status == MEASURED)
    assert trial.score(trial.tuned.p99_ms + 1).ratio == trial.ratio
    assert trial.score(trial.tuned.p99_ms / 2) is None


@pytest.fixture(scope="module")
def written(searched):
    """The result as if batches of 4 had won, whatever this machine found, and written."""
    trial = next(t for t in searched.result.trials if t.status == MEASURED)
    setting = dataclasses.replace(trial.setting, max_batch=4, instances=3)
    winner = dataclasses.replace(trial, setting=setting, ratio=1.5)
    result = dataclasses.replace(searched.result, winner=winner, finals=[winner])
    repository = searched.job.repository.path
    paths = write_tuned(Deployment(ModelRepository(repository)), result)
    assert sorted(paths) == [f"{model}/configs/tuned.pbtxt" for model in sorted(MODELS)]
    return result


def test_a_real_triton_serves_the_tuned_config(searched, written):
    options = LaunchOptions(
        searched.job.repository,
        searched.job.work_dir,
        Ports(*free_ports(3)),
        config_name=TUNED,
    )
    with TritonServer(options) as server:
        server.control.load(NAME)
        served = {model: server.control.config(model) for model in MODELS}
        server.stop(gently=False)
    assert setting_of(served) == written.winner.setting
    for config in served.values():
        measurement = json.loads(config.parameters[TUNED_PARAMETER].string_value)
        assert measurement["ratio"] == 1.5 and measurement["tuned"]["p99_ms"] > 0
        assert measurement["default_setting"] == setting_of(main_configs(searched)).as_dict()
        assert measurement["machine"]["cores"] >= 1 and "nvidia-pytriton" in measurement["tools"]


def main_configs(searched):
    return {model: searched.job.repository.config(model) for model in MODELS}


def test_the_serving_parameters_are_committed_without_the_batch_size(
    searched, written, monkeypatch
):
    """A running server reloads; if it then fails its golden sample, everything is restored."""
    repository = searched.job.repository.path
    before = main_configs(searched)
    options = LaunchOptions(searched.job.repository, searched.job.work_dir, Ports(*free_ports(3)))
    with TritonServer(options) as server:
        server.control.load(NAME)
        with online(server) as deployment:
            with monkeypatch.context() as patched:
                patched.setattr(Replica, "require_golden", _wrong)
                with pytest.raises(PublishFailed, match="wrongly"):
                    commit(deployment, written)
            assert main_configs(searched) == before
            assert server.control.config("mood_onnx").instance_group[0].count == 2
            assert commit(deployment, written) == ["mood_onnx"]
        assert server.control.config("mood_onnx").instance_group[0].count == 3
    after = main_configs(searched)
    assert after["mood_onnx"].instance_group[0].count == 3
    assert {config.max_batch_size for config in after.values()} == {8}
    assert {m: after[m] for m in ("mood_pre", NAME)} == {m: before[m] for m in ("mood_pre", NAME)}
    publish_staged(stage(repository, 1, initialize=f"{MOODY}; 1"), repository)
    assert ModelRepository(repository).config("mood_onnx").instance_group[0].count == 3


def _wrong(replica, model, config):
    raise PublishFailed(f"{model} answers its golden sample wrongly")


def test_it_reports_that_another_engine_serves_than_was_measured(searched, written):
    """The previous test published another engine."""
    repository = searched.job.repository.path
    measured = tuned_measurement(ModelRepository(repository), NAME)
    assert is_of_another_engine(ModelRepository(repository), NAME, measured)
    assert list(ModelRepository(repository).profiles("mood_onnx")) == [TUNED]
    with pytest.raises(ServingError, match="published again"):
        write_tuned(Deployment(ModelRepository(repository)), written)


def test_what_cannot_be_tuned_is_refused(searched):
    job = dataclasses.replace(searched.job, name="nowhere")
    with pytest.raises(ServingError, match="convert it first"):
        tune(job, print)
    with pytest.raises(ServingError, match="single model"):
        tune(dataclasses.replace(searched.job, name="mood_onnx"), print)

"""The parts of the torch_export backend that need no Triton, over the real torch."""

import importlib.util
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import serving.backends
from converters.torch_export.program import export_program, write_program
from converters.torch_export.stamp import STAMP_ENTRY
from tests.converters.torch_export.test_torch_export import Words, words

FOLDER = Path(serving.backends.__file__).parent
# As in Triton, whose copy of the backend has the shared files too.
sys.path += [str(FOLDER / "onnxruntime"), str(FOLDER / "torch_export")]

from ort_graph import ModelRefused, check_config  # noqa: E402 - found through the line above
from ort_jobs import MARKER, InvalidInput  # noqa: E402
from pt2_program import (  # noqa: E402
    ProgramRunner,
    choose_device,
    graph_of,
    load,
    open_stamp,
    set_up,
)

CPU = torch.device("cpu")
CONFIG = {
    "name": "m",
    "max_batch_size": 64,
    "input": [
        {"name": name, "data_type": "TYPE_INT64", "dims": ["-1"]} for name in ("ids", "mask")
    ],
    "output": [
        {"name": "vector", "data_type": "TYPE_FP32", "dims": ["3"]},
        {"name": "vectors", "data_type": "TYPE_FP32", "dims": ["-1", "3"]},
    ],
}
PADDED = {
    **CONFIG,
    "parameters": {
        "padding_mask": {"string_value": "mask"},
        "padding_value": {"string_value": "0"},
        "intra_op_thread_count": {"string_value": "1"},
    },
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A file with a program that is not compiled: that takes a minute, and loads the same way."""
    file = tmp_path_factory.mktemp("program") / "model.pt2"
    module = words()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", "no-such-compiler")
        write_program(export_program(module), module, "cpu", file, str)
    return file


def _runner(file, config=CONFIG):
    stamp = open_stamp(config, file, CPU)
    check_config(config, graph_of(stamp), pytest.fail)
    return ProgramRunner(config, stamp, load(config, file, stamp, CPU), CPU)


def _restamped(file, target, **changes):
    """A copy of the file whose stamp says something else."""
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(target, "w") as copy:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith(STAMP_ENTRY):
                data = json.dumps({**json.loads(data), **changes}).encode()
            copy.writestr(entry, data)
    return target


def _feed(rows, length, most=50):
    rng = np.random.default_rng(rows * 100 + length)
    mask = np.ones((rows, length), dtype=np.int64)
    return {"ids": rng.integers(0, most, (rows, length)), "mask": mask}


def _expected(feed):
    with torch.inference_mode():
        outputs = Words().eval()(*(torch.from_numpy(values) for values in feed.values()))
    return dict(zip(("vector", "vectors"), (output.numpy() for output in outputs), strict=True))


@pytest.mark.parametrize("config", [CONFIG, PADDED], ids=["padded", "cut"])
def test_requests_of_any_shape_share_runs_and_each_gets_its_own_rows(program, config):
    runner = _runner(program, config)
    feeds = [_feed(1, 5), _feed(2, 9), _feed(3, 5), _feed(1, 12)]
    jobs = [runner.job(feed, frozenset()) for feed in feeds]
    for feed, result in zip(feeds, runner.run(jobs), strict=True):
        for name, expected in _expected(feed).items():
            assert result[name] == pytest.approx(expected, abs=1e-6)


def test_padding_is_cut_and_is_zero_in_what_is_returned(program):
    feed = _feed(2, 8)
    feed["mask"][0, 3:] = 0
    runner = _runner(program, PADDED)
    (result,) = runner.run([runner.job(feed, frozenset({"vectors"}))])
    assert result["vectors"] == pytest.approx(_expected(feed)["vectors"], abs=1e-6)
    assert list(result) == ["vectors"]


def test_no_rows_are_no_rows(program):
    runner = _runner(program)
    (result,) = runner.run([runner.job(_feed(0, 5), frozenset())])
    assert result["vector"].shape == (0, 3)
    assert result["vectors"].shape == (0, 5, 3)


@pytest.mark.parametrize(
    ("feed", "problem"),
    [
        # What AOTInductor compiled would read beyond the mask's end.
        ({**_feed(2, 9), "mask": np.ones((2, 5), np.int64)}, "length 5 here and 9 in 'ids'"),
        (_feed(1, 13), "has length 13, and the model takes 12 at most"),
        ({"ids": np.ones((1, 3), np.int64)}, "tensor 'mask': it is missing"),
        ({**_feed(1, 3), "ids": np.full((1, 3), 50)}, "index out of range"),
    ],
    ids=["short mask", "too long", "missing", "unknown id"],
)
def test_what_the_program_was_not_exported_for_is_the_clients_fault_alone(program, feed, problem):
    runner, good = _runner(program), _feed(1, 3)
    bad, other = runner.run([runner.job(feed, frozenset()), runner.job(good, frozenset())])
    assert isinstance(bad, InvalidInput)
    assert str(bad).startswith(MARKER)
    assert problem in str(bad)
    assert other["vector"] == pytest.approx(_expected(good)["vector"], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"torch": "2.6.0+cpu"}, f"was made with torch 2.6.0+cpu, and this is {torch.__version__}"),
        ({"device": "cuda"}, "was made for cuda, and the config says cpu"),
        (
            {"cpu_features": ["amx_next"]},
            "was compiled for a CPU with amx_next, which this one lacks",
        ),
    ],
    ids=["torch", "device", "cpu"],
)
def test_a_file_for_another_torch_or_device_is_refused(program, tmp_path, changes, reason):
    file = _restamped(program, tmp_path / "model.pt2", **changes)
    expected = rf"model 'm': model.pt2 cannot run here: it {reason}: convert it on this machine"
    with pytest.raises(ModelRefused, match=expected.replace("+", r"\+")):
        open_stamp(CONFIG, file, CPU)


def test_the_build_of_torch_makes_no_difference(program, tmp_path):
    release = torch.__version__.partition("+")[0]
    file = _restamped(program, tmp_path / "model.pt2", torch=f"{release}+cu130")
    assert open_stamp(CONFIG, file, CPU)["torch"] == f"{release}+cu130"


def test_a_file_that_is_missing_or_not_ours_is_refused(program, tmp_path):
    with pytest.raises(ModelRefused, match=r"there is no .*model.pt2: it is written"):
        open_stamp(CONFIG, tmp_path / "model.pt2", CPU)
    (tmp_path / "model.pt2").write_bytes(b"not a zip")
    with pytest.raises(ModelRefused, match="does not say which torch and device it is for"):
        open_stamp(CONFIG, tmp_path / "model.pt2", CPU)
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("other/version", "1")
    with pytest.raises(ModelRefused, match="does not say which torch and device it is for"):
        open_stamp(CONFIG, tmp_path / "other.pt2", CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_asked_for_is_never_the_cpu():
    with pytest.raises(ModelRefused, match=r"KIND_GPU, and CUDA does not start in torch .*: "):
        choose_device(CONFIG, "GPU", 0)
    assert choose_device(CONFIG, "CPU", 0) == CPU


def test_the_config_says_the_threads_and_fp32_has_all_its_bits():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    threads = torch.get_num_threads()
    try:
        set_up(PADDED)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    wrong = {**CONFIG, "parameters": {"intra_op_thread_count": {"string_value": "many"}}}
    with pytest.raises(ModelRefused, match="'intra_op_thread_count' cannot be 'many'"):
        set_up(wrong)


def test_a_config_that_disagrees_with_the_program_is_refused(program):
    config = {**CONFIG, "output": [{"name": "v", "data_type": "TYPE_FP32", "dims": ["3"]}]}
    stamp = open_stamp(config, program, CPU)
    with pytest.raises(ModelRefused, match=r"output tensor 'v'.*the graph has"):
        check_config(config, graph_of(stamp), pytest.fail)


def test_a_config_without_its_tensors_is_refused(monkeypatch):
    spec = importlib.util.spec_from_file_location(
        "torch_export_backend_model", FOLDER / "torch_export" / "model.py"
    )
    backend = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backend)

    class Utilities:
        TritonModelException = ValueError

    class Config:
        def as_dict(self):
            return {"name": "m", "max_batch_size": 4, "input": [], "output": []}

    monkeypatch.setattr(backend, "pb_utils", Utilities)
    with pytest.raises(ValueError, match="leaves inputs or outputs open"):
        backend.TritonPythonModel.auto_complete_config(Config())

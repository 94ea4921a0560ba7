"""GGUF files and Llama-style folders: what is read, rewritten and refused; each architecture, as
the engine answers, against transformers."""

import json
import shutil

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from converters.conversion import ConversionOptions, convert
from converters.errors import ExportFailed, SourceRefused
from converters.task import ConversionRequest
from converters.tasks.causal_lm.folder import LanguageModelFolder, permuted
from converters.tasks.causal_lm.gguf_file import ARCHITECTURES, GgufFile
from converters.tasks.causal_lm.gguf_reader import GgufReader
from converters.tasks.causal_lm.rewriting import write_gguf
from converters.tasks.causal_lm.smollm2 import packaged_file
from converters.tasks.causal_lm.task import CausalLm
from tests.tiny_models import language_model

WIDTH = 64


def small_file(
    path,
    *,
    architecture="llama",
    kind=Kind.Q4_1,
    tokenizer="gpt2",
    scale=1.0,
    edit=lambda writer: None,
):
    """A GGUF file of one matrix and one vector, with a tokenizer of four tokens."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_tokenizer_model(tokenizer)
    writer.add_token_list(["a", "<|im_start|>", "<|im_end|>", "<unused>"])
    writer.add_token_types([1, 3, 3, 3])
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ '<|im_start|>' }}{{ eos_token }}")
    edit(writer)
    values = np.random.default_rng(1).normal(0, scale, (8, WIDTH)).astype(np.float32)
    writer.add_tensor("token_embd.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def matrix(path):
    tensor = next(one for one in gguf.GGUFReader(path).tensors if len(one.shape) > 1)
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


def test_what_a_file_says(tmp_path):
    file = GgufFile(small_file(tmp_path / "a.gguf"))
    assert (file.architecture, file.context_length, file.end_token) == ("llama", 128, 2)
    assert file.special_tokens == {"eos_token": "<|im_end|>"}
    # The template names both; <unused> is a control token that no turn is made of.
    assert file.markers == ["<|im_end|>", "<|im_start|>"]


@pytest.mark.parametrize(
    ("kind", "served"), [(Kind.Q8_0, "q8_0"), (Kind.F16, "f16"), (Kind.Q4_1, ""), (Kind.F32, "")]
)
def test_a_file_is_served_as_it_is_only_in_types_that_the_engine_does_not_round(
    tmp_path, kind, served
):
    path = small_file(tmp_path / "a.gguf", kind=kind)
    assert GgufFile(path).precision == served
    task = CausalLm(ConversionRequest("tiny", str(path)))
    assert task.offered()[0] == (served or "f16")
    assert set(task.offered()) == {"f16", "q8_0"}


@pytest.mark.parametrize(("precision", "error"), [("f16", 1e-3), ("q8_0", 2e-2)])
def test_rewritten_weights_are_near_and_the_metadata_the_same(tmp_path, precision, error):
    source = small_file(tmp_path / "a.gguf")
    before = GgufFile(source)
    write_gguf(before, tmp_path / "b.gguf", precision)
    after = GgufFile(tmp_path / "b.gguf")
    assert after.precision == precision
    assert np.abs(matrix(source) - matrix(tmp_path / "b.gguf")).max() < error
    ours = {"general.file_type"}
    keys = {key for key in before.reader.fields if not key.startswith("GGUF.")} - ours
    assert keys == {key for key in after.reader.fields if not key.startswith("GGUF.")} - ours
    assert all(before.value(key) == after.value(key) for key in keys)


def test_a_weight_that_f16_cannot_hold_is_refused(tmp_path):
    source = small_file(tmp_path / "a.gguf", kind=Kind.F32, scale=1e6)
    with pytest.raises(ExportFailed, match=r"token_embd\.weight"):
        write_gguf(GgufFile(source), tmp_path / "b.gguf", "f16")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"architecture": "falcon"}, "'falcon'"),
        ({"tokenizer": "llama"}, "byte-level BPE"),
        ({"edit": lambda writer: writer.add_uint16("split.count", 2)}, "one part"),
        (
            {"edit": lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)},
            "rotary",
        ),
    ],
)
def test_files_that_cannot_be_served_are_refused(tmp_path, options, said):
    path = small_file(tmp_path / "a.gguf", **options)
    with pytest.raises(SourceRefused, match=said):
        GgufFile(path)


def test_the_reader_gives_what_the_packages_own_gives():
    path = packaged_file()
    expected, actual = gguf.GGUFReader(path), GgufReader(path)
    assert list(actual.fields) == list(expected.fields)
    for key, field in expected.fields.items():
        other = actual.fields[key]
        assert (other.types, other.data, len(other.parts)) == (
            field.types,
            field.data,
            len(field.parts),
        )
        assert other.contents() == field.contents()
    places = [(tensor.name, tensor.data_offset) for tensor in expected.tensors]
    assert [(tensor.name, tensor.data_offset) for tensor in actual.tensors] == places


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 64])
def test_files_that_are_no_gguf_are_refused(tmp_path, content):
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(SourceRefused, match="cannot be read"):
        GgufFile(path)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return language_model(tmp_path_factory.mktemp("llama") / "tiny")


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("config.json", {"model_type": "gemma"}, "'gemma'"),
        ("config.json", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rotary"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Whitespace"}}, "byte-level BPE"),
        ("tokenizer.json", None, r"tokenizer\.json"),
        (
            "tokenizer_config.json",
            {"chat_template": [{"name": "a", "template": "A"}, {"name": "b", "template": "B"}]},
            r"2 chat templates \(a, b\)",
        ),
    ],
)
def test_folders_that_cannot_be_written_are_refused(llama, tmp_path, file, changes, said):
    folder = shutil.copytree(llama, tmp_path / "copy")
    if changes is None:
        (folder / file).unlink()
    else:
        content = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(json.dumps(content))
        if "chat_template" in changes:
            (folder / "chat_template.jinja").unlink()  # it would be read first
    with pytest.raises(SourceRefused, match=said):
        LanguageModelFolder.open(folder)


def test_permuted_puts_what_is_rotated_together_side_by_side():
    rows = np.arange(8)[:, None]
    assert permuted(rows, heads=2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_architecture_is_as_in_transformers(tmp_path, architecture):
    source = language_model(tmp_path / architecture, architecture)
    task = CausalLm(ConversionRequest("tiny", str(source)))
    converted = convert(task, ConversionOptions("f16"), lambda line: None)
    assert not [
        check for proof in converted.record.proofs for check in proof.checks if not check.passed
    ]


def test_other_end_tokens_and_nfc_are_settings_of_the_served_model(tmp_path):
    source = language_model(tmp_path / "tiny")
    generation = json.loads((source / "generation_config.json").read_text())
    generation["eos_token_id"] = [2, 0]
    (source / "generation_config.json").write_text(json.dumps(generation))
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "NFC"}
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    task = CausalLm(ConversionRequest("tiny", str(source)))
    converted = convert(task, ConversionOptions("f16"), lambda line: None)
    settings = json.loads(converted.engine.with_name("model.json").read_text())
    assert settings == {"context_length": 512, "stop_token_ids": [0], "normalize_nfc": True}

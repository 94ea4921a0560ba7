"""LoRA adapters: merged into their base without peft, or refused with a one-line reason."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from converters.errors import ConversionError
from converters.sources.lora import merged_request
from converters.task import ConversionRequest
from tests.tiny_models import save_classifier
from tidegate.app.task_registry import TASKS

RANK, ALPHA = 4, 6
QUERY = "bert.encoder.layer.0.attention.self.query"
VALUE = "bert.encoder.layer.1.attention.self.value"
WORDS = "bert.embeddings.word_embeddings"
IDS = torch.tensor([[1, 7, 300, 42, 2], [5, 6, 7, 8, 9]])


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_classifier("bert", tmp_path / "base")
    return tmp_path


def _adapter(home, weights=None, base="../base", **settings):
    """An adapter as peft writes it: A [r, in], B [out, r], and a fully trained head."""
    folder = home / "adapter"
    folder.mkdir(exist_ok=True)
    defaults = {
        "peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": base, "r": RANK,
        "lora_alpha": ALPHA, "init_lora_weights": True, "bias": "none", "lora_dropout": 0.1,
        "target_modules": ["query", "value"], "megatron_core": "megatron.core", "use_dora": False,
        "modules_to_save": ["classifier", "score"], "inference_mode": True, "loftq_config": {},
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps({**defaults, **settings}))
    save_file(_weights() if weights is None else weights, folder / "adapter_model.safetensors")
    return folder


def _weights():
    torch.manual_seed(1)
    weights = {}
    for name in (QUERY, VALUE):
        weights[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, 32)
        weights[f"base_model.model.{name}.lora_B.weight"] = torch.randn(32, RANK)
    weights["base_model.model.classifier.weight"] = torch.randn(3, 32)
    weights["base_model.model.classifier.bias"] = torch.randn(3)
    return weights


def _open_task(adapter, task="text-classification", **options):
    return TASKS[task].open_task(ConversionRequest("mood", str(adapter), options=options))


def _unmerged_logits(base, weights, scale):
    """What peft computes: the base's own layer plus B(A(x)), for each adapted layer."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base).eval()
    tensors = {key.removeprefix("base_model.model."): tensor for key, tensor in weights.items()}
    for name in (QUERY, VALUE):
        if f"{name}.lora_A.weight" not in tensors:
            continue
        a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, a=a, b=b: (
                output + (inputs[0] @ a.T @ b.T) * scale[b.shape]
            )
        )
    if f"{WORDS}.lora_embedding_A" in tensors:
        a, b = tensors[f"{WORDS}.lora_embedding_A"], tensors[f"{WORDS}.lora_embedding_B"]
        model.get_submodule(WORDS).register_forward_hook(
            lambda module, inputs, output: output + (a.T @ b.T)[inputs[0]] * scale[b.shape]
        )
    if "classifier.weight" in tensors:
        model.classifier.load_state_dict(
            {"weight": tensors["classifier.weight"], "bias": tensors["classifier.bias"]}
        )
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_the_merged_model_computes_what_base_and_adapter_do(home, rank_stabilised):
    adapter = _adapter(home, use_rslora=rank_stabilised)
    task = _open_task(adapter)
    scale = ALPHA / (RANK**0.5 if rank_stabilised else RANK)
    expected = _unmerged_logits(home / "base", _weights(), {torch.Size([32, RANK]): scale})
    with torch.no_grad():
        actual = task.module(IDS, torch.ones_like(IDS))
    assert (actual - expected).abs().max() < 1e-5
    plain = _unmerged_logits(home / "base", {}, {})
    assert (actual - plain).abs().max() > 0.1  # the adapter does something
    assert task.card()["model"] == "adapter"


def test_embeddings_and_alpha_patterns(home):
    torch.manual_seed(2)
    weights = {
        **_weights(),
        f"base_model.model.{WORDS}.lora_embedding_A": torch.randn(2, 800),
        f"base_model.model.{WORDS}.lora_embedding_B": torch.randn(32, 2),
    }
    rows = len(load_file(home / "base" / "model.safetensors")[f"{WORDS}.weight"])
    weights[f"base_model.model.{WORDS}.lora_embedding_A"] = torch.randn(2, rows)
    patterns = {"rank_pattern": {"word_embeddings": 2}, "alpha_pattern": {"word_embeddings": 5}}
    task = _open_task(_adapter(home, weights, **patterns))
    scale = {torch.Size([32, RANK]): ALPHA / RANK, torch.Size([32, 2]): 5 / 2}
    expected = _unmerged_logits(home / "base", weights, scale)
    with torch.no_grad():
        actual = task.module(IDS, torch.ones_like(IDS))
    assert (actual - expected).abs().max() < 1e-5


def test_layers_with_other_weight_layouts():
    """GPT-2's Conv1D holds [in, out]; a convolution holds its window too."""
    from transformers.pytorch_utils import Conv1D

    from converters.sources.lora import apply

    torch.manual_seed(3)
    model = torch.nn.ModuleDict({"conv1d": Conv1D(6, 4), "conv2d": torch.nn.Conv2d(2, 5, 3)})
    layers = {
        "conv1d": {"A": torch.randn(2, 4), "B": torch.randn(6, 2)},
        "conv2d": {"A": torch.randn(2, 2, 3, 3), "B": torch.randn(5, 2, 1, 1)},
    }
    x, image = torch.randn(3, 4), torch.randn(1, 2, 8, 8)
    conv = torch.nn.functional.conv2d
    down, up = layers["conv2d"]["A"], layers["conv2d"]["B"]
    with torch.no_grad():
        conv1d_expected = model["conv1d"](x) + 2 * (
            x @ layers["conv1d"]["A"].T @ layers["conv1d"]["B"].T
        )
        conv2d_expected = model["conv2d"](image) + 2 * conv(conv(image, down), up)
        apply(model, layers, {}, {"lora_alpha": 4}, "it")
        assert (model["conv1d"](x) - conv1d_expected).abs().max() < 1e-5
        assert (model["conv2d"](image) - conv2d_expected).abs().max() < 1e-5


def test_the_base_is_an_option(home):
    adapter = _adapter(home, base="somebody/mood-base")
    with pytest.raises(ConversionError, match=r"hf download somebody/mood-base.*--base"):
        _open_task(adapter)
    assert _open_task(adapter, base=str(home / "base")).metadata()["labels"]
    with pytest.raises(ConversionError, match="is not a LoRA adapter: omit --base"):
        _open_task(home / "base", base=str(home / "base"))


def _weights_with(name, values):
    return lambda: {**_weights(), f"base_model.model.{name}": values}


REFUSED = {
    "DoRA": ({"use_dora": True}, None, "use_dora"),
    "PiSSA": ({"init_lora_weights": "pissa"}, None, "changes the base's own weights"),
    "IA3": ({"peft_type": "IA3"}, None, "only LORA is merged"),
    "a bias of B": (
        {},
        _weights_with(f"{QUERY}.lora_B.bias", torch.zeros(32)),
        "more than A and B",
    ),
    "a magnitude": (
        {},
        _weights_with(f"{QUERY}.lora_magnitude_vector", torch.ones(32)),
        "more than A",
    ),
    "another base": (
        {},
        _weights_with("roberta.x.lora_A.weight", torch.zeros(4, 32)),
        "does not have",
    ),
    "other labels": (
        {},
        _weights_with("classifier.weight", torch.zeros(7, 32)),
        "num_labels, id2label",
    ),
    "another width": (
        {},
        _weights_with(f"{QUERY}.lora_A.weight", torch.zeros(4, 9)),
        "does not have",
    ),
    "nothing": ({}, dict, "no weights"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_anything_beyond_plain_lora_is_refused(home, name):
    settings, weights, message = REFUSED[name]
    adapter = _adapter(home, weights() if weights else None, **settings)
    with pytest.raises(ConversionError) as refused:
        _open_task(adapter)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_adapters_labels_override_the_bases(home):
    """A head of another width than the base's, with the labels beside it."""
    weights = _weights()
    weights["base_model.model.classifier.weight"] = torch.randn(5, 32)
    weights["base_model.model.classifier.bias"] = torch.randn(5)
    config = json.loads((home / "base" / "config.json").read_text())
    config["architectures"] = ["BertForMaskedLM"]
    (home / "base" / "config.json").write_text(json.dumps(config))
    tensors = load_file(home / "base" / "model.safetensors")
    headless = {key: tensor for key, tensor in tensors.items() if "classifier" not in key}
    save_file(headless, home / "base" / "model.safetensors", metadata={"format": "pt"})
    adapter = _adapter(home, weights)
    names = {str(i): name for i, name in enumerate("abcde")}
    labelled = {
        **config,
        "id2label": names,
        "label2id": {name: int(key) for key, name in names.items()},
    }
    (adapter / "config.json").write_text(json.dumps(labelled))
    task = _open_task(adapter)
    assert task.metadata()["labels"] == ["a", "b", "c", "d", "e"]
    with torch.no_grad():
        assert task.module(IDS, torch.ones_like(IDS)).shape == (2, 5)


def _merged_template(adapter):
    from transformers import AutoTokenizer

    request = ConversionRequest("mood", str(adapter))
    merged = merged_request(request, "AutoModelForSequenceClassification")
    return AutoTokenizer.from_pretrained(merged.source).chat_template


def test_chat_templates_are_merged_with_their_tokenizer(home):
    """save_pretrained writes a template beside tokenizer_config.json, and reads it there first."""
    (home / "base" / "chat_template.jinja").write_text("the base's")
    adapter = _adapter(home)
    assert _merged_template(adapter) == "the base's"
    (home / "base" / "chat_template.jinja").write_text("the base's, corrected")
    assert _merged_template(adapter) == "the base's, corrected"
    for file in (home / "base").glob("tokenizer*"):
        (adapter / file.name).write_bytes(file.read_bytes())
    config = json.loads((adapter / "tokenizer_config.json").read_text())
    config["chat_template"] = "in its own config"
    (adapter / "tokenizer_config.json").write_text(json.dumps(config))
    assert _merged_template(adapter) == "in its own config"
    (adapter / "chat_template.jinja").write_text("its own file")
    assert _merged_template(adapter) == "its own file"

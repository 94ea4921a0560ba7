"""Heads and channels that pruning removes: the right ones, and nothing else changes."""

import numpy as np
import onnx
import pytest
from onnx import helper

from converters.errors import ConversionError, ExportFailed
from converters.optimize.prunable import attention_blocks, channel_blocks
from converters.optimize.pruning import Pruning, write_pruned
from tests.converters.precisions.test_precision import convolutions, graph_of, run

WIDTH, HEADS, SIZE, HIDDEN = 32, 4, 8, 256


def layer(idle_heads=(), idle_channels=(), shared_bias=False) -> onnx.ModelProto:
    """Attention over x FP32 [n, length, WIDTH], then a feed-forward layer; idle heads and channels
    do not affect the answer."""
    generator = np.random.default_rng(3)
    constants = {
        name: generator.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in {
            **{f"w_{part}": (WIDTH, WIDTH) for part in "qkvo"},
            **{f"b_{part}": (WIDTH,) for part in "qkv"},
            "w_up": (WIDTH, HIDDEN),
            "b_up": (HIDDEN,),
            "w_down": (HIDDEN, WIDTH),
        }.items()
    }
    for head in idle_heads:
        constants["w_o"][head * SIZE : (head + 1) * SIZE] = 0
    for channel in idle_channels:
        constants["w_down"][channel] = 0
    if shared_bias:  # as exporters do with biases of 0
        constants["b_q"][:] = 0
    bias = {part: "b_q" if shared_bias else f"b_{part}" for part in "qkv"}
    constants |= {
        "split": np.array([0, 0, -1, SIZE]),
        "join": np.array([0, 0, -1]),
        "half": np.float32(0.5),
    }
    node = helper.make_node
    nodes = []
    for part, axes in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", ["x", f"w_{part}"], [f"{part}_product"]),
            node("Add", [f"{part}_product", bias[part]], [f"{part}_sum"]),
            node("Reshape", [f"{part}_sum", "split"], [f"{part}_split"]),
            node("Transpose", [f"{part}_split"], [part], perm=axes),
        ]
    nodes += [
        node("MatMul", ["q", "k"], ["scores"]),
        node("Softmax", ["scores"], ["shares"], axis=-1),
        node("MatMul", ["shares", "v"], ["mixed"]),
        node("Transpose", ["mixed"], ["transposed"], perm=[0, 2, 1, 3]),
        node("Reshape", ["transposed", "join"], ["joined"]),
        node("MatMul", ["joined", "w_o"], ["attended"]),
        node("Add", ["attended", "x"], ["residual"]),
        node("MatMul", ["residual", "w_up"], ["up_product"]),
        node("Add", ["up_product", "b_up"], ["up"]),
        node("Sigmoid", ["up"], ["gate"]),
        node("Mul", ["up", "gate"], ["gated"]),
        node("Mul", ["gated", "half"], ["active"]),
        node("MatMul", ["active", "w_down"], ["answer"]),
    ]
    shape = ["n", "length", WIDTH]
    return graph_of(nodes, {"x": shape}, shape, constants)


def x(rows: int = 3) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(4).normal(0, 1, (rows, 5, WIDTH)).astype(np.float32)}


def pruned(folder, model, pruning):
    onnx.save(model, folder / "source.onnx")
    write_pruned(folder / "source.onnx", folder / "pruned.onnx", pruning)
    return folder / "source.onnx", folder / "pruned.onnx"


@pytest.mark.parametrize("shared_bias", [False, True])
def test_idle_units_are_removed_and_the_answers_stay(tmp_path, shared_bias):
    idle = list(range(7, HIDDEN, 4))  # 63 of 256: 192 remain, so one more is removed
    model = layer([1], [*idle, 0], shared_bias)
    source, target = pruned(tmp_path, model, Pruning(0.25, 0.25))
    assert np.abs(run(target, x()) - run(source, x())).max() < 1e-5
    sizes = {t.name: list(t.dims) for t in onnx.load(target).graph.initializer}
    assert sizes["w_v"] == sizes["w_q"] == [WIDTH, 3 * SIZE]
    assert sizes["w_o"] == [3 * SIZE, WIDTH]
    assert sizes["w_up"] == [WIDTH, 192]
    assert sizes["w_down"] == [192, WIDTH]
    assert sizes["b_up"] == [192]


def test_a_pruned_model_without_idle_units_gives_other_answers(tmp_path):
    source, target = pruned(tmp_path, layer(), Pruning(heads=0.5))
    assert np.abs(run(target, x()) - run(source, x())).max() > 1e-2
    assert target.stat().st_size < source.stat().st_size


def test_heads_and_channels_are_found():
    graph = layer().graph
    (attention,), (channels,) = attention_blocks(graph), channel_blocks(graph)
    assert (attention.first, attention.last, attention.size) == ("w_v", "w_o", SIZE)
    assert {"w_q", "w_k", "w_v", "b_q", "b_k", "b_v"} == set(attention.columns)
    assert (channels.columns, channels.last) == (("w_up", "b_up"), "w_down")


def test_a_layer_whose_inner_tensor_has_other_readers_is_not_pruned():
    model = layer()
    model.graph.output.append(helper.make_tensor_value_info("active", 1, ["n", "length", HIDDEN]))
    assert channel_blocks(model.graph) == []


@pytest.mark.parametrize(("pruning", "what"), [(Pruning(heads=0.5), "attention heads"),
                                               (Pruning(channels=0.5), "channels")])  # fmt: skip
def test_a_graph_without_them_is_refused(tmp_path, pruning, what):
    with pytest.raises(ExportFailed, match=f"no {what} can be identified.*Leave out --prune"):
        pruned(tmp_path, convolutions(), pruning)


@pytest.mark.parametrize("text", ["heads", "heads=2", "heads=0", "width=0.5", "heads=x", ""])
def test_invalid_shares_are_refused(text):
    with pytest.raises(ConversionError, match=r"write heads=0\.25"):
        Pruning.parse(text)


def test_shares():
    assert Pruning.parse("heads=0.25, channels=0.5") == Pruning(0.25, 0.5)

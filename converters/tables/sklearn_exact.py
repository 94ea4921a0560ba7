"""Converters in the place of skl2onnx's own: exactly scikit-learn's arithmetic, in its order.

skl2onnx's trees and SimpleImputer know FP32 only, and its MinMaxScaler rounds in another order:
each sends a row that lies near a threshold to the other side. Each function is a converter as
skl2onnx wants it: ``(scope, operator, container)``.
"""

from typing import Any

import numpy as np
import onnx

from converters.sources.sklearn_trees import tree_models, tree_sum
from converters.tables.tree_graph import tree_parts
from converters.tables.trees2onnx import ML_OPSET

ML_DOMAIN = "ai.onnx.ml"


def register_exact() -> None:
    """Make skl2onnx use these."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import (
        calculate_linear_classifier_output_shapes,
        calculate_linear_regressor_output_shapes,
    )
    from skl2onnx.shape_calculators.imputer import calculate_sklearn_imputer_output_shapes
    from skl2onnx.shape_calculators.scaler import calculate_sklearn_scaler_output_shapes
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import MinMaxScaler

    flags = {
        "zipmap": [True, False, "columns"],
        "nocl": [True, False],
        "raw_scores": [True, False],
        "output_class_labels": [False, True],
    }
    classifier = calculate_linear_classifier_output_shapes
    regressor = calculate_linear_regressor_output_shapes
    for model, classifies in tree_models():
        update_registered_converter(
            model,
            f"Sklearn{model.__name__}",
            classifier if classifies else regressor,
            _convert_trees,
            options=flags if classifies else None,
        )
    for part, shapes, convert in (
        (SimpleImputer, calculate_sklearn_imputer_output_shapes, _convert_imputer),
        (MinMaxScaler, calculate_sklearn_scaler_output_shapes, _convert_min_max),
    ):
        update_registered_converter(part, f"Sklearn{part.__name__}", shapes, convert)


def _convert_trees(scope: Any, operator: Any, container: Any) -> None:
    from skl2onnx.common.data_types import guess_proto_type

    form = tree_sum(operator.raw_operator)
    source = scope.get_unique_variable_name("trees")
    container.add_node("Identity", [_joined(scope, operator, container)], [source])
    made = tree_parts(form.trees, form.start, form.link, narrow=form.narrow, source=source)
    for name, value in made.constants.items():
        container.add_initializer(name, onnx.TensorProto.DOUBLE, value.shape, value.ravel())
    for part in made.parts:
        versions = {"op_domain": part.domain, "op_version": ML_OPSET} if part.domain else {}
        name = scope.get_unique_operator_name(part.operator)
        container.add_node(
            part.operator,
            list(part.inputs),
            [part.output],
            name=name,
            **versions,
            **part.attributes,
        )
    target, answer = operator.outputs[-1], made.parts[-1].output
    container.add_node("Cast", [answer], [target.full_name], to=guess_proto_type(target.type))
    if len(operator.outputs) > 1:
        _add_label(scope, operator, container, answer)


def _add_label(scope: Any, operator: Any, container: Any, answer: str) -> None:
    classes = np.asarray(operator.raw_operator.classes_)
    is_text = classes.dtype.kind in "OUS"
    held = [str(each).encode() if is_text else int(each) for each in classes]
    place = scope.get_unique_variable_name("place")
    names = _constant(
        scope, container, held, onnx.TensorProto.STRING if is_text else onnx.TensorProto.INT64
    )
    container.add_node("ArgMax", [answer], [place], axis=1, keepdims=0)
    container.add_node("Gather", [names, place], [operator.outputs[0].full_name])


def _convert_min_max(scope: Any, operator: Any, container: Any) -> None:
    """``x * scale_ + min_``, as transform() has it."""
    scaler, source = operator.raw_operator, _joined(scope, operator, container)
    kind, target = _number(operator), operator.outputs[0].full_name
    scaled = scope.get_unique_variable_name("scaled")
    container.add_node("Mul", [source, _constant(scope, container, scaler.scale_, kind)], [scaled])
    least = _constant(scope, container, scaler.min_, kind)
    if not scaler.clip:
        container.add_node("Add", [scaled, least], [target])
        return
    moved = scope.get_unique_variable_name("moved")
    container.add_node("Add", [scaled, least], [moved])
    ends = [_constant(scope, container, end, kind, ()) for end in scaler.feature_range]
    container.add_node("Clip", [moved, *ends], [target])


def _convert_imputer(scope: Any, operator: Any, container: Any) -> None:
    """What is missing becomes ``statistics_``; in a text column the empty text is missing."""
    imputer, source = operator.raw_operator, _joined(scope, operator, container)
    statistics = np.asarray(imputer.statistics_)
    if imputer.indicator_ is not None:
        raise NotImplementedError("SimpleImputer(add_indicator=True) has no converter")
    gone, target = scope.get_unique_variable_name("missing"), operator.outputs[0].full_name
    if statistics.dtype.kind in "OUS":
        flags = scope.get_unique_variable_name("flags")
        container.add_node(
            "LabelEncoder",
            [source],
            [flags],
            keys_strings=[""],
            values_int64s=[1],
            default_int64=0,
            op_domain=ML_DOMAIN,
            op_version=2,
        )
        container.add_node("Cast", [flags], [gone], to=onnx.TensorProto.BOOL)
        texts = [str(each).encode() for each in statistics]
        fill = _constant(scope, container, texts, onnx.TensorProto.STRING)
    else:
        kind, held = _number(operator), statistics.astype(np.float64)
        fill = _constant(scope, container, held, kind)
        if not np.isfinite(held).all():
            raise NotImplementedError("a SimpleImputer that drops empty columns has no converter")
        if np.isnan(float(imputer.missing_values)):
            container.add_node("IsNaN", [source], [gone])
        else:
            value = _constant(scope, container, [float(imputer.missing_values)], kind)
            container.add_node("Equal", [source, value], [gone])
    container.add_node("Where", [gone, fill, source], [target])


def _joined(scope: Any, operator: Any, container: Any) -> str:
    """The operator's one input; several are joined first."""
    from skl2onnx.operator_converters.common import concatenate_variables

    if len(operator.inputs) > 1:
        return str(concatenate_variables(scope, operator.inputs, container))
    return str(operator.inputs[0].full_name)


def _number(operator: Any) -> int:
    from skl2onnx.common.data_types import guess_proto_type

    return int(guess_proto_type(operator.inputs[0].type))


def _constant(
    scope: Any, container: Any, values: Any, kind: int, shape: tuple[int, ...] | None = None
) -> str:
    name = str(scope.get_unique_variable_name("constant"))
    flat = list(np.ravel(values)) if not isinstance(values, list) else values
    container.add_initializer(name, kind, [len(flat)] if shape is None else list(shape), flat)
    return name

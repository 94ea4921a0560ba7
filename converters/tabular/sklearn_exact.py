"""Converters in the place of skl2onnx's own: exactly scikit-learn's arithmetic, in its order.

skl2onnx's trees and SimpleImputer know FP32 only, and its MinMaxScaler rounds in another order:
each sends a row that lies near a threshold to the other side. Its encoders know neither a missing
category nor rare ones. Each function is a converter as
skl2onnx wants it: ``(scope, operator, container)``.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from converters.sources.sklearn_boosters import XGBOOST, booster_classes
from converters.sources.sklearn_columns import is_missing
from converters.sources.sklearn_encoders import EncoderColumn, encoder_columns
from converters.sources.sklearn_functions import FUNCTIONS, function_parts
from converters.sources.sklearn_trees import tree_models, tree_sum
from converters.tabular.graph_names import TIDEGATE_DOMAIN, VECTORIZE
from converters.tabular.table import MISSING
from converters.tabular.tree_graph import tree_parts
from converters.tabular.trees2onnx import ML_OPSET
from converters.tabular.vectorizers import size_of

ML_DOMAIN = "ai.onnx.ml"


def register_exact(*, zero_missing: bool = False) -> None:
    """Make skl2onnx use these. ``zero_missing``: boosters are given sparse rows, and XGBoost takes
    what such a row leaves out, which is 0, for a missing number."""
    from skl2onnx import _parse, update_registered_converter
    from skl2onnx.common.shape_calculator import (
        calculate_linear_classifier_output_shapes,
        calculate_linear_regressor_output_shapes,
    )
    from skl2onnx.shape_calculators.scaler import calculate_sklearn_scaler_output_shapes
    from sklearn import cluster
    from sklearn.ensemble import IsolationForest
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import (
        Binarizer,
        FunctionTransformer,
        KBinsDiscretizer,
        MinMaxScaler,
        Normalizer,
        OneHotEncoder,
        OrdinalEncoder,
        PolynomialFeatures,
        TargetEncoder,
    )

    # Texts and numbers side by side cannot be merged into one tensor.
    _parse.do_not_merge_columns = (*dict.fromkeys((*_parse.do_not_merge_columns, TargetEncoder)),)
    flags = {
        "zipmap": [True, False, "columns"],
        "nocl": [True, False],
        "raw_scores": [True, False],
        "output_class_labels": [False, True],
    }
    classifier = calculate_linear_classifier_output_shapes
    regressor = calculate_linear_regressor_output_shapes
    for model, classifies in (*tree_models(), *booster_classes()):
        zero = (0.0,) if zero_missing and model.__name__ in XGBOOST else ()
        update_registered_converter(
            model,
            f"Sklearn{model.__name__}",
            classifier if classifies else regressor,
            _trees_converter(zero),
            options=flags if classifies else None,
            parser=_one_answer if model is IsolationForest else None,
        )
    for model in (cluster.KMeans, cluster.MiniBatchKMeans, cluster.BisectingKMeans):
        update_registered_converter(
            model,
            f"Sklearn{model.__name__}",
            _distances_shape,
            _convert_centres,
            parser=_one_answer,
        )
    for model in linear_classifiers():
        update_registered_converter(
            model, f"Sklearn{model.__name__}", classifier, _convert_linear, options=flags
        )
    for part, shapes, convert in (
        (SimpleImputer, _imputed_shape, _convert_imputer),
        (MinMaxScaler, calculate_sklearn_scaler_output_shapes, _convert_min_max),
        (OneHotEncoder, _encoded_shape, _convert_encoder),
        (OrdinalEncoder, _encoded_shape, _convert_encoder),
        (TargetEncoder, _encoded_shape, _convert_encoder),
        (KBinsDiscretizer, _binned_shape, _convert_bins),
        (Binarizer, _same_shape, _convert_binarizer),
        (PolynomialFeatures, _polynomial_shape, _convert_polynomial),
        (Normalizer, _same_shape, _convert_normalizer),
        (TfidfTransformer, _same_shape, _convert_tfidf),
        (FunctionTransformer, _function_shape, _convert_function),
    ):
        update_registered_converter(part, f"Sklearn{part.__name__}", shapes, convert)


def _trees_converter(more_missing: tuple[float, ...]) -> Any:
    """A converter whose trees take these numbers too for missing ones."""

    def convert(scope: Any, operator: Any, container: Any) -> None:
        _convert_trees(scope, operator, container, more_missing)

    return convert


def _convert_trees(
    scope: Any, operator: Any, container: Any, more_missing: tuple[float, ...]
) -> None:
    from skl2onnx.common.data_types import guess_proto_type

    form = tree_sum(operator.raw_operator)
    source = scope.get_unique_variable_name("trees")
    container.add_node("Identity", [_joined(scope, operator, container)], [source])
    made = tree_parts(
        form.trees,
        form.start,
        form.link,
        narrow=form.narrow,
        source=source,
        missing=(*form.missing, *more_missing),
    )
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


def _one_answer(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
    """skl2onnx itself gives these a label too, in an order of its own."""
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    operator = scope.declare_local_operator(f"Sklearn{type(model).__name__}", model)
    operator.inputs = inputs
    single = any(isinstance(each.type, FloatTensorType) for each in inputs)
    kind = FloatTensorType if single else DoubleTensorType
    operator.outputs.append(scope.declare_local_variable("answer", kind()))
    return operator.outputs


def _distances_shape(operator: Any) -> None:
    rows = operator.inputs[0].get_first_dimension()
    operator.outputs[0].type.shape = [rows, len(operator.raw_operator.cluster_centers_)]


def _convert_centres(scope: Any, operator: Any, container: Any) -> None:
    """Minus the distances to the centres: ``|x|^2 - 2 x.c + |c|^2``, as scikit-learn has them."""
    source, kind = _joined(scope, operator, container), onnx.TensorProto.DOUBLE
    centres = np.asarray(operator.raw_operator.cluster_centers_, np.float64)
    named = ("wide", "own", "product", "twice", "first", "square", "positive", "distance", "minus")
    name = {key: str(scope.get_unique_variable_name(key)) for key in named}
    axes = _constant(scope, container, [1], onnx.TensorProto.INT64)
    held = _constant(scope, container, centres.T, kind, centres.T.shape)
    lengths = _constant(scope, container, (centres**2).sum(axis=1), kind, (1, len(centres)))
    two, zero = (_constant(scope, container, [number], kind) for number in (-2.0, 0.0))
    container.add_node("Cast", [source], [name["wide"]], to=kind)
    container.add_node("ReduceSumSquare", [name["wide"], axes], [name["own"]], keepdims=1)
    container.add_node("MatMul", [name["wide"], held], [name["product"]])
    container.add_node("Mul", [name["product"], two], [name["twice"]])
    container.add_node("Add", [name["twice"], name["own"]], [name["first"]])
    container.add_node("Add", [name["first"], lengths], [name["square"]])
    container.add_node("Max", [name["square"], zero], [name["positive"]])
    container.add_node("Sqrt", [name["positive"]], [name["distance"]])
    container.add_node("Neg", [name["distance"]], [name["minus"]])
    target = operator.outputs[0]
    container.add_node("Cast", [name["minus"]], [target.full_name], to=_proto(target, kind))


def register_vectorizers(vectorizers: Sequence[Any]) -> None:
    """Make skl2onnx write a ``VECTORIZE`` node, with its place among these, for each of them."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common.data_types import DoubleTensorType

    positions = {id(each): place for place, each in enumerate(vectorizers)}

    def shape(operator: Any) -> None:
        rows = operator.inputs[0].get_first_dimension()
        operator.outputs[0].type = DoubleTensorType([rows, size_of(operator.raw_operator)])

    def convert(scope: Any, operator: Any, container: Any) -> None:
        container.add_node(
            VECTORIZE,
            [operator.inputs[0].full_name],
            [operator.outputs[0].full_name],
            name=scope.get_unique_operator_name(VECTORIZE),
            op_domain=TIDEGATE_DOMAIN,
            op_version=1,
            place=positions[id(operator.raw_operator)],
        )

    for kind in {type(each) for each in vectorizers}:
        update_registered_converter(kind, f"Sklearn{kind.__name__}", shape, convert)


def linear_classifiers() -> Iterator[type]:
    """The classifiers that are ``x @ coef_ + intercept_`` and a link."""
    from sklearn import linear_model, svm

    names = (
        "LogisticRegression",
        "LogisticRegressionCV",
        "SGDClassifier",
        "Perceptron",
        "RidgeClassifier",
        "RidgeClassifierCV",
        "PassiveAggressiveClassifier",
    )
    yield from (getattr(linear_model, name) for name in names if hasattr(linear_model, name))
    yield svm.LinearSVC


def _convert_linear(scope: Any, operator: Any, container: Any) -> None:
    """Scores, or margins where the estimator has no scores ([n, classes]; of two, -d and d)."""
    model, source = operator.raw_operator, _joined(scope, operator, container)
    kind = _number(operator)
    if kind not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        kind, given = onnx.TensorProto.DOUBLE, source
        source = scope.get_unique_variable_name("numbers")
        container.add_node("Cast", [given], [source], to=kind)
    weights = np.asarray(model.coef_, np.float64).T
    weights = weights.reshape(len(weights), -1)  # a RidgeClassifier of two may have one axis
    start = np.ravel(np.asarray(model.intercept_, np.float64))
    bias = np.broadcast_to(start, weights.shape[1:])
    if weights.shape[1] == 1:
        weights = np.hstack([-weights, weights])
        bias = np.concatenate([-bias, bias])
    names = {
        key: scope.get_unique_variable_name(key) for key in ("product", "margin", "odds", "sum")
    }
    held = _constant(scope, container, weights, kind, weights.shape)
    container.add_node("MatMul", [source, held], [names["product"]])
    begin = _constant(scope, container, bias, kind)
    container.add_node("Add", [names["product"], begin], [names["margin"]])
    answer = scope.get_unique_variable_name("answer")
    match _linear_link(model):
        case "margin":
            container.add_node("Identity", [names["margin"]], [answer])
        case "softmax":
            container.add_node("Softmax", [names["margin"]], [answer], axis=1)
        case "sigmoid":
            container.add_node("Sigmoid", [names["margin"]], [answer])
        case "one against the rest":
            axes = _constant(scope, container, [1], onnx.TensorProto.INT64)
            container.add_node("Sigmoid", [names["margin"]], [names["odds"]])
            container.add_node("ReduceSum", [names["odds"], axes], [names["sum"]], keepdims=1)
            container.add_node("Div", [names["odds"], names["sum"]], [answer])
    target = operator.outputs[-1]
    container.add_node(
        "Cast", [answer], [target.full_name], to=_proto(target, onnx.TensorProto.DOUBLE)
    )
    if len(operator.outputs) > 1:
        _add_label(scope, operator, container, answer)


def _linear_link(model: Any) -> str:
    if not hasattr(model, "predict_proba"):
        return "margin"
    if getattr(model, "loss", "log_loss") != "log_loss":
        raise NotImplementedError(f"{type(model).__name__}(loss={model.loss!r}) has no converter")
    if len(model.classes_) == 2:
        return "sigmoid"
    apart = (
        getattr(model, "multi_class", "") == "ovr" or getattr(model, "solver", "") == "liblinear"
    )
    return "one against the rest" if apart or hasattr(model, "loss") else "softmax"


def _proto(variable: Any, otherwise: int) -> int:
    from skl2onnx.common.data_types import guess_proto_type

    return int(guess_proto_type(variable.type) or otherwise)


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


def _binned_shape(operator: Any) -> None:
    bins = operator.raw_operator.n_bins_
    width = len(bins) if operator.raw_operator.encode == "ordinal" else int(np.sum(bins))
    kind, rows = type(operator.inputs[0].type), operator.inputs[0].get_first_dimension()
    operator.outputs[0].type = kind([rows, width])


def _convert_bins(scope: Any, operator: Any, container: Any) -> None:
    """The bin is how many inner edges the number reaches, all in FP64."""
    part, kind, wide = operator.raw_operator, _number(operator), onnx.TensorProto.DOUBLE
    source, parts = _joined(scope, operator, container), []
    if part.dtype == np.float32:
        narrow = str(scope.get_unique_variable_name("narrow"))
        container.add_node("Cast", [source], [narrow], to=onnx.TensorProto.FLOAT)
        source = narrow
    numbers = str(scope.get_unique_variable_name("numbers"))
    container.add_node("Cast", [source], [numbers], to=wide)
    axes = _constant(scope, container, [1], onnx.TensorProto.INT64)
    for place, edges in enumerate(part.bin_edges_):
        named = ("column", "reached", "ones", "bin", "same", "encoded")
        name = {key: str(scope.get_unique_variable_name(key)) for key in named}
        at = _constant(scope, container, [place], onnx.TensorProto.INT64)
        # One more that nothing reaches: a column of one bin has no inner edge.
        inner = [*map(float, edges[1:-1]), np.inf]
        held = _constant(scope, container, inner, wide, (1, len(inner)))
        container.add_node("Gather", [numbers, at], [name["column"]], axis=1)
        container.add_node("GreaterOrEqual", [name["column"], held], [name["reached"]])
        container.add_node("Cast", [name["reached"]], [name["ones"]], to=kind)
        container.add_node("ReduceSum", [name["ones"], axes], [name["bin"]], keepdims=1)
        if part.encode == "ordinal":
            parts.append(name["bin"])
            continue
        count = int(part.n_bins_[place])
        each = _constant(scope, container, list(map(float, range(count))), kind, (1, count))
        container.add_node("Equal", [name["bin"], each], [name["same"]])
        container.add_node("Cast", [name["same"]], [name["encoded"]], to=kind)
        parts.append(name["encoded"])
    container.add_node("Concat", parts, [operator.outputs[0].full_name], axis=1)


def _polynomial_shape(operator: Any) -> None:
    kind, rows = type(operator.inputs[0].type), operator.inputs[0].get_first_dimension()
    operator.outputs[0].type = kind([rows, int(operator.raw_operator.n_output_features_)])


def _convert_polynomial(scope: Any, operator: Any, container: Any) -> None:
    """Each output is a product of columns: as many factors as the degree, the rest of them 1."""
    part, kind, source = (
        operator.raw_operator,
        _number(operator),
        _joined(scope, operator, container),
    )
    columns = int(part.n_features_in_)
    factors = [np.repeat(np.arange(columns), powers) for powers in part.powers_]
    degree = max(1, *(len(each) for each in factors))
    positions = np.array([[*each, *[columns] * (degree - len(each))] for each in factors])
    names = [str(scope.get_unique_variable_name(key)) for key in ("first", "gone", "one", "more")]
    first, gone, one, more = names
    origin = _constant(scope, container, [0], onnx.TensorProto.INT64)
    plus = _constant(scope, container, [1.0], kind)
    # 1 in every row, whatever stands there.
    container.add_node("Gather", [source, origin], [first], axis=1)
    container.add_node("IsNaN", [first], [gone])
    container.add_node("Where", [gone, plus, plus], [one])
    container.add_node("Concat", [source, one], [more], axis=1)
    product = ""
    for place in range(degree):
        at = _constant(scope, container, positions[:, place].tolist(), onnx.TensorProto.INT64)
        factor = str(scope.get_unique_variable_name("factor"))
        container.add_node("Gather", [more, at], [factor], axis=1)
        if not product:
            product = factor
            continue
        grown = str(scope.get_unique_variable_name("product"))
        container.add_node("Mul", [product, factor], [grown])
        product = grown
    container.add_node("Identity", [product], [operator.outputs[0].full_name])


def _convert_binarizer(scope: Any, operator: Any, container: Any) -> None:
    source, kind = _joined(scope, operator, container), _number(operator)
    numbers, over = (str(scope.get_unique_variable_name(key)) for key in ("numbers", "over"))
    wide = onnx.TensorProto.DOUBLE
    threshold = _constant(scope, container, [float(operator.raw_operator.threshold)], wide)
    container.add_node("Cast", [source], [numbers], to=wide)
    container.add_node("Greater", [numbers, threshold], [over])
    container.add_node("Cast", [over], [operator.outputs[0].full_name], to=kind)


def _same_shape(operator: Any) -> None:
    kind = type(operator.inputs[0].type)
    rows = operator.inputs[0].get_first_dimension()
    operator.outputs[0].type = kind([rows, int(operator.raw_operator.n_features_in_)])


def _convert_normalizer(scope: Any, operator: Any, container: Any) -> None:
    source = _joined(scope, operator, container)
    _add_norm(scope, operator, container, source, operator.raw_operator.norm)


def _add_norm(scope: Any, operator: Any, container: Any, source: str, norm: str | None) -> None:
    """Rows divided by their norm, where it is not 0, into the operator's output."""
    kind, target = _number(operator), operator.outputs[0].full_name
    if norm is None:
        container.add_node("Identity", [source], [target])
        return
    names = [scope.get_unique_variable_name("norm") for _ in range(4)]
    size, length, is_zero, safe = map(str, names)
    axes = _constant(scope, container, [1], onnx.TensorProto.INT64)
    container.add_node("Abs", [source], [size])
    reduce = {"l1": "ReduceSum", "l2": "ReduceL2", "max": "ReduceMax"}[norm]
    container.add_node(reduce, [size, axes], [length], keepdims=1)
    zero, one = (_constant(scope, container, [number], kind) for number in (0.0, 1.0))
    container.add_node("Equal", [length, zero], [is_zero])
    container.add_node("Where", [is_zero, one, length], [safe])
    container.add_node("Div", [source, safe], [target])


def _function_shape(operator: Any) -> None:
    first = operator.inputs[0]
    width = sum(each.type.shape[1] or 0 for each in operator.inputs) or None
    operator.outputs[0].type = type(first.type)([first.get_first_dimension(), width])


def _convert_function(scope: Any, operator: Any, container: Any) -> None:
    function, source = operator.raw_operator.func, _joined(scope, operator, container)
    kind, target = _number(operator), operator.outputs[0].full_name
    made = function_parts(function, source, target)
    if made is None:
        raise NotImplementedError(
            f"FunctionTransformer({getattr(function, '__name__', function)}) has no converter: "
            f"there are {', '.join(sorted(FUNCTIONS))}, and none at all"
        )
    if source != target and not made:
        container.add_node("Identity", [source], [target])
    for name, inputs, output, number in made:
        more = [] if number is None else [_constant(scope, container, [number], kind)]
        container.add_node(name, [*inputs, *more], [output])


def _convert_tfidf(scope: Any, operator: Any, container: Any) -> None:
    part, source = operator.raw_operator, _joined(scope, operator, container)
    kind = _number(operator)
    if part.sublinear_tf:
        names = [scope.get_unique_variable_name("tf") for _ in range(5)]
        held, safe, logs, more, grown = map(str, names)
        zero, one = (_constant(scope, container, [number], kind) for number in (0.0, 1.0))
        container.add_node("Greater", [source, zero], [held])
        container.add_node("Where", [held, source, one], [safe])
        container.add_node("Log", [safe], [logs])
        container.add_node("Add", [logs, one], [more])
        container.add_node("Where", [held, more, zero], [grown])
        source = grown
    if part.use_idf:
        weighed = str(scope.get_unique_variable_name("tfidf"))
        idf = _constant(scope, container, np.asarray(part.idf_, np.float64), kind)
        container.add_node("Mul", [source, idf], [weighed])
        source = weighed
    _add_norm(scope, operator, container, source, part.norm)


def _convert_imputer(scope: Any, operator: Any, container: Any) -> None:
    """What is missing becomes ``statistics_``; in a text column the empty text is missing."""
    imputer, source = operator.raw_operator, _joined(scope, operator, container)
    statistics = np.asarray(imputer.statistics_)
    gone, target = scope.get_unique_variable_name("missing"), operator.outputs[0].full_name
    whole, indicator = target, imputer.indicator_
    if indicator is not None:
        target = scope.get_unique_variable_name("filled")
    mark = imputer.missing_values
    # A constant of numbers is kept as objects.
    of_texts = any(isinstance(each, str) for each in statistics)
    if of_texts:
        keys = ["", MISSING] if is_missing(mark) else [str(mark)]
        _add_lookup(scope, container, source, gone, dict.fromkeys(keys, 1), 0)
        flags, gone = gone, scope.get_unique_variable_name("is_missing")
        container.add_node("Cast", [flags], [gone], to=onnx.TensorProto.BOOL)
        texts = [str(each).encode() for each in statistics]
        fill = _constant(scope, container, texts, onnx.TensorProto.STRING)
    else:
        kind, held = _number(operator), statistics.astype(np.float64)
        fill = _constant(scope, container, held, kind)
        if not np.isfinite(held).all():
            raise NotImplementedError("a SimpleImputer that drops empty columns has no converter")
        if is_missing(mark):
            container.add_node("IsNaN", [source], [gone])
        else:
            value = _constant(scope, container, [float(mark)], kind)
            container.add_node("Equal", [source, value], [gone])
    container.add_node("Where", [gone, fill, source], [target])
    if indicator is None:
        return
    if of_texts:
        raise NotImplementedError("SimpleImputer(add_indicator=True) of texts has no converter")
    ones, flagged = map(str, (scope.get_unique_variable_name("flag") for _ in range(2)))
    chosen = _constant(
        scope, container, [int(each) for each in indicator.features_], onnx.TensorProto.INT64
    )
    container.add_node("Cast", [gone], [ones], to=_number(operator))
    container.add_node("Gather", [ones, chosen], [flagged], axis=1)
    container.add_node("Concat", [target, flagged], [whole], axis=1)


def _imputed_shape(operator: Any) -> None:
    first, imputer = operator.inputs[0], operator.raw_operator
    flags = 0 if imputer.indicator_ is None else len(imputer.indicator_.features_)
    width = len(imputer.statistics_) + flags
    operator.outputs[0].type = type(first.type)([first.get_first_dimension(), width])


def _add_lookup(
    scope: Any,
    container: Any,
    source: str,
    target: str,
    positions: Mapping[str, int],
    otherwise: int,
) -> None:
    """Texts [...] -> INT64 of the same shape."""
    container.add_node(
        "LabelEncoder",
        [source],
        [target],
        name=scope.get_unique_operator_name("LabelEncoder"),
        keys_strings=list(positions),
        values_int64s=list(positions.values()),
        default_int64=otherwise,
        op_domain=ML_DOMAIN,
        op_version=2,
    )


def _encoded_shape(operator: Any) -> None:
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    kinds = [type(each.type) for each in operator.inputs]
    kind = FloatTensorType if FloatTensorType in kinds else DoubleTensorType
    width = sum(each.rows.shape[1] for each in encoder_columns(operator.raw_operator))
    operator.outputs[0].type = kind([operator.inputs[0].get_first_dimension(), width])


def _convert_encoder(scope: Any, operator: Any, container: Any) -> None:
    """Each column's value is looked up among its categories, and what the encoder itself gives for
    that category is read from a table: every option of the encoder is in it."""
    from skl2onnx.common.data_types import StringTensorType, guess_proto_type

    columns = encoder_columns(operator.raw_operator)
    known, kind = iter(columns), guess_proto_type(operator.outputs[0].type)
    parts: list[str] = []
    for each in operator.inputs:
        # One input holds all; of several, each says its width.
        width = len(columns) if len(operator.inputs) == 1 else each.type.shape[1]
        for place in range(width):
            column = next(known)
            source = each.full_name
            if width > 1:
                at = _constant(scope, container, [place], onnx.TensorProto.INT64)
                source = scope.get_unique_variable_name("column")
                container.add_node("Gather", [each.full_name, at], [source], axis=1)
            is_text = isinstance(each.type, StringTensorType)
            find = _place_of_text if is_text else _place_of_number
            index = find(scope, container, source, column, each)
            rows = _constant(scope, container, column.rows, kind, column.rows.shape)
            found = scope.get_unique_variable_name("encoded")
            container.add_node("Gather", [rows, index], [found], axis=0)
            flat = _constant(scope, container, [-1, column.rows.shape[1]], onnx.TensorProto.INT64)
            parts.append(scope.get_unique_variable_name("encoded_flat"))
            container.add_node("Reshape", [found, flat], [parts[-1]])
    container.add_node("Concat", parts, [operator.outputs[0].full_name], axis=1)


def _place_of_text(
    scope: Any, container: Any, source: str, column: EncoderColumn, _variable: Any
) -> str:
    positions = {str(each): place + 1 for place, each in enumerate(column.known)}
    positions[MISSING] = len(column.known) + 1
    index = str(scope.get_unique_variable_name("place"))
    _add_lookup(scope, container, source, index, positions, 0)
    return index


def _place_of_number(
    scope: Any, container: Any, source: str, column: EncoderColumn, variable: Any
) -> str:
    """1 and on for what is known, 0 for another number, the last for NaN."""
    from skl2onnx.common.data_types import guess_proto_type

    kind, count = int(guess_proto_type(variable.type)), len(column.known)
    names = [scope.get_unique_variable_name("place") for _ in range(6)]
    same, ones, weighed, index, nan, place = map(str, names)
    known = [float(each) for each in column.known]
    held = _constant(scope, container, known, kind, (1, count))
    container.add_node("Equal", [source, held], [same])
    container.add_node("Cast", [same], [ones], to=onnx.TensorProto.INT64)
    numbers = _constant(
        scope, container, list(range(1, count + 1)), onnx.TensorProto.INT64, (1, count)
    )
    container.add_node("Mul", [ones, numbers], [weighed])
    axes = _constant(scope, container, [1], onnx.TensorProto.INT64)
    container.add_node("ReduceSum", [weighed, axes], [index], keepdims=1)
    container.add_node("IsNaN", [source], [nan])
    last = _constant(scope, container, [count + 1], onnx.TensorProto.INT64)
    container.add_node("Where", [nan, last, index], [place])
    return place


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

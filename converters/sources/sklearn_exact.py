"""Converters that replace skl2onnx's own: exactly scikit-learn's arithmetic, in its order.

skl2onnx's trees and SimpleImputer support FP32 only, and its MinMaxScaler rounds in another order:
each sends a row near a threshold to the other side. Its encoders support neither missing nor rare
categories. Each function is a converter with skl2onnx's signature: ``(scope, operator,
container)``.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from converters.export.graph_names import TIDEGATE_DOMAIN, VECTORIZE
from converters.export.tree_graph import tree_parts
from converters.export.trees2onnx import ML_OPSET
from converters.sources.sklearn_boosters import XGBOOST, booster_classes
from converters.sources.sklearn_columns import is_missing
from converters.sources.sklearn_encoders import EncoderColumn, encoder_columns
from converters.sources.sklearn_functions import FUNCTIONS, function_parts
from converters.sources.sklearn_kernels import convert_decision, register_kernels
from converters.sources.sklearn_members import register_members
from converters.sources.sklearn_mixtures import register_mixtures
from converters.sources.sklearn_neighbors import register_neighbors
from converters.sources.sklearn_nodes import (
    LINEAR_MODELS,
    SCORES_OPTIONS,
    GraphPart,
    add_output,
    wants_margins,
)
from converters.sources.sklearn_trees import tree_models, tree_sum
from converters.sources.vectorizers import size_of
from converters.table import MISSING

ML_DOMAIN = "ai.onnx.ml"


def register_exact(number: Any, *, zero_missing: bool = False) -> None:
    """Make skl2onnx use these converters. ``number`` is the type of the graph's numbers
    (DoubleTensorType or FloatTensorType). ``zero_missing``: boosters are given sparse rows, in
    which XGBoost reads the omitted values, which are 0, as missing."""
    from skl2onnx import _parse, update_registered_converter
    from skl2onnx.common.shape_calculator import (
        calculate_linear_classifier_output_shapes,
        calculate_linear_regressor_output_shapes,
    )
    from skl2onnx.shape_calculators.scaler import calculate_sklearn_scaler_output_shapes
    from sklearn import cluster, svm
    from sklearn.ensemble import IsolationForest
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.impute import MissingIndicator, SimpleImputer
    from sklearn.naive_bayes import CategoricalNB
    from sklearn.preprocessing import (
        Binarizer,
        FunctionTransformer,
        KBinsDiscretizer,
        MaxAbsScaler,
        MinMaxScaler,
        Normalizer,
        OneHotEncoder,
        OrdinalEncoder,
        PolynomialFeatures,
        PowerTransformer,
        TargetEncoder,
    )

    # skl2onnx cannot merge adjacent text and number columns into one tensor.
    _parse.guess_tensor_type = _type_guess(number)
    unmerged = (*_parse.do_not_merge_columns, TargetEncoder, SimpleImputer)
    _parse.do_not_merge_columns = (*dict.fromkeys(unmerged),)
    classifier = calculate_linear_classifier_output_shapes
    regressor = calculate_linear_regressor_output_shapes
    for model, classifies in (*tree_models(), *booster_classes()):
        zero = (0.0,) if zero_missing and model.__name__ in XGBOOST else ()
        update_registered_converter(
            model,
            f"Sklearn{model.__name__}",
            classifier if classifies else regressor,
            _trees_converter(zero),
            options=SCORES_OPTIONS if classifies else None,
            parser=_single_output_parser if model is IsolationForest else None,
        )
    for model in (cluster.KMeans, cluster.MiniBatchKMeans, cluster.BisectingKMeans):
        update_registered_converter(
            model,
            f"Sklearn{model.__name__}",
            _distances_shape,
            _convert_centres,
            parser=_single_output_parser,
        )
    for model in linear_classifiers():
        update_registered_converter(
            model, f"Sklearn{model.__name__}", classifier, _convert_linear, options=SCORES_OPTIONS
        )
    update_registered_converter(
        svm.OneClassSVM,
        "SklearnOneClassSVM",
        _decision_shape,
        convert_decision,
        parser=_single_output_parser,
    )
    register_members()
    register_kernels()
    register_neighbors()
    register_mixtures(_components_shape, _single_output_parser)
    update_registered_converter(
        CategoricalNB,
        "SklearnCategoricalNB",
        classifier,
        _convert_categorical_bayes,
        options=SCORES_OPTIONS,
    )
    # skl2onnx's own fails if only the first column is selected.
    for selector in _selectors():
        update_registered_converter(
            selector, f"Sklearn{selector.__name__}", _selected_shape, _convert_selection
        )
    update_registered_converter(
        SimpleImputer,
        "SklearnSimpleImputer",
        _imputed_shape,
        _convert_imputer,
        parser=_imputer_parser,
    )
    for part, shapes, convert in (
        (MissingIndicator, _flagged_shape, _convert_indicator),
        (MinMaxScaler, calculate_sklearn_scaler_output_shapes, _convert_min_max),
        (MaxAbsScaler, calculate_sklearn_scaler_output_shapes, _convert_max_abs),
        (OneHotEncoder, _encoded_shape(number), _convert_encoder),
        (OrdinalEncoder, _encoded_shape(number), _convert_encoder),
        (TargetEncoder, _encoded_shape(number), _convert_encoder),
        (KBinsDiscretizer, _binned_shape, _convert_bins),
        (Binarizer, _same_shape, _convert_binarizer),
        (PolynomialFeatures, _polynomial_shape, _convert_polynomial),
        (Normalizer, _same_shape, _convert_normalizer),
        (PowerTransformer, _same_shape, _convert_powers),
        (TfidfTransformer, _same_shape, _convert_tfidf),
        (FunctionTransformer, _function_shape, _convert_function),
    ):
        update_registered_converter(part, f"Sklearn{part.__name__}", shapes, convert)


def _type_guess(number: Any) -> Any:
    """A replacement for skl2onnx's guess of an output's type from the first input's: it takes texts
    for FP32, and then the outputs of all that follows a column of texts."""
    from skl2onnx.common.data_types import StringTensorType, guess_tensor_type

    def guess(data_type: Any) -> Any:
        return number() if isinstance(data_type, StringTensorType) else guess_tensor_type(data_type)

    return guess


def _selectors() -> Iterator[type]:
    from sklearn import feature_selection

    names = (
        "GenericUnivariateSelect",
        "SelectFdr",
        "SelectFpr",
        "SelectFromModel",
        "SelectFwe",
        "SelectKBest",
        "SelectPercentile",
        "SequentialFeatureSelector",
        "VarianceThreshold",
    )
    yield from (getattr(feature_selection, name) for name in names)


def _trees_converter(extra_missing: tuple[float, ...]) -> Any:
    """A converter whose trees also read these numbers as missing."""

    def convert(scope: Any, operator: Any, container: Any) -> None:
        _convert_trees(scope, operator, container, extra_missing)

    return convert


def _convert_trees(
    scope: Any, operator: Any, container: Any, extra_missing: tuple[float, ...]
) -> None:
    tree_model = tree_sum(operator.raw_operator)
    is_classifier = hasattr(operator.raw_operator, "classes_")
    as_margins = is_classifier and wants_margins(scope, operator)
    if as_margins and tree_model.slope != 1:
        raise NotImplementedError("margins of a LightGBM model with sigmoid= have no converter")
    source = scope.get_unique_variable_name("trees")
    container.add_node("Identity", [_joined_input(scope, operator, container)], [source])
    subgraph = tree_parts(
        tree_model.trees,
        tree_model.start,
        "identity" if as_margins else tree_model.link,
        narrow=tree_model.narrow,
        source=source,
        missing=(*tree_model.missing, *extra_missing),
    )
    for name, value in subgraph.constants.items():
        container.add_initializer(name, onnx.TensorProto.DOUBLE, value.shape, value.ravel())
    for part in subgraph.parts:
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
    add_output(GraphPart(scope, container), operator, subgraph.parts[-1].output)


def _single_output_parser(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
    """A parser for one output; skl2onnx's own adds a label, in its own order."""
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    operator = scope.declare_local_operator(f"Sklearn{type(model).__name__}", model)
    operator.inputs = inputs
    is_fp32 = any(isinstance(variable.type, FloatTensorType) for variable in inputs)
    tensor_type = FloatTensorType if is_fp32 else DoubleTensorType
    operator.outputs.append(scope.declare_local_variable("answer", tensor_type()))
    return operator.outputs


def _decision_shape(operator: Any) -> None:
    from skl2onnx.common.data_types import DoubleTensorType

    operator.outputs[0].type = DoubleTensorType([operator.inputs[0].get_first_dimension(), 1])


def _components_shape(operator: Any) -> None:
    rows = operator.inputs[0].get_first_dimension()
    operator.outputs[0].type.shape = [rows, operator.raw_operator.n_components]


def _distances_shape(operator: Any) -> None:
    rows = operator.inputs[0].get_first_dimension()
    operator.outputs[0].type.shape = [rows, len(operator.raw_operator.cluster_centers_)]


def _convert_centres(scope: Any, operator: Any, container: Any) -> None:
    """The distances to the centres, ``transform``: ``|x|^2 - 2 x.c + |c|^2``, as scikit-learn
    computes them."""
    source, dtype = _joined_input(scope, operator, container), onnx.TensorProto.DOUBLE
    centres = np.asarray(operator.raw_operator.cluster_centers_, np.float64)
    keys = (
        "wide",
        "length",
        "product",
        "twice",
        "first",
        "square",
        "positive",
        "distance",
    )
    name = {key: str(scope.get_unique_variable_name(key)) for key in keys}
    axes = _constant(scope, container, [1], onnx.TensorProto.INT64)
    centre_columns = _constant(scope, container, centres.T, dtype, centres.T.shape)
    centre_lengths = _constant(scope, container, (centres**2).sum(axis=1), dtype, (1, len(centres)))
    two, zero = (_constant(scope, container, [number], dtype) for number in (-2.0, 0.0))
    container.add_node("Cast", [source], [name["wide"]], to=dtype)
    container.add_node("ReduceSumSquare", [name["wide"], axes], [name["length"]], keepdims=1)
    container.add_node("MatMul", [name["wide"], centre_columns], [name["product"]])
    container.add_node("Mul", [name["product"], two], [name["twice"]])
    container.add_node("Add", [name["twice"], name["length"]], [name["first"]])
    container.add_node("Add", [name["first"], centre_lengths], [name["square"]])
    container.add_node("Max", [name["square"], zero], [name["positive"]])
    container.add_node("Sqrt", [name["positive"]], [name["distance"]])
    add_output(GraphPart(scope, container), operator, name["distance"])


def register_vectorizers(vectorizers: Sequence[Any]) -> None:
    """Make skl2onnx write a ``VECTORIZE`` node, with its index among ``vectorizers``, for each of
    them."""
    from skl2onnx import update_registered_converter
    from skl2onnx.common.data_types import DoubleTensorType

    indices = {id(vectorizer): index for index, vectorizer in enumerate(vectorizers)}

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
            index=indices[id(operator.raw_operator)],
        )

    for vectorizer_class in {type(vectorizer) for vectorizer in vectorizers}:
        update_registered_converter(
            vectorizer_class, f"Sklearn{vectorizer_class.__name__}", shape, convert
        )


def linear_classifiers() -> Iterator[type]:
    """Yield the classifiers that are ``x @ coef_ + intercept_`` and a link."""
    from sklearn import discriminant_analysis, linear_model, svm

    yield from (
        getattr(linear_model, name) for name in LINEAR_MODELS if hasattr(linear_model, name)
    )
    yield svm.LinearSVC
    yield discriminant_analysis.LinearDiscriminantAnalysis


def _convert_linear(scope: Any, operator: Any, container: Any) -> None:
    """Scores, or margins if they are asked for or the estimator has no scores ([n, classes]; for
    two, -d and d)."""
    model, part = operator.raw_operator, GraphPart(scope, container)
    source = part.wide(_joined_input(scope, operator, container))
    weights = np.asarray(model.coef_, np.float64).T
    # A RidgeClassifier for two classes may have one axis.
    weights = weights.reshape(len(weights), -1)
    start = np.ravel(np.asarray(model.intercept_, np.float64))
    bias = np.broadcast_to(start, weights.shape[1:])
    if weights.shape[1] == 1:
        weights = np.hstack([-weights, weights])
        bias = np.concatenate([-bias, bias])
    product = part.node("MatMul", [source, part.constant(weights, weights.shape)])
    margin = part.node("Add", [product, part.constant(bias)])
    link = "margin" if wants_margins(scope, operator) else _linear_link(model)
    add_output(part, operator, _linear_output(part, margin, link))


def _linear_output(part: GraphPart, margin: str, link: str) -> str:
    match link:
        case "margin":
            return margin
        case "softmax":
            return part.node("Softmax", [margin], axis=1)
        case "sigmoid":
            return part.node("Sigmoid", [margin])
        case "one against the rest":
            return part.shares(part.node("Sigmoid", [margin]))
        case "clipped":
            ends = [part.constant(end, ()) for end in (-1.0, 1.0)]
            shifted = part.node("Add", [part.node("Clip", [margin, *ends]), part.constant([1.0])])
            return part.shares(part.node("Mul", [shifted, part.constant([0.5])]))
    raise ValueError(f"there is no link {link!r}")


def _linear_link(model: Any) -> str:
    loss = getattr(model, "loss", "log_loss")
    if loss not in ("log_loss", "modified_huber"):
        raise NotImplementedError(f"{type(model).__name__}(loss={loss!r}) has no converter")
    if loss == "modified_huber":
        return "clipped"
    if len(model.classes_) == 2:
        return "sigmoid"
    one_vs_rest = (
        getattr(model, "multi_class", "") == "ovr" or getattr(model, "solver", "") == "liblinear"
    )
    return "one against the rest" if one_vs_rest or hasattr(model, "loss") else "softmax"


def _convert_min_max(scope: Any, operator: Any, container: Any) -> None:
    """``x * scale_ + min_``, as transform() computes it."""
    scaler, source = operator.raw_operator, _joined_input(scope, operator, container)
    dtype, target = _input_dtype(operator), operator.outputs[0].full_name
    scaled = scope.get_unique_variable_name("scaled")
    container.add_node("Mul", [source, _constant(scope, container, scaler.scale_, dtype)], [scaled])
    minimum = _constant(scope, container, scaler.min_, dtype)
    if not scaler.clip:
        container.add_node("Add", [scaled, minimum], [target])
        return
    moved = scope.get_unique_variable_name("moved")
    container.add_node("Add", [scaled, minimum], [moved])
    ends = [_constant(scope, container, end, dtype, ()) for end in scaler.feature_range]
    container.add_node("Clip", [moved, *ends], [target])


def _selected_shape(operator: Any) -> None:
    first = operator.inputs[0]
    width = len(operator.raw_operator.get_support(indices=True))
    operator.outputs[0].type = type(first.type)([first.get_first_dimension(), width])


def _convert_selection(scope: Any, operator: Any, container: Any) -> None:
    selector, part = operator.raw_operator, GraphPart(scope, container)
    positions = part.constant(selector.get_support(indices=True), dtype=onnx.TensorProto.INT64)
    chosen = part.node("Gather", [part.joined_input(operator), positions], axis=1)
    container.add_node("Identity", [chosen], [operator.outputs[0].full_name])


def _convert_max_abs(scope: Any, operator: Any, container: Any) -> None:
    """``x / scale_``, as transform() computes it."""
    scaler, part = operator.raw_operator, GraphPart(scope, container)
    source, dtype = part.joined_input(operator), _input_dtype(operator)
    scaled = part.node("Div", [source, part.constant(scaler.scale_, dtype=dtype)])
    if getattr(scaler, "clip", False):
        ends = [part.constant(end, (), dtype) for end in (-1.0, 1.0)]
        scaled = part.node("Clip", [scaled, *ends])
    container.add_node("Identity", [scaled], [operator.outputs[0].full_name])


def _flagged_shape(operator: Any) -> None:
    from skl2onnx.common.data_types import DoubleTensorType

    first = operator.inputs[0]
    width = len(operator.raw_operator.features_)
    operator.outputs[0].type = DoubleTensorType([first.get_first_dimension(), width])


def _convert_indicator(scope: Any, operator: Any, container: Any) -> None:
    indicator, part = operator.raw_operator, GraphPart(scope, container)
    source = part.wide(part.joined_input(operator))
    if is_missing(indicator.missing_values):
        flags = part.node("IsNaN", [source])
    else:
        flags = part.node("Equal", [source, part.constant([float(indicator.missing_values)])])
    positions = part.constant(indicator.features_, dtype=onnx.TensorProto.INT64)
    chosen = part.node("Gather", [part.wide(flags), positions], axis=1)
    container.add_node("Identity", [chosen], [operator.outputs[0].full_name])


def _binned_shape(operator: Any) -> None:
    bins = operator.raw_operator.n_bins_
    width = len(bins) if operator.raw_operator.encode == "ordinal" else int(np.sum(bins))
    tensor_type, rows = type(operator.inputs[0].type), operator.inputs[0].get_first_dimension()
    operator.outputs[0].type = tensor_type([rows, width])


def _convert_bins(scope: Any, operator: Any, container: Any) -> None:
    """The bin is the number of inner edges that the number reaches, all in FP64."""
    discretizer, dtype, double = (
        operator.raw_operator,
        _input_dtype(operator),
        onnx.TensorProto.DOUBLE,
    )
    source, columns = _joined_input(scope, operator, container), []
    if discretizer.dtype == np.float32:
        narrow = str(scope.get_unique_variable_name("narrow"))
        container.add_node("Cast", [source], [narrow], to=onnx.TensorProto.FLOAT)
        source = narrow
    numbers = str(scope.get_unique_variable_name("numbers"))
    container.add_node("Cast", [source], [numbers], to=double)
    axes = _constant(scope, container, [1], onnx.TensorProto.INT64)
    for index, edges in enumerate(discretizer.bin_edges_):
        keys = ("column", "reached", "ones", "bin", "same", "encoded")
        name = {key: str(scope.get_unique_variable_name(key)) for key in keys}
        index_name = _constant(scope, container, [index], onnx.TensorProto.INT64)
        # One more edge that nothing reaches: a column of one bin has no inner edge.
        inner = [*map(float, edges[1:-1]), np.inf]
        edges_name = _constant(scope, container, inner, double, (1, len(inner)))
        container.add_node("Gather", [numbers, index_name], [name["column"]], axis=1)
        container.add_node("GreaterOrEqual", [name["column"], edges_name], [name["reached"]])
        container.add_node("Cast", [name["reached"]], [name["ones"]], to=dtype)
        container.add_node("ReduceSum", [name["ones"], axes], [name["bin"]], keepdims=1)
        if discretizer.encode == "ordinal":
            columns.append(name["bin"])
            continue
        count = int(discretizer.n_bins_[index])
        bin_numbers = _constant(scope, container, list(map(float, range(count))), dtype, (1, count))
        container.add_node("Equal", [name["bin"], bin_numbers], [name["same"]])
        container.add_node("Cast", [name["same"]], [name["encoded"]], to=dtype)
        columns.append(name["encoded"])
    container.add_node("Concat", columns, [operator.outputs[0].full_name], axis=1)


def _polynomial_shape(operator: Any) -> None:
    tensor_type, rows = type(operator.inputs[0].type), operator.inputs[0].get_first_dimension()
    operator.outputs[0].type = tensor_type([rows, int(operator.raw_operator.n_output_features_)])


def _convert_polynomial(scope: Any, operator: Any, container: Any) -> None:
    """Each output is a product of columns: as many factors as the degree, padded with 1."""
    polynomial, dtype, source = (
        operator.raw_operator,
        _input_dtype(operator),
        _joined_input(scope, operator, container),
    )
    columns = int(polynomial.n_features_in_)
    factors = [np.repeat(np.arange(columns), powers) for powers in polynomial.powers_]
    degree = max(1, *(len(row) for row in factors))
    positions = np.array([[*row, *[columns] * (degree - len(row))] for row in factors])
    names = [
        str(scope.get_unique_variable_name(key)) for key in ("first", "is_nan", "one", "extended")
    ]
    first, is_nan, one, extended = names
    origin = _constant(scope, container, [0], onnx.TensorProto.INT64)
    one_constant = _constant(scope, container, [1.0], dtype)
    # 1 in every row, whatever the first column holds.
    container.add_node("Gather", [source, origin], [first], axis=1)
    container.add_node("IsNaN", [first], [is_nan])
    container.add_node("Where", [is_nan, one_constant, one_constant], [one])
    container.add_node("Concat", [source, one], [extended], axis=1)
    product = ""
    for factor_index in range(degree):
        position = _constant(
            scope, container, positions[:, factor_index].tolist(), onnx.TensorProto.INT64
        )
        factor = str(scope.get_unique_variable_name("factor"))
        container.add_node("Gather", [extended, position], [factor], axis=1)
        if not product:
            product = factor
            continue
        next_product = str(scope.get_unique_variable_name("product"))
        container.add_node("Mul", [product, factor], [next_product])
        product = next_product
    container.add_node("Identity", [product], [operator.outputs[0].full_name])


def _convert_binarizer(scope: Any, operator: Any, container: Any) -> None:
    source, dtype = _joined_input(scope, operator, container), _input_dtype(operator)
    numbers, is_over = (str(scope.get_unique_variable_name(key)) for key in ("numbers", "over"))
    double = onnx.TensorProto.DOUBLE
    threshold = _constant(scope, container, [float(operator.raw_operator.threshold)], double)
    container.add_node("Cast", [source], [numbers], to=double)
    container.add_node("Greater", [numbers, threshold], [is_over])
    container.add_node("Cast", [is_over], [operator.outputs[0].full_name], to=dtype)


def _same_shape(operator: Any) -> None:
    tensor_type = type(operator.inputs[0].type)
    rows = operator.inputs[0].get_first_dimension()
    operator.outputs[0].type = tensor_type([rows, int(operator.raw_operator.n_features_in_)])


def _convert_categorical_bayes(scope: Any, operator: Any, container: Any) -> None:
    """skl2onnx's own supports FP32 only, and with it the step before, which finds the category."""
    model, part = operator.raw_operator, GraphPart(scope, container)
    rows = _joined_input(scope, operator, container)
    codes = part.node("Cast", [rows], to=onnx.TensorProto.INT64)
    total = part.constant(np.asarray(model.class_log_prior_, np.float64))
    for index, logs in enumerate(model.feature_log_prob_):
        position = part.constant(index, (), onnx.TensorProto.INT64)
        code = part.node("Gather", [codes, position], axis=1)
        known = part.node("Gather", [part.constant(logs.T, logs.T.shape), code], axis=0)
        total = part.node("Add", [total, known])
    if wants_margins(scope, operator):
        raise NotImplementedError("the margins of a CategoricalNB have no converter")
    add_output(part, operator, part.node("Softmax", [total], axis=1))


def _convert_powers(scope: Any, operator: Any, container: Any) -> None:
    """skl2onnx's own rounds the powers to FP32."""
    model, part = operator.raw_operator, GraphPart(scope, container)
    rows = part.wide(_joined_input(scope, operator, container))
    powers = np.asarray(model.lambdas_, np.float64)
    one = part.constant([1.0])
    if model.method == "box-cox":
        base, power = rows, part.constant(powers)
    else:
        is_over = part.node("GreaterOrEqual", [rows, part.constant([0.0])])
        base = part.node("Add", [part.node("Abs", [rows]), one])
        power = part.node("Where", [is_over, part.constant(powers), part.constant(2 - powers)])
    is_log = part.node("Equal", [power, part.constant([0.0])])
    safe = part.node("Where", [is_log, one, power])
    raised = part.node("Div", [part.node("Sub", [part.node("Pow", [base, safe]), one]), safe])
    changed = part.node("Where", [is_log, part.node("Log", [base]), raised])
    if model.method != "box-cox":
        changed = part.node("Where", [is_over, changed, part.node("Neg", [changed])])
    if model.standardize:
        mean, scale = (part.constant(row) for row in (model._scaler.mean_, model._scaler.scale_))
        changed = part.node("Div", [part.node("Sub", [changed, mean]), scale])
    target = operator.outputs[0].full_name
    container.add_node("Cast", [changed], [target], to=_input_dtype(operator))


def _convert_normalizer(scope: Any, operator: Any, container: Any) -> None:
    source = _joined_input(scope, operator, container)
    _add_norm(scope, operator, container, source, operator.raw_operator.norm)


def _add_norm(scope: Any, operator: Any, container: Any, source: str, norm: str | None) -> None:
    """Write rows divided by their norm, where it is not 0, to the operator's output."""
    dtype, target = _input_dtype(operator), operator.outputs[0].full_name
    if norm is None:
        container.add_node("Identity", [source], [target])
        return
    names = [scope.get_unique_variable_name("norm") for _ in range(4)]
    size, length, is_zero, safe = map(str, names)
    axes = _constant(scope, container, [1], onnx.TensorProto.INT64)
    container.add_node("Abs", [source], [size])
    reduction = {"l1": "ReduceSum", "l2": "ReduceL2", "max": "ReduceMax"}[norm]
    container.add_node(reduction, [size, axes], [length], keepdims=1)
    zero, one = (_constant(scope, container, [number], dtype) for number in (0.0, 1.0))
    container.add_node("Equal", [length, zero], [is_zero])
    container.add_node("Where", [is_zero, one, length], [safe])
    container.add_node("Div", [source, safe], [target])


def _function_shape(operator: Any) -> None:
    first = operator.inputs[0]
    width = sum(variable.type.shape[1] or 0 for variable in operator.inputs) or None
    operator.outputs[0].type = type(first.type)([first.get_first_dimension(), width])


def _convert_function(scope: Any, operator: Any, container: Any) -> None:
    transformer, source = operator.raw_operator, _joined_input(scope, operator, container)
    function = transformer.func
    if transformer.kw_args:
        raise NotImplementedError(
            f"FunctionTransformer(kw_args={transformer.kw_args!r:.60}) has no converter: use a "
            "function without arguments"
        )
    dtype, target = _input_dtype(operator), operator.outputs[0].full_name
    parts = function_parts(function, source, target)
    if parts is None:
        raise NotImplementedError(
            f"FunctionTransformer({getattr(function, '__name__', function)}) has no converter: use "
            f"{', '.join(sorted(FUNCTIONS))}, or no function"
        )
    if source != target and not parts:
        container.add_node("Identity", [source], [target])
    for operator_name, inputs, output, constant in parts:
        extra_inputs = [] if constant is None else [_constant(scope, container, [constant], dtype)]
        container.add_node(operator_name, [*inputs, *extra_inputs], [output])


def _convert_tfidf(scope: Any, operator: Any, container: Any) -> None:
    transformer, source = operator.raw_operator, _joined_input(scope, operator, container)
    dtype = _input_dtype(operator)
    if transformer.sublinear_tf:
        names = [scope.get_unique_variable_name("tf") for _ in range(5)]
        is_positive, positive, logs, shifted, scaled = map(str, names)
        zero, one = (_constant(scope, container, [number], dtype) for number in (0.0, 1.0))
        container.add_node("Greater", [source, zero], [is_positive])
        container.add_node("Where", [is_positive, source, one], [positive])
        container.add_node("Log", [positive], [logs])
        container.add_node("Add", [logs, one], [shifted])
        container.add_node("Where", [is_positive, shifted, zero], [scaled])
        source = scaled
    if transformer.use_idf:
        weighted = str(scope.get_unique_variable_name("tfidf"))
        idf = _constant(scope, container, np.asarray(transformer.idf_, np.float64), dtype)
        container.add_node("Mul", [source, idf], [weighted])
        source = weighted
    _add_norm(scope, operator, container, source, transformer.norm)


def _imputer_parser(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
    """A parser for one output, or, if texts and numbers are filled together, one for each input."""
    operator = scope.declare_local_operator("SklearnSimpleImputer", model)
    operator.inputs = inputs
    types = [type(variable.type) for variable in inputs]
    for tensor_type in types if len(set(types)) > 1 else types[:1]:
        operator.outputs.append(scope.declare_local_variable("filled", tensor_type()))
    return operator.outputs


def _imputed_shape(operator: Any) -> None:
    imputer, inputs, outputs = operator.raw_operator, operator.inputs, operator.outputs
    rows = inputs[0].get_first_dimension()
    if len(outputs) > 1:
        for source, target in zip(inputs, outputs, strict=True):
            target.type = type(source.type)([rows, source.type.shape[1]])
        return
    flags = 0 if imputer.indicator_ is None else len(imputer.indicator_.features_)
    outputs[0].type = type(inputs[0].type)([rows, len(imputer.statistics_) + flags])


def _convert_imputer(scope: Any, operator: Any, container: Any) -> None:
    """Replace missing values with ``statistics_``."""
    imputer, part = operator.raw_operator, GraphPart(scope, container)
    statistics = np.asarray(imputer.statistics_)
    if len(operator.outputs) > 1:
        if imputer.indicator_ is not None:
            raise NotImplementedError(
                "SimpleImputer(add_indicator=True) for texts and numbers together has no converter"
            )
        start = 0
        for source, target in zip(operator.inputs, operator.outputs, strict=True):
            end = start + source.type.shape[1]
            filled, _ = _filled(part, source.full_name, source, imputer, statistics[start:end])
            container.add_node("Identity", [filled], [target.full_name])
            start = end
        return
    source, first = _joined_input(scope, operator, container), operator.inputs[0]
    filled, is_filled = _filled(part, source, first, imputer, statistics)
    target = operator.outputs[0].full_name
    if imputer.indicator_ is None:
        container.add_node("Identity", [filled], [target])
        return
    if any(isinstance(value, str) for value in statistics):
        raise NotImplementedError("SimpleImputer(add_indicator=True) for texts has no converter")
    positions = part.constant(imputer.indicator_.features_, dtype=onnx.TensorProto.INT64)
    flags = part.node("Cast", [is_filled], to=_input_dtype(operator))
    chosen = part.node("Gather", [flags, positions], axis=1)
    container.add_node("Concat", [filled, chosen], [target], axis=1)


def _filled(
    part: GraphPart, source: str, variable: Any, imputer: Any, statistics: np.ndarray
) -> tuple[str, str]:
    """The tensor with ``statistics`` (one a column) for its missing values, and BOOL where these
    were."""
    from skl2onnx.common.data_types import StringTensorType, guess_proto_type

    missing_value = imputer.missing_values
    if isinstance(variable.type, StringTensorType):
        key = MISSING if is_missing(missing_value) else str(missing_value)
        flags = str(part.scope.get_unique_variable_name("missing"))
        _add_lookup(part.scope, part.container, source, flags, {key: 1}, 0)
        is_filled = part.node("Cast", [flags], to=onnx.TensorProto.BOOL)
        texts = [str(text).encode() for text in statistics]
        fill = _constant(part.scope, part.container, texts, onnx.TensorProto.STRING)
        return part.node("Where", [is_filled, fill, source]), is_filled
    # A numeric constant is stored as objects.
    dtype, numbers = int(guess_proto_type(variable.type)), statistics.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise NotImplementedError("a SimpleImputer that drops empty columns has no converter")
    if is_missing(missing_value):
        is_filled = part.node("IsNaN", [source])
    elif isinstance(missing_value, str):
        return source, ""
    else:
        value = part.constant([float(missing_value)], dtype=dtype)
        is_filled = part.node("Equal", [source, value])
    fill = part.constant(numbers, dtype=dtype)
    return part.node("Where", [is_filled, fill, source]), is_filled


def _add_lookup(
    scope: Any,
    container: Any,
    source: str,
    target: str,
    positions: Mapping[str, int],
    default: int,
) -> None:
    """Look texts [...] up in ``positions``: INT64 of the same shape, ``default`` for an unknown
    one."""
    container.add_node(
        "LabelEncoder",
        [source],
        [target],
        name=scope.get_unique_operator_name("LabelEncoder"),
        keys_strings=list(positions),
        values_int64s=list(positions.values()),
        default_int64=default,
        op_domain=ML_DOMAIN,
        op_version=2,
    )


def _encoded_shape(number: Any) -> Any:
    """A function for the type of an encoder's output, which its inputs, if they are texts, do not
    say."""

    def shape(operator: Any) -> None:
        width = sum(column.rows.shape[1] for column in encoder_columns(operator.raw_operator))
        operator.outputs[0].type = number([operator.inputs[0].get_first_dimension(), width])

    return shape


def _convert_encoder(scope: Any, operator: Any, container: Any) -> None:
    """Look each column's value up among its categories, and read the encoder's own output for that
    category from a table, which covers all of the encoder's options."""
    from skl2onnx.common.data_types import StringTensorType, guess_proto_type

    columns = encoder_columns(operator.raw_operator)
    remaining, dtype = iter(columns), guess_proto_type(operator.outputs[0].type)
    parts: list[str] = []
    for variable in operator.inputs:
        # A single input holds all columns; of several, each declares its width.
        width = len(columns) if len(operator.inputs) == 1 else variable.type.shape[1]
        for position in range(width):
            column = next(remaining)
            source = variable.full_name
            if width > 1:
                position_name = _constant(scope, container, [position], onnx.TensorProto.INT64)
                source = scope.get_unique_variable_name("column")
                container.add_node("Gather", [variable.full_name, position_name], [source], axis=1)
            is_text = isinstance(variable.type, StringTensorType)
            add_index = _index_of_text if is_text else _index_of_number
            index = add_index(scope, container, source, column, variable)
            rows = _constant(scope, container, column.rows, dtype, column.rows.shape)
            encoded = scope.get_unique_variable_name("encoded")
            container.add_node("Gather", [rows, index], [encoded], axis=0)
            flat = _constant(scope, container, [-1, column.rows.shape[1]], onnx.TensorProto.INT64)
            parts.append(scope.get_unique_variable_name("encoded_flat"))
            container.add_node("Reshape", [encoded, flat], [parts[-1]])
    container.add_node("Concat", parts, [operator.outputs[0].full_name], axis=1)


def _index_of_text(
    scope: Any, container: Any, source: str, column: EncoderColumn, _variable: Any
) -> str:
    positions = {str(category): index for index, category in enumerate(column.known, start=1)}
    positions[MISSING] = len(column.known) + 1
    index = str(scope.get_unique_variable_name("index"))
    _add_lookup(scope, container, source, index, positions, 0)
    return index


def _index_of_number(
    scope: Any, container: Any, source: str, column: EncoderColumn, variable: Any
) -> str:
    """1, 2, ... for a known number, 0 for another, the last for NaN."""
    from skl2onnx.common.data_types import guess_proto_type

    dtype, count = int(guess_proto_type(variable.type)), len(column.known)
    names = [scope.get_unique_variable_name("index") for _ in range(6)]
    same, matches, weighted, index, is_nan, result = map(str, names)
    known = [float(category) for category in column.known]
    known_name = _constant(scope, container, known, dtype, (1, count))
    container.add_node("Equal", [source, known_name], [same])
    container.add_node("Cast", [same], [matches], to=onnx.TensorProto.INT64)
    numbers = _constant(
        scope, container, list(range(1, count + 1)), onnx.TensorProto.INT64, (1, count)
    )
    container.add_node("Mul", [matches, numbers], [weighted])
    axes = _constant(scope, container, [1], onnx.TensorProto.INT64)
    container.add_node("ReduceSum", [weighted, axes], [index], keepdims=1)
    container.add_node("IsNaN", [source], [is_nan])
    last = _constant(scope, container, [count + 1], onnx.TensorProto.INT64)
    container.add_node("Where", [is_nan, last, index], [result])
    return result


def _joined_input(scope: Any, operator: Any, container: Any) -> str:
    return GraphPart(scope, container).joined_input(operator)


def _input_dtype(operator: Any) -> int:
    from skl2onnx.common.data_types import guess_proto_type

    return int(guess_proto_type(operator.inputs[0].type))


def _constant(
    scope: Any, container: Any, values: Any, dtype: int, shape: tuple[int, ...] | None = None
) -> str:
    name = str(scope.get_unique_variable_name("constant"))
    flat = list(np.ravel(values)) if not isinstance(values, list) else values
    container.add_initializer(name, dtype, [len(flat)] if shape is None else list(shape), flat)
    return name

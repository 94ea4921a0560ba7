"""Writing nodes into a graph that skl2onnx builds, and asking it for the scores of a member."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

SCORES_OPTIONS = {
    "zipmap": [True, False, "columns"],
    "nocl": [True, False],
    "raw_scores": [True, False],
    "output_class_labels": [False, True],
}


def last_step(model: Any) -> Any:
    """The estimator at the end of a pipeline, or the model itself."""
    while hasattr(model, "steps"):
        model = model.steps[-1][1]
    return model


def unwrapped(estimator: Any) -> Any:
    """The estimator inside a parameter search or a FrozenEstimator."""
    while True:
        if type(estimator).__name__ == "FrozenEstimator":
            estimator = estimator.estimator
        elif type(estimator).__name__.endswith("SearchCV"):
            estimator = estimator.best_estimator_
        else:
            return estimator


def wants_margins(scope: Any, operator: Any) -> bool:
    """Whether an operator is to give ``decision_function``: it was asked for it, or its model has
    no ``predict_proba``."""
    model = operator.raw_operator
    asked = scope.get_options(model, {"raw_scores": False})["raw_scores"]
    return bool(asked) or not hasattr(model, "predict_proba")


class GraphPart:
    """The part of a graph that one converter writes; every tensor gets a unique name. Numbers are
    FP64."""

    def __init__(self, scope: Any, container: Any) -> None:
        self.scope, self.container = scope, container

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Write a node with one output, and return that output's name."""
        output = str(self.scope.get_unique_variable_name(operator.lower()))
        self.container.add_node(operator, list(inputs), [output], **attributes)
        return output

    def constant(
        self, values: Any, shape: tuple[int, ...] | None = None, dtype: int = TensorProto.DOUBLE
    ) -> str:
        """Write an initializer; without ``shape`` a vector."""
        name = str(self.scope.get_unique_variable_name("constant"))
        flat = list(np.ravel(values))
        self.container.add_initializer(
            name, dtype, [len(flat)] if shape is None else list(shape), flat
        )
        return name

    def wide(self, source: str) -> str:
        """The tensor in FP64."""
        return self.node("Cast", [source], to=TensorProto.DOUBLE)

    def column(self, source: str, index: int) -> str:
        """[n, k] -> [n, 1]; -1 is the last column."""
        return self.node(
            "Gather", [source, self.constant([index], dtype=TensorProto.INT64)], axis=1
        )

    def shares(self, source: str, *, uniform: bool = True) -> str:
        """Rows [n, k] divided by their sums. A row of zeros becomes uniform, or stays."""
        axes = self.constant([1], dtype=TensorProto.INT64)
        total = self.node("ReduceSum", [source, axes], keepdims=1)
        is_zero = self.node("Equal", [total, self.constant([0.0])])
        one = self.constant([1.0])
        if uniform:
            source = self.node("Where", [is_zero, one, source])
            total = self.node("ReduceSum", [source, axes], keepdims=1)
        else:
            total = self.node("Where", [is_zero, one, total])
        return self.node("Div", [source, total])

    def variable(self, tensor: str) -> Any:
        """skl2onnx's variable for an FP64 tensor of this graph, as the input of an operator."""
        from skl2onnx.common.data_types import DoubleTensorType

        variable = self.scope.declare_local_variable("stacked", DoubleTensorType())
        self.container.add_node("Identity", [tensor], [variable.full_name])
        return variable

    def joined_input(self, operator: Any) -> str:
        """The operator's one input; several are concatenated first, as they are (skl2onnx's own
        function rounds them to FP32)."""
        if len({type(variable.type) for variable in operator.inputs}) > 1:
            raise NotImplementedError("texts and numbers in one step have no converter")
        names = [str(variable.full_name) for variable in operator.inputs]
        return self.node("Concat", names, axis=1) if len(names) > 1 else names[0]

    def scores(self, estimator: Any, inputs: Sequence[Any], method: str) -> str:
        """What the estimator's ``method`` (``predict_proba``, ``decision_function``, or ``predict``
        of a regressor) gives for ``inputs``, FP64 [n, k]; -d and d for a binary margin.

        NotImplementedError for a margin that no converter writes.
        """
        from skl2onnx._supported_operators import sklearn_operator_name_map
        from skl2onnx.common.data_types import DoubleTensorType, Int64TensorType
        from sklearn.base import is_regressor

        estimator = unwrapped(estimator)
        last = last_step(estimator)
        if type(estimator) not in sklearn_operator_name_map:
            raise NotImplementedError(f"{type(estimator).__name__} has no converter")
        if method == "predict" and not is_regressor(estimator):
            raise NotImplementedError("the labels of a member as numbers have no converter")
        margins = method == "decision_function"
        if margins and type(last).__name__ not in margin_classes():
            raise NotImplementedError(
                f"the decision_function of a {type(last).__name__} inside another estimator has no "
                "converter"
            )
        operator = self.scope.declare_local_operator(
            sklearn_operator_name_map[type(estimator)], estimator
        )
        operator.inputs.extend(inputs)
        if not is_regressor(estimator):
            options = {"zipmap": False, **({"raw_scores": True} if margins else {})}
            self.scope.add_options(id(last), options)
            self.container.add_options(id(last), options)
            operator.outputs.append(self.scope.declare_local_variable("label", Int64TensorType()))
        result = self.scope.declare_local_variable("score", DoubleTensorType())
        operator.outputs.append(result)
        return self.wide(str(result.full_name))


# Of sklearn.linear_model, the classifiers that are ``x @ coef_ + intercept_`` and a link.
LINEAR_MODELS = (
    "LogisticRegression",
    "LogisticRegressionCV",
    "SGDClassifier",
    "Perceptron",
    "RidgeClassifier",
    "RidgeClassifierCV",
    "PassiveAggressiveClassifier",
)


def margin_classes() -> frozenset[str]:
    """The names of the classes whose converters write ``decision_function`` when asked for it."""
    return frozenset(
        (
            *LINEAR_MODELS,
            "LinearSVC",
            "LinearDiscriminantAnalysis",
            "GradientBoostingClassifier",
            "HistGradientBoostingClassifier",
            "LGBMClassifier",
            "SVC",
            "NuSVC",
        )
    )


def add_output(part: GraphPart, operator: Any, output: str) -> None:
    """Write an FP64 answer to the operator's outputs: the scores, and for a classifier the
    label."""
    from skl2onnx.common.data_types import guess_proto_type

    target = operator.outputs[-1]
    dtype = int(guess_proto_type(target.type) or TensorProto.DOUBLE)
    part.container.add_node("Cast", [output], [target.full_name], to=dtype)
    if len(operator.outputs) == 1:
        return
    classes = np.asarray(operator.raw_operator.classes_)
    is_text = classes.dtype.kind in "OUS"
    labels = [str(label).encode() if is_text else int(label) for label in classes]
    name = str(part.scope.get_unique_variable_name("labels"))
    label_type = TensorProto.STRING if is_text else TensorProto.INT64
    part.container.add_initializer(name, label_type, [len(labels)], labels)
    index = part.node("ArgMax", [output], axis=1, keepdims=0)
    part.container.add_node("Gather", [name, index], [operator.outputs[0].full_name])

"""Of several classifiers' answers, pass on the one of the task that was chosen (a step that runs
inside Triton).

Input ``task`` BYTES [n, 1] and, for each task, ``TASK_label`` BYTES [n, k], ``TASK_score`` FP32
[n, k] and ``TASK_token_count`` INT32 [n, 1]. Outputs ``label`` BYTES and ``score`` FP32 [n, 1], the
likeliest; ``labels`` BYTES and ``scores`` FP32 [n, m], all of them, filled up to the longest with
empty labels and 0; ``label_count`` INT32 [n, 1], how many are real; and ``token_count`` INT32
[n, 1].

Model parameter ``tasks``: their names, with commas between them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

try:  # exists only inside Triton's Python stub
    import triton_python_backend_utils as pb_utils
except ImportError:
    pb_utils = None


@dataclass(frozen=True)
class Outputs:
    """A classifier's outputs: ``label`` object (bytes) [n, k], ``score`` FP32 [n, k] and
    ``token_count`` INT32 [n, 1]."""

    label: np.ndarray
    score: np.ndarray
    token_count: np.ndarray


def choose(tasks: Sequence[bytes], classifiers: Mapping[str, Outputs]) -> dict[str, np.ndarray]:
    """The outputs, by name, for texts whose tasks these are."""
    chosen = [classifiers[task.decode()] for task in tasks]
    width = max(output.label.shape[1] for output in classifiers.values())
    labels = np.full((len(tasks), width), b"", dtype=object)
    scores = np.zeros((len(tasks), width), dtype=np.float32)
    for row, output in enumerate(chosen):
        count = output.label.shape[1]
        labels[row, :count], scores[row, :count] = output.label[row], output.score[row]
    counts = [output.label.shape[1] for output in chosen]
    tokens = [int(output.token_count[row, 0]) for row, output in enumerate(chosen)]
    return {
        "label": labels[:, :1],
        "score": scores[:, :1],
        "labels": labels,
        "scores": scores,
        "label_count": np.array(counts, dtype=np.int32)[:, None],
        "token_count": np.array(tokens, dtype=np.int32)[:, None],
    }


class TritonPythonModel:
    """Triton's entry point: outputs of all classifiers in, the chosen ones out."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self._tasks = parameters["tasks"]["string_value"].split(",")

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        def tensor(name: str) -> np.ndarray:
            return np.asarray(pb_utils.get_input_tensor_by_name(request, name).as_numpy())

        classifiers = {
            task: Outputs(
                tensor(f"{task}_label"), tensor(f"{task}_score"), tensor(f"{task}_token_count")
            )
            for task in self._tasks
        }
        outputs = choose(list(tensor("task").reshape(-1)), classifiers)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(name, np.ascontiguousarray(values))
                for name, values in outputs.items()
            ]
        )

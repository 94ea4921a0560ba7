"""The step that passes on the chosen classifier's answer, imported as an ordinary module."""

import numpy as np

from ensembles.steps.choose_labels import Outputs, choose


def _answers(labels, *rows):
    label = np.array([[labels[index] for index in order] for order, _ in rows], dtype=object)
    score = np.array([scores for _, scores in rows], dtype=np.float32)
    return Outputs(label, score, np.array([[len(rows) + row] for row in range(len(rows))]))


def test_each_row_has_the_answer_of_its_task_filled_up_to_the_longest():
    topics = _answers(
        [b"a", b"b", b"c"], ([2, 0, 1], [0.5, 0.3, 0.2]), ([0, 1, 2], [0.6, 0.3, 0.1])
    )
    mood = _answers([b"bad", b"good"], ([0, 1], [0.7, 0.3]), ([1, 0], [0.9, 0.1]))
    outputs = choose([b"topic", b"mood"], {"topic": topics, "mood": mood})
    assert outputs["label"].tolist() == [[b"c"], [b"good"]]
    assert outputs["labels"].tolist() == [[b"c", b"a", b"b"], [b"good", b"bad", b""]]
    assert outputs["scores"].tolist() == np.float32([[0.5, 0.3, 0.2], [0.9, 0.1, 0]]).tolist()
    assert outputs["score"].tolist() == np.float32([[0.5], [0.9]]).tolist()
    assert outputs["label_count"].tolist() == [[3], [2]]
    assert outputs["token_count"].tolist() == [[2], [3]]
    assert {name: value.dtype for name, value in outputs.items()} == {
        "label": object,
        "labels": object,
        "score": np.float32,
        "scores": np.float32,
        "label_count": np.int32,
        "token_count": np.int32,
    }

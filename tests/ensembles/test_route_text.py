"""The routing step, imported as an ordinary module."""

import json

import numpy as np
import pytest

from ensembles.steps import route_text
from ensembles.steps.route_text import IDLE, InvalidText, Route, Router, language_of

TOPIC, MOOD = "topic_classification", "sentiment"


@pytest.fixture(scope="module")
def tell():
    return route_text._latin_teller()


@pytest.fixture
def router(tell):
    return Router({TOPIC: ["en"], MOOD: ["zh", "en"]}, tell)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Where is my parcel?", "en"),
        ("screen broken", "en"),
        ("It does not work, I'm sure.", "en"),
        ("OK", "en"),
        ("<b>hello</b> there <script>alert(1)</script>", "en"),
        ("zero\u200bwidth\u200b words\ufeff here", "en"),
        ("please refund 退款", "en"),
        ("no internet connection", "en"),
        ("Dr. Müller's invoice", "en"),
        ("Café Paris booking error", "en"),
        ("I met José in São Paulo", "en"),
        ("Please send it to Łukasz Wójcik, Kraków", "en"),
        ("attention 王芳, please ship it", "en"),
        ("Hello\uff0c我想return这个order", "zh"),
        ("my order 订单 is late", "en"),
        ("我的MacBook Pro在London买的\uff0cscreen坏了", "zh"),
        ("这是一个政治新闻。", "zh"),
        ("我的iPhone坏了", "zh"),
        ("<p>物流很快</p>", "zh"),
        ("快\u200b递\u200b丢\u200b了", "zh"),
        ("繁體中文也可以嗎", "zh"),
        ("Wo bleibt denn mein Paket? Ich warte.", "de"),
        ("¿Dónde está mi pedido?", "es"),
        ("私の荷物はどこですか", "ja"),
        ("주문 취소", "ko"),
        ("Где мой заказ?", "cyrillic"),
        ("أين طلبي؟", "arabic"),
        ("\u202e\u05e9\u05dc\u05d5\u05dd", "hebrew"),
        ("👍", ""),
        ("  \n", ""),
        ("12-345", ""),
        ("\u200b\u200d", ""),
        ("\uff37\uff48\uff45\uff52\uff45 \uff49\uff53 \uff49\uff54", "en"),  # full-width
        ("\uff71\uff72\uff73", "ja"),  # half-width
        ("\u2f54\u2f55", "zh"),  # radicals
        ("\U0001d56b\U0001d56c\U0001d56d", "en"),  # letters of mathematics
    ],
)
def test_the_language_of_a_text(tell, text, language):
    assert language_of(text, tell) == language


def test_the_first_task_of_a_language_reads_it_unless_another_is_named(router):
    texts = [b"Where is my parcel?", "包裹丢了".encode()]
    assert router(texts) == [Route(TOPIC, "en"), Route(MOOD, "zh")]
    assert router(texts, task=MOOD) == [Route(MOOD, "en"), Route(MOOD, "zh")]
    assert router(texts, language="en") == [Route(TOPIC, "en")] * 2


def test_a_text_without_letters_goes_to_the_only_language_that_it_can_be(router):
    assert router(["👍".encode()], task=TOPIC) == [Route(TOPIC, "en")]
    assert router(["👍".encode()], language="zh") == [Route(MOOD, "zh")]
    with pytest.raises(InvalidText, match=r"no letters .* send `language`, one of en, zh"):
        router(["👍".encode()])


@pytest.mark.parametrize(
    ("text", "parameters", "problem"),
    [
        (b"hello there", {"task": "weather"}, "there is no task 'weather': there are topic"),
        (b"hello there", {"language": "fr"}, "'fr' is not supported: .*sentiment \\(zh, en\\)"),
        (b"hello there", {"task": TOPIC, "language": "zh"}, "'zh' of topic_classification is not"),
        ("包裹丢了".encode(), {"task": TOPIC}, "in the language 'zh'.*supported are en"),
        ("Где мой заказ?".encode(), {}, "'cyrillic'.*sentiment \\(zh, en\\).*send `language`"),
        (b"\xff\xfe", {}, "not UTF-8"),
        (b"\xff\xfe", {"language": "en"}, "not UTF-8"),
        (b"", {}, "empty"),
        (b" \n\t", {"language": "en"}, "empty"),
        ("\u3000\xa0".encode(), {}, "empty"),
        (b"x" * 65_537, {}, "65537 bytes: send at most 65536"),
    ],
)
def test_what_fits_no_task_is_refused_by_name(router, text, parameters, problem):
    with pytest.raises(InvalidText, match=problem):
        router([text], **parameters)


def test_a_long_text_is_read_as_far_as_its_language_shows(router):
    text = ("包" * 20_000).encode()
    assert router([text]) == [Route(MOOD, "zh")]
    with pytest.raises(InvalidText, match="not UTF-8"):
        router([text + b"\xff"])


class Tensor:
    def __init__(self, name, values):
        self.name, self.values = name, values

    def as_numpy(self):
        return self.values


class Response:
    def __init__(self, outputs=(), error=None):
        self.outputs, self.error = {one.name: one.values for one in outputs}, error


class Error:
    INVALID_ARG = "invalid"

    def __init__(self, message, code):
        self.message, self.code = message, code


class Backend:
    """What Triton gives a step, as far as it is used."""

    Tensor, InferenceResponse, TritonError = Tensor, Response, Error

    @staticmethod
    def get_input_tensor_by_name(request, name):
        return request.inputs[name]


class Request:
    def __init__(self, texts, **parameters):
        column = np.array([text.encode() for text in texts], dtype=object)[:, None]
        self.inputs, self._parameters = {"text": Tensor("text", column)}, parameters

    def parameters(self):
        return json.dumps(self._parameters)


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(route_text, "pb_utils", Backend)
    tasks = [{"task": TOPIC, "languages": ["en"]}, {"task": MOOD, "languages": ["zh"]}]
    model = route_text.TritonPythonModel()
    parameters = {"tasks": {"string_value": json.dumps(tasks)}}
    model.initialize({"model_config": json.dumps({"parameters": parameters})})
    return model


def test_each_classifier_gets_its_texts_and_a_full_stop_for_the_others(model):
    texts = ["包裹丢了", "Where is my parcel?"]
    outputs = model.execute([Request(texts)])[0].outputs
    assert outputs["task"].tolist() == [[MOOD.encode()], [TOPIC.encode()]]
    assert outputs["language"].tolist() == [[b"zh"], [b"en"]]
    assert outputs[f"{MOOD}_text"].tolist() == [[texts[0].encode()], [IDLE]]
    assert outputs[f"{TOPIC}_text"].tolist() == [[IDLE], [texts[1].encode()]]


def test_the_gateway_is_told_which_row_is_wrong_and_other_requests_are_answered(model):
    wrong, right = model.execute([Request(["hello there", "👍"]), Request(["hello there"])])
    assert wrong.error.code == Error.INVALID_ARG
    assert wrong.error.message.startswith("[tidegate:invalid_input row=1] the text has no letters")
    assert right.error is None and right.outputs["language"].tolist() == [[b"en"]]
    refused = model.execute([Request(["hello there"], task="weather")])[0]
    assert refused.error.message.startswith("[tidegate:invalid_input] there is no task 'weather'")

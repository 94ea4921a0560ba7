"""Choose which of several classifiers reads a text, by its language (a step that runs inside
Triton).

Input ``text`` BYTES [n, 1]; outputs ``task`` and ``language`` BYTES [n, 1], and for each task
``TASK_text`` BYTES [n, 1]: the texts for that classifier, with a full stop in place of those that
are for another. The request's parameters ``language`` and ``task`` overrule the choice for all of
its texts.

Model parameter ``tasks``: JSON, a list of ``{"task": "sentiment", "languages": ["zh"]}``; of those
that have a language the first reads it, unless the request names another. The package ``py3langid``
tells languages in Latin script apart.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

try:  # exists only inside Triton's Python stub
    import triton_python_backend_utils as pb_utils
except ImportError:
    pb_utils = None

# The gateway forwards to a client only messages that begin with one of these markers.
INVALID, INVALID_ROW = "[tidegate:invalid_input] ", "[tidegate:invalid_input row={}] "
IDLE = b"."  # costs a classifier next to nothing
TEXT_LIMIT_BYTES = 65_536
READ_CHARACTERS = 4096  # of a text, to tell its language
HAN_WEIGHT = 3  # a Chinese character says about as much as three letters
# One of a pronoun, a particle, an auxiliary or a question says what language the sentence is in, a
# name does not: "我想return这个order" is Chinese, "attention 王芳" is not.
GRAMMAR_WEIGHT = 6
GRAMMAR = frozenset("我你您他她它们這这那哪个個的了吗嗎呢吧么麼什怎想请請有没沒不是在给給把被")
KANA_SHARE = 0.1  # of the characters: Japanese has Chinese ones too
# Below these a text in Latin script counts as English: a name, an order's number, two words that
# Dutch has too. Without its accents a text must reach the last: a name with one ("Dr. Müller's
# invoice") makes no sentence foreign. With them 1 in 90 English lines of chatterbot-corpus are
# taken for another language, and 8 in 10 German and Spanish ones are seen to be none (the rest are
# short).
LEAST_LETTERS, LEAST_LOG_RATIO, LEAST_WITHOUT_ACCENTS = 12, 8.0, 4.0
# The languages that a text in Latin script may be in: with rare ones, short texts are often theirs.
LATIN = (
    *("en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "no", "fi", "pl", "cs", "sk", "hu"),
    *("ro", "tr", "vi", "id", "ms", "ca", "hr", "sl", "et", "lv", "lt"),
)
_SCRIPTS = ("CJK UNIFIED", "CJK COMPATIBILITY", "HIRAGANA", "KATAKANA", "HANGUL", "LATIN")

# A text in Latin script -> its likeliest language, and the logarithm of how much likelier than
# English that is.
Tell = Callable[[str], tuple[str, float]]


class InvalidText(ValueError):
    """The client's text or parameters; ``row`` is the text's index in the batch, None if it is not
    one text's fault."""

    def __init__(self, problem: str, row: int | None = None) -> None:
        super().__init__(problem)
        self.row, self.problem = row, problem

    @property
    def for_client(self) -> str:
        """The message for Triton, with the gateway's marker."""
        marker = INVALID if self.row is None else INVALID_ROW.format(self.row)
        return f"{marker}{self.problem}"


@dataclass(frozen=True)
class Route:
    task: str
    language: str


class Router:
    """``languages`` of each task, the preferred task of a language first; ``tell`` says what
    language a text in Latin script is in."""

    def __init__(self, languages: Mapping[str, Sequence[str]], tell: Tell) -> None:
        self._languages = languages
        self._tell = tell

    def __call__(self, texts: Sequence[bytes], language: str = "", task: str = "") -> list[Route]:
        """Where each text goes; InvalidText for a text or a parameter that fits no task."""
        self._check(language, task)
        return [self._route(row, text, language, task) for row, text in enumerate(texts)]

    def _check(self, language: str, task: str) -> None:
        if task and task not in self._languages:
            raise InvalidText(f"there is no task {task!r}: there are {self._offered()}")
        supported = self._supported(task)
        if language and language not in supported:
            of_task = f" of {task}" if task else ""
            raise InvalidText(
                f"the language {language!r}{of_task} is not supported: supported are "
                f"{', '.join(supported) if task else self._offered()}"
            )

    def _route(self, row: int, text: bytes, language: str, task: str) -> Route:
        # What no classifier takes is refused here: one that refuses while the other runs is what
        # ask_pipelines must not see.
        if len(text) > TEXT_LIMIT_BYTES:
            raise InvalidText(
                f"the text has {len(text)} bytes: send at most {TEXT_LIMIT_BYTES}", row
            )
        try:
            whole = text.decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidText("the text is not UTF-8: encode it as UTF-8", row) from None
        decoded = whole[:READ_CHARACTERS]
        if not whole.strip():
            raise InvalidText("the text is empty: send at least one character", row)
        supported = self._supported(task)
        if not language and len(supported) == 1 and not _letters(decoded):
            language = supported[0]  # only one that it can be
        language = language or self._detected(row, decoded)
        if language not in supported:
            unsupported = f"{task} does not support" if task else "no task supports"
            offered = ", ".join(supported) if task else self._offered()
            raise InvalidText(
                f"the text seems to be in the language {language!r}, which {unsupported}: "
                f"supported are {offered}. If it is in one of these, send `language`",
                row,
            )
        tasks = (name for name, languages in self._languages.items() if language in languages)
        return Route(task or next(tasks), language)

    def _detected(self, row: int, text: str) -> str:
        detected = language_of(text, self._tell)
        if not detected:
            raise InvalidText(
                "the text has no letters to tell its language by: send `language`, one of "
                f"{', '.join(self._supported(''))}",
                row,
            )
        return detected

    def _supported(self, task: str) -> list[str]:
        """The languages of the task, or of all."""
        of_tasks = [self._languages[task]] if task else self._languages.values()
        return list(dict.fromkeys(language for known in of_tasks for language in known))

    def _offered(self) -> str:
        return ", ".join(
            f"{task} ({', '.join(languages)})" for task, languages in self._languages.items()
        )


def language_of(text: str, tell: Tell) -> str:
    """The language of a text as an ISO 639-1 code, by its scripts; '' for one without letters. A
    script of none of our languages is named instead: ``cyrillic``. Full-width and other forms of a
    letter count as the letter."""
    text = unicodedata.normalize("NFKC", text)
    letters = _letters(text)
    if not letters:
        return ""
    scripts = Counter(map(_script, letters))
    han = scripts["CJK UNIFIED"] + scripts["CJK COMPATIBILITY"]
    kana = scripts["HIRAGANA"] + scripts["KATAKANA"]
    grammar = sum(letter in GRAMMAR for letter in letters)
    chinese = HAN_WEIGHT * (han - grammar) + GRAMMAR_WEIGHT * grammar
    weights = {
        "zh": chinese if kana <= KANA_SHARE * (han + kana) else 0,
        "ja": HAN_WEIGHT * (han + kana) if kana > KANA_SHARE * (han + kana) else 0,
        "ko": HAN_WEIGHT * scripts["HANGUL"],
        "latin": scripts["LATIN"],
    }
    others = {name.lower(): count for name, count in scripts.items() if name not in _SCRIPTS}
    likeliest = max(weights | others, key=(weights | others).__getitem__)
    if likeliest != "latin":
        return likeliest
    if scripts["LATIN"] < LEAST_LETTERS:
        return "en"
    latin = " ".join("".join(map(_latin_or_space, text)).split())
    language, log_ratio = tell(latin)
    is_other = log_ratio >= LEAST_LOG_RATIO and (
        latin.isascii() or tell(_without_accents(latin))[1] >= LEAST_WITHOUT_ACCENTS
    )
    return language if is_other else "en"


def _letters(text: str) -> list[str]:
    return [character for character in text if character.isalpha()]


def _without_accents(text: str) -> str:
    decomposed = unicodedata.normalize("NFD", text)
    return "".join(mark for mark in decomposed if not unicodedata.combining(mark))


def _latin_or_space(character: str) -> str:
    return character if character in "'-" or _script(character) == "LATIN" else " "


def _script(character: str) -> str:
    """``LATIN``: the beginning of the name that Unicode gives the character."""
    if character.isascii():
        return "LATIN" if character.isalpha() else ""
    name = unicodedata.name(character, "")
    known = next((script for script in _SCRIPTS if name.startswith(script)), "")
    return known or name.partition(" ")[0]


def _latin_teller() -> Tell:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_pickled_model(MODEL_FILE, norm_probs=False)
    identifier.set_languages(list(LATIN))

    def tell(text: str) -> tuple[str, float]:
        scores = dict(identifier.rank(text))
        likeliest = max(scores, key=scores.__getitem__)
        return str(likeliest), float(scores[likeliest] - scores["en"])

    return tell


class TritonPythonModel:
    """Triton's entry point: texts in, a text for each classifier out."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        tasks = json.loads(parameters["tasks"]["string_value"])
        self._languages = {task["task"]: task["languages"] for task in tasks}
        self._router = Router(self._languages, _latin_teller())

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        texts = list(pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1))
        parameters = json.loads(request.parameters() or "{}")
        try:
            routes = self._router(
                texts, str(parameters.get("language", "")), str(parameters.get("task", ""))
            )
        except InvalidText as error:
            failure = pb_utils.TritonError(error.for_client, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=failure)
        outputs = {
            "task": [route.task.encode() for route in routes],
            "language": [route.language.encode() for route in routes],
        }
        for task in self._languages:
            outputs[f"{task}_text"] = [
                text if route.task == task else IDLE
                for text, route in zip(texts, routes, strict=True)
            ]
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, _column(values)) for name, values in outputs.items()]
        )


def _column(values: Sequence[bytes]) -> np.ndarray:
    """object (bytes) [n, 1]"""
    return np.array(values, dtype=object)[:, None]

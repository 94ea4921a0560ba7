"""The file of keys: what it means, and what is refused with its line."""

import pytest

from loadtests.preflight import CannotStart
from loadtests.signoff.tenants import Tenant, read_keys


def _read(folder, text):
    path = folder / "keys"
    path.write_text(text)
    return read_keys(path)


def test_a_key_a_line_with_its_weight_and_name(tmp_path):
    text = "# ours\ntg_a\n\ntg_b 3\ntg_c  0.5   the shop  # a name may have spaces\n"
    assert _read(tmp_path, text) == [
        Tenant("line 2", "tg_a"),
        Tenant("line 4", "tg_b", 3.0),
        Tenant("the shop", "tg_c", 0.5),
    ]


def test_a_key_is_in_no_representation():
    assert "tg_secret" not in repr(Tenant("a", "tg_secret"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no key: write one a line"),
        ("# nothing", "has no key"),
        ("a\nb heavy", "line 2: its second word is not a weight above 0"),
        ("a 0", "line 1: its second word is not a weight"),
        ("a -1", "line 1: its second word is not a weight"),
        ("a inf", "line 1: its second word is not a weight"),
        ("shop 3 tg_a", "line 1: its name is a key, and names are shown"),
        ("a\na", "line 2: this key stands there twice"),
        ("a 1 x\nb 1 x", "line 2: the name 'x' stands there twice"),
        ("ä", "line 1: the key has characters that no header can carry"),
        ("\n".join(f"k{n}" for n in range(65)), "has 65 keys, and 64 are the most"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, text, said):
    with pytest.raises(CannotStart, match=said):
        _read(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "shop tg_secret",
        "shop 3 tg_secret",
        "tg_secret tg_other",
        "tg_secret 0",
        "tg_secret\ntg_secret",
    ],
)
def test_a_mistake_shows_no_key(tmp_path, text):
    with pytest.raises(CannotStart) as refusal:
        _read(tmp_path, text)
    assert "tg_" not in str(refusal.value).replace(str(tmp_path), "")


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(CannotStart, match="cannot be read: No such file"):
        read_keys(tmp_path / "keys")
    (tmp_path / "keys").write_bytes(b"\xff")
    with pytest.raises(CannotStart, match="cannot be read: it is not UTF-8"):
        read_keys(tmp_path / "keys")

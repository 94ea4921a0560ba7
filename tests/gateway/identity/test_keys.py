"""API keys: their format, how they are stored, and that only a valid one is accepted."""

import contextlib
import errno
import hmac
import re
import threading
import time
import tomllib
from datetime import datetime, timedelta

import pytest

from gateway.errors import Unauthenticated
from gateway.identity.keys import KEY_PATTERN, KeyRing, key_hash, parse_records
from gateway.policy.principal import ADMIN, USER, Grant, Principal
from tidegate.app import key_store
from tidegate.app.key_store import KeyStore, UnknownKey, generate_key, has_good_checksum, state_of


@pytest.fixture
def store(tmp_path):
    return KeyStore(tmp_path / "keys.toml", tmp_path / "pepper")


@pytest.fixture
def ring(tmp_path):
    return KeyRing(tmp_path / "keys.toml", tmp_path / "pepper")


def _bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


@pytest.mark.parametrize("size", [0, 32, 64, 65, 200])  # a block has 64 bytes
def test_a_hash_is_hmac_sha256(size):
    pepper = bytes(range(size))
    for key in ("tg_a", "x" * 300):
        assert key_hash(pepper, key) == hmac.digest(pepper, key.encode(), "sha256").hex()


def test_a_key_has_a_prefix_256_bits_and_a_checksum():
    keys = {generate_key()[1] for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert KEY_PATTERN.match(key)
        assert len(key.split("_")[2]) * 5.95 >= 255  # log2(62) = 5.954 bits a character
        assert has_good_checksum(key)
    assert not has_good_checksum(key[:-1] + ("a" if key[-1] != "a" else "b"))
    assert not has_good_checksum("tg_nonsense")


def test_a_created_key_lets_in_and_only_its_hmac_is_stored(store, ring, tmp_path):
    record, key = store.create("app")
    assert ring.refresh()
    principal = ring.verify(_bearer(key))
    assert (principal.id, principal.name) == (record.key_id, "app")
    assert principal.grant == USER
    text = (tmp_path / "keys.toml").read_text()
    assert key not in text
    assert key.split("_")[2] not in text
    assert re.search(r'hmac = "[0-9a-f]{64}"', text)
    for name in ("keys.toml", "pepper"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_a_changed_character_anywhere_keeps_out(store, ring):
    _, key = store.create("app")
    ring.refresh()
    for index in range(len(key)):
        wrong = key[:index] + ("x" if key[index] != "x" else "y") + key[index + 1 :]
        with pytest.raises(Unauthenticated):
            ring.verify(_bearer(wrong))


@pytest.mark.parametrize(
    "header", [None, b"", b"Bearer", b"Bearer ", b"Basic dGc6", b"Bearer \xff\xfe"]
)
def test_all_refusals_read_the_same(store, ring, header):
    store.create("app")
    ring.refresh()
    with pytest.raises(Unauthenticated) as refused:
        ring.verify(header)
    with pytest.raises(Unauthenticated) as unknown:
        ring.verify(_bearer(generate_key()[1]))
    assert refused.value.message == unknown.value.message


def test_a_revoked_key_is_refused_after_the_next_look(store, ring):
    record, key = store.create("app")
    _, other = store.create("other")
    ring.refresh()
    assert [r.key_id for r in store.revoke("app")] == [record.key_id]
    assert ring.refresh()
    with pytest.raises(Unauthenticated):
        ring.verify(_bearer(key))
    assert ring.verify(_bearer(other)).name == "other"
    assert not ring.refresh()  # nothing has changed since


def test_without_files_nobody_gets_in(ring):
    assert not ring.refresh()
    with pytest.raises(Unauthenticated):
        ring.verify(_bearer(generate_key()[1]))


def test_another_pepper_makes_every_key_worthless(store, ring, tmp_path):
    _, key = store.create("app")
    (tmp_path / "pepper").write_bytes(b"x" * 32)
    ring.refresh()
    with pytest.raises(Unauthenticated):
        ring.verify(_bearer(key))


@pytest.mark.parametrize("text", ["not toml [", "[keys.a]\nname = 1\nextra = 2\n"])
def test_a_broken_file_leaves_the_keys_before_it_in_force(store, ring, tmp_path, text):
    _, key = store.create("app")
    ring.refresh()
    (tmp_path / "keys.toml").write_text(text)
    with pytest.raises(ValueError, match=r"."):
        ring.refresh()
    assert ring.verify(_bearer(key)).name == "app"


def test_two_writers_lose_nothing(store, tmp_path):
    def create(number: int) -> None:
        KeyStore(tmp_path / "keys.toml", tmp_path / "pepper").create(f"app-{number}")

    threads = [threading.Thread(target=create, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {record.name for record in store.records()} == {f"app-{n}" for n in range(16)}


@pytest.mark.parametrize("name", ["", "x" * 65, "line\nbreak"])
def test_names_that_would_spoil_a_list_are_refused(store, name):
    with pytest.raises(ValueError, match="1 to 64 printable"):
        store.create(name)


def test_revoking_what_is_not_there_says_how_to_list(store):
    with pytest.raises(UnknownKey, match="tidegate keys list"):
        store.revoke("nobody")


def test_a_key_carries_its_rights(store, ring):
    grant = Grant("acme", ("analyst",), ("text_*",), ("infer",))
    _, key = store.create("batch", grant)
    _, dev = store.create("dev", ADMIN)
    ring.refresh()
    assert ring.verify(_bearer(key)).grant == grant
    assert ring.verify(_bearer(key)).tenant == "acme"
    assert ring.verify(_bearer(dev)).grant.roles == ("admin",)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_file_that_was_cut_off_grants_nothing_more(store, tmp_path, restarted):
    """At every byte: each key may do what the complete file says, or nothing."""
    keys = {}
    for number, grant in enumerate([USER, Grant("acme", ("reader",), ("text_*",), ("read",))]):
        record, key = store.create(f"app-{number}", grant, timedelta(days=number + 1))
        keys[key] = record
    revoked, _ = store.create("gone")
    (gone,) = store.revoke("gone")
    assert gone.key_id == revoked.key_id
    path = tmp_path / "keys.toml"
    complete, ring = path.read_bytes(), KeyRing(path, tmp_path / "pepper")
    ring.refresh()
    for end in range(len(complete)):
        path.write_bytes(complete[:end])
        if restarted:
            ring = KeyRing(path, tmp_path / "pepper")
        with contextlib.suppress(ValueError):
            ring.refresh()
        for key, record in keys.items():
            with contextlib.suppress(Unauthenticated):
                principal = ring.verify(_bearer(key))
                assert (principal.grant, principal.ends) == (record.principal.grant, record.ends)
        assert not ring.is_valid(revoked.key_id)


@pytest.mark.parametrize("size", [0, 1, 31])
def test_a_pepper_that_was_cut_off_is_not_taken(store, ring, tmp_path, size):
    _, key = store.create("app")
    ring.refresh()
    complete = (tmp_path / "pepper").read_bytes()
    (tmp_path / "pepper").write_bytes(complete[:size])
    with pytest.raises(ValueError, match="is cut off"):
        ring.refresh()
    assert ring.verify(_bearer(key)).name == "app"
    (tmp_path / "pepper").write_bytes(complete)
    ring.refresh()
    assert ring.verify(_bearer(key)).name == "app"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("scopes = [", 'scopes = "infer"\nx = ['),
        ("models = [", 'models = "*"\nx = ['),
        ('tenant = "default"', "tenant = 5"),
        ('expires = ""', "expires = 1"),
        ('revoked = ""', "revoked = false"),
    ],
)
def test_a_field_of_another_type_is_refused(store, ring, tmp_path, before, after):
    store.create("app")
    path = tmp_path / "keys.toml"
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(ValueError, match="must be a"):
        ring.refresh()


def test_what_was_verified_once_holds_as_long_as_it_would_be_again(store, ring, monkeypatch):
    record, key = store.create("app", lifetime=timedelta(seconds=50))
    ring.refresh()
    holding = ring.holding(ring.verify(_bearer(key)))
    assert ring.still_holds(holding)
    assert ring.holding(Principal("jwt:corp:ann", "ann")) is None
    assert ring.holding(Principal(record.key_id, "somebody of another issuer")) is None
    with monkeypatch.context() as later:
        later.setattr("time.time", lambda: record.ends)
        assert not ring.still_holds(holding)
    store.create("another")
    ring.refresh()
    assert not ring.still_holds(holding), "other keys are in force: it is verified again"
    holding = ring.holding(ring.verify(_bearer(key)))
    store.revoke("app")
    ring.refresh()
    assert not ring.still_holds(holding)


def test_a_key_ends_by_itself(store, ring, monkeypatch):
    record, key = store.create("short", lifetime=timedelta(seconds=50))
    ring.refresh()
    assert ring.verify(_bearer(key)).name == "short"
    assert state_of(record).startswith("valid until")
    monkeypatch.setattr("time.time", lambda: record.ends)
    assert not ring.refresh()
    with pytest.raises(Unauthenticated):
        ring.verify(_bearer(key))
    assert state_of(record).startswith("expired")


def test_rotation_overlaps(store, ring):
    grant = Grant("acme", ("analyst",), ("text_*",), ("infer",))
    first, old = store.create("app", grant, timedelta(days=30))
    before = time.time()
    second, new, ended = store.rotate("app", timedelta(hours=24))
    ring.refresh()
    assert ring.verify(_bearer(old)).id == first.key_id
    assert ring.verify(_bearer(new)).grant == grant
    assert [record.key_id for record in ended] == [first.key_id]
    # The files have whole seconds.
    assert before - 1 <= ended[0].ends - 86400 <= time.time()
    assert before - 1 <= second.ends - 30 * 86400 <= time.time()


def test_rotation_without_overlap_ends_the_old_key_now(store, ring):
    _, old = store.create("app")
    _, new, _ = store.rotate("app", timedelta())
    ring.refresh()
    assert ring.verify(_bearer(new)).name == "app"
    with pytest.raises(Unauthenticated):
        ring.verify(_bearer(old))


def test_rotation_never_lengthens_a_key(store):
    short, _ = store.create("app", lifetime=timedelta(hours=1))
    _, _, ended = store.rotate("app", timedelta(hours=24))
    assert ended[0].expires == short.expires


def test_a_key_of_before_the_clock_was_set_back_does_not_shorten_its_successor(store, monkeypatch):
    store.create("app")
    with monkeypatch.context() as patch:
        patch.setattr(key_store, "datetime", _Late)
        store.rotate("app", timedelta(hours=24))
    again, _, ended = store.rotate("app", timedelta(hours=1))
    assert again.expires == ""
    assert len(ended) == 2


class _Late(datetime):
    """A clock that is an hour behind."""

    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) - timedelta(hours=1)


def test_rotation_refuses_what_it_would_have_to_guess(store):
    store.create("app")
    other, _ = store.create("app", ADMIN)
    with pytest.raises(ValueError, match="rotate each by its id"):
        store.rotate("app", timedelta())
    record, _, _ = store.rotate(other.key_id, timedelta())
    assert record.roles == ("admin",)
    with pytest.raises(UnknownKey):
        store.rotate("nobody", timedelta())
    store.revoke("app")
    with pytest.raises(UnknownKey):
        store.rotate("app", timedelta())


@pytest.mark.parametrize("expires", ["tomorrow", "2030-01-01", "2030-01-01T00:00:00"])
def test_an_end_that_cannot_be_read_leaves_the_keys_before_it_in_force(
    store, ring, tmp_path, expires
):
    _, key = store.create("app")
    ring.refresh()
    path = tmp_path / "keys.toml"
    path.write_text(path.read_text().replace('expires = ""', f'expires = "{expires}"'))
    with pytest.raises(ValueError, match=r"isoformat|time zone"):
        ring.refresh()
    assert not ring.refresh()  # it is reported once
    assert ring.verify(_bearer(key)).name == "app"


def test_refusing_takes_as_long_whatever_is_wrong(store, ring):
    """An unknown id, a wrong secret and a revoked key cost one HMAC each."""
    _, key = store.create("app")
    store.create("gone")
    store.revoke("gone")
    ring.refresh()
    wrong_secret = _bearer(key[:-10] + "AAA" + key[-7:])
    unknown_id = _bearer(generate_key()[1])

    def refuse(header: bytes) -> float:
        started = time.perf_counter()
        with pytest.raises(Unauthenticated):
            ring.verify(header)
        return time.perf_counter() - started

    pairs = [(refuse(wrong_secret), refuse(unknown_id)) for _ in range(2000)]
    medians = [sorted(times)[1000] for times in zip(*pairs, strict=True)]
    assert max(medians) < min(medians) * 1.5


@pytest.fixture
def new_ring(tmp_path):
    """``new_ring()``: the keys of a restarted worker."""
    return lambda: KeyRing(
        tmp_path / "keys.toml", tmp_path / "pepper", last_good=tmp_path / "keys.last_good"
    )


@pytest.mark.parametrize("text", [b"not toml [", b"\xff", b"[keys.a]\nname = 1\n"])
def test_a_restarted_worker_lets_in_whom_the_one_before_let_in(store, new_ring, tmp_path, text):
    _, key = store.create("app")
    gone, _ = store.create("gone")
    assert new_ring().refresh()
    store.revoke("gone")
    assert new_ring().refresh()
    assert (tmp_path / "keys.last_good").stat().st_mode & 0o777 == 0o600
    (tmp_path / "keys.toml").write_bytes(text)
    ring = new_ring()
    with pytest.raises(ValueError, match=r"."):
        ring.refresh()
    assert ring.verify(_bearer(key)).name == "app"
    assert ring.is_refused
    assert not ring.is_valid(gone.key_id)


def test_what_is_kept_of_the_keys_is_never_older_than_what_was_read(store, new_ring, tmp_path):
    """A key that was revoked meanwhile would be valid again."""
    store.create("app")
    assert new_ring().refresh()
    store.revoke("app")
    with pytest.MonkeyPatch.context() as disk:
        disk.setattr("gateway.identity.keys.write_private", _full)
        assert new_ring().refresh()
    assert not (tmp_path / "keys.last_good").exists()
    new_ring().refresh()
    (tmp_path / "keys.toml").unlink()
    new_ring().refresh()
    assert not (tmp_path / "keys.last_good").exists()


def _full(path, data):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_comments_in_keys_toml_stay(tmp_path):
    path = tmp_path / "keys.toml"
    store = KeyStore(path, tmp_path / "pepper")
    store.create("first")
    path.write_text(f"# the keys of our team\n{path.read_text()}# end\n")
    store.create("second")
    store.revoke("first")
    lines = path.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("# the keys of our team", "# end")
    assert [(record.name, bool(record.revoked)) for record in store.records()] == [
        ("first", True),
        ("second", False),
    ]


def _outcome(text):
    try:
        return parse_records(text)
    except ValueError:
        return "refused"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("name", "name"),
        ('"app"', r'"a\u0070p \U0001F600"'),
        ('"app"', "'app'"),
        ('"app"', '"app" # a comment'),
        ('"app"', '"""app"""'),
        ('"app"', '"a\x7fp"'),
        ('"app"', '"a\tp"'),
        ('["*"]', '["*",]'),
        ('["*"]', '[\n"*"\n]'),
        ('["*"]', '["*", [null, {"a": 1}]]'),
        ('name = "app"', 'name = "app"\nname = "app"'),
        ('name = "app"', '"name" = "app"'),
        ('name = "app"', 'name="app"'),
        ("[keys.", "x = 1\n[keys."),
        ("[keys.", "[[keys."),
        ("[keys.", "[keys]\n[keys."),
        ("[keys.", '[other]\nname = "x"\n[keys.'),
        ("[keys.", "# \x01\n[keys."),
        ("\n", "\r\n"),
        ("\n", "\r"),
    ],
)
def test_what_is_read_line_by_line_is_what_toml_says(store, tmp_path, monkeypatch, before, after):
    store.create("app")
    store.create("other")
    text = (tmp_path / "keys.toml").read_text()
    assert before in text
    text = text.replace(before, after)
    for spelling in (text, text + text[: text.index("]") + 1], text.replace("\n\n", "\n")):
        read = _outcome(spelling)
        with monkeypatch.context() as patch:
            patch.setattr("gateway.identity.keys._plain_tables", lambda text: None)
            assert read == _outcome(spelling)


def test_a_file_that_tidegate_wrote_needs_no_toml_parser(store, tmp_path, monkeypatch):
    """The parser takes seconds for 10,000 keys."""
    records = [store.create(f"app-{number}")[0] for number in range(3)]
    store.revoke("app-1")
    (records[1],) = (record for record in store.records() if record.name == "app-1")
    monkeypatch.setattr(tomllib, "loads", None)
    text = (tmp_path / "keys.toml").read_text()
    assert parse_records(f"# the keys of our team\n{text}") == {r.key_id: r for r in records}

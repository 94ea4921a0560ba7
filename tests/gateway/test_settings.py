"""Settings come from a mapping, and an invalid one is named."""

from pathlib import Path

import pytest

from gateway.settings import Settings, SettingsError


def test_defaults_need_no_environment():
    assert Settings.read({}) == Settings()


def test_every_type_is_read():
    settings = Settings.read(
        {
            "TIDEGATE_GATEWAY_PORT": "9090",
            "TIDEGATE_REPLICAS": "a:1, b:2,",
            "TIDEGATE_DEADLINE_S": "2.5",
            "TIDEGATE_OPEN_DOCS": "no",
            "TIDEGATE_KEYS_FILE": "/tmp/keys.toml",
            "UNRELATED": "x",
        }
    )
    assert settings.gateway_port == 9090
    assert settings.replicas == ("a:1", "b:2")
    assert settings.deadline_s == 2.5
    assert settings.open_docs is False
    assert settings.keys_file == Path("/tmp/keys.toml")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("TIDEGATE_GATEWAY_PORT", "http", "is not a valid int"),
        ("TIDEGATE_GATEWAY_PORT", "70000", "1 to 65535"),
        ("TIDEGATE_OPEN_DOCS", "maybe", "is not a valid bool"),
        ("TIDEGATE_DEADLINE_S", "0", "above 0"),
        ("TIDEGATE_SEQUENCE_SHARE", "0", "above 0"),
        ("TIDEGATE_CACHE_MIB", "-1", "or more"),
        ("TIDEGATE_CACHE_TTL_S", "0", "above 0 seconds"),
        ("TIDEGATE_CACHE_REDIS_URL", "redis://127.0.0.1", "needs TIDEGATE_CACHE_MIB"),
        ("TIDEGATE_REPLICAS", ",", "at least one"),
        ("TIDEGATE_REPLICAS", "::1:8001", "in brackets"),
        ("TIDEGATE_REPLICAS", "dns:triton", "is not HOST:PORT"),
        ("TIDEGATE_REPLICAS", "srv:_grpc._tcp.triton:8001", "is not srv:NAME"),
        ("TIDEGATE_DNS_SERVER", "10.96.0.10", "is not HOST:PORT"),
        ("TIDEGATE_DNS_SERVER", "kube-dns:53", "must be an IP address"),
        ("TIDEGATE_REPLICAS", "a:8001/http", "a port is a number"),
        ("TIDEGATE_GRPC_PORT", "70000", "0 to 65535"),
        ("TIDEGATE_ADMIN_PORT", "8080", "TIDEGATE_GATEWAY_PORT are both 8080"),
        ("TIDEGATE_HOST", "no.such.host.invalid", "neither an IP address nor a host name"),
    ],
)
def test_a_value_that_is_wrong_is_named(variable, value, message):
    with pytest.raises(SettingsError, match=message) as refused:
        Settings.read({variable: value})
    assert variable in str(refused.value)

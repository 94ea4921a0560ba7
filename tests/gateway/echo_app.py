"""The gateway's application over one echoing language model, without a Triton behind it."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from gateway.app import create_app
from gateway.models.catalogue import Catalogue, Model, read_model
from gateway.settings import Settings
from tests.gateway.settled import write_settled
from tests.running import ROOT
from tidegate.app.key_store import KeyStore


def echo_model() -> Model:
    text = (ROOT / "tests/models/echo_llm/config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    config.name = "echo_llm"
    return read_model(config, ("1",))


@contextlib.asynccontextmanager
async def echo_app(
    folder: Path, policy: str = "", **settings: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    """A client of the app, and a key."""
    _, key = KeyStore(folder / "keys.toml", folder / "pepper").create("app")
    if policy:
        write_settled(folder / "gateway.toml", policy)
    app = create_app(
        Settings(
            keys_file=folder / "keys.toml",
            pepper_file=folder / "pepper",
            policy_file=folder / "gateway.toml",
            state_folder=folder,
            pipelines=("echo_llm", "secret_model"),
            **settings,
        )
    )
    await app.access_control.open()
    app.gateway.catalogue = Catalogue({"echo_llm": echo_model()})
    app.gateway.probes = {"echo_llm": "", "secret_model": "is not being served"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client, key
    await app.access_control.close()

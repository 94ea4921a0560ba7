"""The gateway's own log: what a client sends is logged, and cannot start a line."""

import logging

from gateway.app import create_app
from gateway.http.request_context import ClientGone
from gateway.settings import Settings


async def test_a_path_cannot_forge_a_line_of_the_log(caplog, monkeypatch):
    forged = "/healthz\n2026-11-25 INFO keys reloaded\r\x1b[2K"
    monkeypatch.setattr("gateway.middleware.OPEN_PATHS", {forged})
    app = create_app(Settings())

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message): ...

    for fault in (ClientGone(), RuntimeError()):

        async def fails(*arguments, fault=fault):
            raise fault

        monkeypatch.setattr(app, "_route", fails)
        with caplog.at_level(logging.INFO, "gateway"):
            await app({"type": "http", "path": forged, "headers": []}, receive, send)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert all("keys reloaded" in line for line in lines)
    assert not any(character in line for line in lines for character in "\n\r\x1b")

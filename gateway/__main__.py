"""Run the gateway: ``python -m gateway``. Settings come from the environment (``TIDEGATE_*``)."""

import logging
import os
import sys

import uvicorn

from gateway.corked import CorkedProtocol
from gateway.settings import Settings, SettingsError

STOP_TIMEOUT_S = 10


def main() -> int:
    try:
        settings = Settings.read(os.environ)
    except SettingsError as error:
        sys.stderr.write(f"gateway: {error}\n")
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    uvicorn.run(
        "gateway.app:from_environment",
        factory=True,
        host=settings.host,
        port=settings.gateway_port,
        workers=settings.workers,
        loop="uvloop",
        http=CorkedProtocol,
        ws="none",
        access_log=False,
        server_header=False,
        log_config=None,
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

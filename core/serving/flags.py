"""KServe's flags as we take them: what cannot be, what has no effect here, and where the log goes."""

from __future__ import annotations

import argparse
import logging
import ssl
from pathlib import Path

from kserve.model_server import parser as kserve_parser

from kservekit.errors import CannotStart

LOG_FORMAT = "%(asctime)s.%(msecs)03d %(process)s %(name)s %(levelname)s %(message)s"
"""KServe's own, without the place in the source."""
LOG_TIME = "%Y-%m-%d %H:%M:%S"

_WITHOUT_EFFECT = {
    "max_threads": "gRPC runs on the event loop; --max_asyncio_workers is the number of threads for plain handlers",
    "enable_docs_url": "there is no Swagger page",
    "enable_latency_logging": "a request's stages are in KSERVEKIT_SERVER_TIMING and in /metrics, not in the log",
}


def flags_parser() -> argparse.ArgumentParser:
    """KServe's own flags, as `serve` reads them."""
    found: argparse.ArgumentParser = kserve_parser
    return found


def check(flags: argparse.Namespace) -> list[str]:
    """Warnings; CannotStart for a value that KServe's parser takes and no server can be started with."""
    if not flags.model_name.strip():
        raise CannotStart(f"--model_name is {flags.model_name!r}: expected a name, such as doubler")
    for name in ("http_port", "grpc_port"):
        if not 0 <= getattr(flags, name) <= 65535:
            raise CannotStart(f"--{name} is {getattr(flags, name)}: expected 0 to 65535")
    if flags.log_config_file and not Path(flags.log_config_file).is_file():
        raise CannotStart(f"--log_config_file is {flags.log_config_file!r}: no such file")
    _check_tls(flags.ssl_certfile, flags.ssl_keyfile)
    return [
        f"--{name} has no effect here: {reason}"
        for name, reason in _WITHOUT_EFFECT.items()
        if getattr(flags, name) != kserve_parser.get_default(name)
    ]


def _check_tls(certificate: str | None, key: str | None) -> None:
    """They come from KSERVE_TLS_CERT_FILE and KSERVE_TLS_KEY_FILE, too."""
    files = {"--ssl_certfile": certificate, "--ssl_keyfile": key}
    if not any(files.values()):
        return
    for flag, path in files.items():
        if not path:
            raise CannotStart(f"{flag} is not set and {(files.keys() - {flag}).pop()} is: expected both or none")
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise CannotStart(f"{flag} is {path!r}: {error.strerror}") from None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(str(certificate), key, password="")
    except ssl.SSLError as error:
        raise CannotStart(
            f"--ssl_certfile is {certificate!r} and --ssl_keyfile {key!r}: expected a certificate in PEM and its own "
            f"private key, without a password ({error.reason or error})"
        ) from None


def log_to_stderr(flags: argparse.Namespace) -> None:
    """What kservekit logs, with time and level; unless the flags or the user's own module set up logging."""
    log = logging.getLogger("kservekit")
    if flags.log_config_file or not flags.configure_logging or log.hasHandlers():
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(LOG_FORMAT, LOG_TIME))
    log.addHandler(handler)
    log.propagate = False
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)


def keep_our_loggers() -> None:
    """A --log_config_file turns off every logger that is there already, unless it says otherwise: ours with them, and
    a fault would leave no line."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "kservekit":
            logging.getLogger(name).disabled = False

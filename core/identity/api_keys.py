"""API keys by their digests, so that the file alone lets nobody in."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re

from kservekit.config import IdentitySettings, variable
from kservekit.errors import CannotStart, Unauthenticated
from kservekit.identity.principal import Principal, roles_from
from kservekit.identity.watched_file import WatchedFile

log = logging.getLogger(__name__)


class ApiKeys:
    """Of a file with one line a key: `<sha256 hex of the key> <principal> [role,role]`, and comments with #."""

    def __init__(self, path: str) -> None:
        self._file = WatchedFile(variable(IdentitySettings, "api_keys"), path, parse)

    def refresh(self) -> None:
        self._file.refresh()

    def principal(self, key: str) -> Principal:
        digest = hashlib.sha256(key.encode()).digest()
        found = None
        for known, principal in self._file.content.items():  # to the end, so that the time says nothing
            if hmac.compare_digest(known, digest):
                found = principal
        if found is None:
            raise Unauthenticated("the API key is not known")
        return found


def parse(text: str, where: str) -> dict[bytes, Principal]:
    """Principals by digest. A file without a key is no mistake: the last one may be withdrawn."""
    found: dict[bytes, Principal] = {}
    for number, line in enumerate(text.split("\n"), 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        # The line itself is not quoted: it may hold the key where its digest should be.
        if len(fields) not in (2, 3) or not re.fullmatch("[0-9a-fA-F]{64}", fields[0]):
            raise CannotStart(
                f"{where} line {number}: expected '<sha256 of the key, 64 hex digits> <principal> [role,role]', "
                'the first from: printf %s "$KEY" | sha256sum'
            )
        digest = bytes.fromhex(fields[0])
        if digest in found:
            raise CannotStart(f"{where} line {number}: the key of a line above; give each principal its own")
        found[digest] = Principal(fields[1], roles_from("".join(fields[2:])), "api key")
    if not found:
        log.warning("%s has no keys: every API key is refused", where)
    return found

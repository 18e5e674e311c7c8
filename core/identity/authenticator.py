"""Which header says who asks, and in which order they are believed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from kservekit.config import IdentitySettings, variable
from kservekit.errors import CannotStart, Unauthenticated
from kservekit.identity.api_keys import ApiKeys
from kservekit.identity.principal import Principal, name_from, roles_from

if TYPE_CHECKING:
    from kservekit.identity.tokens import Tokens

LONGEST = 16_384
"""A credential's characters, bounded before anything is computed from them."""


class Authenticator:
    """Made by `read`. `principal` is asked for each request, always on the same thread.

    A credential is believed before a proxy's header is, and one that is wrong is refused even where none
    is required. The keys' files are looked at again at most once a second.
    """

    def __init__(
        self,
        settings: IdentitySettings,
        tokens: Tokens | None = None,
        api_keys: ApiKeys | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._tokens = tokens
        self._api_keys = api_keys
        self._open = not (tokens or api_keys or settings.trust_headers or settings.required)
        self._clock = clock
        self._looked = clock()

    @classmethod
    def read(cls, settings: IdentitySettings, *, clock: Callable[[], float] = time.time) -> Authenticator:
        """CannotStart names the setting, the file and the line that is wrong, never the key that stands there.

        `clock` gives the seconds since the epoch, which tokens expire by.
        """
        if wrong := _contradictions(settings):
            raise CannotStart("\n".join(wrong))
        tokens = _tokens(settings) if settings.jwt_keys else None
        api_keys = ApiKeys(settings.api_keys) if settings.api_keys else None
        return cls(settings, tokens, api_keys, clock=clock)

    def principal(self, headers: Mapping[str, str]) -> Principal | None:
        """None where nobody is named and nobody need be; `headers` have lower case names.

        Unauthenticated says what is wrong with a credential and never repeats it.
        """
        if self._open:
            return None
        now = self._clock()
        self._refresh(now)
        key = headers.get("x-api-key") if self._api_keys else None
        # Where API keys alone are known, Authorization beside X-Api-Key is for somebody else: a backend, a mesh.
        bearer = headers.get("authorization") if self._tokens or (self._api_keys and key is None) else None
        if key is not None and bearer is not None:
            raise Unauthenticated("Authorization and X-Api-Key are both given: send one of them")
        if bearer is not None:
            scheme, _, key = bearer.strip().partition(" ")
            if scheme.lower() != "bearer":
                raise Unauthenticated("Authorization is not of the form 'Bearer <credential>'")
            if self._tokens:
                return self._tokens.principal(_bounded(key), now)
        if key is not None and self._api_keys:
            return self._api_keys.principal(_bounded(key))
        return self._from_proxy(headers)

    def _from_proxy(self, headers: Mapping[str, str]) -> Principal | None:
        header = self._settings.principal_header.lower()
        if self._settings.trust_headers and (name := headers.get(header, "").strip()):
            roles = roles_from(headers.get(self._settings.roles_header.lower(), ""))
            return Principal(name_from(name, header), roles, "header")
        if self._settings.required:
            raise Unauthenticated(f"no credential: expected {self._expected()}")
        return None

    def _expected(self) -> str:
        ways = {
            "Authorization: Bearer <token>": self._tokens,
            "X-Api-Key: <key>": self._api_keys,
            f"{self._settings.principal_header} from the proxy": self._settings.trust_headers,
        }
        return " or ".join(way for way, known in ways.items() if known)

    def _refresh(self, now: float) -> None:
        # A clock that was set back would put off the next look.
        if not 0 <= now - self._looked < 1:
            self._looked = now
            for source in (self._tokens, self._api_keys):
                if source:
                    source.refresh()


def _bounded(credential: str) -> str:
    credential = credential.strip()
    if not credential or not credential.isascii() or len(credential) > LONGEST:
        raise Unauthenticated(f"the credential is not of 1 to {LONGEST} ASCII characters")
    return credential


def _tokens(settings: IdentitySettings) -> Tokens:
    try:
        from kservekit.identity.tokens import Tokens
    except ImportError:
        name = variable(IdentitySettings, "jwt_keys")
        raise CannotStart(f"{name} is set and PyJWT is not installed: pip install 'kservekit[identity]'") from None
    return Tokens(settings)


def _contradictions(settings: IdentitySettings) -> list[str]:
    """Settings that would leave the door open, or shut to all, without a word."""
    name = {field.name: variable(IdentitySettings, field.name) for field in dataclasses.fields(settings)}
    found = []
    if settings.jwt_keys and not settings.jwt_audience:
        found.append(
            f"{name['jwt_audience']} is not set and {name['jwt_keys']} is: expected the audience that tokens for this "
            "server have, because one for any other service of the issuer would do otherwise"
        )
    for field in ("jwt_audience", "jwt_issuer"):
        if getattr(settings, field) and not settings.jwt_keys:
            found.append(
                f"{name[field]} is {getattr(settings, field)!r} and no token would be looked at: "
                f"set {name['jwt_keys']} to a file with the issuer's public keys"
            )
    if settings.required and not (settings.jwt_keys or settings.api_keys or settings.trust_headers):
        found.append(
            f"{name['required']} is true and nobody could be let in: "
            f"set {name['jwt_keys']}, {name['api_keys']} or {name['trust_headers']}"
        )
    return found

"""JSON Web Tokens: signed by a key that is known, for this server, and in their time."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import jwt

from kservekit.config import IdentitySettings, variable
from kservekit.errors import Unauthenticated
from kservekit.identity import public_keys
from kservekit.identity.principal import Principal, name_from
from kservekit.identity.watched_file import WatchedFile

REMEMBERED = 1024
"""How many tokens; of more, the one that was seen longest ago is verified again when it comes."""


class _Verified(NamedTuple):
    principal: Principal
    starts: float
    ends: float


class Tokens:
    """Remembers what a signature proved, because verifying one costs as much as all of a small request.

    The time is looked at for every request, so nothing is remembered beyond it.
    """

    def __init__(self, settings: IdentitySettings) -> None:
        self._settings = settings
        self._keys = WatchedFile(variable(IdentitySettings, "jwt_keys"), settings.jwt_keys, public_keys.parse)
        self._verified: dict[bytes, _Verified] = {}

    def refresh(self) -> None:
        if self._keys.refresh():
            self._verified.clear()  # among them what a withdrawn key has signed

    def principal(self, token: str, now: float) -> Principal:
        digest = hashlib.sha256(token.encode()).digest()
        verified = self._verified.pop(digest, None) or self._verify(token)
        if now >= verified.ends + self._settings.leeway_s:
            raise Unauthenticated("the token has expired: get a new one")
        if now < verified.starts - self._settings.leeway_s:
            raise Unauthenticated("the token is not valid yet: its nbf is in the future")
        self._verified[digest] = verified  # as the youngest
        if len(self._verified) > REMEMBERED:
            del self._verified[next(iter(self._verified))]
        return verified.principal

    def _verify(self, token: str) -> _Verified:
        claims = self._claims(token)
        principal = Principal(name_from(claims["sub"], "the token's sub"), self._roles(claims), "jwt")
        return _Verified(principal, _seconds(claims.get("nbf", 0), "nbf"), _seconds(claims["exp"], "exp"))

    def _claims(self, token: str) -> dict[str, Any]:
        audience, issuer = self._settings.jwt_audience, self._settings.jwt_issuer
        try:
            header = jwt.get_unverified_header(token)
            for key in self._keys.content:
                if header.get("alg") not in key.algorithms or key.id not in (None, header.get("kid", key.id)):
                    continue
                try:
                    return jwt.decode(
                        token,
                        key.key,
                        algorithms=key.algorithms,
                        audience=audience,
                        issuer=issuer or None,
                        # Times are ours to check: by our clock, and for remembered tokens too.
                        options={
                            "require": ["exp", "sub", "aud"],
                            "verify_exp": False,
                            "verify_nbf": False,
                            "verify_iat": False,
                        },
                    )
                except jwt.InvalidSignatureError:
                    continue
        except jwt.InvalidAudienceError:
            raise Unauthenticated(f"the token is for another server: expected the audience {audience!r}") from None
        except jwt.InvalidIssuerError:
            raise Unauthenticated(f"the token is of another issuer: expected {issuer!r}") from None
        except jwt.MissingRequiredClaimError as error:
            raise Unauthenticated(f"the token has no {error.claim}: expected exp, sub and aud, and iss") from None
        except jwt.PyJWTError:
            raise Unauthenticated("the token is not a JSON Web Token that can be read") from None
        raise Unauthenticated("the token is not signed with a key that is known here")

    def _roles(self, claims: dict[str, Any]) -> frozenset[str]:
        roles = claims.get(self._settings.jwt_roles_claim) or []
        if isinstance(roles, str):
            roles = roles.split()  # as OAuth writes a scope
        if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            raise Unauthenticated(f"the token's {self._settings.jwt_roles_claim} is not a list of names")
        return frozenset(filter(None, roles))


def _seconds(value: Any, claim: str) -> float:
    # NaN and Infinity are JSON to Python, and a token that ends there would never end.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise Unauthenticated(f"the token's {claim} is not a number of seconds")
    return value

"""The keys that tokens are verified with, out of a JWKS document or PEM. Public ones only, each with its algorithms."""

from __future__ import annotations

import json
import logging
import re
from typing import Any, NamedTuple

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from kservekit.errors import CannotStart

log = logging.getLogger(__name__)

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_EC = {"secp256r1": ("ES256",), "secp384r1": ("ES384",), "secp521r1": ("ES512",)}
_KINDS = "of a kind that is not known here: expected RSA, EC on P-256, P-384 or P-521, or Ed25519"
_PEM = re.compile(r"^-----BEGIN ([A-Z0-9 ]+)-----$.*?^-----END \1-----$", re.M | re.S)


class PublicKey(NamedTuple):
    id: str | None
    key: Any
    algorithms: tuple[str, ...]
    """What a token signed with it may name as its `alg`; the key decides, never the token."""


def parse(text: str, where: str) -> list[PublicKey]:
    """At least one; CannotStart for a file that holds none, or anything secret."""
    if text.lstrip().startswith("{"):
        found, passed_over = _from_jwks(text, where)
    else:
        found, passed_over = _from_pem(text, where), []
    if not found:
        why = "; ".join(passed_over) or "expected a JWKS document, or public keys in PEM"
        raise CannotStart(f"{where} has no key to verify tokens with: {why}")
    for reason in passed_over:
        log.warning("%s: %s", where, reason)
    return found


def _from_jwks(text: str, where: str) -> tuple[list[PublicKey], list[str]]:
    """And why others were passed over, as RFC 7517 asks for: an issuer may add kinds of keys that are not known yet."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise CannotStart(f"{where} line {error.lineno}: not JSON ({error.msg})") from None
    keys = document.get("keys")
    if not isinstance(keys, list) or not all(isinstance(jwk, dict) for jwk in keys):
        raise CannotStart(f"{where} is not a JWKS document: expected an object with a list 'keys' of objects")
    found, passed_over = [], []
    for number, jwk in enumerate(keys, 1):
        if jwk.get("kty") == "oct" or "k" in jwk or "d" in jwk:
            raise CannotStart(f"{where} key {number} is a secret one: expected public keys alone, the issuer's JWKS")
        try:
            found.append(_from_jwk(jwk))
        except _Unfit as error:
            passed_over.append(f"key {number} {error}")
        except (jwt.PyJWTError, ValueError, TypeError):  # their words can hold the key
            passed_over.append(f"key {number} is damaged, or {_KINDS}")
    return found, passed_over


def _from_jwk(jwk: dict[str, Any]) -> PublicKey:
    if jwk.get("use", "sig") != "sig" or "verify" not in jwk.get("key_ops", ["verify"]):
        raise _Unfit("is not for signatures")
    algorithm = jwk.get("alg")
    key = jwt.PyJWK({name: value for name, value in jwk.items() if name != "alg"}).key
    algorithms = tuple(known for known in _algorithms(key) if algorithm in (None, known))
    if not algorithms:
        raise _Unfit(f"is for the algorithm {algorithm!r}, which is not one of its kind")
    return PublicKey(jwk.get("kid"), key, algorithms)


def _from_pem(text: str, where: str) -> list[PublicKey]:
    found = []
    for block in _PEM.finditer(text):
        line = text.count("\n", 0, block.start()) + 1
        if not block[1].endswith("PUBLIC KEY"):
            raise CannotStart(
                f"{where} line {line} begins a {block[1]}: expected a PUBLIC KEY, "
                "as openssl pkey -pubout or openssl x509 -pubkey -noout makes of it"
            )
        try:
            key = load_pem_public_key(block[0].encode())
            found.append(PublicKey(None, key, _algorithms(key)))
        except _Unfit as error:
            raise CannotStart(f"{where} line {line}: the key {error}") from None
        except (ValueError, UnsupportedAlgorithm):
            raise CannotStart(f"{where} line {line}: the key is damaged, or {_KINDS}") from None
    return found


class _Unfit(Exception):
    """Says why of a key, and nothing that is in it."""


def _algorithms(key: object) -> tuple[str, ...]:
    if isinstance(key, RSAPublicKey):
        if key.key_size < 2048:
            raise _Unfit(f"has {key.key_size} bits: expected 2048 or more of an RSA key")
        return _RSA
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in _EC:
        return _EC[key.curve.name]
    if isinstance(key, Ed25519PublicKey):
        return ("EdDSA",)
    raise _Unfit(f"is {_KINDS}")

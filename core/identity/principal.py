"""Somebody who is known, and what they may do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kservekit.errors import Forbidden, Unauthenticated


@dataclass(frozen=True, slots=True)
class Principal:
    name: str
    roles: frozenset[str]
    how: str
    """What vouches for it: "header", "jwt" or "api key"."""


def require_role(principal: Principal | None, role: str) -> None:
    """Unauthenticated without a principal, Forbidden for one that lacks the role."""
    if principal is None:
        raise Unauthenticated(f"no credential: expected one of somebody with the role {role!r}")
    if role not in principal.roles:
        raise Forbidden(f"{principal.name!r} does not have the role {role!r}, which this asks for")


def name_from(text: str, where: str) -> str:
    """Refuses what would forge a line of a log."""
    if not text or re.search(r"[\x00-\x1f\x7f]", text):
        raise Unauthenticated(f"{where} is not a name: it is empty, or has control characters")
    return text


def roles_from(text: str) -> frozenset[str]:
    """Of names with commas between."""
    return frozenset(filter(None, (part.strip() for part in text.split(","))))

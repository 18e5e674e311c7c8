"""Who asks: the principal that a request's headers prove, by a JWT, an API key, or a trusted proxy's word."""

from kservekit.identity.authenticator import Authenticator
from kservekit.identity.principal import Principal, require_role

__all__ = ["Authenticator", "Principal", "require_role"]

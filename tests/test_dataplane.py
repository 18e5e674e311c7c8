"""What REST and gRPC both ask, in this process."""

import asyncio

import kserve
import numpy as np
import pytest
from served_models import Failing

from kservekit.codec.message import Request
from kservekit.config import IdentitySettings, ServerSettings
from kservekit.errors import Forbidden, ModelError, TooManyRequests
from kservekit.identity import Principal
from kservekit.serving.dataplane import DataPlane

EVA = Principal("eva", frozenset(), "header")


def plane(**settings):
    registry = kserve.ModelRepository()
    model = Failing("m")
    model.ready = True
    registry.update(model)
    return DataPlane(registry, ServerSettings(**settings), IdentitySettings(trust_headers=True))


@pytest.mark.parametrize(
    ("settings", "headers", "principal", "tenant"),
    [
        ({}, {}, EVA, "eva"),
        ({}, {}, None, ""),
        ({"tenant_header": "X-Tenant"}, {"x-tenant": "acme"}, EVA, "acme"),
        ({"tenant_header": "X-Tenant"}, {}, EVA, ""),
    ],
)
def test_a_tenant_is_who_the_header_names_or_else_the_principal(settings, headers, principal, tenant):
    assert plane(**settings).tenant(headers, principal) == tenant


def test_a_tenants_place_is_given_back():
    found = plane(tenant_max_concurrency=1)
    for _ in range(2):
        with found.room("eva"), pytest.raises(TooManyRequests), found.room("eva"):
            pass


def test_the_log_says_who_asked_for_what_failed_or_was_refused(caplog):
    found = plane(repository_api=True)
    request = Request({"x": np.zeros(1)}, model="m", parameters={"how": "bug"}, principal=EVA)
    with pytest.raises(ModelError):
        asyncio.run(found.infer(request))
    with pytest.raises(Forbidden):
        asyncio.run(found.unload("m", EVA))
    for line in ("model failed: model='m'", "refused to load or unload a model"):
        (said,) = [record.getMessage() for record in caplog.records if line in record.getMessage()]
        assert said.endswith("by='eva'")

import pytest

from kservekit import errors

CONTRACT = {
    "InvalidInput": (400, "INVALID_ARGUMENT"),
    "Unauthenticated": (401, "UNAUTHENTICATED"),
    "Forbidden": (403, "PERMISSION_DENIED"),
    "ModelNotFound": (404, "NOT_FOUND"),
    "PayloadTooLarge": (413, "RESOURCE_EXHAUSTED"),
    "UnsupportedMedia": (415, "INVALID_ARGUMENT"),
    "TooManyRequests": (429, "RESOURCE_EXHAUSTED"),
    "Cancelled": (499, "CANCELLED"),
    "ModelError": (500, "INTERNAL"),
    "NotSupported": (501, "UNIMPLEMENTED"),
    "Unavailable": (503, "UNAVAILABLE"),
    "DeadlineExceeded": (504, "DEADLINE_EXCEEDED"),
}


def test_the_contract_has_every_serving_error_and_nothing_else():
    assert {error.__name__: (error.http, error.grpc) for error in errors.ALL} == CONTRACT
    assert set(errors.ALL) == set(errors.ServingError.__subclasses__())


@pytest.mark.parametrize("error", errors.ALL)
def test_an_error_of_ours_survives_a_hop_over_either_protocol(error):
    over_http = errors.from_http(error.http, "why", retry_after="7")
    over_grpc = errors.from_grpc(error.grpc, "why", name=error.__name__, retry_after="0.5")
    assert (type(over_http), over_http.message, over_http.retry_after) == (error, "why", 7.0)
    assert (type(over_grpc), over_grpc.message, over_grpc.retry_after) == (error, "why", 0.5)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("RESOURCE_EXHAUSTED", errors.TooManyRequests),
        ("INVALID_ARGUMENT", errors.InvalidInput),
        ("UNKNOWN", errors.ModelError),
        ("DATA_LOSS", errors.ModelError),
    ],
)
def test_a_foreign_grpc_code_reads_as_the_error_more_often_meant(code, expected):
    assert type(errors.from_grpc(code, "why")) is expected


@pytest.mark.parametrize(
    ("status", "expected", "told"),
    [
        (422, errors.InvalidInput, 422),
        (499, errors.Cancelled, 499),
        (502, errors.Unavailable, 503),
        (507, errors.ModelError, 500),
        (302, errors.ModelError, 500),
    ],
)
def test_a_foreign_http_status_reads_as_the_nearest_error(status, expected, told):
    found = errors.from_http(status, "why")
    assert (type(found), found.http) == (expected, told)


@pytest.mark.parametrize("value", ["Wed, 21 Oct 2026 07:28:00 GMT", "-1", "1e9", "", None, "9999999999"])
def test_a_retry_after_that_is_no_number_of_seconds_is_left_out(value):
    assert errors.from_http(503, "why", retry_after=value).retry_after is None


@pytest.mark.parametrize("error", errors.ALL)
def test_what_waiting_mends_always_says_how_long(error):
    assert error("x").told_retry_after == (1 if error.http in (429, 503) else None)
    assert error("x", retry_after=1.2).told_retry_after == 2

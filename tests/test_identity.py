import base64
import dataclasses
import hashlib
import hmac
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from kservekit.config import IdentitySettings
from kservekit.errors import CannotStart, Forbidden, Unauthenticated
from kservekit.identity import Authenticator, Principal, require_role, tokens
from kservekit.identity.watched_file import WatchedFile

NOW = 1_800_000_000.0
AUDIENCE, ISSUER = "photos", "https://issuer.example"
CLAIMS = {"sub": "alice", "aud": AUDIENCE, "iss": ISSUER, "iat": NOW, "exp": NOW + 60, "roles": ["reader", "admin"]}
ALICE = Principal("alice", frozenset({"reader", "admin"}), "jwt")

RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
KEYS = {
    "RS256": RSA,
    "RS512": RSA,
    "PS256": RSA,
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def pem(key, *, private=False):
    if private:
        kind, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return key.private_bytes(serialization.Encoding.PEM, kind, none).decode()
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, kind).decode()


def jwk(key, *, private=False, **members):
    algorithm = next(name for name, known in [*KEYS.items(), ("RS256", OTHER_RSA)] if known is key)
    made = jwt.get_algorithm_by_name(algorithm).to_jwk(key if private else key.public_key(), as_dict=True)
    return {name: value for name, value in made.items() if name != "key_ops"} | members


def jwks(*keys):
    return json.dumps({"keys": keys})


def token(key=RSA, algorithm="RS256", headers=None, **claims):
    claims = {name: value for name, value in (CLAIMS | claims).items() if value is not None}
    return jwt.encode(claims, key, algorithm, headers)


def bearer(credential):
    return {"authorization": f"Bearer {credential}"}


def digest(key):
    return hashlib.sha256(key.encode()).hexdigest()


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def start(tmp_path, clock):
    """An authenticator whose files hold the texts that are given for them."""

    def started(*, jwt_keys=None, api_keys=None, **settings):
        for name, text in (("jwt_keys", jwt_keys), ("api_keys", api_keys)):
            if text is not None:
                (tmp_path / name).write_text(text)
                settings[name] = str(tmp_path / name)
        if jwt_keys is not None:
            settings = {"jwt_audience": AUDIENCE, "jwt_issuer": ISSUER} | settings
        return Authenticator.read(IdentitySettings(**settings), clock=clock)

    return started


@pytest.fixture
def verifications(monkeypatch):
    seen, verify = [], jwt.decode
    monkeypatch.setattr(
        "jwt.decode", lambda sent, *rest, **options: seen.append(sent) or verify(sent, *rest, **options)
    )
    return seen


def refusal(authenticator, headers):
    with pytest.raises(Unauthenticated) as found:
        authenticator.principal(headers)
    return found.value.message


# What is configured


def test_without_a_source_nobody_is_named_and_no_header_is_looked_at(start):
    assert start().principal(None) is None


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"required": True}, "KSERVEKIT_IDENTITY_REQUIRED is true and nobody could be let in"),
        ({"jwt_keys": "/keys"}, "KSERVEKIT_IDENTITY_JWT_AUDIENCE is not set"),
        ({"jwt_audience": "photos"}, "KSERVEKIT_IDENTITY_JWT_AUDIENCE is 'photos' and no token would be looked at"),
        ({"jwt_issuer": ISSUER}, "KSERVEKIT_IDENTITY_JWT_ISSUER is 'https://issuer.example' and no token"),
        ({"api_keys": "/no/such/file"}, "KSERVEKIT_IDENTITY_API_KEYS: /no/such/file cannot be read: No such file"),
    ],
)
def test_settings_that_leave_a_door_open_or_shut_to_all_keep_the_server_from_starting(settings, named):
    with pytest.raises(CannotStart, match=re.escape(named)):
        Authenticator.read(IdentitySettings(**settings))


def test_where_a_credential_is_required_a_request_without_one_is_told_what_to_send(start):
    authenticator = start(required=True, trust_headers=True, jwt_keys=pem(RSA), api_keys=f"{digest('k')} bob")
    assert refusal(authenticator, {}) == (
        "no credential: expected Authorization: Bearer <token> or X-Api-Key: <key> or x-forwarded-user from the proxy"
    )


def test_where_none_is_required_a_request_without_a_credential_is_nobodys(start):
    assert start(jwt_keys=pem(RSA), api_keys=f"{digest('k')} bob", trust_headers=True).principal({}) is None


def test_pyjwt_is_imported_only_where_tokens_are_configured():
    code = "import kservekit.identity, sys; print({'jwt', 'cryptography', 'kserve'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("missing", ["jwt", "cryptography"])
def test_without_pyjwt_the_line_that_installs_it_is_named(missing):
    code = f"""import sys; sys.modules[{missing!r}] = None
from kservekit.config import IdentitySettings
from kservekit.identity import Authenticator
Authenticator.read(IdentitySettings(jwt_keys="keys", jwt_audience="photos"))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        "kservekit.errors.CannotStart: KSERVEKIT_IDENTITY_JWT_KEYS is set and PyJWT is not installed: "
        "pip install 'kservekit[identity]'"
    )


# Headers of a proxy


def test_a_proxys_headers_name_a_principal_only_where_they_are_trusted(start):
    headers = {"x-forwarded-user": " carol ", "x-forwarded-groups": "reader, writer,,"}
    assert start(trust_headers=True).principal(headers) == Principal("carol", frozenset({"reader", "writer"}), "header")
    assert start(api_keys=f"{digest('k')} bob").principal(headers) is None


def test_the_proxys_headers_may_have_other_names(start):
    authenticator = start(trust_headers=True, principal_header="X-Auth-Request-Email", roles_header="X-Roles")
    assert authenticator.principal({"x-auth-request-email": "c@example.com", "x-roles": "a"}) == Principal(
        "c@example.com", frozenset({"a"}), "header"
    )
    assert authenticator.principal({"x-forwarded-user": "mallory"}) is None


def test_roles_without_a_name_are_nobodys(start):
    headers = {"x-forwarded-user": " ", "x-forwarded-groups": "admin"}
    assert start(trust_headers=True).principal(headers) is None
    assert "x-forwarded-user" in refusal(start(trust_headers=True, required=True), headers)


def test_a_name_that_would_forge_a_line_of_a_log_is_refused(start):
    assert "control characters" in refusal(start(trust_headers=True), {"x-forwarded-user": "carol\n2026 admin"})


def test_where_headers_alone_are_trusted_a_credential_is_somebody_elses(start):
    headers = {"x-forwarded-user": "carol", "x-api-key": "k"} | bearer("for the backend")
    assert start(trust_headers=True).principal(headers).name == "carol"


def test_a_credential_is_believed_before_a_proxys_header(start):
    authenticator = start(trust_headers=True, jwt_keys=pem(RSA))
    assert authenticator.principal({"x-forwarded-user": "mallory", **bearer(token())}) == ALICE
    assert refusal(authenticator, {"x-forwarded-user": "mallory", **bearer(token(OTHER_RSA))})


# API keys

API_KEYS = f"""
# who may ask
{digest("first key")}  alice  reader,admin
{digest("second key").upper()} bob   # no roles
"""


@pytest.mark.parametrize("header", ["x-api-key", "authorization"])
def test_an_api_key_names_its_principal_and_roles(start, header):
    def sent(key):
        return {header: key if header == "x-api-key" else f"bearer  {key} "}

    authenticator = start(api_keys=API_KEYS)
    assert authenticator.principal(sent("first key")) == Principal("alice", frozenset({"reader", "admin"}), "api key")
    assert authenticator.principal(sent("second key")) == Principal("bob", frozenset(), "api key")
    assert refusal(authenticator, sent("third key")) == "the API key is not known"
    assert refusal(authenticator, sent("First key")) == "the API key is not known"
    assert refusal(authenticator, sent(digest("first key"))) == "the API key is not known"


@pytest.mark.parametrize("key", ["", " ", "schlüssel", "k" * 16_385])
def test_a_key_that_cannot_be_one_is_refused_before_it_is_computed_with(start, key):
    empty = f"{digest('')} nobody\n{digest('k' * 16_385)} long\n{digest('schlüssel')} umlaut"
    message = refusal(start(api_keys=empty), {"x-api-key": key})
    assert message == "the credential is not of 1 to 16384 ASCII characters"


def test_every_known_key_is_compared_whichever_is_right(start, monkeypatch):
    compared = []

    def compare(one, other):
        compared.append(one)
        return one == other

    authenticator = start(api_keys=API_KEYS)
    monkeypatch.setattr("hmac.compare_digest", compare)
    for key in ("first key", "second key"):
        assert authenticator.principal({"x-api-key": key})
    assert "not known" in refusal(authenticator, {"x-api-key": "third key"})
    assert len(compared) == 3 * 2


@pytest.mark.parametrize(
    "line",
    [
        "the-key-itself-by-mistake alice admin",
        digest("key"),
        f"{digest('key')} alice reader, admin",
        f"{digest('key')[:-1]} alice",
        f"{digest('key')}00 alice",
        f"{digest('first')} another",
    ],
)
def test_a_bad_line_of_api_keys_is_named_by_its_number_and_never_quoted(start, line):
    with pytest.raises(CannotStart) as found:
        start(api_keys=f"# keys\n{digest('first')} first\n{line}\n")
    message = str(found.value)
    assert re.match(r"KSERVEKIT_IDENTITY_API_KEYS: \S+/api_keys line 3: ", message)
    assert line.split()[0] not in message


def test_authorization_beside_an_api_key_is_the_backends_where_no_token_is_expected(start):
    headers = {"x-api-key": "first key"} | bearer("for the backend")
    assert start(api_keys=API_KEYS).principal(headers).name == "alice"
    both = start(api_keys=API_KEYS, jwt_keys=pem(RSA))
    assert refusal(both, headers | bearer(token())) == "Authorization and X-Api-Key are both given: send one of them"


def test_an_api_key_beside_a_token_is_the_backends_where_no_api_key_is_known(start):
    assert start(jwt_keys=pem(RSA)).principal({"x-api-key": "for the backend"} | bearer(token())) == ALICE


def test_where_tokens_are_expected_an_api_key_is_no_bearers(start):
    authenticator = start(api_keys=API_KEYS, jwt_keys=pem(RSA))
    assert authenticator.principal({"x-api-key": "first key"}).how == "api key"
    assert refusal(authenticator, bearer("first key"))


@pytest.mark.parametrize("header", ["Basic YWxpY2U6c2VjcmV0", "first key", "", "Bearer", "Bearer "])
@pytest.mark.parametrize("source", ["jwt_keys", "api_keys"])
def test_an_authorization_that_bears_nothing_is_refused_even_where_none_is_required(start, source, header):
    file = f"{digest('YWxpY2U6c2VjcmV0')} alice\n{digest('key')} bob" if source == "api_keys" else pem(RSA)
    message = refusal(start(**{source: file}), {"authorization": header})
    assert "YWxpY2U6c2VjcmV0" not in message
    assert "first key" not in message


def test_the_readmes_lines_make_a_key_that_is_known(start, tmp_path):
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```sh\n(.*?)```", readme, re.S) if "sha256sum" in block)
    done = subprocess.run(["sh", "-c", f"{code}printf %s $KEY"], cwd=tmp_path, capture_output=True, text=True)
    assert len(done.stdout) == 64, done.stderr
    authenticator = start(api_keys=(tmp_path / "api_keys").read_text())
    assert authenticator.principal({"x-api-key": done.stdout}).roles == {"reader", "admin"}


# Tokens


@pytest.mark.parametrize("algorithm", KEYS)
@pytest.mark.parametrize("form", ["JWKS", "PEM"])
def test_a_token_names_its_subject_and_roles_by_each_algorithm_and_form_of_key(start, algorithm, form):
    key = KEYS[algorithm]
    authenticator = start(jwt_keys=jwks(jwk(key, kid="1")) if form == "JWKS" else "# the issuer's\n" + pem(key))
    assert authenticator.principal(bearer(token(key, algorithm))) == ALICE
    assert authenticator.principal(bearer(token(key, algorithm, {"kid": "1"}))) == ALICE


def unsigned(header, signature=b"", **claims):
    parts = [json.dumps(part).encode() for part in (header, CLAIMS | claims)]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in [*parts, signature])


def with_another_payload(good):
    head, _, signature = good.split(".")
    return ".".join([head, unsigned({}, sub="mallory").split(".")[1], signature])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda: token(exp=NOW - 10), "the token has expired: get a new one"),
        (lambda: token(nbf=NOW + 11), "the token is not valid yet: its nbf is in the future"),
        (lambda: token(aud="billing"), "the token is for another server: expected the audience 'photos'"),
        (lambda: token(iss="https://issuer.example.org"), "the token is of another issuer"),
        (lambda: token(iss=None), "the token has no iss"),
        (lambda: token(exp=None), "the token has no exp"),
        (lambda: token(sub=None), "the token has no sub"),
        (lambda: token(aud=None), "the token has no aud"),
        (lambda: token(sub=""), "the token's sub is not a name"),
        (lambda: token(sub="alice\nbob"), "the token's sub is not a name"),
        (lambda: token(exp=float("nan")), "the token's exp is not a number of seconds"),
        (lambda: token(exp=float("inf")), "the token's exp is not a number of seconds"),
        (lambda: token(exp=str(NOW + 60)), "the token's exp is not a number of seconds"),
        (lambda: token(exp=True), "the token's exp is not a number of seconds"),
        (lambda: token(nbf="soon"), "the token's nbf is not a number of seconds"),
        (lambda: token(roles={"admin": True}), "the token's roles is not a list of names"),
        (lambda: token(roles=["reader", ["admin"]]), "the token's roles is not a list of names"),
        (lambda: token(OTHER_RSA), "the token is not signed with a key that is known here"),
        (lambda: with_another_payload(token()), "the token is not signed with a key that is known here"),
        (lambda: unsigned({"alg": "none"}), "the token is not signed with a key that is known here"),
        (lambda: unsigned({"alg": "RS256"}), "the token is not signed with a key that is known here"),
        (lambda: unsigned({}), "the token is not signed with a key that is known here"),
        (lambda: token(headers={"crit": ["must"], "must": 1}), "the token is not a JSON Web Token that can be read"),
        (lambda: "a.b.c", "the token is not a JSON Web Token that can be read"),
        (lambda: "not a token", "the token is not a JSON Web Token that can be read"),
    ],
)
def test_a_bad_token_is_refused_with_the_reason_even_where_none_is_required(start, bad, reason):
    bad = bad()
    message = refusal(start(jwt_keys=pem(RSA)), bearer(bad))
    assert message.startswith(reason)
    assert not [part for part in re.split(r"[. ]", bad) if len(part) > 5 and part in message]


def test_a_token_that_is_too_long_is_refused_before_it_is_computed_with(start):
    long = token(groups=["g" * 100] * 200)
    assert refusal(start(jwt_keys=pem(RSA)), bearer(long)) == "the credential is not of 1 to 16384 ASCII characters"


def test_a_public_key_is_never_taken_for_a_secret(start):
    """The key is public, so that anyone could sign with it."""
    head, claims, _ = unsigned({"alg": "HS256", "typ": "JWT"}).split(".")
    for secret in (pem(RSA), json.dumps(jwk(RSA))):
        for file in (pem(RSA), jwks(jwk(RSA))):
            made = hmac.digest(secret.encode(), f"{head}.{claims}".encode(), "sha256")
            forged = f"{head}.{claims}.{base64.urlsafe_b64encode(made).rstrip(b'=').decode()}"
            assert "not signed with a key that is known" in refusal(start(jwt_keys=file), bearer(forged))


def test_whatever_comes_as_a_token_is_a_principal_or_unauthenticated(start):
    authenticator, good = start(jwt_keys=jwks(jwk(RSA, kid="1"))), token(headers={"kid": "1"})
    for place in range(1, len(good), 3):
        for changed in (good[:place], good[:place] + "." + good[place:], good[:place] + "\x00{" + good[place + 2 :]):
            assert "token" in refusal(authenticator, bearer(changed))
    for header in ([], 7, {"alg": ["RS256"]}, {"alg": "RS256", "kid": 7}, {"alg": "RS256", "b64": False}):
        assert "token" in refusal(authenticator, bearer(unsigned(header)))


@pytest.mark.parametrize(
    ("claims", "roles"),
    [({"groups": ["a", "", "b"]}, {"a", "b"}), ({"groups": "a b"}, {"a", "b"}), ({}, set()), ({"groups": None}, set())],
)
def test_roles_are_read_from_the_claim_that_is_set(start, claims, roles):
    authenticator = start(jwt_keys=pem(RSA), jwt_roles_claim="groups")
    assert authenticator.principal(bearer(token(**claims))).roles == roles


def test_a_token_may_be_for_several_servers_and_where_no_issuer_is_set_of_any(start):
    authenticator = start(jwt_keys=pem(RSA), jwt_issuer="")
    assert authenticator.principal(bearer(token(aud=["billing", AUDIENCE], iss=None))) == ALICE


def test_the_clocks_may_differ_by_the_leeway_and_no_more(start, clock):
    authenticator, sent = start(jwt_keys=pem(RSA), leeway_s=10), bearer(token(nbf=NOW + 10, exp=NOW + 60))
    assert authenticator.principal(sent) == ALICE
    clock.now = NOW - 1
    assert "not valid yet" in refusal(authenticator, sent)
    clock.now = NOW + 69
    assert authenticator.principal(sent) == ALICE
    clock.now = NOW + 70
    assert "expired" in refusal(authenticator, sent)


# Keys for tokens


def test_a_token_is_verified_with_the_key_that_it_names(start):
    authenticator = start(jwt_keys=jwks(jwk(OTHER_RSA, kid="old"), jwk(RSA, kid="new")))
    assert authenticator.principal(bearer(token(headers={"kid": "new"}))) == ALICE
    assert authenticator.principal(bearer(token())) == ALICE
    assert "key that is known" in refusal(authenticator, bearer(token(headers={"kid": "old"})))
    assert "key that is known" in refusal(authenticator, bearer(token(headers={"kid": "other"})))


def test_several_keys_in_pem_are_all_known(start):
    authenticator = start(jwt_keys=pem(KEYS["ES256"]) + pem(OTHER_RSA) + pem(RSA))
    for algorithm in ("ES256", "RS256"):
        assert authenticator.principal(bearer(token(KEYS[algorithm], algorithm))) == ALICE


def test_a_key_for_one_algorithm_verifies_no_other(start):
    authenticator = start(jwt_keys=jwks(jwk(RSA, alg="RS256")))
    assert authenticator.principal(bearer(token())) == ALICE
    assert "key that is known" in refusal(authenticator, bearer(token(algorithm="PS256")))


def test_keys_for_encryption_and_of_kinds_not_known_yet_are_passed_over(start, caplog):
    passed_over = [
        jwk(OTHER_RSA, use="enc"),
        jwk(OTHER_RSA, key_ops=["encrypt"]),
        jwk(OTHER_RSA, alg="RSA-OAEP"),
        {"kty": "AKP", "alg": "ML-DSA-65", "pub": "AAAA"},
        {"kty": "RSA", "n": 7, "e": "AQAB"},
        jwk(OTHER_RSA, key_ops=7),
    ]
    authenticator = start(jwt_keys=jwks(*passed_over, jwk(RSA)))
    assert [record.message.split(": ", 2)[2].split(" is ")[0] for record in caplog.records] == [
        f"key {number}" for number in range(1, 7)
    ]
    assert authenticator.principal(bearer(token())) == ALICE
    assert "key that is known" in refusal(authenticator, bearer(token(OTHER_RSA)))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (lambda: jwks(jwk(RSA), {"kty": "oct", "k": "c2VjcmV0"}), " key 2 is a secret one: expected public keys"),
        (lambda: jwks(jwk(RSA, private=True)), " key 1 is a secret one: expected public keys"),
        (lambda: jwks(jwk(KEYS["EdDSA"], private=True)), " key 1 is a secret one: expected public keys"),
        (lambda: pem(RSA) + pem(RSA, private=True), " line 10 begins a PRIVATE KEY: expected a PUBLIC KEY"),
        (lambda: pem(RSA).replace("MII", "MIJ"), " line 1: the key is damaged"),
        (lambda: pem(dsa.generate_private_key(2048)), " line 1: the key is of a kind that is not known here"),
        (lambda: pem(ec.generate_private_key(ec.SECP256K1())), " line 1: the key is of a kind that is not known here"),
        (lambda: pem(rsa.generate_private_key(65537, 1024)), " line 1: the key has 1024 bits: expected 2048 or more"),
        (lambda: jwks(jwk(RSA, use="enc")), " has no key to verify tokens with: key 1 is not for signatures"),
        (lambda: jwks(), " has no key to verify tokens with: expected a JWKS document"),
        (lambda: "", " has no key to verify tokens with: expected a JWKS document"),
        (lambda: "a shared secret", " has no key to verify tokens with: expected a JWKS document"),
        (lambda: '{"keys":\n [}', " line 2: not JSON"),
        (lambda: '{"keys": {}}', " is not a JWKS document"),
        (lambda: '{"keys": [7]}', " is not a JWKS document"),
        (lambda: json.dumps(jwk(RSA)), " is not a JWKS document"),
    ],
)
def test_a_bad_file_of_keys_is_named_with_its_place_and_never_quoted(start, text, named):
    text = text()
    with pytest.raises(CannotStart) as found:
        start(jwt_keys=text)
    message = str(found.value)
    assert re.match(rf"KSERVEKIT_IDENTITY_JWT_KEYS: \S+/jwt_keys{re.escape(named)}", message)
    assert not [word for word in re.findall(r"[\w+/-]{8,}", text) if word in message and not word.isalpha()]


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "keys").write_bytes(b"\x30\x82\xff")
    with pytest.raises(CannotStart, match="keys cannot be read: expected text in UTF-8"):
        Authenticator.read(IdentitySettings(jwt_keys=str(tmp_path / "keys"), jwt_audience="photos"))


# Files that change


def mount(folder, version, **files):
    """As the kubelet does it: a folder for each version, and a link to it that is swapped in one step."""
    (folder / version).mkdir()
    for name, text in files.items():
        (folder / version / name).write_text(text)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    (folder / "..data_tmp").symlink_to(version)
    os.replace(folder / "..data_tmp", folder / "..data")


def test_a_secret_that_kubernetes_swaps_is_in_force_within_a_second(tmp_path, clock):
    mount(tmp_path, "..1", jwt_keys=pem(RSA), api_keys=f"{digest('old')} alice")
    files = {name: str(tmp_path / name) for name in ("jwt_keys", "api_keys")}
    authenticator = Authenticator.read(IdentitySettings(**files, jwt_audience=AUDIENCE), clock=clock)
    old, new = bearer(token()), bearer(token(OTHER_RSA))
    assert authenticator.principal(old) == ALICE
    mount(tmp_path, "..2", jwt_keys=pem(OTHER_RSA), api_keys=f"{digest('new')} alice")
    clock.now += 0.99
    assert authenticator.principal(old) == ALICE
    clock.now += 0.01
    # a remembered token goes with the key that it was signed with
    assert "key that is known" in refusal(authenticator, old)
    assert authenticator.principal(new) == ALICE
    assert "not known" in refusal(authenticator, {"x-api-key": "old"})
    assert authenticator.principal({"x-api-key": "new"}).name == "alice"


@pytest.mark.parametrize("change", ["another file", "another time", "another size"])
def test_a_file_is_read_again_when_it_is_another_was_written_or_has_grown(start, clock, tmp_path, change):
    path, other = tmp_path / "api_keys", tmp_path / "other"
    authenticator = start(api_keys=f"{digest('old')} alice")
    status = path.stat()
    if change == "another file":
        other.write_text(f"{digest('new')} alice")
        other.rename(path)
    else:
        path.write_text(f"{digest('new')} alice" + "\n" * (change == "another size"))
    os.utime(path, ns=(0, status.st_mtime_ns + (change == "another time")))
    clock.now += 1
    assert authenticator.principal({"x-api-key": "new"}).name == "alice"


def test_the_files_are_looked_at_once_a_second_at_most(start, clock, monkeypatch):
    looks = []
    authenticator = start(jwt_keys=pem(RSA), api_keys=API_KEYS)
    monkeypatch.setattr(WatchedFile, "refresh", lambda file: looks.append(file))
    for _ in range(16 * 5):
        clock.now += 1 / 16
        authenticator.principal({})
    assert len(looks) == 2 * 5


def test_a_clock_that_was_set_back_does_not_put_off_the_next_look(start, clock, tmp_path):
    authenticator = start(api_keys=f"{digest('old')} alice")
    clock.now -= 3600
    (tmp_path / "api_keys").write_text(f"{digest('new')} another")
    assert authenticator.principal({"x-api-key": "new"}).name == "another"


@pytest.mark.parametrize("name", ["jwt_keys", "api_keys"])
def test_a_bad_new_file_is_reported_once_and_the_old_keys_stay(start, clock, tmp_path, caplog, verifications, name):
    authenticator, sent = start(jwt_keys=pem(RSA), api_keys=API_KEYS), bearer(token())
    assert authenticator.principal(sent) == ALICE
    (tmp_path / name).write_text("my-new-secret-key alice")
    for _ in range(3):
        clock.now += 1
        assert authenticator.principal(sent) == ALICE
        assert authenticator.principal({"x-api-key": "first key"}).name == "alice"
    (error,) = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert f"{tmp_path}/{name}" in error
    assert error.endswith("; what was read before stays in force")
    assert "my-new-secret-key" not in error
    assert len(verifications) == 1


def test_a_file_that_is_gone_leaves_the_old_keys_and_is_read_when_it_is_back(start, clock, tmp_path, caplog):
    authenticator = start(api_keys=API_KEYS)
    (tmp_path / "api_keys").unlink()
    for _ in range(3):
        clock.now += 1
        assert authenticator.principal({"x-api-key": "first key"}).name == "alice"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    (tmp_path / "api_keys").write_text(f"{digest('new')} alice")
    clock.now += 1
    assert "not known" in refusal(authenticator, {"x-api-key": "first key"})


def test_the_last_api_key_can_be_withdrawn(start, clock, tmp_path, caplog):
    authenticator = start(api_keys=API_KEYS)
    (tmp_path / "api_keys").write_text("# none\n")
    clock.now += 1
    assert "not known" in refusal(authenticator, {"x-api-key": "first key"})
    assert "has no keys: every API key is refused" in caplog.text


# What is remembered


def test_a_signature_is_verified_once_and_the_time_with_every_request(start, clock, verifications):
    authenticator, sent = start(jwt_keys=pem(RSA)), token()
    for _ in range(3):
        assert authenticator.principal(bearer(sent)) == ALICE
    assert verifications == [sent]
    clock.now += 70
    assert "expired" in refusal(authenticator, bearer(sent))


def test_what_is_remembered_is_bounded_and_the_token_seen_longest_ago_goes_first(start, verifications, monkeypatch):
    monkeypatch.setattr(tokens, "REMEMBERED", 2)
    authenticator = start(jwt_keys=pem(RSA))
    a, b, c = (token(sub=name) for name in "abc")
    for sent in (a, b, a, c, a):
        authenticator.principal(bearer(sent))
    assert verifications == [a, b, c]
    authenticator.principal(bearer(b))
    assert verifications == [a, b, c, b]


def test_a_bad_token_is_not_remembered(start, verifications):
    authenticator, bad = start(jwt_keys=pem(RSA)), token(aud="billing")
    for _ in range(2):
        refusal(authenticator, bearer(bad))
    assert verifications == [bad, bad]


# Roles


def test_a_role_is_asked_of_a_principal_who_has_it():
    require_role(ALICE, "admin")
    with pytest.raises(Forbidden, match="'alice' does not have the role 'admin'"):
        require_role(dataclasses.replace(ALICE, roles=frozenset({"administrator"})), "admin")
    with pytest.raises(Unauthenticated, match="'admin'"):
        require_role(None, "admin")

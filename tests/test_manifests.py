"""Every kustomization: it renders, a cluster's schemas take all of it, and our rules have nothing to say."""

import os
import re
import subprocess
from functools import cache

import jsonschema
import kubernetes_validate
import pytest
import yaml
from condense_crds import CONDENSED, CRDS, VERSIONS, crds
from condense_crds import text as condensed_text
from rendered_manifests import COMPONENTS, WHOLE, golden, kubectl, label, rendered

from kservekit.manifests import schema
from kservekit.manifests.check import check_kustomization
from kservekit.manifests.composition import components, versions
from kservekit.manifests.lint.reading import read_documents

KUBERNETES = ("1.32", "1.37")
"""What the manifests claim to need, and the newest that there are schemas of."""

LEFT_OPEN = ("base", "overlays/blue-green/service")
"""What others are built on, who say which model it is."""

every_whole = pytest.mark.parametrize("folder", WHOLE, ids=label)
needs_the_crds = pytest.mark.skipif(not CRDS.is_dir(), reason="the CRDs are not beside the repository, in shared/crds")


@every_whole
def test_it_renders_to_its_golden_file(folder):
    """`python tests/rendered_manifests.py` renews them."""
    assert golden(folder).read_text(encoding="utf-8") == rendered(folder)


@every_whole
def test_no_schema_and_no_rule_has_anything_against_it(folder):
    found = [str(finding) for finding in check_kustomization(folder, rendered(folder))]
    if label(folder) in LEFT_OPEN:
        assert len(found) == 1
        assert "is still the placeholder" in found[0]
    else:
        assert found == []


@pytest.mark.parametrize("kubernetes", KUBERNETES)
def test_kubernetes_knows_every_field_of_our_core_objects(kubernetes):
    """Each object once: most kustomizations have most of them in common."""
    objects = {
        yaml.dump(document): label(folder)
        for folder in WHOLE
        for document in read_documents(rendered(folder))
        if not schema.has_schema(document)
    }
    for text, folder in objects.items():
        try:
            kubernetes_validate.validate(yaml.safe_load(text), kubernetes, strict=True)
        except kubernetes_validate.ValidationError as error:
            pytest.fail(f"{folder}: {error.message}")


@every_whole
@needs_the_crds
def test_the_crds_themselves_take_it(folder):
    """The condensed schemas are ours; this is jsonschema on the originals."""
    # Of 0.21 there is none here: it is 0.20 and spec.tracing.
    for version in {*versions(components(folder))} & {*VERSIONS}:
        known = crds(CRDS / "deps") | crds(CRDS / "kserve-main") | crds(CRDS / VERSIONS[version])
        for document in filter(schema.has_schema, read_documents(rendered(folder))):
            original = known[f"{document['apiVersion']}/{document['kind']}"]
            jsonschema.Draft202012Validator(original).validate(document)


@needs_the_crds
def test_the_condensed_schemas_are_of_these_crds():
    """`python tests/condense_crds.py` renews them."""
    assert CONDENSED.read_text(encoding="utf-8") == condensed_text()


def test_every_golden_file_is_of_a_kustomization():
    assert {golden(folder) for folder in WHOLE} == set(golden(WHOLE[0]).parent.iterdir())


def test_every_component_is_part_of_something_that_is_rendered():
    used = set().union(*(_folders_of(folder.resolve()) for folder in WHOLE))
    assert [label(component) for component in COMPONENTS if component.resolve() not in used] == []


def _folders_of(folder, seen=None):
    seen = set() if seen is None else seen
    if folder not in seen:
        seen.add(folder)
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
        for entry in [*kustomization.get("resources", ()), *kustomization.get("components", ())]:
            if (folder / entry).is_dir():
                _folders_of((folder / entry).resolve(), seen)
    return seen


@cache
def _cluster():
    """Why there is none to ask, or an empty string."""
    if not os.environ.get("KUBECONFIG"):
        return "KUBECONFIG is not set: these manifests were held against schemas alone"
    done = subprocess.run(
        [kubectl(), "get", "--raw", "/version", "--request-timeout=5s"], capture_output=True, text=True
    )
    return "" if done.returncode == 0 else f"the cluster of KUBECONFIG does not answer: {done.stderr.strip()[:200]}"


@every_whole
def test_a_cluster_takes_it_in_a_dry_run(folder):
    reason = _cluster()
    if reason:
        pytest.skip(reason)
    documents = read_documents(rendered(folder))
    for document in documents:
        if document["metadata"].get("namespace", "kube-system") != "kube-system":  # a dry run makes no namespace
            document["metadata"]["namespace"] = "default"
    command = [kubectl(), "apply", "--dry-run=server", "--validate=strict", "-f", "-"]
    done = subprocess.run(command, input=yaml.dump_all(documents), capture_output=True, text=True)
    missing = sorted(set(re.findall(r'no matches for kind "(\w+)"', done.stderr)))
    if missing:
        pytest.skip(f"the cluster of KUBECONFIG has no {', '.join(missing)}")
    if label(folder) in LEFT_OPEN and done.returncode != 0:  # KServe's webhook refuses the placeholder
        assert "storageUri" in done.stderr
    else:
        assert done.returncode == 0, done.stderr

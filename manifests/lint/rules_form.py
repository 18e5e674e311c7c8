"""Form: the schema, the mode, and the one form of a model."""

from __future__ import annotations

import difflib

from kservekit.manifests.lint.case import Case
from kservekit.manifests.lint.rule import ERROR, NOTE, Found, rule
from kservekit.manifests.pods import FORMATS, MODE, MODES
from kservekit.manifests.schema import UNKNOWN_FIELD, has_schema, kserve_versions, schema_faults


@rule(
    "KSV100",
    ERROR,
    "a field that its schema does not have, or a value that it does not take",
    why="An API server drops an unknown field without an error, so the file says one thing and the cluster does "
    "another; a value of the wrong type, outside its enum or its bounds, is refused. Annotations and labels are "
    "texts.",
    mend="Take the name that is offered, quote texts, or choose a KServe version that has the field.",
    source="the CRDs of KServe 0.18 to 0.21 and of its neighbours",
    kinds=("*",),
    example="""
   predictor:
-    canaryTraficPercent: 10
     model:
-      modelFromat: {name: sklearn}
+      modelFormat: {name: sklearn}
       storageUri: s3://models/photo
""",
)
def fits_its_schema(case: Case) -> Found:
    metadata = case.written.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    if has_schema(case.written) and not isinstance(metadata.get("name", metadata.get("generateName")), str):
        yield ("metadata",), "has no name, which is a text"
    for field in ("annotations", "labels"):
        texts = metadata.get(field)
        if texts is not None and not isinstance(texts, dict):
            yield ("metadata", field), f"is {str(texts)[:40]!r}: expected a map of texts"
        elif texts:
            for key, value in texts.items():
                if not isinstance(value, str):
                    what = f"is {str(value)[:40]}, which is no text: a cluster refuses it without quotes"
                    yield ("metadata", field, key), what
    if not has_schema(case.written):
        return
    found = schema_faults(case.written, case.kserve)
    unknown = {place for place, what in found if what.startswith(UNKNOWN_FIELD) or not place}
    later = [version for version in kserve_versions() if version > case.kserve] if unknown else []
    faults_later = {version: dict(schema_faults(case.written, version)) for version in later}
    for place, what in found:
        has = [version for version in later if place not in faults_later[version]]
        yield place, f"{what} (KServe {has[0]} has it)" if has and place in unknown else what


@rule(
    "KSV101",
    ERROR,
    "a deployment mode that there is none of",
    why="KServe takes Knative and Standard (and ModelMesh); anything else falls back to the cluster's default or is "
    "refused, and cannot be changed once the service is there.",
    mend="Write Standard or Knative.",
    source="pkg/constants/constants.go, #4701",
    example="""
 apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata:
   name: photo
   annotations:
-    serving.kserve.io/deploymentMode: Raw
+    serving.kserve.io/deploymentMode: Standard
 spec:
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def mode_is_one(case: Case) -> Found:
    said = case.annotations.get(MODE)
    if said is not None and said not in (*MODES, "ModelMesh"):
        by_small = {key.lower(): value for key, value in MODES.items()}
        close = difflib.get_close_matches(said.lower(), by_small, n=1)
        hint = f"; did you mean {by_small[close[0]]}?" if close else ""
        yield ("metadata", "annotations", MODE), f"is {said!r}: expected Standard or Knative{hint}"


@rule(
    "KSV102",
    NOTE,
    "no deployment mode",
    why="The default is a ConfigMap's: Knative in KServe's charts, Standard in its own constants. Many fields hold in "
    "one mode alone, and the mode cannot be changed afterwards.",
    mend="Say it in the annotation; for this check alone, --mode does.",
    source="v1beta1/inference_service_defaults.go, charts/kserve-resources/values.yaml",
    example="""
 apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata:
   name: photo
+  annotations:
+    serving.kserve.io/deploymentMode: Standard
 spec:
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def mode_is_said(case: Case) -> Found:
    if MODE not in case.annotations:
        what = f"has no {MODE}: expected Standard or Knative, since the default differs between installations"
        yield ("metadata",), what


@rule(
    "KSV103",
    NOTE,
    "an old name of a deployment mode",
    why="KServe rewrites Serverless to Knative and RawDeployment to Standard, so GitOps sees a difference for ever.",
    mend="Write the new name; the old ones are for KServe 0.15 and before.",
    source="v1beta1/inference_service_defaults.go, #4798",
    example="""
 apiVersion: serving.kserve.io/v1beta1
 kind: InferenceService
 metadata:
   name: photo
   annotations:
-    serving.kserve.io/deploymentMode: RawDeployment
+    serving.kserve.io/deploymentMode: Standard
 spec:
   predictor:
     model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def mode_has_its_new_name(case: Case) -> Found:
    said = case.written["metadata"].get("annotations") or {} if isinstance(case.written.get("metadata"), dict) else {}
    old = said.get(MODE) if isinstance(said, dict) else None
    if old in ("Serverless", "RawDeployment"):
        yield ("metadata", "annotations", MODE), f"KServe rewrites {old} to {MODES[old]}: write that"


@rule(
    "KSV104",
    NOTE,
    "the older form of model",
    why="KServe's defaulter rewrites predictor.triton and its like to predictor.model, so GitOps sees a difference.",
    mend="Write model with modelFormat.name; kservekit render does.",
    source="v1beta1/inference_service_defaults.go, #2232",
    example="""
   predictor:
-    sklearn:
+    model:
+      modelFormat: {name: sklearn}
       storageUri: s3://models/photo
""",
)
def model_has_its_new_form(case: Case) -> Found:
    for key in FORMATS:
        if key in case.predictor:
            yield ("spec", "predictor", key), f"KServe rewrites it: write model with modelFormat.name {key}"


@rule(
    "KSV107",
    ERROR,
    "no implementation, or more than one",
    why="Each component has exactly one implementation; the webhook refuses none and two.",
    mend="One of model and containers; a transformer in the same pod is a container called transformer-container.",
    source="v1beta1/component.go, ExactlyOneErrorFor",
    example="""
   predictor:
     minReplicas: 1
+    model: {modelFormat: {name: sklearn}, storageUri: s3://models/photo}
""",
)
def one_implementation(case: Case) -> Found:
    models = [key for key in ("model", *FORMATS) if key in case.predictor]
    if len(models) > 1:
        yield ("spec", "predictor", models[1]), f"is beside {models[0]}: KServe takes one implementation"
    if "predictor" in case.spec and not models and not case.predictor.get("containers"):
        yield ("spec", "predictor"), "has no implementation: expected model or containers"
    if "transformer" in case.spec and not (case.spec["transformer"] or {}).get("containers"):
        yield (
            ("spec", "transformer"),
            "has no containers: a patch for the transformer came after the component that moves it (collocated), or "
            "the image is missing",
        )

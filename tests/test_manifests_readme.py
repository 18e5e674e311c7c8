"""The manifests' own pages: what they list is there, and their commands do what they say."""

import re
import shlex
import subprocess

import pytest
import yaml
from rendered_manifests import COMPONENTS, MANIFESTS, ROOT, SCENARIOS, WHOLE, kubectl, label, rendered

from kservekit.manifests.check import check_kustomization
from kservekit.manifests.composition import components
from kservekit.manifests.lint.reading import read_documents
from kservekit.manifests.render_command import run

PAGES = sorted(MANIFESTS.rglob("*.md"))
README = (MANIFESTS / "README.md").read_text(encoding="utf-8")


def text(page):
    return page.read_text(encoding="utf-8")


def table(heading):
    section = README.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in section.splitlines() if line[:1] == "|"][2:]
    return {re.sub(r"[\[`](.+?)[\]`].*", r"\1", row[0]): row[1:] for row in rows}


def commands(page):
    blocks = re.findall(r"^```sh\n(.*?)^```$", text(page), re.M | re.S)
    for block in blocks:
        joined = block.replace("\\\n", " ")
        yield from re.findall(r"^kubectl (?:'[^']*'|[^'\n])+", joined, re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(MANIFESTS)))
def test_every_link_and_every_folder_in_a_command_exists(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", text(page)):
        assert (page.parent / target).exists(), target
    for command in commands(page):
        for folder in re.findall(r"(?:-k|kustomize|--patch-file) (manifests/\S+)", command):
            assert (ROOT / folder).exists(), folder


def test_the_table_of_components_is_whole_and_says_what_their_files_say():
    listed = table("Components")
    folders = {folder.name: folder for folder in COMPONENTS if folder.parent == MANIFESTS / "components"}
    assert set(listed) == set(folders) - {"own-predictor"}
    for name, (_, needs, excludes) in listed.items():
        kustomization = yaml.safe_load((folders[name] / "kustomization.yaml").read_text(encoding="utf-8"))
        said = kustomization["metadata"].get("annotations", {})
        assert needs == said.get("kservekit/needs", ""), name
        assert excludes == said.get("kservekit/excludes", ""), name


def test_the_order_of_the_table_is_one_that_every_component_can_have():
    listed = list(table("Components"))
    for folder in COMPONENTS:
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
        after = kustomization.get("metadata", {}).get("annotations", {}).get("kservekit/after", "")
        for other in filter(None, re.split(r", *", after)):
            if folder.name in listed:
                assert listed.index(other) < listed.index(folder.name), f"{folder.name} is before {other}"


def test_the_table_of_scenarios_is_whole_and_says_what_is_in_them():
    listed = table("Scenarios")
    assert set(listed) == {folder.name for folder in SCENARIOS.iterdir()}
    for name, (cells,) in listed.items():
        if name != "own-names":
            found = [component.name for component in components(SCENARIOS / name)]
            assert set(re.split(r", *", cells)) <= set(found), name


def test_the_values_file_is_right_and_every_key_is_in_its_table(tmp_path):
    section = README.partition("## Without a kustomization\n")[2].partition("\n## ")[0]
    first_cells = re.findall(r"^\| (`[^|]*) \|", section, re.M)
    listed = {key for cell in first_cells for key in re.findall(r"`(\w+)", cell)}
    schema = yaml.safe_load((MANIFESTS / "schemas/values.yaml").read_text(encoding="utf-8"))
    assert listed == {*schema["properties"]} - {"apiVersion", "kind"}
    example = re.search(r"^```yaml\n(apiVersion: kservekit.*?)^```$", README, re.M | re.S).group(1)
    (tmp_path / "photo.yaml").write_text(example)
    for mode in ("Standard", "Knative"):
        said = []
        assert run([str(tmp_path / "photo.yaml"), "--mode", mode], said.append, said.append) == 0
        assert len(said) == 1


def test_the_example_of_ones_own_service_is_right(tmp_path):
    example = re.search(r"^```yaml\n(.*?)^```$", README, re.M | re.S).group(1)
    (tmp_path / "manifests").symlink_to(MANIFESTS)
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy/kustomization.yaml").write_text(example)
    done = subprocess.run([kubectl(), "kustomize", "deploy"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert check_kustomization(tmp_path / "deploy", done.stdout) == []


@pytest.mark.parametrize(
    ("component", "weights"),
    [
        ("blue-green", [[90, 10], [0, 100], [100, 0]]),
        ("ab-test", [[50, 50], [None], [None]]),
    ],
)
def test_each_patch_of_a_rollout_does_what_its_heading_says(component, weights, tmp_path):
    """By the real kubectl, on the rendered route."""
    (route,) = (
        document
        for document in read_documents(rendered(MANIFESTS / "overlays" / component))
        if document["kind"] == "HTTPRoute"
    )
    (tmp_path / "route.yaml").write_text(yaml.dump(route))
    found, names = [], []
    for command in commands(MANIFESTS / "components" / component / "README.md"):
        words = shlex.split(command)
        if words[1:3] == ["patch", "httproute"]:
            assert words[3] == route["metadata"]["name"]
            local = [kubectl(), "patch", "--local", "-f", str(tmp_path / "route.yaml"), *words[4:], "-o", "yaml"]
            done = subprocess.run(local, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            backends = yaml.safe_load(done.stdout)["spec"]["rules"][-1]["backendRefs"]
            found.append([backend.get("weight") for backend in backends])
            names.append(backends[0]["name"])
    assert found == weights
    if component == "ab-test":
        assert names == ["photo-blue-transformer", "photo-green-transformer", "photo-blue-transformer"]


def test_the_cookie_that_an_answer_brings_is_the_one_that_brings_its_caller_back():
    """A Gateway matches the whole header."""
    (route,) = (
        document
        for document in read_documents(rendered(MANIFESTS / "overlays/ab-test"))
        if document["kind"] == "HTTPRoute"
    )
    *by_cookie, by_chance = route["spec"]["rules"]
    ways = {rule["backendRefs"][0]["name"]: rule["matches"][1]["headers"][0]["value"] for rule in by_cookie}
    for backend in by_chance["backendRefs"]:
        (header,) = backend["filters"][0]["responseHeaderModifier"]["add"]
        cookie = header["value"].partition(";")[0]
        for sent in (cookie, f"other=1; {cookie}", f"{cookie}; other=1", f"x=1; {cookie}; y=2"):
            assert [name for name, way in ways.items() if re.fullmatch(way, sent)] == [backend["name"]]
        for sent in (f"not-{cookie}", f"{cookie}eta"):
            assert not any(re.fullmatch(way, sent) for way in ways.values())


def test_every_whole_kustomization_outside_the_scenarios_is_on_a_page():
    pages = "".join(map(text, PAGES))
    for folder in WHOLE:
        if folder.is_relative_to(MANIFESTS / "overlays") and folder.parent.name != "blue-green":
            assert folder.name in pages, label(folder)

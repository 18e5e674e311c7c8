"""Files, folders and stdin: what to read, which of it belongs together, and what is none of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from kservekit.errors import CannotStart
from kservekit.manifests.composition import FILES
from kservekit.manifests.kustomize import kustomize
from kservekit.manifests.lint.reading import MOST_BYTES, Entry, NoObject, Unreadable, read

ENDINGS = (".yaml", ".yml", ".json")
_CHARTS = "a Helm chart, not YAML yet: helm template CHART | kservekit lint -"


@dataclass
class Inputs:
    groups: list[list[Entry]] = field(default_factory=list)
    """Objects that stand together in a cluster."""
    refused: list[Unreadable] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)


def read_all(names: Sequence[str], stdin: BinaryIO) -> Inputs:
    """What is named: files must be objects; of a folder, those that are."""
    found = Inputs()
    together: list[Entry] = []
    for name in dict.fromkeys(names):
        if name == "-":
            _add("stdin", _bytes(stdin, "stdin", found), found, together)
        elif Path(name).is_dir():
            _folder(Path(name), found)
        elif Path(name).name in FILES:
            _rendered(Path(name).parent, found)
        else:
            _add(name, _file(Path(name), found), found, together)
    found.groups.insert(0, together)
    return found


def _folder(folder: Path, found: Inputs) -> None:
    loose: dict[Path, list[list[Entry]]] = {}
    before, found.refused = found.refused, []
    for where, kinds in _walk(folder):
        if kinds == "chart":
            found.refused.append(Unreadable(str(where), None, _CHARTS))
        elif kinds == "kustomization":
            _rendered(where, found)
        else:
            entries: list[Entry] = []
            _add(str(where), _file(where, found), found, entries)
            loose.setdefault(where.parent, []).append(entries)
    found.refused = before + [error for error in found.refused if not isinstance(error, NoObject)]
    for files in loose.values():
        found.groups += _together(files)


def _together(files: list[list[Entry]]) -> list[list[Entry]]:
    """The files of one folder are one cluster's, unless two have the same object: then each stands for itself."""
    names = [_key(entry) for entries in files for entry in entries]
    return files if len(names) > len({*names}) else [[entry for entries in files for entry in entries]]


def _key(entry: Entry) -> tuple[str, ...]:
    metadata = entry.document.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    return (str(entry.document["kind"]), *(str(metadata.get(key)) for key in ("namespace", "name")))


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files, kustomizations and charts; what is part of a kustomization or chart is not a file of its own."""
    for top, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(top)
        if "Chart.yaml" in files:
            folders.clear()
            yield here, "chart"
        elif any(name in FILES for name in files):
            yield here, "kustomization"
        else:
            yield from ((here / name, "file") for name in sorted(files) if name.endswith(ENDINGS))


def _rendered(folder: Path, found: Inputs) -> None:
    """A Component renders to nothing of its own."""
    file = next(folder / name for name in FILES if (folder / name).is_file())
    if b"kind: Component" in (_file(file, found) or b""):
        return
    try:
        text = kustomize(folder)
    except CannotStart as error:
        found.refused.append(Unreadable(str(folder), None, str(error)))
        return
    entries: list[Entry] = []
    _add(f"{folder} (rendered)", text.encode(), found, entries)
    found.groups.append(entries)


def _file(path: Path, found: Inputs) -> bytes | None:
    try:
        with path.open("rb") as stream:
            return _bytes(stream, str(path), found)
    except OSError as error:
        found.refused.append(Unreadable(str(path), None, f"cannot be read: {error.strerror}"))
        return None


def _bytes(stream: BinaryIO, source: str, found: Inputs) -> bytes | None:
    data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        what = f"more than {MOST_BYTES // 2**20} MiB, and a cluster takes 1.5 MiB an object: split it"
        found.refused.append(Unreadable(source, None, what))
        return None
    return data


def _add(source: str, data: bytes | None, found: Inputs, entries: list[Entry]) -> None:
    if data is None:
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        mark = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        found.refused.append(Unreadable(source, mark, "no UTF-8 text"))
        return
    added, refused = read(text, source)
    entries += added
    found.refused += refused
    found.texts[source] = text
    if not added and not refused:
        found.refused.append(NoObject(source, (1, 1), "empty: expected Kubernetes objects"))

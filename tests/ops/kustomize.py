"""Renders the part of Kustomize that our overlays use, so that no program is needed to test them.

Files and folders as resources, namespace, name suffix, labels, images, replicas, and patches that
are merged or follow RFC 6902. What is not written here raises.
"""

import copy
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
KNOWN = {
    *("apiVersion", "kind", "resources", "namespace", "nameSuffix"),
    *("labels", "images", "replicas", "patches"),
}
WITH_PODS = {"Deployment", "Job"}
WITH_SELECTOR = {"Deployment", "PodDisruptionBudget"}
MERGED_BY = {"containers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath"}


def render(folder: Path) -> list[Object]:
    """Return the objects of an overlay."""
    settings: Object = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if settings.keys() - KNOWN:
        raise NotImplementedError(str(settings.keys() - KNOWN))
    objects: list[Object] = []
    for name in settings["resources"]:
        path = folder / name
        if path.is_dir():
            objects += render(path)
        else:
            objects += [one for one in yaml.safe_load_all(path.read_text()) if one]
    for patch in settings.get("patches", []):
        objects = [patched(one, patch) for one in objects]
    for one in objects:
        complete(one, settings)
    return objects


def complete(one: Object, settings: Object) -> None:
    """Apply to an object what a kustomization says of all of them."""
    for entry in settings.get("replicas", []):
        if one["kind"] == "Deployment" and one["metadata"]["name"] == entry["name"]:
            one["spec"]["replicas"] = entry["count"]
    for entry in settings.get("labels", []):
        label(one, entry["pairs"], selects=entry["includeSelectors"])
    for container in containers(one):
        for image in settings.get("images", []):
            if container["image"] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
    one["metadata"]["name"] += settings.get("nameSuffix", "")
    if "namespace" in settings:
        if one["kind"] == "Namespace":
            assert one["metadata"]["name"] == settings["namespace"]
        else:
            one["metadata"]["namespace"] = settings["namespace"]


def label(one: Object, pairs: dict[str, str], *, selects: bool) -> None:
    """Add labels to an object, its pods and its selectors."""
    one["metadata"].setdefault("labels", {}).update(pairs)
    if not selects:
        return
    if one["kind"] in WITH_PODS:
        one["spec"]["template"]["metadata"]["labels"].update(pairs)
    if one["kind"] in WITH_SELECTOR:
        one["spec"]["selector"]["matchLabels"].update(pairs)
    if one["kind"] not in WITH_PODS | WITH_SELECTOR | {"ScaledObject"}:
        raise NotImplementedError(one["kind"])


def containers(one: Object) -> list[Object]:
    """Return the containers of an object, if it has any."""
    pod = one.get("spec", {}).get("template", {}).get("spec", {})
    found: list[Object] = pod.get("containers", [])
    return found


def patched(one: Object, patch: Object) -> Object:
    """Return an object as a patch leaves it."""
    target = patch["target"]
    if (
        one["kind"] != target["kind"]
        or target.get("name", one["metadata"]["name"]) != (one["metadata"]["name"])
    ):
        return one
    change = yaml.safe_load(patch["patch"])
    if isinstance(change, list):
        for step in change:
            replace(one, step)
        return one
    merged: Object = merge(one, change)
    return merged


def replace(one: Object, step: Object) -> None:
    """Apply one operation of RFC 6902."""
    if step["op"] != "replace":
        raise NotImplementedError(step["op"])
    *parents, last = step["path"].strip("/").split("/")
    node: Any = one
    for name in parents:
        node = node[int(name)] if isinstance(node, list) else node[name]
    assert last in node
    node[last] = step["value"]


def merge(old: Any, new: Any, name: str = "") -> Any:
    """Merge objects key by key, and lists of named things thing by thing."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: merge(old.get(key), value, key) for key, value in new.items()}
    if isinstance(old, list) and name in MERGED_BY:
        key = MERGED_BY[name]
        changes = {entry[key]: entry for entry in new}
        kept = [merge(entry, changes.pop(entry[key], {})) for entry in old]
        return kept + list(changes.values())
    return copy.deepcopy(new)

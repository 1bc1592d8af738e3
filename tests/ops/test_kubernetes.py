"""Manifests keep Kubernetes' published schemas, name only what exists, and drop all privileges.

The schemas are those of the `kubernetes-validate` package. KEDA's ScaledObject has its fields
here, as KEDA's reference lists them.
"""

import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import promql_parser
import pytest

from models_registry.persistence import broker
from models_registry.settings import Settings
from tests import promql
from tests.contracts import source, test_compose
from tests.ops import kustomize
from tests.ops.kustomize import Object

OVERLAYS = ("cpu", "production")
VERSION = "1.37.0"
SCALED_OBJECT: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "keda.sh/v1alpha1"},
        "kind": {"const": "ScaledObject"},
        "metadata": {"type": "object", "required": ["name", "namespace"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["scaleTargetRef", "triggers"],
            "properties": {
                "scaleTargetRef": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["name"],
                    "properties": {"name": {"type": "string"}},
                },
                "minReplicaCount": {"type": "integer", "minimum": 0},
                "maxReplicaCount": {"type": "integer", "minimum": 1},
                "cooldownPeriod": {"type": "integer", "minimum": 0},
                "advanced": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "horizontalPodAutoscalerConfig": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {"behavior": {"type": "object"}},
                        }
                    },
                },
                "triggers": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["type", "metadata"],
                        "properties": {
                            "type": {"const": "prometheus"},
                            "name": {"type": "string"},
                            "metricType": {"enum": ["AverageValue", "Value"]},
                            "metadata": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["serverAddress", "query", "threshold"],
                                "properties": {
                                    "serverAddress": {"type": "string", "format": "uri"},
                                    "query": {"type": "string"},
                                    # Text, as all metadata of a trigger.
                                    "threshold": {"type": "string", "pattern": "^[0-9.]+$"},
                                    "activationThreshold": {
                                        "type": "string",
                                        "pattern": "^[0-9.]+$",
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}
RESTRICTED = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "fsGroup": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONFINED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


@pytest.fixture(scope="module", params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    """The objects of one overlay."""
    return kustomize.render(source.ROOT / "deploy/kubernetes/overlays" / request.param)


def of(objects: list[Object], *kinds: str) -> list[Object]:
    return [one for one in objects if one["kind"] in kinds]


def pods(objects: list[Object]) -> dict[str, Object]:
    """Return the pods' specifications by the name of what makes them."""
    return {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]
        for one in of(objects, "Deployment", "Job")
    }


class TestSchemas:
    def test_of_kubernetes_are_kept(self, objects: list[Object]) -> None:
        for one in objects:
            if one["kind"] != "ScaledObject":
                kubernetes_validate.validate(one, VERSION, strict=True)

    def test_of_keda_is_kept(self, objects: list[Object]) -> None:
        for one in of(objects, "ScaledObject"):
            jsonschema.validate(one, SCALED_OBJECT)
            config = one["spec"].get("advanced", {}).get("horizontalPodAutoscalerConfig", {})
            scaler = {
                "apiVersion": "autoscaling/v2",
                "kind": "HorizontalPodAutoscaler",
                "metadata": {"name": "made-by-keda"},
                "spec": {
                    "scaleTargetRef": {"kind": "Deployment", **one["spec"]["scaleTargetRef"]},
                    "maxReplicas": one["spec"]["maxReplicaCount"],
                    **config,
                },
            }
            kubernetes_validate.validate(scaler, VERSION, strict=True)

    def test_would_catch_a_misspelt_field(self, objects: list[Object]) -> None:
        broken = {**of(objects, "Deployment")[0], "spce": {}}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, VERSION, strict=True)


class TestNames:
    def test_are_used_once(self, objects: list[Object]) -> None:
        named = [(one["kind"], one["metadata"]["name"]) for one in objects]
        assert len(named) == len(set(named))

    def test_of_scaled_deployments_exist(self, objects: list[Object]) -> None:
        there = {one["metadata"]["name"] for one in of(objects, "Deployment")}
        scaled = [one["spec"]["scaleTargetRef"]["name"] for one in of(objects, "ScaledObject")]
        assert set(scaled) <= there
        assert len(scaled) == len(set(scaled))

    def test_in_selectors_match_one_deployment_each(self, objects: list[Object]) -> None:
        for one in of(objects, "PodDisruptionBudget", "Service"):
            selector = one["spec"]["selector"]
            wanted = selector.get("matchLabels", selector).items()
            matched = [
                made["metadata"]["name"]
                for made in of(objects, "Deployment")
                if wanted <= made["spec"]["template"]["metadata"]["labels"].items()
            ]
            assert matched == [one["metadata"]["name"]]

    def test_of_settings_exist(self, objects: list[Object]) -> None:
        known = {f"RETORT_{name.upper()}" for name in Settings.model_fields}
        (settings,) = of(objects, "ConfigMap")
        assert settings["data"].keys() <= known
        for name, pod in pods(objects).items():
            for variable in pod["containers"][0]["env"]:
                assert variable["name"] in known, name
            (told,) = pod["containers"][0]["envFrom"]
            assert told["configMapRef"]["name"] == settings["metadata"]["name"]

    def test_of_metrics_and_queues_in_queries_exist(self, objects: list[Object]) -> None:
        metrics = source.text(Path("api/metrics.py"))
        for one in of(objects, "ScaledObject"):
            for trigger in one["spec"]["triggers"]:
                query = trigger["metadata"]["query"]
                assert promql_parser.parse(query)
                assert all(f'"{name}"' in metrics for name in promql.names(query))
                queues = re.findall(r'queue=~?"([^"]+)"', query)
                assert {q for found in queues for q in found.split("|")} <= set(broker.QUEUES)


class TestPods:
    def test_run_without_privileges(self, objects: list[Object]) -> None:
        for name, pod in pods(objects).items():
            assert pod["securityContext"] == RESTRICTED, name
            assert pod["automountServiceAccountToken"] is False
            for container in pod["containers"]:
                assert container["securityContext"] == CONFINED, name

    def test_write_only_where_a_volume_is(self, objects: list[Object]) -> None:
        for name, pod in pods(objects).items():
            mounts = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
            assert mounts == {volume["name"] for volume in pod["volumes"]}
            assert all("emptyDir" in volume for volume in pod["volumes"]), name

    def test_have_secrets_by_reference_alone(self, objects: list[Object]) -> None:
        assert of(objects, "Secret") == []
        for name, pod in pods(objects).items():
            for variable in pod["containers"][0]["env"]:
                if re.search(r"SECRET|KEY|TOKEN|DATABASE_URL|BROKER_URL", variable["name"]):
                    reference = variable["valueFrom"]["secretKeyRef"]
                    assert reference["key"] == variable["name"], name

    def test_get_no_secret_that_they_do_not_need(self, objects: list[Object]) -> None:
        for name, pod in pods(objects).items():
            given = {variable["name"] for variable in pod["containers"][0]["env"]}
            if name != "api":
                assert given & {"RETORT_CURSOR_SECRET", "RETORT_METRICS_TOKEN"} == set(), name

    def test_have_probes_and_limits(self, objects: list[Object]) -> None:
        for one in of(objects, "Deployment"):
            (container,) = one["spec"]["template"]["spec"]["containers"]
            assert {"startupProbe", "livenessProbe"} <= container.keys()
            assert ("readinessProbe" in container) == ("ports" in container)
            assert container["resources"]["limits"]["memory"]
            probe = container["livenessProbe"].get("exec", {}).get("command", [])
            assert probe in ([], ["python", "-m", "workers.liveness"])

    def test_have_images_of_a_version(self, objects: list[Object]) -> None:
        for name, pod in pods(objects).items():
            assert re.search(r"/retort-(api|worker):[\w.]+$", pod["containers"][0]["image"]), name

    def test_read_every_queue(self, objects: list[Object]) -> None:
        commands = [pod["containers"][0].get("args") or [] for pod in pods(objects).values()]
        read = {
            queue
            for command in commands
            if "--queues" in command
            for queue in command[command.index("--queues") + 1].split(",")
        }
        assert {"webhooks", "inspect", "maintenance", "any"} <= read

    def test_run_commands_of_compose(self, objects: list[Object]) -> None:
        """Those are asked for help by the tests of Compose, so a wrong option is found."""
        known = list(test_compose.our_commands().values())
        for name, pod in pods(objects).items():
            command = pod["containers"][0].get("args")
            assert command is None or command in known, name

    def test_of_workers_have_time_to_write_a_checkpoint(self, objects: list[Object]) -> None:
        grace = Settings.model_fields["kill_grace_seconds"].default
        for name, pod in pods(objects).items():
            if name.startswith("worker"):
                assert pod["terminationGracePeriodSeconds"] > 2 * grace

    def test_of_an_inspector_have_more_memory_than_an_upload_may_take(
        self, objects: list[Object]
    ) -> None:
        limit = pods(objects)["inspector"]["containers"][0]["resources"]["limits"]["memory"]
        gibibytes = Settings.model_fields["inspection_memory_bytes"].default / 2**30
        assert int(limit.removesuffix("Gi")) > gibibytes


class TestNetwork:
    def test_everything_is_denied_first(self, objects: list[Object]) -> None:
        deny = next(one for one in objects if one["metadata"]["name"] == "retort-deny")
        assert deny["spec"]["policyTypes"] == ["Ingress", "Egress"]
        assert not {"ingress", "egress"} & deny["spec"].keys()
        covered = deny["spec"]["podSelector"]["matchLabels"].items()
        for one in of(objects, "Deployment", "Job"):
            assert covered <= one["spec"]["template"]["metadata"]["labels"].items()

    def test_the_clouds_metadata_service_is_out_of_reach(self, objects: list[Object]) -> None:
        for policy in of(objects, "NetworkPolicy"):
            for rule in policy["spec"].get("egress", []):
                for peer in rule["to"]:
                    if "ipBlock" in peer:
                        assert "169.254.0.0/16" in peer["ipBlock"]["except"]


def test_classes_of_workers_differ_in_what_they_should() -> None:
    objects = kustomize.render(source.ROOT / "deploy/kubernetes/overlays/production")
    classes = {name: pod for name, pod in pods(objects).items() if name.startswith("worker")}
    assert set(classes) == {"worker-cuda-small", "worker-cuda-large"}
    products = {pod["nodeSelector"]["nvidia.com/gpu.product"] for pod in classes.values()}
    assert len(products) == 2
    for pod in classes.values():
        (container,) = pod["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
        device = [v["value"] for v in container["env"] if v["name"] == "RETORT_WORKER_DEVICE"]
        assert device == ["cuda"]

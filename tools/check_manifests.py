#!/usr/bin/env python3
"""Checks rendered Kubernetes manifests against each other and against the programs.

Usage: tools/check_manifests.py BUILD FILE [--keda SCHEMA.json]     FILE: `kubectl kustomize` wrote it

In: one file of YAML documents, the programs in BUILD (their --help). Out: one line a fault, exit status 1 if any.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import yaml

# Made by the operator, not by the manifests (docs/KUBERNETES.md): secret -> keys.
SECRETS = {
    "tokenflex-redis": {"password"},
    "tokenflex-curve": {"deployment.key"},
    "tokenflex-scaler": {"username", "password"},
}
NOT_OPTIONS = {"POD_IP"}
faults: list[str] = []


def fault(text: str) -> None:
    if text not in faults:
        faults.append(text)


def options_of(build: Path, program: str) -> set[str]:
    """Flags and variables that --help names."""
    text = subprocess.run([build / program, "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    return set(re.findall(r"--[a-z][a-z0-9-]+", text)) | set(re.findall(r"TOKENFLEX_[A-Z0-9_]+", text))


def pods_of(documents: list[dict]) -> list[tuple[str, dict]]:
    """(name, pod template) of every workload."""
    kinds = ("Deployment", "StatefulSet", "DaemonSet", "Job")
    return [(d["metadata"]["name"], d["spec"]["template"]) for d in documents if d["kind"] in kinds]


def containers_of(pod: dict) -> list[dict]:
    return pod["spec"].get("initContainers", []) + pod["spec"]["containers"]


def matches(selector: dict, pod: dict) -> bool:
    labels = pod["metadata"].get("labels", {})
    return all(labels.get(key) == value for key, value in selector.items())


def check_ports(where: str, wanted: object, pod: dict) -> None:
    ports = [port for container in pod["spec"]["containers"] for port in container.get("ports", [])]
    if not any(wanted in (port.get("name"), port["containerPort"]) for port in ports):
        fault(f"{where}: no container has the port {wanted}")


def check_services(documents: list[dict], pods: list[tuple[str, dict]]) -> None:
    for document in documents:
        name, spec = document["metadata"]["name"], document.get("spec", {})
        if document["kind"] == "Service":
            found = [pod for _, pod in pods if matches(spec["selector"], pod)]
            if len(found) != 1:
                fault(f"Service {name}: its selector matches {len(found)} workloads")
            for pod in found:
                for port in spec["ports"]:
                    check_ports(f"Service {name}", port.get("targetPort", port["port"]), pod)
        elif document["kind"] in ("PodDisruptionBudget", "NetworkPolicy"):
            key = "selector" if document["kind"] == "PodDisruptionBudget" else "podSelector"
            selector = spec[key].get("matchLabels", {})
            found = [pod for _, pod in pods if matches(selector, pod)]
            if not found:
                fault(f"{document['kind']} {name}: its selector matches no workload")
            for rule in spec.get("ingress", []):
                for port in rule.get("ports", []):
                    for pod in found:
                        check_ports(f"NetworkPolicy {name}", port["port"], pod)


def check_targets(documents: list[dict], pods: list[tuple[str, dict]]) -> None:
    names = {name for name, _ in pods}
    for document in documents:
        if document["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            target = document["spec"]["scaleTargetRef"]["name"]
            if target not in names:
                fault(f"{document['kind']} {document['metadata']['name']}: there is no workload {target}")
            for scaled in documents:
                if scaled["kind"] == "Deployment" and scaled["metadata"]["name"] == target:
                    if scaled["spec"].get("replicas") is not None:
                        fault(f"Deployment {target}: has replicas beside an autoscaler: each apply would undo its work")


def check_sources(name: str, pod: dict, maps: dict[str, set[str]]) -> None:
    """Every ConfigMap and Secret that is named exists, and so do its keys."""
    def look(kind: str, known: dict[str, set[str]], source: str, keys: list[str]) -> None:
        if source not in known:
            fault(f"{name}: {kind} {source} is neither here nor documented")
        for key in keys:
            if key not in known.get(source, set()):
                fault(f"{name}: {kind} {source} has no key {key}")

    for volume in pod["spec"].get("volumes", []):
        if "configMap" in volume:
            look("ConfigMap", maps, volume["configMap"]["name"], [i["key"] for i in volume["configMap"].get("items", [])])
        if "secret" in volume:
            look("Secret", SECRETS, volume["secret"]["secretName"], [i["key"] for i in volume["secret"].get("items", [])])
    volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])} | {"data"}
    for container in containers_of(pod):
        for source in container.get("envFrom", []):
            look("ConfigMap", maps, source["configMapRef"]["name"], [])
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                fault(f"{name}: no volume {mount['name']}")


def check_security(name: str, pod: dict) -> None:
    """The restricted profile, and a root file system that can not be written."""
    spec = pod["spec"]
    context = spec.get("securityContext", {})
    if not context.get("runAsNonRoot") or context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        fault(f"{name}: runs as root or without the runtime's seccomp profile")
    if spec.get("automountServiceAccountToken") is not False:
        fault(f"{name}: mounts a service account's token")
    for container in containers_of(pod):
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or not own.get("readOnlyRootFilesystem"):
            fault(f"{name}/{container['name']}: may gain rights or write its root file system")
        if own.get("capabilities", {}).get("drop") != ["ALL"]:
            fault(f"{name}/{container['name']}: keeps capabilities")
        resources = container.get("resources", {})
        if not {"cpu", "memory"} <= set(resources.get("requests", {})) or "memory" not in resources.get("limits", {}):
            fault(f"{name}/{container['name']}: no requests or no memory limit")


def check_probes(name: str, pod: dict) -> None:
    for container in pod["spec"]["containers"]:
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = container.get(kind)
            if probe is None:
                fault(f"{name}/{container['name']}: no {kind}")
                continue
            for how in ("httpGet", "tcpSocket"):
                if how in probe:
                    check_ports(f"{name}/{container['name']}: {kind}", probe[how]["port"], pod)
            path = probe.get("httpGet", {}).get("path")
            wanted = "/readyz" if kind == "readinessProbe" else "/healthz"
            if path not in (None, wanted):
                fault(f"{name}/{container['name']}: {kind} asks {path}, not {wanted}")


def check_options(name: str, pod: dict, maps: dict[str, dict], build: Path) -> None:
    """Every flag and variable is one of the program's; the grace period covers its drain."""
    for container in containers_of(pod):
        program = container["image"].split("/")[-1].split(":")[0]
        if not program.startswith("tokenflex-"):
            continue
        known = options_of(build, program)
        values = {entry["name"]: str(entry.get("value", "")) for entry in container.get("env", [])}
        for source in container.get("envFrom", []):
            values.update(maps.get(source["configMapRef"]["name"], {}))
        words = [*container.get("command", [])[1:], *container.get("args", [])]
        used = set(values) - NOT_OPTIONS | {word.split("=")[0] for word in words if word.startswith("-")}
        for option in sorted(used - known):
            fault(f"{name}/{container['name']}: {program} has no {option}")
        drain_s = int(values.get("TOKENFLEX_DRAIN_TIMEOUT_S", "30"))
        if pod["spec"].get("terminationGracePeriodSeconds", 30) < drain_s + 10:
            fault(f"{name}: killed before {drain_s} s of draining are over")
        for variable, path in values.items():
            if path.startswith("/run/secrets/"):
                mounts = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
                if not any(path.startswith(mount + "/") for mount in mounts):
                    fault(f"{name}: {variable} names {path}, where nothing is mounted")
        if not values:
            fault(f"{name}: no options at all")


def of_kind(documents: list[dict], kind: str) -> list[dict]:
    return [d for d in documents if d["kind"] == kind]


def selects(selector: dict, labels: dict) -> bool:
    """What a selector of labels takes; one with expressions is not read, and counts as taking nothing."""
    return "matchExpressions" not in selector and selector.get("matchLabels", {}).items() <= labels.items()


def admits(rule: dict, port: object, numbers: set) -> bool:
    """A rule of a NetworkPolicy lets KEDA's operator reach the port, by name or number."""
    named = [entry["port"] for entry in rule.get("ports", [])]
    if named and not {port, *numbers} & set(named):
        return False
    return "from" not in rule or any(
        "namespaceSelector" in peer
        and selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": "keda"})
        and selects(peer.get("podSelector", {}), {"app": "keda-operator"})
        for peer in rule["from"]
    )


def check_reached(where: str, address: str, namespace: str, documents: list[dict]) -> None:
    """NAME.NAMESPACE.svc:PORT is a Service here, found from other namespaces, and KEDA is let in to its pods."""
    split = urlsplit(address)
    name, _, rest = (split.hostname or "").partition(".")
    services = [d for d in of_kind(documents, "Service") if d["metadata"]["name"] == name]
    if rest != f"{namespace}.svc" or not services:
        fault(f"{where}: {address} is no Service of this namespace by its full name")
        return
    spec = services[0]["spec"]
    ports = [port for port in spec["ports"] if port["port"] == split.port]
    if not ports:
        fault(f"{where}: Service {name} has no port {split.port}")
        return
    label = spec["selector"]
    policies = [
        d["spec"] for d in of_kind(documents, "NetworkPolicy")
        if d["spec"]["podSelector"].get("matchLabels", {}).items() <= label.items()
    ]
    target, numbers = ports[0].get("targetPort"), {ports[0]["port"]}
    rules = [rule for policy in policies for rule in policy.get("ingress", [])]
    if policies and not any(admits(rule, target, numbers) for rule in rules):
        fault(f"{where}: no NetworkPolicy lets KEDA reach {name}:{target}")


def check_authentication(where: str, trigger: dict, documents: list[dict]) -> None:
    name = trigger.get("authenticationRef", {}).get("name")
    found = [d for d in of_kind(documents, "TriggerAuthentication") if d["metadata"]["name"] == name]
    if not found:
        fault(f"{where}: there is no TriggerAuthentication {name}")
    given = set()
    for source in found[0]["spec"].get("secretTargetRef", []) if found else []:
        given.add(source["parameter"])
        if source["key"] not in SECRETS.get(source["name"], set()):
            fault(f"TriggerAuthentication {name}: Secret {source['name']} with {source['key']} is not documented")
        if source["name"] == "tokenflex-redis":
            fault(f"TriggerAuthentication {name}: hands out the password that may do anything")
    if found and given != {"username", "password"}:
        fault(f"TriggerAuthentication {name}: gives no username and password")


def check_rights(where: str, queue: str, documents: list[dict]) -> None:
    """The user that KEDA asks Redis with may see the lanes of the routers' queue, and no other key."""
    texts = [text for _, pod in pods_of(documents) for container in containers_of(pod) for text in container.get("args", [])]
    users = [line for text in texts for line in re.findall(r"user tf-scaler on .*", text)]
    if not users:
        fault(f"{where}: Redis has no user tf-scaler")
    for user in users:
        keys = set(re.findall(r"~([^\s'\\]+)", user))
        if keys != {f"tf:{{{queue}}}:jobs:{lane}" for lane in "01"}:
            fault(f"{where}: Redis' user tf-scaler may see {', '.join(sorted(keys))}, not the lanes of the queue {queue}")


def check_scaled(scaled: dict, documents: list[dict], router: dict) -> None:
    """A ScaledObject asks what is there, and wakes from zero by more than the routers' word."""
    where = f"ScaledObject {scaled['metadata']['name']}"
    spec, namespace = scaled["spec"], scaled["metadata"].get("namespace", "")
    queue = router.get("TOKENFLEX_QUEUE", "default")
    names = [trigger.get("name") for trigger in spec["triggers"]]
    if len(set(names)) != len(names):
        fault(f"{where}: two triggers have one name")
    lanes = set()
    for trigger in spec["triggers"]:
        metadata = trigger["metadata"]
        if trigger["type"] == "metrics-api":
            check_reached(where, metadata["url"], namespace, documents)
            if not scaled["metadata"]["name"].endswith("-" + metadata["valueLocation"]):
                fault(f"{where}: follows the demand of the tier {metadata['valueLocation']}")
        elif trigger["type"] == "redis-streams":
            check_reached(where, "redis://" + metadata["address"], namespace, documents)
            check_authentication(where, trigger, documents)
            lane = metadata["stream"].removeprefix(f"tf:{{{queue}}}:jobs:")
            if lane not in ("0", "1"):
                fault(f"{where}: {metadata['stream']} is no lane of the queue {queue}")
            if "streamLength" not in metadata:
                fault(f"{where}: {metadata['stream']}: only the stream's length is what is unfinished")
            lanes.add(lane)
    if lanes:
        check_rights(where, queue, documents)
    if spec["minReplicaCount"] > spec["maxReplicaCount"]:
        fault(f"{where}: wants more pods at least than at most")
    if spec["minReplicaCount"] == 0 and lanes != {"0", "1"}:
        fault(f"{where}: at zero, nothing wakes it for a job of each lane")
    if spec["minReplicaCount"] == 0 and router.get("TOKENFLEX_READY_WITHOUT_WORKERS") != "true":
        fault(f"{where}: at zero, routers would not be ready")


def check_keda(documents: list[dict], schema: Path, maps: dict[str, dict]) -> None:
    """KEDA's objects: against the schema, then against everything else."""
    validator = jsonschema.Draft7Validator(json.loads(schema.read_text()))
    sound = True
    for document in documents:
        if document["apiVersion"].startswith("keda.sh/"):
            for error in validator.iter_errors(document):
                sound = False
                fault(f"{document['kind']} {document['metadata'].get('name')}: {error.json_path}: {error.message}")
    for document in of_kind(documents, "ScaledObject") if sound else []:
        check_scaled(document, documents, maps.get("tokenflex-router", {}))


def main() -> int:
    build, file, *rest = sys.argv[1:]
    documents = [d for d in yaml.safe_load_all(Path(file).read_text()) if d is not None]
    pods = pods_of(documents)
    if not pods:
        fault("no workload at all")
    maps = {d["metadata"]["name"]: d.get("data", {}) for d in documents if d["kind"] == "ConfigMap"}
    check_services(documents, pods)
    check_targets(documents, pods)
    for name, pod in pods:
        check_sources(name, pod, {key: set(value) for key, value in maps.items()})
        check_security(name, pod)
        check_probes(name, pod)
        check_options(name, pod, maps, Path(build))
    if rest[:1] == ["--keda"]:
        check_keda(documents, Path(rest[1]), maps)
    print("\n".join(faults), end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

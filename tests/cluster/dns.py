"""Stands in for CoreDNS: keeps dnsmasq's hosts file as the Services and their endpoints are.
In: the API; HOSTS, the file; DNSMASQ_PID, whose process reads it again on SIGHUP. Out: name.namespace.svc.cluster.local ->
the cluster's address, or each pod's where the Service is headless; pod-0.name... for the pods of a StatefulSet."""
import http.client
import os
import signal
import sys
import time

from api import Api


def records(services, endpoints):
    """-> sorted lines "address name" of everything that has an address."""
    lines = set()
    headless = set()
    for service in services["items"]:
        name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
        address = service["spec"].get("clusterIP")
        if address == "None":
            headless.add((namespace, name))
        elif address:
            lines.add(f"{address} {name}.{namespace}.svc.cluster.local")
    for entry in endpoints["items"]:
        name, namespace = entry["metadata"]["name"], entry["metadata"]["namespace"]
        if (namespace, name) not in headless:
            continue
        for subset in entry.get("subsets") or []:
            for address in subset.get("addresses") or []:
                lines.add(f"{address['ip']} {name}.{namespace}.svc.cluster.local")
                if address.get("hostname"):
                    lines.add(f"{address['ip']} {address['hostname']}.{name}.{namespace}.svc.cluster.local")
    return sorted(lines)


def main():
    api, told = Api(), None
    while True:
        try:
            now = records(api.get("/api/v1/services"), api.get("/api/v1/endpoints"))
        except (OSError, http.client.HTTPException, ValueError) as error:
            print(f"no answer of the API: {error}", file=sys.stderr, flush=True)
            time.sleep(1)
            continue
        if now != told:
            with open(os.environ["HOSTS"] + ".new", "w") as file:
                file.write("\n".join(now) + "\n")
            os.rename(os.environ["HOSTS"] + ".new", os.environ["HOSTS"])
            os.kill(int(os.environ["DNSMASQ_PID"]), signal.SIGHUP)
            told = now
        time.sleep(0.5)


main()

"""external.metrics.k8s.io with one metric: tokenflex_workers_wanted{tier}, as k8s/overlays/hpa/adapter-rules.yaml has Prometheus'
adapter serve it. In: the pods of the Service tokenflex-router (every router's /metrics, asked for at each request).
Out: the largest value that a router tells; no item while none answers, so that the autoscaler leaves everything as it is."""
import http.client
import http.server
import json
import os
import re
import ssl
import time
import urllib.parse
import urllib.request

from api import Api

GROUP = "/apis/external.metrics.k8s.io/v1beta1"
METRIC = "tokenflex_workers_wanted"


def wanted(namespace, tier):
    """-> the largest demand for the tier that a router of the namespace tells, or None."""
    values = []
    subsets = Api().get(f"/api/v1/namespaces/{namespace}/endpoints/tokenflex-router").get("subsets") or []
    for address in [a["ip"] for subset in subsets for a in subset.get("addresses") or []]:
        try:
            with urllib.request.urlopen(f"http://{address}:9101/metrics", timeout=2) as answer:
                text = answer.read(1 << 20).decode()
        except OSError:
            continue
        found = re.search(rf'^{METRIC}{{[^}}]*tier="{re.escape(tier)}"[^}}]*}} (\S+)$', text, re.M)
        if found:
            values.append(float(found.group(1)))
    return max(values, default=None)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        one = re.fullmatch(rf"{GROUP}/namespaces/([a-z0-9-]+)/{METRIC}", url.path)
        if url.path == GROUP:
            resource = {"name": METRIC, "singularName": "", "namespaced": True, "kind": "ExternalMetricValueList", "verbs": ["get"]}
            self.answer(200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": GROUP[6:], "resources": [resource]})
        elif one:
            selector = urllib.parse.parse_qs(url.query).get("labelSelector", [""])[0]
            tier = selector.removeprefix("tier=")
            try:
                value = wanted(one.group(1), tier)
            except (OSError, http.client.HTTPException, ValueError):
                value = None
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            item = {"metricName": METRIC, "metricLabels": {"tier": tier}, "timestamp": now}
            items = [] if value is None else [item | {"value": f"{round(value * 1000)}m"}]
            self.answer(200, {"kind": "ExternalMetricValueList", "apiVersion": GROUP[6:], "metadata": {}, "items": items})
        else:
            self.answer(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer((os.environ["NODE_IP"], 6444), Handler)
server.daemon_threads = True
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{os.environ['PKI']}/adapter.crt", f"{os.environ['PKI']}/adapter.key")
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()

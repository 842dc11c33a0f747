"""The Kubernetes API by HTTPS with the administrator's certificate, for the scripts beside this one.
In: the folder of the cluster's keys (PKI) and the address of its node (NODE_IP). Out: get(path) -> decoded JSON."""
import http.client
import json
import os
import ssl


class Api:
    """One connection, opened again when it breaks. Raises OSError or http.client.HTTPException when there is no answer."""

    def __init__(self):
        pki = os.environ["PKI"]
        self.context = ssl.create_default_context(cafile=f"{pki}/ca.crt")
        self.context.load_cert_chain(f"{pki}/admin.crt", f"{pki}/admin.key")
        self.connection = None

    def get(self, path):
        try:
            if self.connection is None:
                self.connection = http.client.HTTPSConnection(os.environ["NODE_IP"], 6443, timeout=5, context=self.context)
            self.connection.request("GET", path)
            answer = self.connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            self.connection = None
            raise
        if answer.status != 200:
            raise OSError(f"{path}: {answer.status}")
        return json.loads(body)

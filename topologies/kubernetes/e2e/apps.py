"""What runs in the clusters besides ours: demo backends and the pods that call them."""

import json

SHOP, WEB = "shop", "web"


def namespace(name):
    """A namespace, the same in every cluster."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def backend(image, cluster, name="checkout", version="v1", replicas=2, namespace_name=SHOP, service=True):
    """A Deployment of demo backends, and by default their Service `name` with port 80."""
    pods = name if version == "v1" else f"{name}-{version}"
    labels = {"app": name, "app.kubernetes.io/version": version}
    container = {
        "name": "demo",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/archipelago-demo"],
        "args": [
            f"--service={namespace_name}/{name}",
            f"--cluster={cluster}",
            f"--version={version}",
            "--instance=$(POD_NAME)",
            "--listen=0.0.0.0:8080",
        ],
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
    }
    objects = [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": pods, "namespace": namespace_name},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [container], "terminationGracePeriodSeconds": 10},
                },
            },
        }
    ]
    if service:
        ports = [{"name": "http", "port": 80, "targetPort": 8080, "appProtocol": "http"}]
        objects.append(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "namespace": namespace_name},
                "spec": {"selector": {"app": name}, "ports": ports},
            }
        )
    return {"apiVersion": "v1", "kind": "List", "items": objects}


def export(name="checkout", namespace_name=SHOP):
    """The Service is offered to the other clusters."""
    metadata = {"name": name, "namespace": namespace_name}
    return {"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport", "metadata": metadata}


def client(node, name="client", account="frontend", host_network=False):
    """A pod on a given node with a shell, curl and dig, under a ServiceAccount of its own."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": WEB},
        "spec": {
            "nodeName": node,
            "serviceAccountName": account,
            "hostNetwork": host_network,
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists"}],
            # A name server that a busy machine lets wait is asked again, rather than given up after 10 s.
            "dnsConfig": {"options": [{"name": "timeout", "value": "5"}, {"name": "attempts", "value": "5"}]},
            "containers": [{"name": "client", "image": "lab.test/tools:1", "imagePullPolicy": "Never"}],
        },
    }
    if host_network:
        pod["spec"]["dnsPolicy"] = "ClusterFirstWithHostNet"
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": WEB}}
    return {"apiVersion": "v1", "kind": "List", "items": [account, pod]}


def split(shares, name="checkout", namespace_name=SHOP):
    """A TrafficSplit as someone writes it in a cluster."""
    backends = [{"cluster": cluster, "weight": weight} for cluster, weight in shares.items()]
    metadata = {"name": name, "namespace": namespace_name}
    spec = {"service": name, "backends": backends}
    return {"apiVersion": "archipelago.dev/v1alpha1", "kind": "TrafficSplit", "metadata": metadata, "spec": spec}


def text(*objects):
    """Objects as one JSON list, for a file."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})

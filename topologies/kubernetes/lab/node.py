"""What the processes of a lab cluster are told: command lines and configuration files, as plain text."""


def kubeconfig(cluster, address, token):
    """The administrator's way in. The API server's certificate is its own, made at its start."""
    return f"""\
apiVersion: v1
kind: Config
clusters: [{{name: {cluster}, cluster: {{server: "https://{address}:6443", insecure-skip-tls-verify: true}}}}]
users: [{{name: admin-{cluster}, user: {{token: {token}}}}}]
contexts: [{{name: {cluster}, context: {{cluster: {cluster}, user: admin-{cluster}}}}}]
current-context: {cluster}
"""


def control_plane(home, address, services, kubeconfig_file):
    """Command lines of the control plane, in the order to start them."""
    etcd, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    return {
        "etcd": [
            "etcd",
            f"--data-dir={home}/etcd",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        ],
        "apiserver": [
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            f"--bind-address={address}",
            f"--advertise-address={address}",
            "--secure-port=6443",
            f"--cert-dir={home}/certs",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={home}/sa.pub",
            f"--service-account-signing-key-file={home}/sa.key",
            f"--service-cluster-ip-range={services}",
            f"--token-auth-file={home}/tokens.csv",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",
        ],
        "controller-manager": [
            "kube-controller-manager",
            f"--kubeconfig={kubeconfig_file}",
            f"--service-account-private-key-file={home}/sa.key",
            f"--root-ca-file={home}/certs/apiserver.crt",
            "--allocate-node-cidrs=false",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
        ],
        "scheduler": ["kube-scheduler", f"--kubeconfig={kubeconfig_file}", "--leader-elect=false"],
    }


def kubelet(folder, kubeconfig_file, name, address):
    """Command line of a node's kubelet."""
    return [
        "kubelet",
        f"--config={folder}/kubelet.yaml",
        f"--kubeconfig={kubeconfig_file}",
        f"--root-dir={folder}/kubelet",
        f"--hostname-override={name}",
        f"--node-ip={address}",
        f"--cert-dir={folder}/pki",
    ]


def kube_proxy(kubeconfig_file, pods, name):
    """Command line of a node's kube-proxy. A network namespace may not change the machine's conntrack limits."""
    return [
        "kube-proxy",
        f"--kubeconfig={kubeconfig_file}",
        "--proxy-mode=nftables",
        f"--cluster-cidr={pods}",
        f"--hostname-override={name}",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
    ]


def files(folder, pods, dns):
    """A node's configuration files, by their path below its folder."""
    return {
        # Without CAP_SYS_RESOURCE, as root in a container has it, sandboxes cannot lower their OOM score.
        "containerd.toml": f"""\
version = 3
root = "{folder}/containerd"
state = "{folder}/run"
[grpc]
  address = "{folder}/containerd.sock"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "lab.test/pause:1"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["/usr/lib/cni"]
  conf_dir = "{folder}/cni"
[plugins.'io.containerd.nri.v1.nri']
  disable = true
""",
        "cni/10-lab.conflist": f"""\
{{"cniVersion": "1.0.0", "name": "lab", "plugins": [{{"type": "bridge", "bridge": "cni0", "isGateway": true,
 "hairpinMode": true, "ipam": {{"type": "host-local", "dataDir": "{folder}/ipam",
 "ranges": [[{{"subnet": "{pods}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}}]}}
""",
        # The cgroup settings are those that also run where the lab's root is a container's. Images are never collected: none could be pulled
        # again, and how full the disk is, is the machine's business.
        "kubelet.yaml": f"""\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}
authorization: {{mode: AlwaysAllow}}
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix://{folder}/containerd.sock
podLogsDir: {folder}/logs
volumePluginDir: {folder}/volume-plugins
clusterDNS: [{dns}]
clusterDomain: cluster.local
evictionHard: {{memory.available: "100Mi", nodefs.available: "1%", imagefs.available: "1%"}}
resolvConf: ""
maxPods: 100
imageGCHighThresholdPercent: 100
""",
    }

"""Open-loop load from a pod's network namespace: what is sent has the pod's address, and needs neither kubelet nor API server."""

import json
import signal
import subprocess


class Load:
    """A running load of GET requests; `stop` ends it and returns its report."""

    def __init__(self, chaos, cluster, pod, url, rate=100, host=None, namespace="web", timeout="30s", duration=None):
        process = cluster.pod_process(namespace, pod)
        words = [chaos, "load", url, f"--rate={rate}", "--quiet", "-o", "json", f"--timeout={timeout}"]
        words.append(f"--duration={duration}" if duration else "--until-signal")
        if host:
            words.append(f"--host={host}")
        enter = ["nsenter", f"--net=/proc/{process}/ns/net"]
        self.process = subprocess.Popen(
            [*enter, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def stop(self, seconds=240):
        """Lets what is under way end, and returns the report of `chaos load`."""
        self.process.send_signal(signal.SIGINT)
        return self.finish(seconds)

    def finish(self, seconds=240):
        """Waits until a load of a given duration ends, and returns its report."""
        out, err = self.process.communicate(timeout=seconds)
        if not out.strip():
            raise RuntimeError(f"the load generator said nothing: {err.strip()}")
        return json.loads(out)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def summary(report):
    """A report in one line."""
    latency = report["latencyMicros"]
    served = ", ".join(f"{cluster} {count}" for cluster, count in sorted(report["byCluster"].items()))
    line = f"{report['failed']} of {report['sent']} requests failed; answered by {served or 'nobody'}"
    if latency:
        line += f"; p50 {latency['p50'] / 1000:.1f} ms, p99 {latency['p99'] / 1000:.1f} ms, max {latency['max'] / 1000:.0f} ms"
    samples = "; ".join(sample["message"] for sample in report["failureSamples"][:3])
    return line + (f" ({samples})" if samples else "")

"""What the service counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Counters:
    """Counters of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        known = {"namespace": "stillmotion", "registry": self.registry}
        self.requests = Counter("requests", "Requests answered.", ["path", "code"], **known)
        self.open = Gauge("requests_open", "Uploads that are received or worked on.", **known)
        self.uploaded = Counter("uploaded_bytes", "Bytes of uploads received.", **known)
        self.seconds = Histogram(
            "seconds", "Seconds of answered uploads by stage.", ["stage"], buckets=SECONDS, **known
        )
        self.batch_size = Histogram("batch_size", "Samples that went through a network together.",
                                    buckets=(1, 2, 4, 8, 16, 32), **known)  # fmt: skip
        self.readers_lost = Counter("readers_lost", "Reading processes that a file crashed or held up.", **known)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)

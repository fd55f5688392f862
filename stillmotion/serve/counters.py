"""What the service counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Counters:
    """Counters of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("stillmotion_requests", "Requests answered.", ["path", "code"], registry=self.registry)
        self.open = Gauge(
            "stillmotion_requests_open", "Uploads that are received or worked on.", registry=self.registry
        )
        self.uploaded = Counter("stillmotion_uploaded_bytes", "Bytes of uploads received.", registry=self.registry)
        self.seconds = Histogram(
            "stillmotion_seconds",
            "Seconds of answered uploads by stage.",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch_size = Histogram("stillmotion_batch_size", "Samples that went through a network together.",
                                    buckets=(1, 2, 4, 8, 16, 32), registry=self.registry)  # fmt: skip
        self.readers_lost = Counter(
            "stillmotion_readers_lost", "Reading processes that a file crashed or held up.", registry=self.registry
        )

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)

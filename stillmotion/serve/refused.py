"""Why a request gets no answer."""


class Refused(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        reason: In one line, for people.
        retry_after: Seconds after which it may be sent again.
    """

    def __init__(self, status: int, reason: str, *, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after = status, reason, retry_after

"""What `memwatch soak` hands to locust: users that ask for addresses, one after another, without a pause."""

import os

from locust import HttpUser, task


class Visitor(HttpUser):  # type: ignore[misc]
    """Asks for each address in turn."""

    @task  # type: ignore[untyped-decorator]
    def visit(self) -> None:
        for address in os.environ["MEMWATCH_RUN_ADDRESSES"].split("\n"):
            self.client.get(address)

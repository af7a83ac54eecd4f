"""An S3 service on this machine: moto's, spoken to over HTTP like the real one, by Arrow and by every subprocess."""

from __future__ import annotations

import atexit
import functools
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest

_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@dataclass(frozen=True)
class S3:
    """A service with one bucket, to which the environment of this process leads."""

    endpoint: str  # with its scheme
    bucket: str

    def uri(self, *names: str) -> str:
        """Return the URI of a key; without names, of one that nobody has used."""
        return "/".join((f"s3://{self.bucket}", *(names or (uuid.uuid4().hex,))))


@functools.cache
def start_s3() -> S3:
    """Start the service, once in this process, with which it ends; the environment leads to it from now on."""
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    endpoint = f"http://127.0.0.1:{int(process.stdout.readline())}"
    atexit.register(_end, process)
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL_S3"):
        os.environ.pop(name, None)
    loopback = ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1")))
    os.environ.update(_ENVIRONMENT, AWS_ENDPOINT_URL=endpoint, NO_PROXY=loopback, no_proxy=loopback)
    return S3(endpoint, process.stdout.readline().strip())


def _end(process: subprocess.Popen[str]) -> None:
    process.communicate("")  # it ends when its standard input does


@pytest.fixture(scope="session", name="s3")
def s3_service() -> S3:
    return start_s3()


def serve() -> None:
    """Serve on a free port, one request at a time, until the standard input ends; print the port and the bucket."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    application = DomainDispatcherApplication(create_backend_app)
    # The service looks whether a key exists, and then writes it. The real one does both in one step.
    turn = threading.Lock()

    def one_at_a_time(environment: Any, start_response: Any) -> Iterable[bytes]:
        with turn:
            return list(application(environment, start_response))

    class Quiet(WSGIRequestHandler):
        def log(self, *args: Any) -> None:
            pass

    server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.port, flush=True)
    os.environ.update(_ENVIRONMENT)
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"  # Arrow's connections are kept under its name
    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{server.port}").create_bucket(Bucket=bucket)
    print(bucket, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve()

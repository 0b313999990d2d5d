"""A private SeaweedFS that speaks S3 on the loopback."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from support.session import Service, Session, clean_env, free_ports, program, wait_until

ACCESS_KEY = "testak"
SECRET_KEY = "testsk"
REGION = "us-east-1"


class Bucket(NamedTuple):
    """A bucket of its own, and what is needed to reach it."""

    endpoint: str
    name: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    region: str = REGION

    @property
    def url(self) -> str:
        """The bucket as `--bucket` takes it, in path style."""
        return f"{self.endpoint}/{self.name}"


class WeedServer:
    """One SeaweedFS process with all its parts; acknowledged objects survive `stop` and `start`."""

    def __init__(self, session: Session, *, shared: bool = False) -> None:
        self.session = session
        self.shared = shared
        self.directory = session.directory("w")
        (self.directory / "data").mkdir()
        identity = {
            "name": "t",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        self._config = self.directory / "s3.json"
        self._config.write_text(json.dumps({"identities": [identity]}))
        self.ports = free_ports(5, also_plus=10000)
        self.endpoint = f"http://127.0.0.1:{self.ports[0]}"
        self._buckets = 0
        self.service: Service
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers S3 requests."""
        s3, master, volume, filer, admin = self.ports
        argv = [program("weed"), "-logtostderr=true", "mini", f"-dir={self.directory}/data"]
        argv += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"]
        argv += [f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}"]
        argv += [f"-filer.port={filer}", f"-admin.port={admin}", f"-s3.config={self._config}"]
        argv += ["-s3.autoCreateBucket=false", "-s3.allowDeleteBucketNotEmpty=false"]
        argv += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"]
        env = clean_env(HOME=str(self.directory), GOMEMLIMIT="700MiB")
        self.service = Service(
            self.session, argv, self.directory / "log", env=env, cwd=self.directory
        )
        if self.shared:
            self.session.shared.add(self.service.pid)
        wait_until(self._answers, 30, "weed")

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.endpoint + "/", timeout=5).close()
        except urllib.error.HTTPError as error:
            error.close()
            return error.code == 403
        except OSError:
            assert self.service.returncode() is None, self.service.tail()
            return False
        return True

    def bucket(self) -> Bucket:
        """Create a new, empty bucket."""
        self._buckets += 1
        bucket = Bucket(self.endpoint, f"b{os.getpid()}-{self._buckets}")
        client = self.client()
        wait_until(lambda: self._create(client, bucket.name), 20, f"bucket {bucket.name}")
        client.close()
        return bucket

    def _create(self, client: object, name: str) -> bool:
        from botocore.exceptions import ClientError

        try:
            client.create_bucket(Bucket=name)
            client.put_object(Bucket=name, Key="probe", Body=b"x")
            client.delete_object(Bucket=name, Key="probe")
        except ClientError as error:
            return error.response["Error"]["Code"] == "BucketAlreadyOwnedByYou"
        return True

    def client(self) -> object:
        """Return a blocking S3 client."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name=REGION,
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
        )

    def keys(self, bucket: Bucket) -> list[str]:
        """Return the names of all objects of a bucket."""
        client = self.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name)
        found = [o["Key"] for page in pages for o in page.get("Contents", [])]
        client.close()
        return found

    def pause(self) -> None:
        """Make the server hang: none of its threads runs any more when this returns."""
        self.service.signal(signal.SIGSTOP)
        wait_until(self._is_stopped, 10, "stopped weed")

    def _is_stopped(self) -> bool:
        """A signal is on its way for a while, and other threads may still answer."""
        threads = Path(f"/proc/{self.service.pid}/task").glob("*/stat")
        try:
            return all(each.read_text().rpartition(")")[2].split()[0] == "T" for each in threads)
        except OSError:
            return False  # one has just ended

    def resume(self) -> None:
        """Let a hung server go on."""
        self.service.signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kill the server."""
        self.service.kill()

"""An S3 for tests: moto's server in memory, with one empty bucket. What it holds is lost when it ends."""

import os
import signal
import threading

import boto3
from moto.server import ThreadedMotoServer

PORT = 9000

server = ThreadedMotoServer(ip_address="0.0.0.0", port=PORT, verbose=False)
server.start()
client = boto3.client(
    "s3",
    endpoint_url=f"http://127.0.0.1:{PORT}",
    region_name="us-east-1",
    aws_access_key_id="test",
    aws_secret_access_key="test",
)
client.create_bucket(Bucket=os.environ["BUCKET"])
print(f"bucket {os.environ['BUCKET']} is ready", flush=True)

ended = threading.Event()
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: ended.set())
ended.wait()
server.stop()

"""A strategy is submitted to production: `trellis deploy --env`, an S3 of moto, and `qcu` in a task of a faked ECS."""

import contextlib
import hashlib
import http.server
import io
import json
import os
import pathlib
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile

import pytest
from conftest import EXAMPLES, WAIT_S, cli

import trellis
from trellis.cli.up import find_program

SESSION = "2016-08-10"
GOLDEN = pathlib.Path(__file__).with_name("golden") / "mom_12_1.json"
STRATEGY = """
import trellis
from factors import last

@trellis.strategy({name!r}, output=trellis.output("tests.{name}", x="float64"), cpu=0.5, memory="1G", {more}
    inputs=dict(px=trellis.series("equities.daily", ["close"], symbols=["AMZN", "KO"], lookback="2 sessions")))
def compute(ctx, px):
    c = px.wide("close")
    return ctx.frame(symbol=c.symbols, x=last(c))
"""
LIBRARY = "def last(c):\n    return c[-1] / c[-2] - 1\n"


class Store:
    """moto's S3, in a process of its own."""

    def __init__(self, program):
        argv = [program, "-H", "127.0.0.1", "-p", "0"]
        self.server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for line in self.server.stderr:
            if found := re.search(r"Running on (http://\S+)", line):
                self.url = found.group(1)
                break
        # it writes a line for each request, which must be read
        threading.Thread(target=lambda: [None for _ in self.server.stderr], daemon=True).start()
        self.buckets = 0

    def ask(self, method, path, body=b""):
        # moto learns from the signature's scope which service is meant; it checks no signature
        scope = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
        headers = {"Authorization": scope, "Content-Type": "application/octet-stream"}
        request = urllib.request.Request(f"{self.url}/{path}", data=body or None, method=method, headers=headers)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=WAIT_S) as answer:
            return answer.read()

    def bucket(self):
        self.buckets += 1
        name = f"bundles-{self.buckets}"
        self.ask("PUT", name)
        versions = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        self.ask("PUT", f"{name}?versioning", versions)
        return name


@pytest.fixture(scope="module")
def store():
    program = pathlib.Path(sys.executable).with_name("moto_server")
    found = str(program) if program.exists() else shutil.which("moto_server")
    if not found:
        pytest.skip("there is no moto_server (pip install 'moto[server]')")
    running = Store(found)
    yield running
    running.server.kill()
    running.server.wait()


class Production:
    """A folder of a fleet, a bucket of its own, and a folder of strategies."""

    def __init__(self, store, folder):
        self.store, self.bucket = store, store.bucket()
        self.fleet, self.sources = folder / "fleet", folder / "sources"
        self.fleet.mkdir()
        self.sources.mkdir()
        self.write_grid()
        (self.sources / "factors.py").write_text(LIBRARY)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TRELLIS_", "ECS_"))},
            "AWS_ENDPOINT_URL": store.url,
            "AWS_ACCESS_KEY_ID": "AKIATEST",
            "AWS_SECRET_ACCESS_KEY": "test",
        }

    def write_grid(self, **changes):
        fields = {"environment": "prod", "region": "us-east-1", "bundles": f"s3://{self.bucket}/bundles"}
        (self.fleet / "grid.json").write_text(json.dumps(fields | changes))

    def strategy(self, name, more=""):
        file = self.sources / f"{name}.py"
        file.write_text(STRATEGY.format(name=name, more=more))
        return file

    def deploy(self, *targets, env="prod", environment=None):
        options = ["--env", env, "--fleet", str(self.fleet), "--json"]
        return cli("deploy", *map(str, targets), *options, env=environment or self.environment)

    def deployed(self, *targets):
        done = self.deploy(*targets)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def unit(self, name):
        return json.loads((self.fleet / "units" / f"{name}.json").read_text())

    def applied(self, name, **changes):
        """What `fleet apply` does for `qcu`: it puts the unit's file under the name of its service."""
        unit = self.unit(name) | changes
        self.store.ask("PUT", f"{self.bucket}/bundles/units/trellis-unit-{name}.json", json.dumps(unit).encode())
        return unit

    def versions(self):
        return self.store.ask("GET", f"{self.bucket}?versions").decode().count("<Version>")

    def qcu(self, metadata="", *arguments, **variables):
        environment = self.environment | {
            "AWS_REGION": "us-east-1",
            "ECS_CONTAINER_METADATA_URI_V4": metadata,
            "TRELLIS_URL": "grpc://127.0.0.1:9",
            "TRELLIS_UNIT_FILE": f"s3://{self.bucket}/bundles/units/",
            "TRELLIS_PYTHON": sys.executable,
            "TRELLIS_CONNECT_MS": "20000",
            **variables,
        }
        argv = [find_program("qcu"), *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_S, env=environment)


@pytest.fixture
def production(store, tmp_path):
    return Production(store, tmp_path)


@contextlib.contextmanager
def ecs_task(service):
    """A task metadata endpoint of ECS."""

    class Endpoint(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"ServiceName": service, "Cluster": "tulip", "Family": "unit"}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v4/task"
        server.shutdown()


def test_a_deploy_puts_the_bundle_and_writes_the_units_file(production):
    before = time.time_ns()
    [told] = production.deployed(production.strategy("first"))
    unit = production.unit("first")
    hexes = unit["digest"].removeprefix("sha256:")
    assert told["put"] and told["digest"] == unit["digest"] and told["bundle"].endswith(f"/bundles/{hexes}.zip")
    assert unit["bundle"] == f"bundles/{hexes}.zip" and unit["deployed_ns"] >= before
    assert (unit["cpu"], unit["memory"], unit["environment"]) == (0.5, "1G", "prod")
    assert (unit["module"], unit["function"], unit["schedule"]) == ("first.py", "compute", {"kind": "manual"})
    bundle = zipfile.ZipFile(io.BytesIO(production.store.ask("GET", f"{production.bucket}/{unit['bundle']}")))
    assert bundle.namelist() == ["factors.py", "first.py", "packages.lock", "unit.json"]
    assert bundle.read("factors.py").decode() == LIBRARY
    manifest = json.loads(bundle.read("unit.json"))
    assert manifest["unit"] == "first" and manifest["code_digest"] == told["code_digest"]


def test_a_person_reads_what_was_done_and_what_comes_next(production):
    file = production.strategy("told")
    environment = production.environment | {"TRELLIS_FLEET_DIR": str(production.fleet)}
    done = cli("deploy", str(file), "--env", "prod", env=environment)
    assert done.returncode == 0, done.stderr
    what, wrote, following = done.stdout.splitlines()
    assert re.fullmatch(r"told  sha256:[0-9a-f]{12}  put s3://\S+\.zip", what)
    assert wrote == f"wrote {production.fleet}/units/told.json"
    assert "commit" in following and "`fleet apply`" in following


def test_a_second_deploy_of_the_same_code_puts_nothing_and_is_a_new_deployment(production):
    file = production.strategy("again")
    [first], before = production.deployed(file), production.unit("again")
    [second], after = production.deployed(file), production.unit("again")
    assert (first["put"], second["put"], production.versions()) == (True, False, 1)
    assert after["digest"] == before["digest"] and after["deployed_ns"] > before["deployed_ns"]


def test_what_a_person_set_in_the_units_file_stays(production):
    file = production.strategy("kept")
    production.deployed(file)
    path = production.fleet / "units" / "kept.json"
    unit = production.unit("kept")
    del unit["cpu"], unit["memory"]
    theirs = {"class": "small", "spot": True, "window": "1h", "partitions": ["eu", "us"]}
    path.write_text(json.dumps(unit | theirs))
    (production.sources / "factors.py").write_text(LIBRARY + "\n# a change\n")
    production.deployed(file)
    after = production.unit("kept")
    assert {name: after[name] for name in theirs} == theirs
    assert after["digest"] != unit["digest"] and "cpu" not in after


def test_all_strategies_of_a_folder_are_deployed_or_none(production, tmp_path):
    production.strategy("one")
    two = production.strategy("two")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far.py").write_text("X = 1\n")
    good = two.read_text()
    two.write_text(f"import sys\nsys.path.insert(0, {str(elsewhere)!r})\nimport far\n{good}")
    refused = production.deploy(production.sources)
    assert refused.returncode == 3
    assert "far.py" in refused.stderr and "outside of the folder" in refused.stderr
    assert not (production.fleet / "units").exists() and production.versions() == 0
    two.write_text(good)
    assert [unit["unit"] for unit in production.deployed(production.sources)] == ["one", "two"]


def test_a_unit_whose_upstream_is_not_deployed_is_refused(production):
    file = production.strategy("upstream")
    file.write_text(
        file.read_text()
        + '\n@trellis.strategy("below", schedule=trellis.after(compute), inputs=dict(up=compute.series()),'
        + '\n    output=trellis.output("tests.below", x="float64"))\ndef below(ctx, up): ...\n'
    )
    refused = production.deploy(f"{file}:below")
    assert refused.returncode == 3 and "upstream, which is not deployed to prod" in refused.stderr
    assert len(production.deployed(file)) == 2


def test_another_environment_is_refused(production):
    refused = production.deploy(production.strategy("other"), env="staging")
    assert refused.returncode == 3 and "of the environment prod, not of staging" in refused.stderr


def test_a_bucket_that_is_not_there_is_named(production):
    production.write_grid(bundles="s3://no-such-bucket/bundles")
    refused = production.deploy(production.strategy("lost"))
    assert refused.returncode == 3 and "there is no bucket no-such-bucket" in refused.stderr
    assert not (production.fleet / "units").exists()


def test_a_deploy_without_credentials_says_how_to_get_some(production):
    environment = production.environment | {"AWS_METADATA_ENDPOINT": "http://127.0.0.1:9"}
    del environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]
    refused = production.deploy(production.strategy("nobody"), environment=environment)
    assert refused.returncode == 3 and "no AWS credentials" in refused.stderr
    assert "aws configure export-credentials" in refused.stderr


def test_options_of_a_local_grid_do_not_go_with_an_environment(production):
    file = str(production.strategy("local"))
    for options in (["--session", SESSION], ["--wait"], ["--take-over"], ["--state", "x"]):
        refused = cli("deploy", file, "--env", "prod", "--fleet", str(production.fleet), *options)
        assert refused.returncode == 3 and f"{options[0]} is for a local grid" in refused.stderr
    assert "belong together" in cli("deploy", file, "--env", "prod", env=production.environment).stderr


def test_the_file_of_a_unit_is_the_one_that_fleet_reads(production):
    """A test of `fleet` reads the golden file. TRELLIS_BLESS=1 writes it anew."""
    production.deployed(EXAMPLES / "momentum.py")
    unit = production.unit("mom_12_1")
    # the digest depends on the versions of packages
    text = (production.fleet / "units" / "mom_12_1.json").read_text()
    text = text.replace(unit["digest"].removeprefix("sha256:"), "5" * 64)
    text = text.replace(str(unit["deployed_ns"]), "1795931000000000000")
    if os.environ.get("TRELLIS_BLESS"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


@pytest.mark.processes
def test_a_task_finds_its_unit_by_its_services_name_verifies_it_runs_it_and_publishes(production, processes, tmp_path):
    production.deployed(production.strategy("submitted"))
    production.applied("submitted")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with ecs_task("trellis-unit-submitted") as metadata:
        checked = production.qcu(metadata, "--check", TMPDIR=str(temporary))
        assert checked.returncode == 0, checked.stderr
        variables = {
            "TRELLIS_URL": processes.info["url"],
            "TRELLIS_SESSIONS": SESSION,
            "TRELLIS_EXIT_WHEN_DONE": "true",
            "TMPDIR": str(temporary),
        }
        done = production.qcu(metadata, **variables)
    assert done.returncode == 0, done.stderr
    assert list(temporary.iterdir()) == [], "the unpacked bundles are gone"
    assert "other packages" not in done.stderr
    with trellis.connect(processes.info["url"]) as grid:
        published = grid.read("tests.submitted", ["x"]).pandas()
        # the run's id has the deployment, so a new deploy of the same code publishes the session again
        runs = grid.read("trellis.runs", symbols=["submitted"]).pandas()
    assert sorted(published.symbol) == ["AMZN", "KO"] and published.x.notna().all()
    assert len(runs) == 1
    assert runs.run_id.str.endswith(str(production.unit("submitted")["deployed_ns"])).all()


@pytest.mark.processes
def test_an_image_with_other_packages_is_told_in_one_line(production, processes):
    production.deployed(production.strategy("locked"))
    unit = production.unit("locked")
    old = zipfile.ZipFile(io.BytesIO(production.store.ask("GET", f"{production.bucket}/{unit['bundle']}")))
    files = {name: old.read(name) for name in old.namelist()}
    lock = re.sub(rb"numpy==.*", b"numpy==0.0.1", files["packages.lock"])
    production.applied("locked", **put_bundle(production, files | {"packages.lock": lock}))
    variables = {
        "TRELLIS_URL": processes.info["url"],
        "TRELLIS_SESSIONS": SESSION,
        "TRELLIS_EXIT_WHEN_DONE": "true",
    }
    with ecs_task("trellis-unit-locked") as metadata:
        done = production.qcu(metadata, **variables)
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stderr.splitlines() if "other packages" in line]
    assert "WARN" in line and "instead of 0.0.1" in line


def put_bundle(production, files):
    """Puts a bundle of these files, which `trellis deploy` would not make. Returns the fields that name it."""
    bundle = io.BytesIO()
    with zipfile.ZipFile(bundle, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    hexes = hashlib.sha256(bundle.getvalue()).hexdigest()
    production.store.ask("PUT", f"{production.bucket}/bundles/{hexes}.zip", bundle.getvalue())
    return {"digest": f"sha256:{hexes}", "bundle": f"bundles/{hexes}.zip"}


@pytest.fixture
def deployed(production):
    """A unit that was submitted and applied."""
    production.deployed(production.strategy("broken"))
    production.applied("broken")
    return production


def refused(production, *expected, service="trellis-unit-broken", **variables):
    with ecs_task(service) as metadata:
        done = production.qcu(metadata, "--check", **variables)
    assert done.returncode == 2, done.stderr
    assert all(words in done.stderr for words in expected), done.stderr


def test_a_service_without_a_unit_is_told_who_writes_its_file(deployed):
    refused(
        deployed, "there is no object", "trellis-unit-ghost.json", "`fleet apply` writes", service="trellis-unit-ghost"
    )


def test_a_bundle_with_a_flipped_bit_is_refused(deployed):
    unit = deployed.unit("broken")
    key = f"{deployed.bucket}/{unit['bundle']}"
    bundle = bytearray(deployed.store.ask("GET", key))
    bundle[len(bundle) // 2] ^= 1
    deployed.store.ask("PUT", key, bytes(bundle))
    refused(deployed, unit["bundle"], "has the digest sha256:", f"names {unit['digest']}", "nothing of it was run")
    again = deployed.deploy(deployed.sources / "broken.py")
    assert again.returncode == 3 and "other bytes than its name says" in again.stderr


def test_a_bundle_that_is_gone_is_told(deployed):
    unit = deployed.unit("broken")
    deployed.store.ask("DELETE", f"{deployed.bucket}/{unit['bundle']}")
    refused(deployed, "there is no object", unit["bundle"], "deploy the strategy again")


def test_a_bundle_that_would_write_outside_of_its_folder_is_refused(deployed, tmp_path):
    deployed.applied("broken", **put_bundle(deployed, {"../x": b"1"}))
    refused(deployed, "../x", "no path inside it", TMPDIR=str(tmp_path))
    assert not (tmp_path / "x").exists() and not list(tmp_path.glob("trellis-bundle-*"))


def test_a_units_file_that_was_edited_by_hand_is_refused(deployed):
    deployed.applied("broken", function="another")
    refused(deployed, 'names the function "another"', "edited by hand")


def test_a_task_without_the_right_to_read_is_told_who_it_is(deployed):
    deployed.store.ask("POST", "moto-api/reset-auth", b"0")
    try:
        refused(deployed, "may not be read", "asked by the key AKIATEST", "give it the right")
    finally:
        deployed.store.ask("POST", "moto-api/reset-auth", b"1000000")


def test_a_bucket_that_is_not_there_is_told_to_a_task_too(deployed):
    refused(deployed, "there is no bucket no-such-bucket", TRELLIS_UNIT_FILE="s3://no-such-bucket/bundles/units/")


def test_outside_of_a_service_the_file_must_be_named(deployed):
    outside = deployed.qcu("", "--check")
    assert outside.returncode == 2 and "this is no task of ECS" in outside.stderr
    assert "GRID-unit-NAME.json" in outside.stderr
    refused(deployed, "the task is no service's", service="")
    named = f"s3://{deployed.bucket}/bundles/units/trellis-unit-broken.json"
    done = deployed.qcu("", "--check", TRELLIS_UNIT_FILE=named)
    assert done.returncode == 0, done.stderr


class Relay(socketserver.BaseRequestHandler):
    """Breaks the first connections, and passes one request of each later one to the store."""

    def handle(self):
        self.server.seen += 1
        if self.server.seen <= 3:
            return
        with socket.create_connection(self.server.store) as store:
            store.sendall(self.request.recv(65_536).replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
            while piece := store.recv(65_536):
                self.request.sendall(piece)


def test_a_store_that_does_not_answer_at_once_is_asked_again(deployed):
    host, _, port = deployed.store.url.removeprefix("http://").partition(":")
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay) as relay, ecs_task("trellis-unit-broken") as metadata:
        relay.seen, relay.store = 0, (host, int(port))
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        done = deployed.qcu(metadata, "--check", AWS_ENDPOINT_URL=f"http://127.0.0.1:{relay.server_address[1]}")
        relay.shutdown()
    assert done.returncode == 0, done.stderr
    assert relay.seen > 3
    # nobody listens there
    refused(deployed, "S3 does not answer", AWS_ENDPOINT_URL="http://127.0.0.1:9", TRELLIS_CONNECT_MS="500")

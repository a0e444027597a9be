"""A real Apache Kafka broker for development and tests: one KRaft process, from Maven's jars alone.

Goal: what is tested is the broker that its users run, started and stopped in seconds, without a container.
Three listeners: one without login (its user may do everything), one with SASL/PLAIN for `SASL_USER`, who may do
nothing until an ACL allows it, and one that tells its clients another port, for a proxy that cuts replies. The same
folder and ports are used again by a later `start`, so that a client sees
one broker that was away for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
VERSION = "4.4.0"
POM = HERE / "kafka" / "pom.xml"
CACHE = HERE / ".cache" / f"kafka-{VERSION}"
START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 20.0
SASL_USER = "runlore"
SASL_PASSWORD = "runlore-test-only"  # Of a broker that listens on this machine alone.

PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},SASL://127.0.0.1:{sasl},PROXIED://127.0.0.1:{behind},\
CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL://127.0.0.1:{sasl},PROXIED://127.0.0.1:{proxy}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,SASL:SASL_PLAINTEXT
listener.name.sasl.sasl.enabled.mechanisms=PLAIN
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
required user_{user}="{password}";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
log.dirs={folder}/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=2
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
controller.quorum.election.timeout.ms=500
controller.quorum.fetch.timeout.ms=1000
log.cleaner.dedupe.buffer.size=4194304
log.retention.check.interval.ms=1000
num.network.threads=2
num.io.threads=4
"""


def missing() -> str | None:
    """How to get what a broker needs and this machine has not; None where it can start (or fetch the rest)."""
    if _java() is None:
        return "a Kafka broker needs Java 17: install openjdk-17-jre-headless, or set JAVA_HOME"
    if not _jars(_libs()) and shutil.which("mvn") is None:
        return f"a Kafka broker needs its jars: install Maven, or point RUNLORE_TEST_KAFKA_LIBS to those of {VERSION}"
    return None


class KafkaServer:
    """One broker on free ports, with its data in `folder`.

    `brief`: one that lives for seconds. Java's optimizing compiler takes two of the five seconds of processor time
    that a start costs, and pays off only later.
    """

    def __init__(self, folder: Path | str, *, brief: bool = False) -> None:
        self.folder = Path(folder).absolute()
        self._compiler = ("-XX:TieredStopAtLevel=1",) if brief else ()
        self.port, self.sasl_port, self._controller_port, self.behind_port, self.proxy_port = _free_ports(5)
        self._process: subprocess.Popen | None = None

    @property
    def servers(self) -> str:
        """Address of the listener without login."""
        return f"127.0.0.1:{self.port}"

    @property
    def sasl_servers(self) -> str:
        """Address of the listener with SASL/PLAIN, for `SASL_USER` and `SASL_PASSWORD`."""
        return f"127.0.0.1:{self.sasl_port}"

    @property
    def proxied_servers(self) -> str:
        """Address where a proxy to `behind_port` must listen; its clients are sent there for every request."""
        return f"127.0.0.1:{self.proxy_port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start, and return once an admin client is answered. The ports and the data of an earlier start stay.

        Raises `RuntimeError` where something is missing or the broker does not come up, with its last log lines.
        """
        if self.pid is not None:
            return
        fetch()
        properties = self.folder / "server.properties"
        if not properties.exists():
            self._format(properties)
        with open(self.folder / "broker.log", "ab") as log:
            self._process = subprocess.Popen(
                [*_command("-Xmx512m", "-XX:+UseSerialGC", *self._compiler), "kafka.Kafka", str(properties)],
                stdout=log,
                stderr=log,
                # An interrupt of a test run must not reach it before its own stop.
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End it in peace (SIGTERM)."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once (SIGKILL): what a crash of the machine looks like to its clients."""
        self._end(signal.SIGKILL)

    def __enter__(self) -> KafkaServer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def log_tail(self, lines: int = 20) -> str:
        with contextlib.suppress(OSError):
            return "\n".join((self.folder / "broker.log").read_text("utf-8", "replace").splitlines()[-lines:])
        return ""

    def _format(self, properties: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = PROPERTIES.format(
            port=self.port,
            sasl=self.sasl_port,
            controller=self._controller_port,
            behind=self.behind_port,
            proxy=self.proxy_port,
            folder=self.folder,
            user=SASL_USER,
            password=SASL_PASSWORD,
        )
        draft = properties.with_suffix(".draft")
        draft.write_text(text, "utf-8")
        tool = [*_command("-Xmx128m", "-XX:TieredStopAtLevel=1"), "kafka.tools.StorageTool", "format"]
        # Any id will do: one node is the whole cluster.
        done = subprocess.run(
            [*tool, "-t", "cnVubG9yZS1kZXYtMDAwMQ", "-c", str(draft)], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"the broker's folder can not be formatted: {done.stdout}{done.stderr}")
        draft.rename(properties)

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            if _accepts(self.port) and _answers(self.servers):
                return
            time.sleep(0.05)
        raise RuntimeError(f"the Kafka broker did not come up:\n{self.log_tail()}")

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def fetch() -> None:
    """Get the jars if they are not there. Raises `RuntimeError` where that can not be done."""
    problem = missing()
    if problem:
        raise RuntimeError(problem)
    if _jars(_libs()):
        return
    # Into a folder of its own, then one rename: of two that fetch at once neither sees half of it.
    draft = CACHE.with_name(f"{CACHE.name}.{os.getpid()}")
    command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
    done = subprocess.run(
        [*command, f"-DoutputDirectory={draft}", "-DincludeScope=runtime"], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"Maven could not fetch Kafka: {done.stdout}{done.stderr}")
    with contextlib.suppress(OSError):
        draft.rename(CACHE)
    shutil.rmtree(draft, ignore_errors=True)


def _libs() -> Path:
    return Path(os.environ.get("RUNLORE_TEST_KAFKA_LIBS") or CACHE)


def _jars(folder: Path) -> bool:
    return any(folder.glob("kafka_2.13-*.jar"))


def _java() -> str | None:
    home = os.environ.get("JAVA_HOME")
    return shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")


def _command(*options: str) -> list[str]:
    java = _java()
    assert java is not None
    return [java, *options, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{_libs()}/*"]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _accepts(port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex(("127.0.0.1", port)) == 0


def _answers(servers: str) -> bool:
    """Whether a broker answers an admin client, asked on a thread of its own: the caller may be on a loop."""
    found: list[bool] = []
    asking = threading.Thread(target=lambda: found.append(asyncio.run(_ask(servers))))
    # The client logs every refused connection, which is what is waited for here.
    log = logging.getLogger("aiokafka")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        asking.start()
        asking.join()
    finally:
        log.setLevel(level)
    return bool(found and found[0])


async def _ask(servers: str) -> bool:
    from aiokafka import errors
    from aiokafka.admin import AIOKafkaAdminClient

    admin = AIOKafkaAdminClient(bootstrap_servers=servers, request_timeout_ms=5000)
    try:
        await admin.start()
        return bool((await admin.describe_cluster())["brokers"])
    except (TimeoutError, errors.KafkaError, OSError):
        return False
    finally:
        await admin.close()

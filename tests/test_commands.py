"""Every command, configuration and program that the pages show is run, or checked as a table says."""

from __future__ import annotations

import contextlib
import functools
import glob
import inspect
import io
import itertools
import json
import os
import queue
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import jsonschema
import numpy as np
import pytest
import yaml
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from torchvision import datasets
from typer.testing import CliRunner, Result

from streamexit.cli.commands import app
from streamexit.config.load import load_configuration
from streamexit.config.schema import NodeConfiguration, StreamSection
from streamexit.errors import DataError
from streamexit.models.architectures import build_network
from streamexit.plugins import Group, load_plugin, plugins
from streamexit.sources.addresses import SourceOptions, parse_address
from streamexit.sources.video import VideoSource
from streamexit.testing import TOY_PREPROCESSING
from streamexit.training.datasets import load_part
from streamexit.training.labelled import LabelledImages
from streamexit.training.recipe import Recipe
from tests.conftest import ROOT, MakeClip, Mosquitto, absent
from tests.faults.rig import PATIENCE, free_port
from tests.shown import (
    PROGRAMS,
    Block,
    Shown,
    all_blocks,
    all_commands,
    blocks,
    pages,
    repository_file,
    script_commands,
    spans,
)
from tests.sources.test_kinds import until_it_listens
from tests.training.conftest import coloured, write_archive
from tests.training.test_folder_data import paint

TIME_LIMIT = 120
CIFAR = "pipelines/cifar10-resnet20"
GATE = "streamexit/gatehouse/stream/gate"
SQUARES = "streamexit/desk/stream/squares"
PLUGINS = ROOT / "samples" / "plugins"
BIN = Path(sys.executable).parent
"""Where `streamexit` and `python` of a reader are: the environment that runs the tests."""


@dataclass(frozen=True)
class Swap:
    """What is changed in a command, or in a file that a page shows, before it is used."""

    shown: str
    """A regular expression; of a file, the text itself."""
    used: str
    """{broker}, {http} ... stand for ports."""
    why: str


OWN_PORT = "tests have ports of their own"
OWN_PLACE = "tests have ports, and an environment, of their own"
COMMAND_SWAPS = (
    Swap(r"^mosquitto_(sub|pub) (?=-t '?streamexit/desk/)", r"mosquitto_\1 -p {second} ", OWN_PORT),
    Swap(r"^mosquitto_(sub|pub) (?=-t)", r"mosquitto_\1 -p {broker} ", OWN_PORT),
    Swap(
        r"(?<= -p \{(?:broker|second)\} )(?=.*/result' \| jq )",
        "-C 3 ",
        "ends after three, instead of by Ctrl-C",
    ),
    Swap(r"^streamexit watch$", "streamexit watch --url mqtt://127.0.0.1:{broker}", OWN_PORT),
    Swap(
        r"^\.venv/bin/streamexit watch$",
        "streamexit watch --url mqtt://127.0.0.1:{second}",
        OWN_PLACE,
    ),
    Swap(r"^\.venv/bin/(python samples/subscriber\.py)$", r"\1 127.0.0.1 {second}", OWN_PLACE),
    Swap(r"127\.0\.0\.1:PORT$", "127.0.0.1:{embedded}", "the port that `run` shows is meant"),
    Swap(r"(subscriber\.py)( \[HOST \[PORT\]\])?$", r"\1 127.0.0.1 {broker}", OWN_PORT),
    Swap(
        r"^(sh samples/watch\.sh) \[.*\]$", r"\1 -p {broker} -C 3", f"{OWN_PORT}; ends after three"
    ),
    Swap(r"^(sh \.\./samples/watch\.sh)", r"\1 -p {secured} -C 1", f"{OWN_PORT}; ends after one"),
    Swap(r"^mosquitto_pub -u", "mosquitto_pub -p {secured} -u", OWN_PORT),
    Swap(r"127\.0\.0\.1:8420", "127.0.0.1:{http}", OWN_PORT),
    Swap(r"127\.0\.0\.1:(5000|1935)", "127.0.0.1:{sender}", OWN_PORT),
    Swap(r"\bPIPELINE$", CIFAR, "a pipeline is meant"),
    Swap(r"\bcheck FILE$", "check gate.yaml", "a configuration is meant"),
    Swap(r"\bdoctor (node\.yaml|your\.yaml|FILE)$", "doctor gate.yaml", "other names for it"),
    Swap(r"--debug \.\.\.$", "--debug check absent.yaml", "a command that goes wrong is meant"),
    Swap(r"-i input\b", "-i gate.mp4", "a recording is meant"),
    Swap(
        r"replay \.\.\.",
        f"replay gate.mp4 --pipeline {CIFAR} --budget fraction=0.5",
        "sources, pipeline and budget are meant",
    ),
    Swap(rf"^streamexit profile {CIFAR}$", r"\g<0> --max-batch 2", "takes half as long"),
    Swap(r"^streamexit fit my$", r"\g<0> --policy direct --policy msdnet", "two policies of three"),
    Swap(
        r"^streamexit compare out/(my-)?test\.npz.*$",
        r"\g<0> --seeds 1 --methods direct,msdnet",
        "all methods take a minute",
    ),
    Swap(
        r"^(streamexit compare out/mine\.npz --methods direct),eenet(.*)$",
        r"\1\2 --seeds 1",
        "EENet takes a quarter of a minute per seed",
    ),
)
FILE_SWAPS = {
    "gate.yaml": (
        Swap("mqtt://127.0.0.1:1883", "mqtt://127.0.0.1:{broker}", OWN_PORT),
        Swap(
            "rtsp://viewer:${CAMERA_PASSWORD}@192.0.2.10/stream1",
            "gate.mp4\n    loop: true",
            "there is no camera at an address of documentation",
        ),
        Swap("\npipelines:", "\nhttp: {{port: {http}}}\npipelines:", "what the page says to add"),
    ),
    f"{CIFAR}/pipeline.yaml": (
        Swap("calibration_size: 3000", "calibration_size: 300", "ten times fewer pictures"),
    ),
    "my/train.yaml": (
        Swap("initial_weights: torchvision", "", "tests fetch nothing"),
        Swap("width: 224, height: 224", "width: 32, height: 32", "fifty times fewer pixels"),
        Swap("calibration_size: 300", "calibration_size: 100", "there are 240 to train with"),
        Swap("epochs: 20", "epochs: 1, warmup_epochs: 0", "twenty times shorter"),
    ),
    "quick.yaml": (Swap("mqtt://127.0.0.1:1883", "mqtt://127.0.0.1:{broker}", OWN_PORT),),
    "embedded.yaml": (Swap("mqtt://127.0.0.1:1883", "embedded", "what the page says to write"),),
}
"""Of gate.yaml and quick.yaml only where a node runs: `check` reads them as they are shown."""


def swapped(command: str) -> str:
    """A command as it is used; ports still by name."""
    for swap in COMMAND_SWAPS:
        command = re.sub(swap.shown, swap.used, command)
    return command


def swapped_file(name: str, text: str, **ports: int) -> str:
    """The text of a file as it is used."""
    for swap in FILE_SWAPS[name]:
        assert swap.shown in text, f"{name} has no {swap.shown!r} any more: {swap.why}"
        text = text.replace(swap.shown, swap.used.format(**ports) if ports else swap.used)
    return text


FILES = {
    "gate.yaml": ("README.md", "id: gatehouse"),
    "quick.yaml": ("docs/quick-start.md", "id: desk"),
    "my/train.yaml": ("docs/own-network.md", "dataset: folder"),
}
"""File -> the page that shows it whole, and what only that block has."""


def shown_file(name: str) -> str:
    """A file as its page shows it."""
    page, mark = FILES[name]
    (text,) = (b.text for b in all_blocks(["yaml"]) if b.page == page and mark in b.text)
    return text


def copied(origin: Path, copy: Path) -> None:
    """A folder that commands write into, without what others wrote into it."""
    shutil.copytree(origin, copy, ignore=shutil.ignore_patterns("secrets", "profiles"))


def write_data(folder: Path) -> None:
    """Archives like CIFAR-10's, and recordings, where pages look for data."""
    (folder / "videos").mkdir(parents=True)
    classes = tuple(yaml.safe_load((ROOT / CIFAR / "pipeline.yaml").read_text())["labels"])
    for part in ("train", "test"):
        data = coloured(1000, size=32, seed=len(part))
        images = LabelledImages(data.images, data.labels, classes)
        write_archive(folder / f"cifar10_{part}.zip", images)


def write_own(folder: Path) -> None:
    """What readers bring: pictures in a folder per class, and logits of some other program."""
    paint(folder / "pictures", 100)
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 600)
    logits = random.normal(size=(600, 3, 4))
    logits[np.arange(600), :, labels] += [1, 2, 3]  # deeper exits know more
    np.save(folder / "logits.npy", logits.astype(np.float32))
    np.save(folder / "labels.npy", labels)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, make_clip: MakeClip) -> Path:
    """A folder like the root of the repository, with the files that the pages speak of."""
    folder = tmp_path_factory.mktemp("desk") / "repository"
    for name in ("pipelines", "my", "out"):
        (folder / name).mkdir(parents=True)
    for pipeline in (ROOT / "pipelines").iterdir():
        if str(pipeline).endswith(CIFAR):
            copied(pipeline, folder / CIFAR)
        else:
            (folder / "pipelines" / pipeline.name).symlink_to(pipeline)
    for name in ("docs", "deploy"):
        copied(ROOT / name, folder / name)
    (folder / "samples").symlink_to(ROOT / "samples")
    write_data(folder / "data")
    for name in ("gate.mp4", "yard.mp4", "clip.mp4", "data/videos/road.mp4"):
        shutil.copy(make_clip(f"shown-{Path(name).name}", frames=50), folder / name)
    write_own(folder)
    for name in FILES:
        (folder / name).write_text(shown_file(name))
    piped = shown_file("gate.yaml").split("mqtt:")[0] + f"pipelines: {{cifar: {CIFAR}}}\n"
    piped += "results_file: out/piped.jsonl\nstreams: [{id: pipe, pipeline: cifar, "
    piped += "source: {url: stdin, format: mpegts}, budget: {fraction: 0.5}}]\n"
    (folder / "node.yaml").write_text(piped)
    for name in (f"{CIFAR}/pipeline.yaml", "my/train.yaml"):
        text = (folder / name).read_text()
        (folder / name).write_text(swapped_file(name, text))
    return folder


def environment(**more: str) -> dict[str, str]:
    """Of commands: `python` and `streamexit` are those of the tests, wherever the command runs."""
    path = f"{BIN}:{os.environ['PATH']}:/usr/sbin"
    pythonpath = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    return {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": pythonpath,
        "CAMERA_PASSWORD": "secret",
    } | more


def need(*programs: str) -> None:
    """Programs that Debian has."""
    for program in programs:
        if not shutil.which(program, path=environment()["PATH"]):
            absent(program)


class Ears:
    """Hears everything under a topic."""

    def __init__(self, port: int, topic: str, user: str = "", password: str = "") -> None:
        self._heard: queue.SimpleQueue[str] = queue.SimpleQueue()
        subscribed: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.on_message = lambda _c, _u, m: self._heard.put(m.payload.decode())
        self._client.on_connect = lambda client, *_: client.subscribe(topic)
        self._client.on_subscribe = lambda *_: subscribed.put(True)
        if user:
            self._client.username_pw_set(user, password)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert subscribed.get(timeout=TIME_LIMIT)

    def until(self, wanted: Callable[[str], bool]) -> str:
        """The first message that is wanted."""
        while not wanted(payload := self._heard.get(timeout=TIME_LIMIT)):
            pass
        return payload

    def __enter__(self) -> Ears:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextlib.contextmanager
def own_broker(folder: Path, extra: str = "allow_anonymous true") -> Iterator[Mosquitto]:
    """A mosquitto that may read this folder."""
    need("mosquitto")
    folder.mkdir(parents=True, exist_ok=True)
    broker = Mosquitto(folder, free_port())
    broker.start(extra=f"user root\n{extra}")
    try:
        yield broker
    finally:
        broker.kill()


def ended(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    """Exit code, and the rest of what a command said, after a signal."""
    process.send_signal(number)
    said, _ = process.communicate(timeout=TIME_LIMIT)
    return process.returncode, said


@contextlib.contextmanager
def started(command: str, folder: Path, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on until it is told to end; it does not outlive the test."""
    process = subprocess.Popen(
        ["env", *shlex.split(command)], cwd=folder, env=environment(**more), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@dataclass(frozen=True)
class Live:
    """A node that runs as its page says, and its broker."""

    broker: int
    http: int


@contextlib.contextmanager
def running(command: str, desk: Path, folder: Path) -> Iterator[Live]:
    """Start a node by its page's command, wait for a result, and end it by Ctrl-C."""
    name = shlex.split(command)[-1]
    with own_broker(folder / "broker") as broker:
        live = Live(broker.port, free_port())
        ports = {"broker": live.broker, "http": live.http}
        (folder / name).write_text(swapped_file(name, shown_file(name), **ports))
        (folder / "pipelines").symlink_to(desk / "pipelines")
        shutil.copy(desk / "gate.mp4", folder)
        state = str(folder / "state")
        with (
            Ears(live.broker, "streamexit/+/stream/+/result") as ears,
            started(swapped(command), folder, STATE_DIRECTORY=state) as process,
        ):
            ears.until(lambda message: json.loads(message)["answer"]["label"] != "")
            yield live
            code, said = ended(process, signal.SIGINT)
            assert code == 0, said
            assert "Summary" in said


RUN = "streamexit run gate.yaml"
RUN_QUICK = "streamexit run quick.yaml"


@pytest.fixture(scope="module")
def live_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the node that subscribers hear."""
    return tmp_path_factory.mktemp("live")


@pytest.fixture(scope="module")
def live(desk: Path, live_folder: Path) -> Iterator[Live]:
    """The node that subscribers hear, and that takes commands."""
    with running(RUN, desk, live_folder) as node:
        yield node


@pytest.fixture(scope="module")
def quick(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The node of the quick start."""
    with running(RUN_QUICK, desk, tmp_path_factory.mktemp("quick")) as node:
        yield node


class World:
    """Where commands run; what only some need is made when they ask for it."""

    def __init__(self, request: pytest.FixtureRequest, done: dict[str, Result]) -> None:
        self._request = request
        self._done = done
        self.desk: Path = request.getfixturevalue("desk")

    @property
    def live(self) -> Live:
        """A node and its broker."""
        node: Live = self._request.getfixturevalue("live")
        return node

    @property
    def quick(self) -> Live:
        """The node of the quick start, and its broker."""
        node: Live = self._request.getfixturevalue("quick")
        return node

    @property
    def live_folder(self) -> Path:
        """Where its configuration is."""
        folder: Path = self._request.getfixturevalue("live_folder")
        return folder

    @property
    def tmp_path(self) -> Path:
        """An empty folder."""
        folder: Path = self._request.getfixturevalue("tmp_path")
        return folder

    def use(self, fixture: str) -> None:
        """What only some need."""
        self._request.getfixturevalue(fixture)

    def text(self, command: str, **ports: int) -> str:
        """A command as it is used, with the nodes' ports in it."""
        command = swapped(command)
        if "{broker}" in command or "{http}" in command:
            ports |= {"broker": self.live.broker, "http": self.live.http}
        if "{second}" in command:
            ports["second"] = self.quick.broker
        for name, port in ports.items():
            command = command.replace(f"{{{name}}}", str(port))
        return command

    def shell(self, command: str, folder: str = ".", **ports: int) -> str:
        """Run a command as it stands there, and return what it said."""
        text = self.text(command, **ports)
        need(*(word for word in ("curl", "jq", "mosquitto_pub", "mosquitto_sub") if word in text))
        done = subprocess.run(
            ["sh", "-c", text], cwd=self.desk / folder, env=environment(), text=True,
            capture_output=True, stdin=subprocess.DEVNULL, timeout=TIME_LIMIT,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    def once(self, command: str, folder: Path | None = None) -> Result:
        """A `streamexit` command in this process, where PyTorch is loaded; once, whoever wants it done."""
        text = swapped(command)
        if text not in self._done:
            self._done[text] = called(text, folder or self.desk)
        return self._done[text]


def called(text: str, folder: Path) -> Result:
    """The entry point with the words that a shell would make of a command."""
    words = shlex.split(text)
    assert words.pop(0) == "streamexit"
    with contextlib.chdir(folder):
        expanded = [name for word in words for name in (sorted(glob.glob(word)) or [word])]
        done = CliRunner().invoke(app, expanded, env={"CAMERA_PASSWORD": "secret"})
    assert done.exit_code == 0, f"{text}\n{done.output}\n{done.exception!r}"
    return done


@pytest.fixture(scope="module")
def done() -> dict[str, Result]:
    """What was run, by command."""
    return {}


@pytest.fixture
def world(request: pytest.FixtureRequest, done: dict[str, Result]) -> World:
    """See `World`."""
    return World(request, done)


# ---------------------------------------------------------------- what is checked of a command

Check = Callable[[str, World], None]


def written_by(command: str) -> list[str]:
    """The files that a command's options tell it to write."""
    return re.findall(r" (?:-o|--out|--plot|--video) (\S+)", command)


def ends(*said: str, after: tuple[str, ...] = (), makes: tuple[str, ...] = ()) -> Check:
    """It is run and ends with 0, having said this, and having written what it should."""

    def check(command: str, world: World) -> None:
        for earlier in after:
            world.once(earlier)
        stdout = world.once(command).stdout
        for text in said:
            assert re.search(text, stdout), stdout
        for file in (*makes, *written_by(command)):
            assert (world.desk / file).stat().st_size > 0

    return check


def says_the_next_block(command: str, world: World) -> None:
    """It says to the letter what stands in the block below it on the page of the quick start."""
    page = "docs/quick-start.md"
    shown = itertools.pairwise(blocks(page, (ROOT / page).read_text(encoding="utf-8")))
    (expected,) = (below.text for block, below in shown if block.text.strip() == command)
    said = world.once(command).stdout.splitlines()
    assert [line.rstrip() for line in said] == expected.splitlines()


def shows_the_traceback(command: str, world: World) -> None:
    """What goes wrong is told with the place in the code."""
    done = subprocess.run(
        shlex.split(swapped(command)), cwd=world.desk, env=environment(), text=True,
        capture_output=True, stdin=subprocess.DEVNULL, timeout=TIME_LIMIT,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Traceback (most recent call last)" in done.stderr
    assert "ConfigurationError: absent.yaml: cannot be read" in done.stderr


def asks_the_doctor(command: str, world: World) -> None:
    """The doctor finds broker and source of the running node's configuration well."""
    world.live  # noqa: B018  # started, if it was not
    text = swapped(command) + " --json"
    words = shlex.split(text)
    with contextlib.chdir(world.live_folder):
        done = CliRunner().invoke(app, words[1:])
    findings = {f["check"]: f["outcome"] for f in json.loads(done.stdout)["findings"]}
    # the port of a node that runs is rightly called taken: deploy/README.md
    assert {check for check, outcome in findings.items() if outcome == "bad"} == {"http"}
    assert {"broker", "source gate"} <= set(findings)


def prints(said: str) -> Check:
    """A shell runs it to its end, and each line that it says is like this."""

    def check(command: str, world: World) -> None:
        lines = world.shell(command).splitlines()
        assert lines
        for line in lines:
            assert re.fullmatch(said, line), line

    return check


def first_line(process: subprocess.Popen[str], wanted: str) -> re.Match[str]:
    """The first line with this that a command says, which is killed if there is none in time."""
    assert process.stdout
    limit = threading.Timer(TIME_LIMIT, process.kill)
    limit.start()
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if found := re.search(wanted, line.rstrip()):
                return found
    finally:
        limit.cancel()
    pytest.fail(f"no {wanted!r} in\n{''.join(said)}")


def goes_on(said: str, number: signal.Signals, code: int) -> Check:
    """It is started, says this, and ends with this code when it gets the signal."""

    def check(command: str, world: World) -> None:
        with started(world.text(command), world.desk) as process:
            line = first_line(process, "").string
            ending, rest = ended(process, number)
        assert re.fullmatch(said, line), line + rest
        assert ending == code, rest

    return check


def watches_an_embedded_broker(command: str, world: World) -> None:
    """With `embedded`, `run` shows the port that this command then takes."""
    text = swapped_file("embedded.yaml", shown_file("quick.yaml"))
    (world.tmp_path / "embedded.yaml").write_text(text)
    (world.tmp_path / "pipelines").symlink_to(world.desk / "pipelines")
    state = str(world.tmp_path / "state")
    with started("streamexit run embedded.yaml", world.tmp_path, STATE_DIRECTORY=state) as process:
        port = int(first_line(process, r"mqtt://127\.0\.0\.1:(\d+)")[1])
        with started(world.text(command, embedded=port), world.desk) as watching:
            first_line(watching, f"^{RESULT}$")  # it may see the stream come up before
            assert ended(watching, signal.SIGINT)[0] == 0
        code, said = ended(process, signal.SIGINT)
    assert code == 0, said


def runs_a_node(command: str, world: World) -> None:
    """Results come, Ctrl-C ends it with 0 and a summary."""
    with running(command, world.desk, world.tmp_path):
        pass


def spends(key: str, fraction: float, within: float = 1e-6) -> Callable[[str], bool]:
    """Whether a message about a budget has this fraction."""
    return lambda message: json.loads(message)[key] == pytest.approx(fraction, abs=within)


def sets_the_budget(stream: str, before: float, after: float) -> Check:
    """The running node says the new budget, after another one."""

    def check(command: str, world: World) -> None:
        node = world.live if stream == GATE else world.quick
        with Ears(node.broker, f"{stream}/budget") as ears:
            world.shell(f"mosquitto_pub -t {stream}/budget/set -m {before}")
            ears.until(spends("target_fraction", before))
            world.shell(command)
            ears.until(spends("target_fraction", after))

    return check


def comes_near(command: str, world: World) -> None:
    """After the command above it on the page, the mean comes near the budget, and this one says so."""
    with Ears(world.quick.broker, f"{SQUARES}/budget") as ears:
        world.shell(f"mosquitto_pub -t {SQUARES}/budget/set -m 0.6")
        ears.until(spends("target_fraction", 0.6))
        ears.until(spends("mean_fraction", 0.6, within=0.03))
        ears.until(lambda message: json.loads(message)["state"] == "on_budget")
    said = json.loads(world.shell(command))
    assert set(said) == {"state", "target_fraction", "mean_fraction"}
    assert said["state"] == "on_budget"
    assert said["target_fraction"] == pytest.approx(0.6)
    assert said["mean_fraction"] == pytest.approx(0.6, abs=0.05)


def pipes_into_a_node(command: str, world: World) -> None:
    """Every frame of the recording becomes a result."""
    need("ffmpeg")
    world.shell(command)
    results = (world.desk / "out" / "piped.jsonl").read_text().splitlines()
    assert [json.loads(line)["seq"] for line in results] == list(range(50))


def sends_pictures(scheme: str, path: str) -> Check:
    """The source that the page names gives pictures while the command runs."""

    def check(command: str, world: World) -> None:
        need("ffmpeg")
        port = free_port()
        text = world.text(f"exec {command}", sender=port)
        process = subprocess.Popen(
            ["sh", "-c", text], cwd=world.desk, env=environment(),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            if scheme == "rtmp":
                until_it_listens(process, port)
            address = parse_address(f"{scheme}://127.0.0.1:{port}{path}", SourceOptions())
            camera = VideoSource(address, TOY_PREPROCESSING, timeout=PATIENCE)
            assert len(list(itertools.islice(camera.pictures(lambda _: None), 5))) == 5
        finally:
            process.kill()
            process.wait()

    return check


def writes_what_is_there(command: str, world: World) -> None:
    """It writes the files that the repository has."""
    target = shlex.split(command)[-1]
    written = world.desk / target
    files = sorted(written.iterdir()) if written.is_dir() else [written]
    for file in files:
        file.write_text("")
    world.shell(command)
    assert files
    for file in files:
        ours = ROOT / file.relative_to(world.desk)
        assert file.read_text() == ours.read_text()


SECRETS = {
    "MQTT_PASSWORD", "MQTT_OPERATOR_PASSWORD", "MQTT_VIEWER_PASSWORD",
    "STREAMEXIT_HTTP_TOKEN", "GRAFANA_ADMIN_PASSWORD",
}  # fmt: skip


def secrets(world: World) -> dict[str, str]:
    """Name -> content, made by deploy's script."""
    world.shell("sh make-secrets.sh", "deploy")
    return {file.name: file.read_text() for file in (world.desk / "deploy" / "secrets").iterdir()}


def makes_secrets(command: str, world: World) -> None:
    """All of compose.yaml's secrets are there afterwards, none empty, none like another."""
    shutil.rmtree(world.desk / "deploy" / "secrets", ignore_errors=True)
    world.shell(command, "deploy")
    made = secrets(world)
    assert set(made) == SECRETS == set(compose()["secrets"])
    assert len(set(made.values())) == len(SECRETS)
    assert all(len(secret) == 48 for secret in made.values())


@contextlib.contextmanager
def secured(world: World) -> Iterator[tuple[int, dict[str, str]]]:
    """A broker with the users and the access list of deploy: its port, and the secrets."""
    need("mosquitto_passwd")
    made, folder = secrets(world), world.tmp_path
    users = {"node": "MQTT_PASSWORD", "operator": "MQTT_OPERATOR_PASSWORD"}
    users["viewer"] = "MQTT_VIEWER_PASSWORD"
    passwords = "".join(f"{user}:{made[name]}\n" for user, name in users.items())
    (folder / "passwords").write_text(passwords)
    subprocess.run(["mosquitto_passwd", "-U", folder / "passwords"], check=True)
    extra = f"password_file {folder}/passwords\nacl_file {ROOT}/deploy/mosquitto/acl"
    with own_broker(folder, extra) as broker:
        yield broker.port, made


def shows_to_the_viewer(command: str, world: World) -> None:
    """A line per result, for the user who may look only."""
    with Ears(world.live.broker, f"{GATE}/result") as ears:
        result = ears.until(lambda message: True)
    with secured(world) as (port, made):
        topic = "streamexit/demo/stream/squares/result"
        login = ["-u", "node", "-P", made["MQTT_PASSWORD"]]
        publish = ["mosquitto_pub", "-p", str(port), *login, "-r", "-t", topic, "-m", result]
        subprocess.run(publish, check=True)
        said = world.shell(command, "deploy", secured=port)
    assert "gatehouse/gate" in said


def reaches_the_node(command: str, world: World) -> None:
    """The user who may give commands reaches the node's topic."""
    with (
        secured(world) as (port, made),
        Ears(port, "streamexit/demo/+/+/+/set", "node", made["MQTT_PASSWORD"]) as ears,
    ):
        world.shell(command, "deploy", secured=port)
        assert ears.until(lambda message: True) == "0.4"


@functools.cache
def help_of_module(module: str, *arguments: str) -> str:
    """`python -m MODULE ARGUMENTS --help`, here: argparse judges the arguments before it comes to --help."""
    said, before = io.StringIO(), sys.argv
    sys.argv = [module, *arguments, "--help"]
    try:
        with (
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            warnings.catch_warnings(action="ignore", category=RuntimeWarning),  # imported already
            pytest.raises(SystemExit) as ending,
        ):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.argv = before
    assert ending.value.code in (0, None), said.getvalue()
    return said.getvalue()


@functools.cache
def help_of_command(name: str) -> str:
    """`streamexit NAME --help`, wide enough that nothing is cut off."""
    done = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)


def has_option(help_text: str, option: str) -> bool:
    """Whether a help names it."""
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", help_text) is not None


def takes(command: str, world: World) -> None:
    """Too long to run: its help runs, has every option, and files that it reads are there."""
    words = shlex.split(command)
    if words[:2] == ["python", "-m"]:
        arguments = words[3:]
        told = help_of_module(words[2], *arguments)
    else:
        arguments = words[2:]
        told = help_of_command(words[1])
    for word in arguments:
        if word.startswith("-"):
            assert has_option(told, word), f"{word} is not in\n{told}"
        elif "/" in word and not word.startswith("out/"):
            assert repository_file(word), f"{word} is not there"


def knows_its_files(command: str, world: World) -> None:
    """It takes minutes and has no help: it is asked for a file that there is not, and says so."""
    *_, module = shlex.split(command)
    done = subprocess.run(
        [sys.executable, "-m", module, "no/such/file"], cwd=ROOT, env=environment(), text=True,
        capture_output=True, stdin=subprocess.DEVNULL, timeout=TIME_LIMIT,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "no such file\n"), done.stderr


def wants_home_assistant(command: str, world: World) -> None:
    """It runs where Home Assistant is; elsewhere that is what it misses, and nothing of ours."""
    *_, module = shlex.split(command)
    done = subprocess.run(
        [sys.executable, "-m", module], cwd=ROOT, env=environment(), text=True,
        capture_output=True, stdin=subprocess.DEVNULL, timeout=TIME_LIMIT,
    )  # fmt: skip
    misses = re.search(r"No module named '(voluptuous|homeassistant)", done.stderr)
    assert misses or "takes all" in done.stdout, done.stderr


def leads_to_the_command(command: str, world: World) -> None:
    """In the folder that has the Makefile's environment, a shell then finds the command in it."""
    assert "\nPY := .venv/bin/python\n" in (ROOT / "Makefile").read_text()
    (world.tmp_path / ".venv").symlink_to(BIN.parent)
    done = subprocess.run(
        ["sh", "-c", f"{command}\ncommand -v streamexit"], cwd=world.tmp_path, text=True,
        capture_output=True, env={**environment(), "PATH": "/usr/bin:/bin"}, timeout=TIME_LIMIT,
    )  # fmt: skip
    assert done.stdout.strip() == str(world.tmp_path / ".venv" / "bin" / "streamexit"), done.stderr


def packages_of_ci() -> set[str]:
    """What .ci/run installs from Debian."""
    installed = re.search(r'packages="([^"]*)"', (ROOT / ".ci" / "run").read_text())
    assert installed
    return set(installed[1].split())


def installed_by_ci(command: str, world: World) -> None:
    """It changes the machine: each package is one that .ci/run installs."""
    packages = set(command.partition(" install ")[2].split())
    assert packages
    assert packages <= packages_of_ci()


def plugin_entries() -> dict[str, dict[str, str]]:
    """Group -> name -> what it stands for, of samples/plugins."""
    project = tomllib.loads((PLUGINS / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entries: dict[str, dict[str, str]] = project["entry-points"]
    return entries


def could_be_installed(command: str, world: World) -> None:
    """It changes the environment, .ci/wheel does it: the project is whole, and its entry points can be imported."""
    project = ROOT / shlex.split(command)[-1]
    content = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    assert {"requires", "build-backend"} <= set(content["build-system"])
    assert "version" in content["project"]
    assert (project / content["project"]["name"].replace("-", "_") / "__init__.py").is_file()
    assert f'"$root/{shlex.split(command)[-1]}"' in (ROOT / ".ci" / "wheel").read_text()
    world.use("sample_plugins")
    groups = get_args(Group)
    assert set(plugin_entries()) == set(groups)
    for group in groups:
        for name in plugin_entries()[group]:
            assert callable(load_plugin(group, name))


def made_by_ci(command: str, world: World) -> None:
    """The target is there, and CI makes it."""
    in_the_makefile(command, world)
    target = shlex.split(command)[1]
    assert re.search(rf"^make {target}\b", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


def in_the_makefile(command: str, world: World) -> None:
    """The target is there, and uses what is set."""
    _, target, *variables = shlex.split(command)
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for variable in variables:
        name = variable.partition("=")[0]
        assert re.search(rf"^{name} \?=", makefile, re.MULTILINE)
        assert f"$({name})" in makefile


def stands(file: str, *texts: str) -> Check:
    """It changes the machine, or CI runs it: what shows that stands in this file; the files that it names are there."""

    def check(command: str, world: World) -> None:
        content = (ROOT / file).read_text()
        for text in texts:
            assert text in content, f"{file} has no {text!r}"
        named = [word for word in shlex.split(command) if re.match(r"(deploy|samples)/", word)]
        for word in named:
            assert repository_file(word), f"{word} is not there"

    return check


def compose() -> dict[str, Any]:
    """deploy/compose.yaml."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    return content


def composed(command: str, world: World) -> None:
    """It needs Docker: the services that it names are in compose.yaml."""
    words = command.split("docker compose ")[1].replace("-s HUP ", "").split()
    verb, services = words[0], [word for word in words[1:] if word[0] != "-"]
    if verb == "exec":
        del services[1:]  # what runs in its container
    assert verb in ("up", "restart", "kill", "exec")
    assert set(services) <= set(compose()["services"])
    assert services or verb == "up"
    if "--build" in words:
        build = compose()["services"]["node"]["build"]
        assert (ROOT / "deploy" / build["context"] / build["dockerfile"]).is_file()


def is_toml(command: str, world: World) -> None:
    """Telegraf is not here: its configuration is TOML that has inputs and outputs."""
    content = tomllib.loads((ROOT / shlex.split(command)[-1]).read_text())
    assert {"inputs", "outputs"} <= set(content)


def names_a_data_set(command: str, world: World) -> None:
    """It downloads: torchvision has the class, takes these arguments, and puts it where the loader looks."""
    name, folder = re.findall(r"(CIFAR\d+)\(\"(\w+)\"", command)[0]
    known = getattr(datasets, name)
    inspect.signature(known).bind(folder, download=True)
    assert folder == "data"
    with pytest.raises(DataError, match=f"holds neither .* nor {known.base_folder}/"):
        load_part(name.lower(), world.tmp_path, "test", calibration_size=1)


def is_a_folder(command: str, world: World) -> None:
    """The folder is there."""
    assert (world.desk / shlex.split(command)[1]).is_dir()


# ---------------------------------------------------------------- which command is checked how


@dataclass(frozen=True)
class Rule:
    """What is checked of the commands that match."""

    pattern: str
    check: Check
    slow: bool = False


UNIT = "deploy/streamexit.service"
IMPORT = (
    "streamexit import-logits logits.npy --labels labels.npy --costs 0.25,0.57,1 -o out/mine.npz"
)
RECORD = f"streamexit record {CIFAR} {{part}} -o out/{{part}}.npz"
RESULT = r"\S+  (gate|squares) +#\d+ +exit [123]/3  \d\.\d+ gflops  .+"
WATCHED = (
    r"\S+  gatehouse/gate  \w+ \d+%  exit [123]/3  [\d.]+ gflops  \d+ ms(  \d+ dropped before)?"
)

RULES = (
    # run to their end
    Rule(r"streamexit check (gate\.yaml|FILE)", ends("gate", "good")),
    Rule(r"streamexit check quick\.yaml", says_the_next_block),
    Rule(r"streamexit --version", ends(r"^streamexit \d+\.\d+\.\d+$")),
    Rule(r"streamexit --debug \.\.\.", shows_the_traceback, slow=True),
    Rule(r"streamexit doctor (\w+\.yaml|FILE)", asks_the_doctor, slow=True),
    Rule(r'export PATH="\$PWD/\.venv/bin:\$PATH"', leads_to_the_command),
    Rule(r"streamexit replay gate\.mp4 yard\.mp4 .*", ends("gate", "yard", "100 frames in")),
    Rule(r"streamexit replay clip\.mp4 .*", ends("clip", "50 frames in")),
    Rule(r"streamexit replay \.\.\. --video out\.mp4", ends("50 frames in")),
    Rule(r"streamexit replay data/videos/.* --json", ends('"frames": 50')),
    Rule(
        rf"streamexit record {CIFAR} (calibration|test) -o out/\1\.npz",
        ends("share of cost"),
        slow=True,
    ),
    Rule(
        r"streamexit compare out/test\.npz .*",
        ends(
            "direct",
            "msdnet",
            "oracle",
            after=(RECORD.format(part="calibration"), RECORD.format(part="test")),
        ),
        slow=True,
    ),
    Rule(
        r"streamexit record my (calibration|test) -o out/my-\1\.npz",
        ends("share of cost", after=("streamexit train my/train.yaml",)),
        slow=True,
    ),
    Rule(
        r"streamexit compare out/my-test\.npz .*",
        ends(
            "msdnet",
            after=(
                "streamexit train my/train.yaml",
                "streamexit record my calibration -o out/my-calibration.npz",
                "streamexit record my test -o out/my-test.npz",
            ),
        ),
        slow=True,
    ),
    Rule(r"streamexit import-logits logits\.npy .*", ends("frames: 600", "label_source: truth")),
    Rule(
        r"streamexit compare out/mine\.npz .*",
        ends(r"method +40% +50% +60%", "direct", "msdnet", "oracle", after=(IMPORT,)),
        slow=True,
    ),
    Rule(
        r"streamexit train my/train\.yaml",
        ends("share of full", makes=("my/network.safetensors", "my/pipeline.yaml")),
        slow=True,
    ),
    Rule(
        r"streamexit fit my",
        ends(r"(direct|msdnet) \(default\)", after=("streamexit train my/train.yaml",)),
        slow=True,
    ),
    Rule(
        r"streamexit replay images:pictures --pipeline my .*",
        ends(
            "300 frames in",
            "accuracy",
            after=("streamexit train my/train.yaml", "streamexit fit my"),
        ),
        slow=True,
    ),
    Rule(rf"streamexit profile ({CIFAR}|PIPELINE)", ends(f"written: {CIFAR}/profiles/"), slow=True),
    Rule(
        r"python -m streamexit\.(wire\.(schema|asyncapi|reference)|config\.reference) docs/.*",
        writes_what_is_there,
    ),
    Rule(r"sh make-secrets\.sh", makes_secrets),
    # run beside a node
    Rule(f"{re.escape(RUN)}|{re.escape(RUN_QUICK)}", runs_a_node, slow=True),
    Rule(r"(\.venv/bin/)?streamexit watch", goes_on(RESULT, signal.SIGINT, 0), slow=True),
    Rule(r"streamexit watch --url .*:PORT", watches_an_embedded_broker, slow=True),
    Rule(r"mosquitto_sub -t '.*/result' \| jq .*", prints(r"\w+"), slow=True),
    Rule(
        r"(\.venv/bin/)?python samples/subscriber\.py.*",
        goes_on(r"(gate|squares) \w+ [123]", signal.SIGTERM, -15),
        slow=True,
    ),
    Rule(r"sh samples/watch\.sh .*", prints(WATCHED), slow=True),
    Rule(r"sh \.\./samples/watch\.sh .*", shows_to_the_viewer, slow=True),
    Rule(
        r"mosquitto_pub -t .*/gate/budget/set -m 0\.3|mosquitto_pub -t .*/request/set_budget .*|"
        r"curl .*/api/commands/set_budget",
        sets_the_budget(GATE, 0.6, 0.3),
        slow=True,
    ),
    Rule(
        r"mosquitto_pub -t .*/squares/budget/set -m 0\.6",
        sets_the_budget(SQUARES, 0.3, 0.6),
        slow=True,
    ),
    Rule(r"mosquitto_sub -t .*/squares/budget -C 1 \| jq .*", comes_near, slow=True),
    Rule(r"mosquitto_pub -u operator .* -m 0\.4", reaches_the_node),
    Rule(r"ffmpeg .* \| streamexit run node\.yaml", pipes_into_a_node, slow=True),
    Rule(r"ffmpeg .* \"udp://.*\"", sends_pictures("udp", ""), slow=True),
    Rule(r"ffmpeg .* -listen 1 rtmp://.*", sends_pictures("rtmp", "/live/cam"), slow=True),
    # measurements and trainings: minutes to hours
    Rule(r"python -m (benchmarks\.[\w.]+|tests\.faults(\.soak)?)( .*)?", takes),
    Rule(r"python -m tests\.mutations", knows_its_files),
    Rule(r"python -m tests\.home_assistant", wants_home_assistant),
    Rule(r"streamexit (train|fit) pipelines/.*", takes),
    Rule(r"streamexit (\w[\w-]*)( --\w+)?", takes),
    Rule(r"streamexit fit PIPELINE( --policy .*)?", takes),
    # what .ci/run runs itself
    Rule(r"make (demo|test|lint|docs)( .*)?", made_by_ci),
    Rule(r"make (coverage|install)", in_the_makefile),
    Rule(
        r"\.venv/bin/uv build --wheel",
        stands(".ci/wheel", "\n.venv/bin/uv build --quiet --wheel "),
    ),
    # what changes the machine, or needs programs that Debian does not have
    Rule(r"sudo apt install .*", installed_by_ci),
    Rule(r"pip install samples/plugins", could_be_installed),
    Rule(
        r"sudo python3 -m venv /opt/streamexit", stands(UNIT, "=/opt/streamexit/bin/streamexit run")
    ),
    Rule(
        r"sudo /opt/streamexit/bin/pip install --constraint constraints\.txt '\.\[http\]'",
        stands("pyproject.toml", "\nhttp = ["),
    ),
    Rule(
        r"sudo install .* /etc/streamexit/secrets\.env",
        stands(UNIT, "EnvironmentFile=-/etc/streamexit/secrets.env"),
    ),
    Rule(r"sudo cp -r pipelines /etc/streamexit/", stands(UNIT, " /etc/streamexit/node.yaml\n")),
    Rule(r"python -m http\.server -d out/site", stands("zensical.toml", 'site_dir = "out/site"')),
    Rule(r"sudo install .* my\.yaml .*", stands(UNIT, " /etc/streamexit/node.yaml\n")),
    Rule(r"sudo install .* deploy/streamexit\.service .*", stands(UNIT, "[Install]")),
    Rule(r"sudo systemctl enable --now streamexit", stands(UNIT, "WantedBy=")),
    Rule(r"sudo systemctl reload streamexit", stands(UNIT, "streamexit check", "kill -HUP")),
    Rule(r"sudo systemctl restart streamexit", stands(UNIT, "EnvironmentFile=")),
    Rule(r"journalctl -u streamexit -f", stands(UNIT, "ExecStart=")),
    Rule(
        r"sudo systemd-run .*/streamexit doctor .*",
        stands(
            UNIT,
            "DynamicUser=yes",
            "StateDirectory=streamexit",
            "CacheDirectory=streamexit",
            "EnvironmentFile=-/etc/streamexit/secrets.env",
            "HOME=%C/streamexit",
            "STREAMEXIT_CACHE=%C/streamexit",
        ),
    ),
    Rule(r"(sh make-secrets\.sh && )?docker compose .*", composed),
    Rule(r"cd deploy", is_a_folder),
    Rule(r"python -c 'from torchvision\.datasets import .*'", names_a_data_set),
    Rule(r"telegraf --config samples/telegraf\.conf", is_toml),
    Rule(
        r"mediamtx &|ffmpeg .* -f rtsp .*", stands("docs/sources.md", "were not run for this page")
    ),
)
"""The first that matches a command is the one."""


def rule_of(command: str) -> Rule | None:
    """The rule of a command, if it has one."""
    return next((rule for rule in RULES if re.fullmatch(rule.pattern, command)), None)


SHOWN = all_commands()


def named(shown: Shown) -> Any:
    """A command as a parameter: its text is its name."""
    rule = rule_of(shown.text)
    marks = [pytest.mark.slow] if rule is not None and rule.slow else []
    return pytest.param(shown, id=" ".join(shown.text.split())[:100], marks=marks)


@pytest.mark.parametrize("shown", [named(shown) for shown in SHOWN])
def test_command_does_what_the_page_says(shown: Shown, world: World) -> None:
    """Each command is run, or, where that takes too long or too much, checked as its rule says."""
    rule = rule_of(shown.text)
    if rule is None:
        where = ", ".join(shown.pages)
        pytest.fail(f"{where} shows `{shown.text}`: add a rule for it to RULES in {__file__}")
    rule.check(shown.text, world)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.pattern)
def test_rule_is_needed(rule: Rule) -> None:
    """A rule that is no command's any more is to be deleted."""
    assert any(rule_of(shown.text) is rule for shown in SHOWN)


@pytest.mark.parametrize("swap", COMMAND_SWAPS, ids=lambda swap: swap.shown)
def test_swap_is_needed(swap: Swap) -> None:
    """What is changed in no command any more is to be deleted."""
    before = COMMAND_SWAPS[: COMMAND_SWAPS.index(swap)]
    assert any(
        re.search(
            swap.shown,
            functools.reduce(lambda c, s: re.sub(s.shown, s.used, c), before, shown.text),
        )
        for shown in SHOWN
    )


def test_commands_stand_in_shell_blocks() -> None:
    """A command in a block of another language would not be seen here."""
    hidden = [
        (block.place, line)
        for block in all_blocks(["", "text", "bash", "shell", "console"])
        for line in block.text.splitlines()
        if PROGRAMS.match(line.removeprefix("$ "))
    ]
    assert hidden == []


def test_reading_of_scripts() -> None:
    """Lines are joined over backslashes, quotes and here-documents; comments go, but not from quotes."""
    script = "a 'x # y' # z\n\nb \\\n  c\nd '{\n 1}'\ncat > f <<EOF\n# kept\nEOF\n# nothing\ne"
    expected = ["a 'x # y'", "b c", "d '{\n 1}'", "cat > f <<EOF\n# kept\nEOF", "e"]
    assert list(script_commands(script)) == expected


def test_reading_of_pages() -> None:
    """Blocks come without the indentation of their fence, spans on one line and from outside of blocks."""
    page = "Say `make\ntest`.\n\n   ```sh\n   x `y`\n     z\n   ```\n``a `b` c``\n"
    (block,) = blocks("page", page)
    assert (block.line, block.language, block.text) == (4, "sh", "x `y`\n  z\n")
    assert list(spans(page)) == ["make test", "a `b` c"]


NAMES = tuple(
    command.name or command.callback.__name__.replace("_", "-")
    for command in app.registered_commands
    if command.callback
)
MODULES = sorted(
    {shlex.split(c.text)[2] for c in SHOWN if c.text.startswith("python -m benchmarks.")}
)
OPTIONS = sorted(
    {
        (page, span)
        for page in pages()
        for span in spans((ROOT / page).read_text(encoding="utf-8"))
        if re.match(rf"(({'|'.join(NAMES)}) )?--\w", span)
    }
)


@pytest.mark.parametrize(("page", "span"), OPTIONS, ids=[f"{p}: {s}" for p, s in OPTIONS])
def test_option_is_there(page: str, span: str) -> None:
    """An option that a sentence names is one of a command of ours."""
    first = span.split()[0]
    if first in NAMES:
        helps = [help_of_command(first)]
    else:
        helps = [*map(help_of_command, NAMES), *map(help_of_module, MODULES)]
    options = [word for word in span.split() if word.startswith("--")]
    assert any(all(has_option(told, option) for option in options) for told in helps)


def test_packages_are_those_that_ci_installs() -> None:
    """The page lists what .ci/run installs from Debian, no more and no less."""
    page = (ROOT / "docs" / "dependencies.md").read_text()
    paragraph = page.split("From Debian, for tests: ")[1].split("\n\n")[0]
    listed = {word for span in spans(paragraph) for word in span.split()}
    assert listed == packages_of_ci()


# ---------------------------------------------------------------- blocks of other languages

STREAM = {"id": "a", "source": "synthetic:", "pipeline": "cifar", "budget": {"fraction": 0.5}}
LEFT_OUT = "..."


def parts(text: str) -> list[str]:
    """A block whose first key stands several times shows alternatives; each is a part."""
    first = text.split(":")[0]
    if len(re.findall(rf"^{re.escape(first)}:", text, re.MULTILINE)) == 1:
        return [text]
    return [
        part for part in re.split(rf"^(?={re.escape(first)}:)", text, flags=re.MULTILINE) if part
    ]


def completed(content: dict[str, Any]) -> dict[str, Any]:
    """A whole configuration around a part of one: a stream's keys, or the file's."""
    if set(content) <= set(StreamSection.model_fields):
        return completed({"streams": [{**STREAM, **content}]})
    streams = []
    for stream in content.get("streams", [dict(STREAM)]):
        shortened = stream.pop(LEFT_OUT, stream) is None
        streams.append({**STREAM, **stream} if shortened else stream)
    used = {stream.get("pipeline") for stream in streams} | {"cifar"}
    return {"pipelines": dict.fromkeys(used, CIFAR), **content, "streams": streams}


def check_recipe(content: dict[str, Any]) -> None:
    """A part of a train.yaml, laid over the one that ships: valid, and its network can be built."""
    shipped = yaml.safe_load((ROOT / CIFAR / "train.yaml").read_text())
    recipe = Recipe.model_validate({**shipped, **content})
    build_network(recipe.network, recipe.preprocessing.build())


def check_configuration(content: dict[str, Any], text: str, desk: Path, name: str) -> None:
    """`check` finds a whole configuration good; a part of one is loaded with the rest around it."""
    file = desk / f"{name}.yaml"
    if "pipelines" in content:
        file.write_text(text)
        called(f"streamexit check {file.name}", desk)
    else:
        file.write_text(yaml.safe_dump(completed(content)))
        load_configuration(file)


def of_block(block: Block) -> str:
    """Its name in the list of tests."""
    return block.place


@pytest.fixture
def sample_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package that docs/plugins.md shows, found as if it were installed."""
    folder = tmp_path / "site" / "examples-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: examples\nVersion: 1.0\n")
    entries = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in items.items())
        for group, items in plugin_entries().items()
    ]
    (folder / "entry_points.txt").write_text("".join(entries))
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.syspath_prepend(PLUGINS)
    plugins.cache_clear()
    yield
    plugins.cache_clear()


LANGUAGES = {
    "": "what a command says; see test_commands_stand_in_shell_blocks",
    "sh": "RULES",
    "yaml": "test_configuration_is_valid",
    "json": "test_message_is_valid",
    "toml": "test_toml_is_that_of_the_file",
    "python": "test_programs_of_the_page_run",
}
"""Language of a block -> where such blocks are checked."""


def test_no_language_is_left_out() -> None:
    """A block of another language would not be seen here."""
    found = {
        block.language
        for page in pages()
        for block in blocks(page, (ROOT / page).read_text(encoding="utf-8"))
    }
    assert found == set(LANGUAGES)


def holds(whole: dict[str, Any], part: dict[str, Any]) -> bool:
    """Whether all of a part stands in the whole."""
    return all(
        holds(whole.get(key, {}), value) if isinstance(value, dict) else whole.get(key) == value
        for key, value in part.items()
    )


TOML = {"docs/plugins.md": "samples/plugins/pyproject.toml"}
"""Page -> the file that it shows a part of."""


@pytest.mark.parametrize("block", all_blocks(["toml"]), ids=of_block)
def test_toml_is_that_of_the_file(block: Block) -> None:
    """What a page shows of a file stands in the file."""
    whole = tomllib.loads((ROOT / TOML[block.page]).read_text(encoding="utf-8"))
    assert holds(whole, tomllib.loads(block.text))


@pytest.mark.usefixtures("sample_plugins")
@pytest.mark.parametrize("block", all_blocks(["yaml"]), ids=of_block)
def test_configuration_is_valid(block: Block, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each configuration, or part of one, or of a recipe, is as the schema says."""
    for variable in re.findall(r"\$\{(\w+)\}", block.text):
        monkeypatch.setenv(variable, "secret")
    for part in parts(block.text):
        content = yaml.safe_load(part)
        keys = set(content)
        if keys <= set(StreamSection.model_fields) or keys <= set(NodeConfiguration.model_fields):
            check_configuration(content, part, desk, re.sub(r"\W", "-", block.place))
        elif keys <= set(Recipe.model_fields):
            check_recipe(content)
        else:
            pytest.fail(f"{block.place}: {sorted(keys)} are no keys of a configuration or recipe")


@pytest.mark.parametrize("block", all_blocks(["json"]), ids=of_block)
def test_message_is_valid(block: Block) -> None:
    """Each is JSON, and what it shows of a message of ours is as that message's schema says."""
    content = json.loads(block.text)
    if "schema" in content:
        name = content["schema"].removeprefix("streamexit.").partition("/")[0]
        schema = json.loads((ROOT / "docs" / "schemas" / f"{name}.json").read_text())
        for key, value in content.items():
            if isinstance(value, dict) and LEFT_OUT in value:
                continue  # not whole
            of_key = {"$defs": schema["$defs"], **schema["properties"][key]}
            jsonschema.Draft202012Validator(of_key).validate(value)


GIVEN = {
    "docs/policies.md": """
import torch
distribution = torch.rand(500, 3, 4).softmax(-1)
confidence = torch.rand(500, 3, 9)
quality = torch.rand(500, 3).round()
""",
}
"""Page -> what its programs have from elsewhere."""


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in all_blocks(["python"])}))
def test_programs_of_the_page_run(page: str, desk: Path) -> None:
    """The programs of a page run, one after the other, each with what those before it made."""
    programs = [(GIVEN.get(page, ""), "what is given")]
    programs += [
        (block.text, block.place) for block in all_blocks(["python"]) if block.page == page
    ]
    steps = "".join(f"exec(compile({text!r}, {name!r}, 'exec'))\n" for text, name in programs)
    done = subprocess.run(
        [sys.executable, "-c", steps], cwd=desk, env=environment(), text=True,
        capture_output=True, stdin=subprocess.DEVNULL, timeout=TIME_LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_mistake_that_the_page_shows(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's example of a message is what the mistake gets."""
    monkeypatch.setenv("CAMERA_PASSWORD", "secret")
    page = (ROOT / "README.md").read_text()
    shown = next(line.strip() for line in page.splitlines() if line.strip().startswith("error: "))
    folder = desk / "mistaken"
    folder.mkdir()
    (folder / "gate.yaml").write_text(f"{shown_file('gate.yaml')}    polcy: direct\n")
    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, ["check", "gate.yaml"])
    assert (done.exit_code, done.stderr.strip()) == (2, shown)

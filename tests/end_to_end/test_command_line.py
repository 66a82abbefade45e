from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import av
import pytest
from typer.testing import CliRunner, Result

from streamexit.cli.commands import app
from streamexit.cli.demo import OBJECTS, demo_node, demo_sources
from streamexit.recordings import stream_ids
from tests.conftest import ROOT, MakeClip

TIME_LIMIT = 400
"""A hang is a failure; a busy machine that converts four networks first is none."""


def streamexit(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "streamexit", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=TIME_LIMIT,
        stdin=subprocess.DEVNULL,
    )


def called(*arguments: str | Path) -> Result:
    """The same within this process, for what ends before anything runs: PyTorch is loaded already."""
    return CliRunner().invoke(app, list(map(str, arguments)))


def replay(*arguments: str | Path) -> dict[str, Any]:
    """`streamexit replay ... --json`, which must print one JSON document and nothing else."""
    done = streamexit("replay", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_replay_of_real_clips(data: Path, cifar_pipeline: Path, tmp_path: Path) -> None:
    """The issue's own line: 627 frames, none dropped, budgets held, byte-identical when repeated."""
    clips = [data / "videos" / name for name in ("car-detection.mp4", "bikes.mp4")]
    options = ("--pipeline", cifar_pipeline, "--budget", "fraction=0.5")
    reports = [replay(*clips, *options, "--out", tmp_path / f"{i}.jsonl") for i in range(2)]
    first = reports[0]
    assert (first["frames"], first["answered"], first["dropped"]) == (627, 627, {})
    assert set(first["streams"]) == {"car-detection", "bikes"}
    for stream in first["streams"].values():
        assert stream["mean_cost"]["fraction"] == pytest.approx(0.5, rel=0.02)
        assert stream["worst_window_error"] < 0.05
        assert sum(stream["exit_shares"]) == pytest.approx(1)
        assert stream["against_truth"] is None
        assert stream["against_full"] is None
    results = [(tmp_path / f"{i}.jsonl").read_bytes() for i in range(2)]
    assert results[0] == results[1]
    assert results[0].count(b"\n") == 627
    assert first["frames_per_second"] > 0


def test_replay_joins_and_compares(toy_pipeline: Path, make_clip: MakeClip) -> None:
    """--join makes one stream of several files, --agreement compares with the full network."""
    clips = [make_clip("one.mp4", frames=150), make_clip("two.mp4", frames=120, size=(32, 32))]
    options = ("--pipeline", toy_pipeline, "--budget", "fraction=0.7", "--agreement")
    report = replay(*clips, *options, "--join")
    assert list(report["streams"]) == ["joined"]
    assert report["frames"] == 270
    assert 0 <= report["against_full"]["accuracy"] <= 1


def test_videos_are_drawn_beside_unchanged_results(
    toy_pipeline: Path, make_clip: MakeClip, tmp_path: Path
) -> None:
    """--video writes a file per stream, as long as the recording, and changes no result."""
    clips = [make_clip("one.mp4", frames=30), make_clip("two.mp4", frames=20, size=(32, 32))]
    options = ("--pipeline", toy_pipeline, "--budget", "fraction=0.7")
    replay(*clips, *options, "--out", tmp_path / "plain.jsonl")
    drawn = ("--out", tmp_path / "drawn.jsonl", "--video", tmp_path / "v" / "out.mp4")
    replay(*clips, *options, *drawn)
    assert (tmp_path / "plain.jsonl").read_bytes() == (tmp_path / "drawn.jsonl").read_bytes()
    for name, count in (("one", 30), ("two", 20)):
        with av.open(str(tmp_path / "v" / f"out-{name}.mp4")) as container:
            assert len(list(container.decode(video=0))) == count


@pytest.mark.parametrize("option", ["--video", "--out"])
@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_source_is_not_written_over(
    toy_pipeline: Path, make_clip: MakeClip, option: str, form: str
) -> None:
    """What would be written over one of the sources is refused, and the recording stays."""
    clip = make_clip("one.mp4", frames=10)
    before = clip.read_bytes()
    budget = ("--pipeline", toy_pipeline, "--budget", "fraction=0.7")
    done = called("replay", form.format(clip), *budget, option, clip)
    assert done.exit_code == 2
    assert f"{option}: {clip} is one of the sources" in done.stderr
    assert clip.read_bytes() == before


def test_a_source_is_not_recorded_over(
    toy_pipeline: Path, make_clip: MakeClip, tmp_path: Path
) -> None:
    """Under another name neither: a hard link is the same file."""
    clip = make_clip("one.mp4", frames=10)
    link = tmp_path / "two.mp4"
    link.hardlink_to(clip)
    done = called("record", toy_pipeline, clip, "--out", link)
    assert done.exit_code == 2
    assert "is one of the sources" in done.stderr
    assert link.samefile(clip)


def test_results_and_pictures_go_to_two_files(toy_pipeline: Path, tmp_path: Path) -> None:
    """--out and --video that name one file are refused."""
    both = tmp_path / "both.mp4"
    budget = ("--pipeline", toy_pipeline, "--budget", "fraction=0.7")
    done = called("replay", "synthetic:frames=5", *budget, "--out", both, "--video", both)
    assert done.exit_code == 2
    assert "is what --video writes, too" in done.stderr
    assert not both.exists()


def test_watched_folders_are_no_recordings(toy_pipeline: Path, tmp_path: Path) -> None:
    """Nothing waits for the end of a folder that has none."""
    watched, budget = f"watch:{tmp_path}", ("--pipeline", toy_pipeline, "--budget", "fraction=0.7")
    for command in (
        ("replay", watched, *budget),
        ("record", toy_pipeline, watched, "--out", tmp_path / "trace.npz"),
    ):
        done = called(*command)
        assert done.exit_code == 2
        assert "a watched folder has no end" in done.stderr


def test_replay_for_people(toy_pipeline: Path, make_clip: MakeClip) -> None:
    """Without --json a table comes, with the numbers in it."""
    done = streamexit(
        "replay", make_clip(frames=40), "--pipeline", toy_pipeline, "--budget", "fraction=0.7"
    )
    assert done.returncode == 0, done.stderr
    assert "clip" in done.stdout
    assert "40 frames in" in done.stdout


def test_broken_file_beside_good_one(
    toy_pipeline: Path, make_clip: MakeClip, tmp_path: Path
) -> None:
    """The good file is analysed; one message names the broken stream; the exit code is 2."""
    text = tmp_path / "notes.mp4"
    text.write_text("this is no video\n" * 50)
    done = streamexit(
        "replay", text, make_clip(frames=40), "--pipeline", toy_pipeline,
        "--budget", "fraction=0.7", "--json",
    )  # fmt: skip
    assert done.returncode == 2
    report = json.loads(done.stdout)
    assert report["streams"]["clip"]["answered"] == 40
    assert report["streams"]["notes"]["answered"] == 0
    assert done.stderr.count("\n") == 1
    assert "stream notes" in done.stderr
    assert "not a video" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--budget", "fraction"], "not of the form fraction=0.4"),
        (["--budget", "watts=3"], "'watts' is unknown"),
        (["--budget", "fraction=nan"], "must be a positive number"),
        (["--budget", "fraction=-1"], "must be a positive number"),
        (["--budget", "fraction=0.5", "--policy", "eenett"], "did you mean 'eenet'?"),
        (["--budget", "fraction=0.5", "--pipeline", "nowhere"], "there is no such folder"),
        (["--budget", "fraction=0.5", "--device", "tpu"], "not one of auto, cpu, cuda:0"),
        (["--budget", "fraction=0.5", "--out", "/proc/none/x"], "cannot be written"),
        (["--budget", "fraction=0.7", "--mask", "png"], "add --out FILE"),
        (["--budget", "fraction=0.7", "--mask", "rle", "--out", "x.jsonl"], "gives no maps"),
    ],
)
def test_bad_replay_arguments(toy_pipeline: Path, arguments: list[str], said: str) -> None:
    """Each mistake gets one line that says what would be right, and exit code 2."""
    done = called("replay", "synthetic:frames=5", "--pipeline", toy_pipeline, *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_output_that_cannot_be_written_is_one_message(tmp_path: Path, toy_pipeline: Path) -> None:
    """Not a traceback."""
    config = tmp_path / "node.yaml"
    config.write_text(
        f"pipelines: {{toy: {toy_pipeline}}}\nstreams:\n"
        "  - {id: a, source: 'synthetic:', pipeline: toy, budget: {fraction: 0.7}}\n"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "streamexit", "check", str(config)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            timeout=TIME_LIMIT,
        )
    assert done.returncode == 1
    assert done.stderr == "error: the output: no space left on device\n"


def test_debug_shows_the_traceback() -> None:
    """--debug is for whoever wants to see where it happened; the exit code stays."""
    done = streamexit("--debug", "check", "nowhere.yaml")
    assert "Traceback" in done.stderr
    assert done.returncode == 2


CONFIG = """
node: {{id: test}}
results_file: results.jsonl
pipelines: {{toy: {pipeline}}}
streams:
  - {{id: a, source: "synthetic:seed=1,frames=200", pipeline: toy, budget: {{fraction: 0.7}}, pace: fast}}
  - {{id: b, source: {clip}, pipeline: toy, budget: {{fraction: 0.9}}, pace: fast}}
"""


@pytest.fixture
def config(toy_pipeline: Path, make_clip: MakeClip, tmp_path: Path) -> Path:
    """A configuration without a broker."""
    path = tmp_path / "node.yaml"
    path.write_text(CONFIG.format(pipeline=toy_pipeline, clip=make_clip(frames=60)))
    return path


def test_run_to_the_end(config: Path) -> None:
    """`run` analyses recordings to their end, writes every result, and sums up."""
    done = streamexit("run", config, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {name: s["answered"] for name, s in report["streams"].items()} == {"a": 200, "b": 60}
    assert all(s["state"] == "ended" for s in report["streams"].values())
    written = (config.parent / "results.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in written.splitlines()]
    for stream, count in (("a", 200), ("b", 60)):
        assert [r["seq"] for r in lines if r["stream"] == stream] == list(range(count))


def test_run_goes_on_without_a_broken_stream(config: Path) -> None:
    """A stream that cannot be read is in error, by name; the other is analysed."""
    clip = config.read_text().split("source: ")[2].split(",")[0]
    Path(clip).with_name("cut.mp4").write_bytes(Path(clip).read_bytes()[:300])
    config.write_text(config.read_text().replace(clip, str(Path(clip).with_name("cut.mp4"))))
    done = streamexit("run", config, "--json")
    assert done.returncode == 2
    streams = json.loads(done.stdout)["streams"]
    assert (streams["a"]["state"], streams["b"]["state"]) == ("ended", "error")
    assert streams["a"]["answered"] == 200
    assert "stream b" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_tells_the_cost(config: Path) -> None:
    """`check` says what each stream would cost."""
    done = called("check", config, "--json")
    assert done.exit_code == 0, done.stderr
    streams = json.loads(done.stdout)["streams"]
    assert streams["a"]["budget_fraction"] == 0.7
    assert streams["a"]["cheapest_fraction"] < 0.7
    assert "good" in called("check", config).stdout


def test_check_refuses_what_cannot_be_reached(config: Path) -> None:
    """A budget below the first exit names file, line, key and the least that would do."""
    config.write_text(config.read_text().replace("fraction: 0.7", "fraction: 0.01"))
    done = called("check", config)
    assert done.exit_code == 2
    assert f"{config}, line 6, streams[0].budget" in done.stderr
    assert "Raise the budget" in done.stderr


@pytest.mark.parametrize("name", ["files.yaml", "first-run.yaml", "cameras.yaml", "operated.yaml"])
def test_example_configurations_are_good(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples pass `check`."""
    monkeypatch.setenv("CAMERA_PASSWORD", "x")
    monkeypatch.setenv("MQTT_PASSWORD", "y")
    done = called("check", ROOT / "configs" / name)
    assert done.exit_code == 0, done.stderr


def interrupted(
    command: list[str], pipe: Path, number: signal.Signals
) -> tuple[int, dict[str, Any], list[str]]:
    """(exit code, report, result lines) of a command that gets a signal after its first result."""
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [sys.executable, "-m", "streamexit", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with pipe.open() as results:
        lines = [results.readline()]
        process.send_signal(number)
        lines += results.readlines()
    stdout, stderr = process.communicate(timeout=TIME_LIMIT)
    complaints = [line for line in stderr.splitlines() if not line.startswith("preparing: ")]
    assert complaints == []
    return process.returncode, json.loads(stdout), lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_drains(config: Path, number: signal.Signals) -> None:
    """A signal ends an endless run in order: exit code 0, a summary, books that balance."""
    config.write_text(config.read_text().replace("pace: fast}", "loop: true}"))
    pipe = config.parent / "results.jsonl"
    code, report, lines = interrupted(["run", str(config), "--json"], pipe, number)
    assert code == 0
    assert len(lines) == sum(s["answered"] for s in report["streams"].values())
    for stream in report["streams"].values():
        assert (stream["state"], stream["reason"]) == ("ended", "stopped")
        assert stream["frames"] == stream["answered"] + sum(stream["dropped"].values())


def test_interrupted_replay_reports(toy_pipeline: Path, tmp_path: Path) -> None:
    """Ctrl-C ends a replay with a report of what was answered, and the exit code of an interrupt."""
    pipe = tmp_path / "out.jsonl"
    command = ["replay", "synthetic:frames=1000000", "--pipeline", str(toy_pipeline)]
    command += ["--budget", "fraction=0.7", "--out", str(pipe), "--json"]
    code, report, lines = interrupted(command, pipe, signal.SIGINT)
    assert code == 130
    assert 0 < report["answered"] == len(lines) < 1_000_000
    assert report["frames"] == report["answered"] + sum(report["dropped"].values())


def test_every_source_has_an_id_of_its_own() -> None:
    """Sources of one name are told apart, also from those that look numbered already."""
    assert stream_ids(["a/clip-2.mp4", "clip.mp4", "b/clip.mp4"]) == ["clip-2", "clip", "clip-3"]
    assert stream_ids(["rtsp://h/x y?k=v", "images:"]) == ["x-y", "images"]


def test_a_replay_says_that_its_budget_is_out_of_reach(toy_pipeline: Path) -> None:
    """It goes on: what leaving at the first exit gives is worth knowing."""
    replay = "replay", "synthetic:frames=5", "--pipeline", toy_pipeline, "--budget"
    done = called(*replay, "fraction=0.01")
    assert done.exit_code == 0
    assert "warning: --budget: 0.01 of the full network is out of reach" in done.stderr
    assert "warning" not in called(*replay, "fraction=0.7").stderr


def test_mistake_does_not_empty_an_old_file(toy_pipeline: Path, tmp_path: Path) -> None:
    """A replay that is refused leaves the results of an earlier one alone."""
    old = tmp_path / "old.jsonl"
    old.write_text("precious")
    done = called(
        "replay", "synthetic:frames=5", "--pipeline", toy_pipeline, "--budget", "fraction=0.7",
        "--policy", "eenett", "--out", old,
    )  # fmt: skip
    assert done.exit_code == 2
    assert old.read_text() == "precious"


def test_truncated_file_is_said_to_be(toy_pipeline: Path, data: Path, tmp_path: Path) -> None:
    """Half a file is answered as far as it goes, and named with the number of frames missing."""
    half = tmp_path / "half.avi"
    whole = (data / "videos" / "ucf_v_SoccerJuggling_g23_c01.avi").read_bytes()
    half.write_bytes(whole[: len(whole) // 2])
    done = streamexit(
        "replay", half, "--pipeline", toy_pipeline, "--budget", "fraction=0.7", "--json"
    )
    assert done.returncode == 2
    assert 50 < json.loads(done.stdout)["answered"] < 200
    assert "of 240 frames; the file is truncated" in done.stderr


def test_demo(make_clip: MakeClip) -> None:
    """`demo` runs two streams with labels and two with maps, and receives all results over MQTT."""
    done = streamexit("demo", "--duration", "5s", "--json")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("preparing: ")]
    assert said == []
    report = json.loads(done.stdout)
    assert [s["budget_fraction"] for s in report["streams"].values()] == [0.3, 0.45, 0.6, 0.75]
    assert list(report["streams"]) == ["objects-1", "scenes-1", "objects-2", "scenes-2"]
    assert [len(s["exit_shares"]) for s in report["streams"].values()] == [3, 4, 3, 4]
    for name, stream in report["streams"].items():
        assert 0 < report["received"][name] <= stream["answered"]
    assert report["results_lost"] == {}


def test_demo_with_nothing_to_show_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without clips the demo takes generated pictures, and says why."""

    def not_installed(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", not_installed)
    sources, said = demo_sources([])
    assert sources == [f"synthetic:seed={i}" for i in range(4)]
    assert "synthetic" in said
    assert "streamexit[clips]" in said


def test_demo_without_street_scenes(cifar_pipeline: Path) -> None:
    """Where the pipeline for maps is missing, as in the wheel, all four streams give labels."""
    node = demo_node(["synthetic:"] * 4, {OBJECTS: cifar_pipeline}, on_problem=pytest.fail)
    used = {name: stream.plan.pipeline.name for name, stream in node.streams.items()}
    assert used == dict.fromkeys(("objects-1", "scenes-1", "objects-2", "scenes-2"), OBJECTS)


def test_demo_of_a_missing_clip() -> None:
    """A demo whose streams all failed is not a success."""
    done = streamexit("demo", "nowhere.mp4", "--duration", "5s")
    assert done.returncode == 2
    assert "nowhere.mp4" in done.stderr


def test_demo_of_own_clips(make_clip: MakeClip) -> None:
    """Clips given on the command line are what is shown."""
    done = streamexit("demo", make_clip("mine.mp4"), "--duration", "2s")
    assert done.returncode == 0, done.stderr
    assert "mine.mp4" in done.stdout
    summary = done.stdout[done.stdout.index("Summary") :]
    assert summary.count(" online ") == 4  # before the end of the demo was theirs


def test_version_and_help() -> None:
    """The command introduces itself."""
    assert streamexit("--version").stdout.startswith("streamexit ")
    told = streamexit("--help").stdout
    for command in ("demo", "run", "check", "replay", "watch", "train", "fit"):
        assert command in told


def test_altered_pipeline_is_noticed(toy_pipeline: Path, tmp_path: Path) -> None:
    """One changed byte in the weights, and nothing is analysed with them."""
    copy = tmp_path / "p"
    shutil.copytree(toy_pipeline, copy)
    weights = bytearray((copy / "network.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "network.safetensors").write_bytes(weights)
    done = called("replay", "synthetic:frames=5", "--pipeline", copy, "--budget", "fraction=0.7")
    assert done.exit_code == 2
    assert "network.safetensors" in done.stderr
    assert "SHA-256" in done.stderr

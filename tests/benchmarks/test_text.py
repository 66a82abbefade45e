from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.text import bert, make_traces
from benchmarks.text import data as text_data
from benchmarks.text.data import Encoded, TextData, Texts, normalised, opening, pad
from benchmarks.text.network import ExitTransformer, MultiExitText, gflops_per_exit
from benchmarks.text.train import Recipe, train
from streamexit.calibration.trace import Trace
from streamexit.errors import DataError

RECIPE = Recipe(epochs=1, batch_size=8)
TINY = {"width": 16, "layers": 4, "heads": 2}
WORDS = ("good", "bad", "film", "plot", "actor", "scene", "dull", "bright", "slow", "sweet")


def sentences(count: int, seed: int) -> Texts:
    """Different sentences of 3 to 12 words; the label is whether "good" is among them."""
    random = np.random.default_rng(seed)
    texts = [
        " ".join([*random.choice(WORDS, random.integers(2, 12)), f"{seed}x{i}"])
        for i in range(count)
    ]
    return Texts(tuple(texts), np.array(["good" in text for text in texts], np.int64))


@pytest.fixture
def toy() -> TextData:
    """A data set of a few sentences."""
    return TextData("toy", ("no", "yes"), 24, sentences(40, 1), sentences(12, 2), sentences(10, 3))


@pytest.fixture
def network() -> ExitTransformer:
    """A tiny network, fast because it is untrained."""
    torch.manual_seed(0)
    return ExitTransformer(vocabulary=50, max_length=16, classes=3, **TINY).eval()


@pytest.fixture
def numbers() -> Encoded:
    """Token numbers that need no tokenizer."""
    random = np.random.default_rng(0)
    rows = [random.integers(1, 50, random.integers(2, 16)).tolist() for _ in range(30)]
    return Encoded(rows, torch.tensor([sum(row) % 3 for row in rows]))


def write_parquet(path: Path, **columns: Sequence[Any]) -> None:
    """A parquet file; skips where pyarrow is missing."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    arrow = pytest.importorskip("pyarrow")
    parquet.write_table(arrow.table({k: list(v) for k, v in columns.items()}), path)


def check_padding(network: MultiExitText, tokens: list[list[int]]) -> None:
    """Alone and in one padded batch, a text has the same logits, and padding's content is naught."""
    padded, mask = pad(tokens)
    with torch.inference_mode():
        together = network(padded, mask)
        scribbled = network(padded.where(mask, 7), mask)
        for i, row in enumerate(tokens):
            for k, logits in enumerate(network(*pad([row]))):
                torch.testing.assert_close(together[k][i], logits[0], rtol=1e-4, atol=1e-5)
    for k in range(network.num_exits):
        torch.testing.assert_close(together[k], scribbled[k])


def test_padding_does_not_change_logits(network: ExitTransformer, numbers: Encoded) -> None:
    """A text's logits do not depend on how long its neighbours in the batch are."""
    check_padding(network, numbers.tokens[:6])


def test_costs_rise_and_grow_with_length(network: ExitTransformer) -> None:
    """Every exit costs more than the one before, and a longer text more than a shorter."""
    short, long = gflops_per_exit(network, 8), gflops_per_exit(network, 16)
    assert all(a < b for a, b in pairwise(long))
    assert all(a < b for a, b in zip(short, long, strict=True))


def test_first_cost_is_what_its_matrices_come_to(network: ExitTransformer) -> None:
    """One layer and one head cost what counting their products by hand gives."""
    t, d, c = 16, 16, 3
    layer = 2 * t * d * d * (3 + 1 + 4 + 4) + 2 * 2 * t * t * d
    assert gflops_per_exit(network, t)[0] == pytest.approx((layer + 2 * d * c) / 1e9)


def test_every_epoch_has_every_text_once(numbers: Encoded) -> None:
    """Batches of similar length leave nothing out and take nothing twice."""
    rows = [row for batch in numbers.shuffled(4, torch.Generator()) for row in batch]
    assert sorted(rows) == list(range(30))


def test_interrupted_training_arrives_at_the_same_weights(tmp_path: Path, numbers: Encoded) -> None:
    """A training that goes on from its first epoch's checkpoint ends as one without a break."""
    recipe = Recipe(epochs=2, batch_size=8)
    ends = []

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt(line)

    for name in ("whole", "broken"):
        torch.manual_seed(0)
        network = ExitTransformer(vocabulary=50, max_length=16, classes=3, **TINY)
        if name == "broken":
            with pytest.raises(KeyboardInterrupt, match="epoch 1/2"):
                train(network, numbers, recipe, tmp_path / name, say=interrupt)
            network = ExitTransformer(vocabulary=50, max_length=16, classes=3, **TINY)
        train(network, numbers, recipe, tmp_path / name, say=lambda line: None)
        ends.append(network.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=0, atol=0)


def test_checkpoint_of_another_training_is_refused(
    tmp_path: Path, network: ExitTransformer, numbers: Encoded
) -> None:
    """A checkpoint of another recipe is not passed off as this one's."""
    path = tmp_path / "checkpoint.pt"
    train(network, numbers, RECIPE, path, say=lambda line: None)
    with pytest.raises(DataError, match="another network, recipe or data"):
        train(network, numbers, Recipe(epochs=2, batch_size=8), path)


def test_traces_open_and_hold_every_text(tmp_path: Path, toy: TextData) -> None:
    """One epoch gives two traces of all texts, and each exit's accuracy and cost is told."""
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    setup = make_traces.Setup(60, RECIPE, TINY)
    network, encode = make_traces.small_transformer(toy, setup)
    lines: list[str] = []
    make_traces.make_traces(
        network, toy, encode, RECIPE, pipeline="p", work=tmp_path, out=tmp_path, say=lines.append
    )
    assert sum("top-1" in line for line in lines) == 8
    for name, part in (("calibration", toy.calibration), ("test", toy.test)):
        trace = Trace.open(tmp_path / f"toy-{name}.npz")
        assert (len(trace), trace.num_exits) == (len(part.texts), 4)
        assert trace.header.streams == ("toy",)
        assert trace.header.labels == toy.classes
        np.testing.assert_array_equal(trace.label, part.labels)
        np.testing.assert_array_equal(trace.time, np.arange(len(part.texts)))
        evidence = trace.load(np.arange(len(trace)))
        assert evidence.distribution.sum(2).numpy() == pytest.approx(1, abs=2e-3)  # float16 logs
        right = evidence.distribution.argmax(2).numpy() == part.labels[:, None]
        np.testing.assert_array_equal(evidence.quality.numpy(), right)
        assert (evidence.confidence[:, 0, 2:] == 1).all()


def test_vocabulary_is_the_same_every_time(toy: TextData) -> None:
    """Two vocabularies of the same texts are equal, so that checkpoints fit."""
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    one, other = (text_data.learn_vocabulary(toy.train, 60) for _ in range(2))
    assert one == other


def test_sst2_parts_share_no_text(tmp_path: Path) -> None:
    """What the dev or test set has, however written, is not trained on, nor anything twice."""
    parts: dict[str, Sequence[str]] = {
        "train_glue": ["a fine film", "dull", "dull", "No !", "lovely"],
        "train_sentences": ["a fine film .", "a new one"],
        "dev": ["Lovely .", "so long"],
        "test": ["no", "what 's next"],
    }
    for name, texts in parts.items():
        write_parquet(tmp_path / f"sst2_{name}.parquet", text=texts, label=[1] * len(texts))
    found = text_data.load_sst2(tmp_path)
    assert found.train.texts == ("a fine film", "dull", "a new one")
    assert found.calibration.texts == tuple(parts["dev"])
    assert found.test.texts == tuple(parts["test"])


def test_agnews_parts_share_no_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration is balanced, and no part has a text that begins like another part's."""
    monkeypatch.setattr(text_data, "AGNEWS_CALIBRATION_PER_CLASS", 3)
    stories = [f"story {i} of class {i % 4} told {end}" for i in range(40) for end in "ab"]
    labels = [i % 4 for i in range(40) for _ in "ab"]
    write_parquet(tmp_path / "agnews_train_subset.parquet", text=stories, label=labels)
    write_parquet(
        tmp_path / "agnews_test.parquet",
        title=["Story 7 of class", "Another"],
        description=["3 told otherwise", "story"],
        label=[3, 0],
    )
    found = text_data.load_agnews(tmp_path)
    openings = [
        {opening(text) for text in part.texts}
        for part in (found.train, found.calibration, found.test)
    ]
    assert [len(part) for part in openings] == [27, 12, 2]
    assert not openings[0] & openings[1]
    assert not (openings[0] | openings[1]) & openings[2]
    assert np.bincount(found.calibration.labels).tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("name", ["sst2", "agnews"])
def test_real_parts_share_no_text(name: str, data: Path) -> None:
    """On the real files, train, calibration and test are disjoint and the test set is whole."""
    pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    found = text_data.DATASETS[name](data)
    parts = [{normalised(text) for text in part.texts} for part in (found.train, found.calibration)]
    test = {normalised(text) for text in found.test.texts}
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & test
    sizes = {"sst2": (872, 1821), "agnews": (4000, 7600)}
    assert (len(found.calibration.texts), len(found.test.texts)) == sizes[name]


def test_missing_data_is_said(tmp_path: Path) -> None:
    """A folder without the files ends with their name, without a traceback."""
    pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    with pytest.raises(SystemExit, match=r"sst2_train_glue\.parquet: not there"):
        make_traces.main(["sst2", "--data", str(tmp_path)])


def test_missing_package_is_named() -> None:
    """A package that only the benchmarks need is named with how to get it."""
    with pytest.raises(DataError, match="pip install no_such_package"):
        text_data.benchmark_package("no_such_package.part")


def write_bert(folder: Path) -> None:
    """A tiny BERT with random weights in Hugging Face's layout."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
    vocabulary = [*special, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=12,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))


def test_bert_runs_as_its_library_runs_it(tmp_path: Path, toy: TextData) -> None:
    """Stage by stage, padded, the hidden states are those of `BertModel` itself."""
    write_bert(tmp_path)
    model, encode = bert.load_bert(tmp_path, 24)
    network = bert.BertExits(model.eval(), classes=2).eval()
    tokens = encode(toy.test.texts)
    check_padding(network, tokens)
    padded, mask = pad(tokens)
    with torch.inference_mode():
        hidden = network.embed(padded)
        expected = model(padded, attention_mask=mask.long(), output_hidden_states=True)
        for k, layers in enumerate(bert.EXITS):
            hidden = network.stage(k, hidden, mask)
            torch.testing.assert_close(
                hidden[mask], expected.hidden_states[layers][mask], rtol=1e-4, atol=1e-5
            )


def test_bert_makes_traces(
    tmp_path: Path,
    toy: TextData,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command fine-tunes a BERT from a local folder and writes both traces."""
    write_bert(tmp_path)
    monkeypatch.setitem(text_data.DATASETS, "sst2", lambda folder: toy)
    monkeypatch.setattr(bert, "RECIPE", RECIPE)
    folders = ["--work", str(tmp_path), "--out", str(tmp_path), "--device", "cpu"]
    bert.main(["sst2", "--bert-folder", str(tmp_path), *folders])
    assert capsys.readouterr().out.count("top-1") == 8
    trace = Trace.open(tmp_path / "toy-test.npz")
    assert trace.header.pipeline == "toy-bert"
    shares = trace.header.costs.fractions
    assert shares == pytest.approx((0.25, 0.5, 0.75, 1.0))


def test_missing_bert_is_said(tmp_path: Path) -> None:
    """A folder that is not a BERT is refused with what it should hold."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    with pytest.raises(DataError, match=r"no config\.json; --bert-folder"):
        bert.load_bert(tmp_path, 24)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="BERT cannot be loaded"):
        bert.load_bert(tmp_path, 24)

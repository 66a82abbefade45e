"""SST-2 and AG News: texts in three parts that share nothing, and how texts become numbers.

SST-2. Training: the phrases that GLUE trains on and the full sentences they were cut from.
Calibration: the official dev set alone, 872 full sentences. Held-out training phrases would make
more rows, but wrong ones: a phrase is a part of a training sentence, so the network would have seen
its words with its label, and a phrase of nine words is not the sentence of nineteen that the test
set has. Nothing else looks at the dev set: epochs are fixed, the last one is taken.

AG News. Of the 18,049 training texts that are to be had, 1,000 per class are the calibration set,
balanced like the test set; training has the rest. Agencies rewrite each other's stories under one
headline, so of texts with the same six first words only the first counts, and none whose first six
words begin a test text.

N: texts, T: tokens of the longest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamexit.errors import DataError

PAD = 0
"""The token that fills short texts up."""

Encode = Callable[[Sequence[str]], list[list[int]]]
"""Texts to token numbers, cut to the network's length."""

AGNEWS_CALIBRATION_PER_CLASS = 1000


@dataclass(frozen=True)
class Texts:
    """Texts and their classes.

    Attributes:
        texts: N of them.
        labels: int64 [N].
    """

    texts: tuple[str, ...]
    labels: NDArray[np.int64]

    def take(self, rows: Sequence[int]) -> Texts:
        """Those at `rows`, in that order."""
        return Texts(tuple(self.texts[i] for i in rows), self.labels[list(rows)])


@dataclass(frozen=True)
class TextData:
    """A data set.

    Attributes:
        name: "sst2" or "agnews".
        classes: Their names.
        max_length: Tokens; a longer text is cut.
        train: What the network and the vocabulary learn from.
        calibration: What policies are fitted on.
        test: The whole official test set.
    """

    name: str
    classes: tuple[str, ...]
    max_length: int
    train: Texts
    calibration: Texts
    test: Texts


@dataclass(frozen=True)
class Encoded:
    """Token numbers and classes of N texts."""

    tokens: list[list[int]]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Those at `rows`: tokens [N, T], which of them are no padding [N, T], labels [N]."""
        return *pad([self.tokens[i] for i in rows]), self.labels[list(rows)]

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[list[int]]:
        """Rows of every batch of an epoch; texts of a batch are of similar length."""
        order = torch.randperm(len(self), generator=generator).tolist()
        pools = [order[i : i + 50 * size] for i in range(0, len(order), 50 * size)]
        batches = [
            ranked[i : i + size]
            for ranked in (sorted(pool, key=lambda row: len(self.tokens[row])) for pool in pools)
            for i in range(0, len(ranked), size)
        ]
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[i]


def encoded(part: Texts, encode: Encode) -> Encoded:
    """A part as token numbers."""
    return Encoded(encode(part.texts), torch.from_numpy(part.labels))


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token numbers as tokens int64 [N, T] and a mask bool [N, T], False where padding is."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.full((len(rows), int(lengths.max())), PAD)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    return tokens, torch.arange(tokens.shape[1]) < lengths[:, None]


def benchmark_package(name: str) -> Any:
    """Import a module that only these benchmarks need.

    Raises:
        DataError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise DataError(
            f"the text benchmarks need the package {package}: pip install {package}"
        ) from error


def normalised(text: str) -> str:
    """Lower-case words and numbers only, so that punctuation makes no two texts of one."""
    return " ".join(re.findall(r"\w+", text.lower()))


def opening(text: str) -> str:
    """The six first words, `normalised`."""
    return " ".join(normalised(text).split()[:6])


def distinct(part: Texts, key: Callable[[str], str], *, without: Collection[str]) -> Texts:
    """The first text of every key that is not among `without`."""
    seen = set(without)
    rows = []
    for i, text in enumerate(part.texts):
        found = key(text)
        if found not in seen:
            seen.add(found)
            rows.append(i)
    return part.take(rows)


def load_sst2(folder: Path) -> TextData:
    """SST-2; see the head of this module.

    Raises:
        DataError: A file or a package is missing.
    """
    phrases, sentences, calibration, test = (
        _read(folder / f"sst2_{part}.parquet")
        for part in ("train_glue", "train_sentences", "dev", "test")
    )
    train = Texts(
        phrases.texts + sentences.texts, np.concatenate([phrases.labels, sentences.labels])
    )
    held_out = {normalised(text) for text in calibration.texts + test.texts}
    train = distinct(train, normalised, without=held_out)
    return TextData("sst2", ("negative", "positive"), 64, train, calibration, test)


def load_agnews(folder: Path) -> TextData:
    """AG News; see the head of this module.

    Raises:
        DataError: A file or a package is missing, or there are too few texts of a class.
    """
    test = _read(folder / "agnews_test.parquet", "title", "description")
    rest = distinct(
        _read(folder / "agnews_train_subset.parquet"),
        opening,
        without={opening(text) for text in test.texts},
    )
    order = np.random.default_rng(0).permutation(len(rest.texts))
    held_out: set[int] = set()
    for label in range(4):
        rows = order[rest.labels[order] == label][:AGNEWS_CALIBRATION_PER_CLASS]
        if len(rows) < AGNEWS_CALIBRATION_PER_CLASS:
            raise DataError(f"{folder}: AG News has only {len(rows)} texts of class {label}")
        held_out.update(rows.tolist())
    return TextData(
        "agnews",
        ("World", "Sports", "Business", "Sci/Tech"),
        128,
        rest.take([i for i in order.tolist() if i not in held_out]),
        rest.take([i for i in order.tolist() if i in held_out]),
        test,
    )


DATASETS: dict[str, Callable[[Path], TextData]] = {"sst2": load_sst2, "agnews": load_agnews}


def learn_vocabulary(part: Texts, size: int) -> str:
    """A byte-pair vocabulary of `part`, as the JSON that `encoder` takes; the same every time."""
    hf = benchmark_package("tokenizers")
    tokenizer = hf.Tokenizer(hf.models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = hf.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]"]
    tokenizer.train_from_iterator(
        part.texts,
        hf.trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False),
    )
    assert tokenizer.token_to_id("[PAD]") == PAD
    tokenizer.post_processor = hf.processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", tokenizer.token_to_id("[CLS]"))]
    )
    json: str = tokenizer.to_str()
    return json


def encoder(vocabulary: str, max_length: int) -> tuple[Encode, int]:
    """What turns texts into tokens by a learnt vocabulary, and how many tokens it knows."""
    tokenizer = benchmark_package("tokenizers").Tokenizer.from_str(vocabulary)
    tokenizer.enable_truncation(max_length)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in tokenizer.encode_batch(list(texts))]

    return encode, tokenizer.get_vocab_size()


def _read(path: Path, *columns: str) -> Texts:
    """A parquet file's text, of several columns with a space between, and labels."""
    parquet = benchmark_package("pyarrow.parquet")
    if not path.is_file():
        raise DataError(f"{path}: not there; --data names the folder of the text data")
    table = parquet.read_table(path).to_pydict()
    try:
        parts = [table[column] for column in columns or ("text",)]
        texts = tuple(" ".join(row) for row in zip(*parts, strict=True))
        return Texts(texts, np.asarray(table["label"], np.int64))
    except KeyError as error:
        raise DataError(f"{path}: has no column {error}") from error

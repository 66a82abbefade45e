"""Traces of BERT with four exits: `python -m benchmarks.text.bert sst2 --bert-folder bert-base-uncased`.

Exits after layers 3, 6, 9 and 12, each with a pooler and a linear layer of its own (the exits of
EENet's tables), fine-tuned jointly. The folder is a local copy of bert-base-uncased or its like in
Hugging Face's layout; nothing is downloaded. Traces go to `--out` under the names that
`make_traces` uses, so give the two different folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.text.data import DATASETS, PAD, Encode, benchmark_package
from benchmarks.text.make_traces import make_traces, parser_of
from benchmarks.text.network import MultiExitText
from benchmarks.text.train import Recipe
from streamexit.errors import DataError, StreamExitError

EXITS = (3, 6, 9, 12)
RECIPE = Recipe(epochs=3, batch_size=32, learning_rate=3e-5)


class BertExits(MultiExitText):
    """BERT's layers with heads on the way.

    Args:
        bert: A `transformers.BertModel` with `attn_implementation="sdpa"`; its pooler is not used.
        classes: How many.
        exits: After how many layers there is a head, rising; layers beyond the last are not run.
    """

    def __init__(self, bert: Any, *, classes: int, exits: Sequence[int] = EXITS) -> None:
        super().__init__()
        if len(bert.encoder.layer) < exits[-1]:
            raise DataError(f"this BERT has {len(bert.encoder.layer)} layers, not {exits[-1]}")
        self.num_exits = len(exits)
        self._bounds = (0, *exits)
        self.embeddings = bert.embeddings
        self.layers = nn.ModuleList(bert.encoder.layer[: exits[-1]])
        width = bert.config.hidden_size
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, width), nn.Tanh(), nn.Dropout(0.1), nn.Linear(width, classes)
            )
            for _ in exits
        )
        for parameter in self.heads.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=bert.config.initializer_range)
            else:
                nn.init.zeros_(parameter)

    def embed(self, tokens: Tensor) -> Tensor:
        """BERT's embeddings; every text is one segment."""
        hidden: Tensor = self.embeddings(input_ids=tokens)
        return hidden

    def stage(self, k: int, hidden: Tensor, mask: Tensor) -> Tensor:
        """Through the layers between two exits."""
        for layer in self.layers[self._bounds[k] : self._bounds[k + 1]]:
            after = layer(hidden, attention_mask=mask[:, None, None, :])
            hidden = after[0] if isinstance(after, tuple) else after  # before transformers 5
        return hidden

    def head(self, k: int, hidden: Tensor, mask: Tensor) -> Tensor:
        """From [CLS], the first token."""
        logits: Tensor = self.heads[k](hidden[:, 0])
        return logits


def load_bert(folder: Path, max_length: int) -> tuple[Any, Encode]:
    """A local folder's `BertModel` and its tokenizer.

    Raises:
        DataError: The library, the weights or the vocabulary is missing, or it is no BERT.
    """
    transformers = benchmark_package("transformers")
    if not (folder / "config.json").is_file():
        raise DataError(
            f"{folder}: no config.json; --bert-folder names a local copy of BERT in Hugging "
            "Face's layout (config.json, model.safetensors, vocab.txt)"
        )
    try:
        bert = transformers.BertModel.from_pretrained(
            folder, local_files_only=True, add_pooling_layer=False, attn_implementation="sdpa"
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: BERT cannot be loaded: {error}") from error
    if bert.config.model_type != "bert" or tokenizer.pad_token_id != PAD:
        raise DataError(f"{folder}: not a BERT whose padding is token {PAD}")

    def encode(texts: Sequence[str]) -> list[list[int]]:
        found = tokenizer(list(texts), truncation=True, max_length=max_length)
        ids: list[list[int]] = found["input_ids"]
        return ids

    return bert, encode


def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tune and write the traces."""
    parser = parser_of(__doc__)
    parser.add_argument("--bert-folder", type=Path, required=True)
    arguments = parser.parse_args(argv)
    try:
        data = DATASETS[arguments.dataset](arguments.data)
        bert, encode = load_bert(arguments.bert_folder, data.max_length)
        torch.manual_seed(RECIPE.seed)
        network = BertExits(bert, classes=len(data.classes))
        make_traces(
            network.to(arguments.device),
            data,
            encode,
            RECIPE,
            pipeline=f"{data.name}-bert",
            work=arguments.work,
            out=arguments.out,
            say=lambda line: print(line, flush=True),
        )
    except StreamExitError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()

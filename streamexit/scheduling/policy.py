"""An exit policy: a scorer, and thresholds for every budget. What `fit` makes and streams use."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from streamexit.errors import DataError, PipelineError
from streamexit.scheduling.evidence import Calibration
from streamexit.scheduling.methods import SHARE_RULES, build_scorer, find_method, fit_scorer
from streamexit.scheduling.scorers import MaxProbability, Scorer, score_all_exits
from streamexit.scheduling.thresholds import ThresholdTable, build_table

FORMAT = "streamexit.policy/1"
_META = "policy"


@dataclass(frozen=True)
class ExitPolicy:
    """Who leaves where.

    Attributes:
        name: In the pipeline folder and on the command line.
        scorer: Runs inside the stages.
        table: Budget -> thresholds.
        provenance: What it was fitted on, by what, when.
        digest: Of the file that it was read from; empty if it was not.
    """

    name: str
    scorer: Scorer
    table: ThresholdTable
    provenance: dict[str, Any]
    digest: str = ""


def fit_policy(
    name: str,
    calibration: Calibration,
    fractions: tuple[float, ...],
    *,
    seed: int = 0,
    scorer: Scorer | None = None,
) -> ExitPolicy:
    """Fit a policy of the library on calibration data.

    Args:
        name: A key of `METHODS`, or "scorer+rule".
        calibration: Evidence that no other step has used.
        fractions: [K], cost of each exit as a share of the full network's.
        seed: For methods with random initial weights.
        scorer: Of this method, if it is fitted already.

    Raises:
        DataError: Fewer frames than exits, or another number of costs.
        PipelineError: Unknown name.
    """
    method = find_method(name)
    frames, num_exits = calibration.quality.shape
    if len(fractions) != num_exits:
        raise DataError(
            f"fractions: {len(fractions)} costs are given, and calibration has {num_exits} exits"
        )
    if frames < num_exits:
        raise DataError(
            f"calibration: {frames} frames of {num_exits} exits; fitting takes at least as many "
            "frames as exits"
        )
    if num_exits == 1:  # nothing to decide, whatever the method
        scorer, table = MaxProbability(), ThresholdTable(fractions, (), (), ())
    else:
        scorer = scorer or fit_scorer(method.scorer, calibration, fractions, seed)
        scores = score_all_exits(scorer, calibration).detach()
        rule = SHARE_RULES[method.share_rule](calibration, scores, fractions, seed)
        table = build_table(scores.double().numpy(), fractions, rule.rows())
    provenance = {
        "scorer": method.scorer,
        "share_rule": method.share_rule,
        "source": method.source,
        "frames": frames,
        "seed": seed,
    }
    return ExitPolicy(name, scorer, table, provenance)


def save_policy(policy: ExitPolicy, path: Path) -> None:
    """Write one safetensors file: the scorer's weights, and all else as JSON in its metadata."""
    meta = {
        "schema": FORMAT,
        "name": policy.name,
        "scorer": {"kind": policy.scorer.kind, "config": policy.scorer.config()},
        "fractions": policy.table.fractions,
        "budgets": policy.table.budgets,
        "thresholds": [[_to_json(t) for t in row] for row in policy.table.thresholds],
        "shares": policy.table.shares,
        "provenance": policy.provenance,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {k: v.contiguous() for k, v in policy.scorer.state_dict().items()}
    path.write_bytes(save_safetensors(weights, metadata={_META: json.dumps(meta)}))


def load_policy(path: Path, fractions: tuple[float, ...]) -> ExitPolicy:
    """Read a policy and check that it was made for exits of these costs.

    Raises:
        PipelineError: Not a policy file, or one of another network.
    """
    content = path.read_bytes()
    try:
        header_length = int.from_bytes(content[:8], "little")
        meta = json.loads(json.loads(content[8 : 8 + header_length])["__metadata__"][_META])
        if meta["schema"] != FORMAT:
            raise PipelineError(f"{path}: schema {meta['schema']!r} is not {FORMAT!r}")
        scorer = build_scorer(meta["scorer"]["kind"], meta["scorer"]["config"])
        scorer.load_state_dict(load_safetensors(content))
        table = ThresholdTable(
            tuple(meta["fractions"]),
            tuple(meta["budgets"]),
            tuple(tuple(float(t) for t in row) for row in meta["thresholds"]),
            tuple(tuple(row) for row in meta["shares"]),
        )
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise PipelineError(f"{path}: not a readable exit policy: {error}") from error
    if len(table.fractions) != len(fractions) or not np.allclose(table.fractions, fractions):
        raise PipelineError(f"{path}: was fitted for another cost table; run streamexit fit again")
    return ExitPolicy(
        meta["name"],
        scorer.eval().requires_grad_(False),
        table,
        meta["provenance"],
        hashlib.sha256(content).hexdigest()[:12],
    )


def _to_json(threshold: float) -> float | str:
    """JSON knows no infinity."""
    return threshold if np.isfinite(threshold) else str(threshold)

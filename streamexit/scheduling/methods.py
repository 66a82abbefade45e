"""Every exit policy of the papers as scorer x share rule, by name; any of one goes with any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from streamexit.errors import PipelineError, PluginError
from streamexit.plugins import load_plugin, plugins
from streamexit.scheduling.eenet import EENetScorer, EENetShares, fit_eenet_scorer
from streamexit.scheduling.evidence import Calibration
from streamexit.scheduling.gate import GateScorer, fit_gates
from streamexit.scheduling.scorers import (
    Certainty,
    ConfidenceBranch,
    MaxProbability,
    Patience,
    Scorer,
    Vote,
)
from streamexit.scheduling.search import SearchShares
from streamexit.scheduling.shares import GeometricShares, ShareRule
from streamexit.scheduling.stopping import StoppingScorer, fit_stopping_scorer

ScorerFit = Callable[[Calibration, Sequence[float], int], Scorer]
RuleFit = Callable[[Calibration, Tensor, Sequence[float], int], ShareRule]


@dataclass(frozen=True)
class Method:
    """A published policy, or ours.

    Attributes:
        scorer: Key of `SCORER_FITS`.
        share_rule: Key of `SHARE_RULES`.
        source: The paper.
    """

    scorer: str
    share_rule: str
    source: str


SCORER_FITS: dict[str, ScorerFit] = {
    "max-probability": lambda calibration, fractions, seed: MaxProbability(),
    "certainty": lambda calibration, fractions, seed: Certainty(),
    "vote": lambda calibration, fractions, seed: Vote(),
    "patience": lambda calibration, fractions, seed: Patience(num_exits=calibration.num_exits),
    "branch": lambda calibration, fractions, seed: ConfidenceBranch(),
    "stopping": lambda calibration, fractions, seed: fit_stopping_scorer(calibration, seed=seed),
    "gate": lambda calibration, fractions, seed: fit_gates(calibration, fractions, seed=seed),
    "eenet": lambda calibration, fractions, seed: fit_eenet_scorer(
        calibration, fractions, seed=seed
    ),
}
"""Name -> fit of (calibration, fractions, seed)."""

SHARE_RULES: dict[str, RuleFit] = {
    "geometric": lambda calibration, scores, fractions, seed: GeometricShares(fractions),
    "eenet": lambda calibration, scores, fractions, seed: EENetShares(
        calibration, scores, fractions, seed=seed
    ),
    "search": lambda calibration, scores, fractions, seed: SearchShares(
        scores.double().numpy(), calibration.quality.double().numpy(), fractions
    ),
}
"""Name -> rule from (calibration, scores [N, K] of the policy's scorer, fractions, seed)."""

METHODS: dict[str, Method] = {
    "branchynet": Method("certainty", "geometric", "Teerapittayanon et al., ICPR 2016"),
    "msdnet": Method("max-probability", "geometric", "Huang et al., ICLR 2018"),
    "pabee": Method("vote", "geometric", "Zhou et al., NeurIPS 2020, as budgeted by EENet"),
    "pabee-counter": Method("patience", "geometric", "Zhou et al., NeurIPS 2020"),
    "maml-stop": Method("stopping", "geometric", "Chen et al., ICML 2020"),
    "eenets": Method("branch", "geometric", "Demir and Akbas, arXiv 2409.05336"),
    "jei-dnn": Method("gate", "geometric", "Chataoui et al., ICLR 2024"),
    "eenet": Method("eenet", "eenet", "Ilhan et al., WACV 2024"),
    "direct": Method("max-probability", "search", "this project"),
    "direct-learned": Method("eenet", "search", "this project, with EENet's score"),
}
"""Name -> what it is made of. Other pairs are named as in "certainty+search"."""

_KINDS: dict[str, type[Scorer]] = {
    kind.kind: kind
    for kind in (
        MaxProbability,
        Certainty,
        Vote,
        Patience,
        ConfidenceBranch,
        StoppingScorer,
        GateScorer,
        EENetScorer,
    )
}


def find_method(name: str) -> Method:
    """The method called `name`, or the pair "scorer+rule".

    Raises:
        PipelineError: Unknown; the message lists what there is.
    """
    if name in METHODS:
        return METHODS[name]
    scorer, plus, rule = name.partition("+")
    scorers = [*SCORER_FITS, *plugins("streamexit.scorers")]
    if plus and scorer in scorers and rule in SHARE_RULES:
        return Method(scorer, rule, "a combination")
    raise PipelineError(
        f"policy: {name!r} is unknown; known are {', '.join(METHODS)}, or a pair SCORER+RULE of "
        f"{', '.join(scorers)} and {', '.join(SHARE_RULES)}"
    )


def methods_for(*, branch: bool) -> list[str]:
    """The named methods that can be fitted, given whether the network has a confidence branch."""
    return [name for name, method in METHODS.items() if branch or method.scorer != "branch"]


def fit_scorer(
    name: str, calibration: Calibration, fractions: Sequence[float], seed: int
) -> Scorer:
    """Fit the scorer that `find_method` named.

    Raises:
        PluginError: A plugin is no scorer.
    """
    if name in SCORER_FITS:
        return SCORER_FITS[name](calibration, fractions, seed)
    return _plugin(name).fit(calibration, fractions, seed=seed)


def build_scorer(kind: str, config: dict[str, Any]) -> Scorer:
    """Build a scorer again, without its weights.

    Raises:
        PipelineError: Unknown kind.
        PluginError: A plugin is no scorer.
    """
    if kind not in _KINDS and kind not in plugins("streamexit.scorers"):
        known = ", ".join([*_KINDS, *plugins("streamexit.scorers")])
        raise PipelineError(
            f"policy.scorer: {kind!r} is unknown; known are {known}. One of a plugin has to be installed"
        )
    return _KINDS[kind](**config) if kind in _KINDS else _plugin(kind)(**config)


def _plugin(name: str) -> type[Scorer]:
    scorer = load_plugin("streamexit.scorers", name)
    if not (isinstance(scorer, type) and issubclass(scorer, Scorer)):
        raise PluginError(f"streamexit.scorers: {name!r} is no class derived from Scorer")
    if getattr(scorer, "kind", None) != name:
        raise PluginError(
            f"streamexit.scorers: the kind of {scorer.__name__} must be {name!r}, its entry point's name"
        )
    return scorer

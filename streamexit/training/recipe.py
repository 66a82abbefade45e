"""What `train.yaml` says: everything that a training run depends on."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from streamexit.models.pipeline import PreprocessingSection, Strict

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Data(Strict):
    """Which pictures, and how many of them are kept away from training."""

    dataset: str
    root: str
    calibration_size: Annotated[int, Field(gt=0)] | None = None
    """Training pictures that are set aside; none where the data set has a part for that."""


class Optimiser(Strict):
    """SGD with Nesterov momentum, or AdamW, under linear warm-up and cosine decay."""

    kind: Literal["sgd", "adamw"] = "sgd"
    epochs: Annotated[int, Field(gt=0)]
    batch_size: Annotated[int, Field(gt=0)] = 128
    peak_learning_rate: Positive = 0.2
    warmup_epochs: Annotated[float, Field(ge=0)] | None = None
    """Left out: five, or a fifth of the epochs where these are fewer than 25."""
    momentum: Fraction = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    average_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of the exponential moving average of the weights; the average is what ships. Left out: 0.999, or less where
    that would reach back over more than a tenth of the steps."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.warmup >= self.epochs:
            raise ValueError(
                f"warmup_epochs: {self.warmup:g} must be fewer than epochs, {self.epochs}; leave it out "
                "for a fifth of them"
            )
        if self.kind == "adamw" and "momentum" in self.model_fields_set:
            raise ValueError(
                f"momentum: {self.momentum:g} is not for kind: adamw, which has its own; leave it out"
            )
        return self

    @property
    def warmup(self) -> float:
        """Epochs."""
        return min(5.0, self.epochs / 5) if self.warmup_epochs is None else self.warmup_epochs

    def decay(self, steps: int) -> float:
        """Of the average, per step of so many."""
        return (
            max(0.0, min(0.999, 1 - 10 / steps))
            if self.average_decay is None
            else self.average_decay
        )


class JointLoss(Strict):
    """All exits learn from the labels at once; see `losses.multi_exit_loss`."""

    kind: Literal["joint"] = "joint"
    exit_weights: Literal["rising", "equal"] = "rising"
    class_weights: Literal["none", "rare"] = "none"
    """With "rare", classes count the more, the rarer they are; see `losses.class_weights`."""


class CostAwareLoss(Strict):
    """EENets' losses, for networks with confidence branches; see `losses.cost_aware_loss`."""

    kind: Literal["cost_aware"]
    version: Literal["v0", "v1", "v2"] = "v2"
    cost_weight: Annotated[float, Field(ge=0)] = 1.0
    v0_epochs: Annotated[int, Field(ge=0)] = 0
    """How many epochs of v0 come first (the paper's two-stage training)."""


class Distillation(Strict):
    """Early exits learn from the last one."""

    weight: Fraction = 0.5
    temperature: Positive = 3.0
    starts_at: Fraction = 0.25
    """Share of the epochs after which the last exit is worth learning from."""


class CropAndFlip(Strict):
    """Random shifts and mirror images; see `augment.crop_and_flip`."""

    kind: Literal["crop_and_flip"] = "crop_and_flip"
    padding: Annotated[int, Field(ge=0)] = 4


class Scenes(Strict):
    """Random scales, crops, mirror images and colours; see `augment.change_scene`."""

    kind: Literal["scenes"]
    scale: tuple[Positive, Positive] = (0.75, 1.75)
    """Smallest and largest; drawn so that each factor is as likely as its inverse."""
    colour: Fraction = 0.3
    """How far brightness, contrast and saturation may move, as a share."""


class Recipe(Strict):
    """A whole training run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    task: dict[str, Any]
    network: dict[str, Any]
    initial_weights: (
        Literal["none", "efficientnet-lite0-imagenet", "torchvision"]
        | Annotated[str, Field(pattern=r"\.(pt|pth|safetensors)$")]
    ) = "none"
    """What the network starts from; or a file with the weights of an uncut torchvision network, relative to
    where the command runs."""
    preprocessing: PreprocessingSection
    data: Data
    optimiser: Optimiser
    loss: Annotated[JointLoss | CostAwareLoss, Field(discriminator="kind")] = JointLoss()
    distillation: Distillation = Distillation()
    augmentation: CropAndFlip | Scenes = CropAndFlip()
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    seed: int = 0

    @model_validator(mode="after")
    def _loss_is_whole(self) -> Self:
        if isinstance(self.loss, CostAwareLoss) and "distillation" in self.model_fields_set:
            raise ValueError(
                "distillation: has no place in loss.kind: cost_aware; leave one of the two out"
            )
        return self

"""The hyperparameter search: ``job.hpo``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from orchestrator.recipe.base import StrictModel, Word

Scalar = bool | int | float | str
ParamName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class ParamBase(StrictModel):
    """What every parameter has."""

    when: dict[ParamName, tuple[Scalar, ...]] = {}
    """The parameter is used only when each named parameter has one of the listed values."""


class FloatParam(ParamBase):
    """A real number between low and high, both included."""

    kind: Literal["float"] = "float"
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _check_bounds(self) -> FloatParam:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be less than high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError("a log scale needs low > 0")
        return self


class IntParam(ParamBase):
    """A whole number between low and high, both included."""

    kind: Literal["int"] = "int"
    low: int
    high: int
    log: bool = False

    @model_validator(mode="after")
    def _check_bounds(self) -> IntParam:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be less than high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError("a log scale needs low > 0")
        return self


class CategoricalParam(ParamBase):
    """One of the listed values."""

    kind: Literal["categorical"] = "categorical"
    choices: Annotated[tuple[Scalar, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_choices(self) -> CategoricalParam:
        if len({(type(choice), choice) for choice in self.choices}) != len(self.choices):
            raise ValueError("choices must differ from each other")
        return self


Param = Annotated[FloatParam | IntParam | CategoricalParam, Field(discriminator="kind")]

REFERENCE_SPACE: dict[str, FloatParam | IntParam | CategoricalParam] = {
    "model_type": CategoricalParam(choices=("resnet18", "resnet34", "resnet50", "vgg16", "densenet121", "customcnn")),
    "learning_rate": FloatParam(low=1e-4, high=0.3, log=True),
    "batch_size": CategoricalParam(choices=(32, 64, 128, 256, 512)),
    "num_epochs": IntParam(low=5, high=100),
    "weight_decay": FloatParam(low=1e-6, high=1e-2, log=True),
    "dropout_rate": FloatParam(low=0.0, high=0.5),
    "hidden_size": CategoricalParam(choices=(32, 64, 128, 256), when={"model_type": ("customcnn",)}),
    "num_layers": IntParam(low=2, high=6, when={"model_type": ("customcnn",)}),
}


class TorchvisionData(StrictModel):
    """CIFAR-10 or CIFAR-100 through torchvision."""

    kind: Literal["cifar100", "cifar10"]
    dir: Word
    """Folder that holds, or gets, the archive."""
    download: bool = False
    """Fetch the archive if it is not there (its checksum is verified)."""


class FolderData(StrictModel):
    """Pictures in train/CLASS/ and test/CLASS/."""

    kind: Literal["folder"]
    dir: Word
    image_size: Annotated[int, Field(ge=8, le=512)] | None = None


class DigitsData(StrictModel):
    """scikit-learn's 1,797 scans of written digits; nothing to download."""

    kind: Literal["digits"] = "digits"


class SyntheticData(StrictModel):
    """Made-up pictures in CIFAR's on-disk format, for tests."""

    kind: Literal["synthetic"]
    dir: Word


Dataset = Annotated[TorchvisionData | FolderData | DigitsData | SyntheticData, Field(discriminator="kind")]


class LlmProposals(StrictModel):
    """How the model is asked."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    max_tokens: Annotated[int, Field(ge=32, le=8192)] = 512
    max_repairs: Annotated[int, Field(ge=0, le=5)] = 2
    """How often an invalid proposal is sent back with the error before the optimiser's suggestion is taken instead."""
    request_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 120.0
    """For a whole answer, in seconds. A server that is started again meanwhile is waited for as long, and asked."""


class Hpo(StrictModel):
    """A search over the trainer's hyperparameters, each trial a job of its own."""

    trials: Annotated[int, Field(ge=1, le=100_000)] = 10
    parallel_trials: Annotated[int, Field(ge=1, le=1000)] = 1
    job_arrays: bool = False
    """Submit trials that are proposed together as one job array; one that is proposed alone is a job as ever. Needs
    parallel_trials of 2 or more. On local it does not apply."""
    sampler: Literal["llm", "tpe", "random"] = "llm"
    seed: int = 0
    objective: Literal["val_accuracy", "best_val_accuracy", "val_auc"] = "best_val_accuracy"
    """What is maximised. Always on validation pictures, never on test pictures."""
    dataset: Dataset = DigitsData()
    space: Annotated[dict[ParamName, Param], Field(min_length=1)] = REFERENCE_SPACE
    fixed: dict[ParamName, Scalar] = {}
    """Further arguments of the trainer, the same in every trial."""
    llm: LlmProposals = LlmProposals()
    max_failed_trials: Annotated[int, Field(ge=0)] | None = None
    """End the search when more trials than this failed. If not given: half of the trials."""
    trial_timeout_s: Annotated[float, Field(ge=1, le=31_536_000)] | None = None
    """End a trial that has run for so long, in seconds; it has then failed with the cause "time limit". Waiting in the
    queue does not count. If not given: no limit of its own, so on local none at all, and on a cluster the wall time of
    its job (resources.trial.time). It holds for the measurement of test accuracy as well."""
    evaluate_winner: bool = True
    """Measure test accuracy once, on the best trial, after the search."""

    @model_validator(mode="after")
    def _check_arrays(self) -> Hpo:
        if self.job_arrays and self.parallel_trials == 1:
            raise ValueError("job_arrays needs parallel_trials of 2 or more: a single trial is no array")
        return self

    @model_validator(mode="after")
    def _check_names(self) -> Hpo:
        both = sorted(set(self.space) & set(self.fixed))
        if both:
            raise ValueError(f"both in space and in fixed: {', '.join(both)}")
        for name, param in self.space.items():
            for other, values in param.when.items():
                if other not in self.space:
                    raise ValueError(f"space.{name}.when names '{other}', which is not in the space")
                target = self.space[other]
                if isinstance(target, CategoricalParam) and not set(values) <= set(target.choices):
                    raise ValueError(f"space.{name}.when: {values} are not all choices of '{other}'")
        return self

"""What an experiment is: typed, from YAML, flags or keywords; nothing unknown, nothing silently ignored.

The resolved spec of a run (`ExperimentSpec.resolved`) has every default filled in, is saved with the run, and
is itself a file that ``layerlab run --config`` takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from layerlab.errors import SpecError, did_you_mean
from layerlab.strictyaml import parse_yaml, read_yaml

if TYPE_CHECKING:
    from layerlab.tier import Recipe

RANDOM = "random"
BUNDLED = ("digits", "breast_cancer", "diabetes", "wine", "iris", "linnerud")
TABLE_SUFFIXES = (".csv", ".parquet", ".pq")
DEFAULT_SIZES = {"n": 64, "d_in": 1000, "d_out": 10}
DEFAULT_STEPS = 500
DEFAULT_EPOCHS = 30
DEFAULT_BATCH_SIZE = 32


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-3 as text; a bool is a number to Python but not to a reader of the spec.
    if isinstance(value, bool):
        raise ValueError("should be a number")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError("should be a number") from None
    return value


def _list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Count = Annotated[int, Field(strict=True, ge=1, lt=2**63)]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_list)]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NetSpec(_Spec):
    """The network.

    Attributes:
        hidden: Number of hidden units.
        init: First weights, "normal" or "linear"; None: the tier's recipe.
        bias: Whether the layers have biases; None: the tier's recipe.
    """

    hidden: Count = 100
    init: Literal["normal", "linear"] | None = None
    bias: Annotated[bool, Field(strict=True)] | None = None


class DataSpec(_Spec):
    """The data.

    Attributes:
        name: "random", a bundled data set, or the path of a CSV or Parquet file.
        target: Columns to learn, for a file.
        n: Rows of the random problem.
        d_in: Inputs of the random problem.
        d_out: Outputs of the random problem.
        val_fraction: Share of the rows kept for validation; None: 0 for random data, 0.2 for real data.
    """

    name: Annotated[str, Field(min_length=1)] = RANDOM
    target: Names = ()
    n: Count | None = None
    d_in: Count | None = None
    d_out: Count | None = None
    val_fraction: Annotated[Number, Field(ge=0, lt=1)] | None = None

    @property
    def is_table(self) -> bool:
        """Whether the data is a file of the user's own."""
        return self.name != RANDOM and self.name not in BUNDLED

    @model_validator(mode="after")
    def _consistent(self) -> DataSpec:
        sizes = [key for key in ("n", "d_in", "d_out") if getattr(self, key) is not None]
        if sizes and self.name != RANDOM:
            raise ValueError(f"{sizes[0]} is a size of the random problem, and the data is '{self.name}'")
        if self.target and not self.is_table:
            raise ValueError(f"target names columns of a file, and the data is '{self.name}'")
        return self


class TrainSpec(_Spec):
    """The training.

    Attributes:
        steps: Number of updates; None: see ``epochs``.
        epochs: Number of passes through the training data. Steps and epochs exclude each other; left out
            both: 500 steps for random data, 30 epochs for real data.
        batch_size: Rows a step; None: all of them for random data, 32 for real data.
        lr: Learning rate; None: the tier's recipe.
        seed: What first weights, random data, split and order are drawn from.
        accelerator: Where to run; "gpu" is whichever of CUDA and MPS is there.
        precision: As Lightning names it.
        checkpoint_every: Steps between two checkpoints; None: one a minute.
    """

    steps: Count | None = None
    epochs: Count | None = None
    batch_size: Count | None = None
    lr: Annotated[Number, Field(gt=0)] | None = None
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    precision: Literal["32-true", "64-true", "bf16-mixed"] = "32-true"
    checkpoint_every: Count | None = None

    @model_validator(mode="after")
    def _one_length(self) -> TrainSpec:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs exclude each other: give one")
        return self


class ExperimentSpec(_Spec):
    """One experiment: some tiers on the same data.

    Attributes:
        plugins: Names of tiers; "all" stands for the seven built-in ones.
        net: The network.
        data: The data.
        train: The training.
        experiment: Name of the MLflow experiment.
        name: Name of the MLflow run; None: the tier's name. Of several tiers each adds its own.
        export: Whether to export the trained network as ONNX.
    """

    plugins: Annotated[Names, Field(min_length=1)] = ("custom-module",)
    net: NetSpec = NetSpec()
    data: DataSpec = DataSpec()
    train: TrainSpec = TrainSpec()
    experiment: Annotated[str, Field(min_length=1, max_length=200)] = "layerlab"
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    export: Annotated[bool, Field(strict=True)] = True

    @model_validator(mode="after")
    def _printable(self) -> ExperimentSpec:
        for key in ("experiment", "name"):
            if not (getattr(self, key) or "").isprintable():
                raise ValueError(f"{key} has a control character")
        if self.experiment == "Default":
            # Its artifacts may live where only an MLflow server can write.
            raise ValueError("experiment 'Default' belongs to MLflow: choose another name")
        return self

    def resolved(self, plugin: str, recipe: Recipe, *, run_name: str, n_train: int) -> ExperimentSpec:
        """The spec of one run, with every default filled in.

        Args:
            plugin: The tier.
            recipe: The tier's own defaults.
            run_name: The name of the run.
            n_train: Rows of the training data.
        """
        real = self.data.name != RANDOM
        sizes = {} if real else {key: getattr(self.data, key) or size for key, size in DEFAULT_SIZES.items()}
        batch_size = self.train.batch_size
        if batch_size is None:
            batch_size = min(DEFAULT_BATCH_SIZE, n_train) if real else n_train
        length = {"steps": self.train.steps, "epochs": self.train.epochs}
        if not any(length.values()):
            length = {"epochs": DEFAULT_EPOCHS} if real else {"steps": DEFAULT_STEPS}
        return self.model_copy(
            update={
                "plugins": (plugin,),
                "name": run_name,
                "net": NetSpec(
                    hidden=self.net.hidden,
                    init=self.net.init or recipe.init,
                    bias=recipe.bias if self.net.bias is None else self.net.bias,
                ),
                "data": self.data.model_copy(update={**sizes, "val_fraction": self.val_fraction}),
                "train": self.train.model_copy(
                    update={**length, "batch_size": batch_size, "lr": self.train.lr or recipe.lr}
                ),
            }
        )

    @property
    def val_fraction(self) -> float:
        """The share of the rows kept for validation."""
        given = self.data.val_fraction
        return given if given is not None else (0.0 if self.data.name == RANDOM else 0.2)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without what was left out."""
        plain = self.model_dump(mode="json", exclude_none=True)
        if not self.data.target:
            del plain["data"]["target"]
        return plain

    def as_yaml(self) -> str:
        """The spec as a file that ``layerlab run --config`` takes."""
        import yaml

        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)

    def flat(self) -> dict[str, str]:
        """Dotted keys and text values, for MLflow's parameters."""
        flat: dict[str, str] = {}

        def walk(prefix: str, value: Any) -> None:
            if isinstance(value, Mapping):
                for key, inner in value.items():
                    walk(f"{prefix}.{key}" if prefix else str(key), inner)
            else:
                flat[prefix] = value if isinstance(value, str) else json.dumps(value)

        walk("", self.as_dict())
        return flat


# The flags of `layerlab run` and the keywords of `layerlab.run`, and where in the spec each belongs.
FLAGS = {
    "plugin": "plugins",
    "steps": "train.steps",
    "epochs": "train.epochs",
    "lr": "train.lr",
    "batch_size": "train.batch_size",
    "seed": "train.seed",
    "accelerator": "train.accelerator",
    "precision": "train.precision",
    "checkpoint_every": "train.checkpoint_every",
    "hidden": "net.hidden",
    "init": "net.init",
    "bias": "net.bias",
    "data": "data.name",
    "target": "data.target",
    "n": "data.n",
    "d_in": "data.d_in",
    "d_out": "data.d_out",
    "val_fraction": "data.val_fraction",
    "experiment": "experiment",
    "name": "name",
    "export": "export",
}


def build_spec(
    *,
    config: str | Path | None = None,
    settings: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> ExperimentSpec:
    """Puts an experiment together: a file, then ``key=value`` settings over it, then flags over both.

    Args:
        config: A YAML file.
        settings: Dotted assignments such as ``"train.lr=0.01"``; values are read as YAML.
        flags: Values by the names in `FLAGS`; None means not given.

    Raises:
        SpecError: A file that cannot be read, an unknown key, a wrong value.
    """
    flags = {flag: value for flag, value in (flags or {}).items() if value is not None}
    if {"steps", "epochs"} <= set(flags):
        raise SpecError("steps and epochs exclude each other", hint="give --steps or --epochs")
    tree: dict[str, Any] = {} if config is None else read_yaml(Path(config))
    settings = list(settings)
    if {"train.steps", "train.epochs"} <= {setting.partition("=")[0] for setting in settings}:
        raise SpecError("--set train.steps and train.epochs exclude each other", hint="give one of them")
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise SpecError(f"--set {setting}: not an assignment", hint="write it as --set train.lr=0.01")
        _assign(tree, key, parse_yaml(text, f"--set {key}"), f"--set {key}")
    for flag, value in flags.items():
        if flag not in FLAGS:
            raise SpecError(f"unknown keyword '{flag}'", hint=did_you_mean(flag, FLAGS))
        _assign(tree, FLAGS[flag], list(value) if isinstance(value, (list, tuple)) else value, flag)
    return parse_spec(tree, str(config) if config else None)


def parse_spec(tree: Any, source: str | None) -> ExperimentSpec:
    """Plain values as a spec.

    Args:
        tree: What was read from a file, a record or flags.
        source: Where it is from, for complaints; None: it needs no saying.

    Raises:
        SpecError: An unknown key, a wrong value.
    """
    try:
        return ExperimentSpec.model_validate(tree)
    except ValidationError as error:
        raise _spec_error(error, source) from None


# The two ways of saying how long: a later layer that says one takes the other back.
_RIVALS = {"train.steps": "epochs", "train.epochs": "steps"}


def _assign(tree: dict[str, Any], dotted: str, value: Any, source: str) -> None:
    *parents, leaf = dotted.split(".")
    node = tree
    for parent in parents:
        inner = node.get(parent)
        if inner is None:
            inner = node[parent] = {}
        if not isinstance(inner, dict):
            raise SpecError(f"{source}: '{parent}' is not a mapping, so it has no '{leaf}'")
        node = inner
    node[leaf] = value
    if dotted in _RIVALS:
        node.pop(_RIVALS[dotted], None)


def _known_keys(location: tuple[Any, ...]) -> Iterable[str]:
    model: type[BaseModel] = ExperimentSpec
    for part in location:
        field = model.model_fields.get(str(part))
        if (
            field is None
            or not isinstance(field.annotation, type)
            or not issubclass(field.annotation, BaseModel)
        ):
            return ()
        model = field.annotation
    return model.model_fields


def _spec_error(error: ValidationError, source: str | None) -> SpecError:
    problems = error.errors()
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"])
    prefix = f"{source}: " if source else ""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    flag = next((f"--{name.replace('_', '-')}" for name, key in FLAGS.items() if key == where), None)
    if first["type"] == "extra_forbidden":
        *parents, key = first["loc"]
        return SpecError(
            f"{prefix}unknown key '{where}'{more}", hint=did_you_mean(str(key), _known_keys(tuple(parents)))
        )
    say = _WORDS.get(first["type"])
    message = say(first.get("ctx", {})) if say else first["msg"]
    given = first.get("input")
    shown = f", got {_short(given)}" if isinstance(given, (str, int, float, bool)) else ""
    subject = f"{where}: " if where else ""
    return SpecError(f"{prefix}{subject}{message}{shown}{more}", hint=f"set it with {flag}" if flag else None)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python does not write out whole numbers of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


_WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than_equal": lambda ctx: f"should be at least {ctx['ge']}",
    "greater_than": lambda ctx: f"should be greater than {ctx['gt']:g}",
    "less_than": lambda ctx: f"should be less than {ctx['lt']:g}",
    "finite_number": lambda _: "should be a finite number",
    "value_error": lambda ctx: str(ctx["error"]),
    "literal_error": lambda ctx: f"should be {ctx['expected']}",
    "int_type": lambda _: "should be a whole number",
    "bool_type": lambda _: "should be true or false",
    "string_type": lambda _: "should be text",
    "string_too_short": lambda _: "should not be empty",
    "string_too_long": lambda ctx: f"should have at most {ctx['max_length']} characters",
    "too_short": lambda _: "should not be empty",
    "tuple_type": lambda _: "should be a list of names",
    "invalid_key": lambda _: "is not text, and every key is",
    "model_type": lambda _: "should be a mapping of keys to values",
    "model_attributes_type": lambda _: "should be a mapping of keys to values",
}

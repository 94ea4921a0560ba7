"""What a model in the repository is: its tensors, how it is batched, which steps it has."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from modelspec.dtypes import element_type
from modelspec.endpoint_schema import EndpointSchema
from modelspec.golden import Golden
from modelspec.names import require_model_name


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor. ``dims`` leave out the batch axis; -1 is an axis of any length. ``flat``: the
    graph has only the batch axis where Triton wants a second one, and ``dims`` are (1,). An
    ``optional`` input may be left out of a request."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    flat: bool = False
    optional: bool = False

    def __post_init__(self) -> None:
        element_type(self.dtype)
        if not self.name:
            raise ValueError("a tensor needs a name")
        if self.flat and self.dims != (1,):
            raise ValueError(
                f"tensor {self.name}: a flat tensor has the dims (1,), not {self.dims}"
            )
        if any(dim != -1 and dim < 1 for dim in self.dims):
            raise ValueError(f"tensor {self.name}: dims {self.dims} must be positive or -1")


@dataclass(frozen=True)
class Batching:
    """Triton's dynamic batcher.

    There is no queue policy here, on purpose: with any of its fields set (a size, a timeout, an
    override) Triton 2.51 wakes up late, by up to 0.5 s, and serves 50 to 1,600 requests/s where it
    serves 8,000 without (ARCHITECTURE.md has the figures). The gateway instead limits the requests
    in flight to a replica and enforces every request's deadline.
    """

    # On 2 cores a 2 ms delay halves light-load throughput: one batch takes every request and the
    # other instance idles.
    queue_delay_us: int = 0


@dataclass(frozen=True)
class Instances:
    """How many copies of the model run, and where (``KIND_CPU``, ``KIND_GPU``, ``KIND_AUTO``)."""

    count: int = 1
    kind: str = "KIND_CPU"


@dataclass(frozen=True)
class StepSpec:
    """One step of an ensemble: which model and version, and how its tensors are wired.

    ``version`` is the pin: an ensemble never runs "the newest version" (the pin is the alias).
    ``inputs`` and ``outputs`` map the step's tensor names to the ensemble's.
    """

    model: str
    version: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]

    def __post_init__(self) -> None:
        if self.version < 1:
            raise ValueError(f"step {self.model}: pin a version of 1 or more, not {self.version}")


@dataclass(frozen=True)
class ModelSpec:
    """One folder of the model repository.

    ``backend`` is ``ensemble`` exactly when there are ``steps``. A model with an
    ``endpoint_schema`` is public; ``internal`` ones are engines and steps that the gateway hides.
    ``step`` names the module of ``ensembles.steps`` that is copied into the version folder as
    ``model.py``. ``lengths`` are what its axes of any length (-1) are padded to, ascending:
    TensorRT plans for each. A ``decoupled`` model sends any number of responses to a request.
    A ``deterministic`` one gives equal requests equal responses, and remembers none of them.
    """

    name: str
    backend: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    instances: Instances = field(default_factory=Instances)
    batching: Batching | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    versions: tuple[int, ...] = ()
    steps: tuple[StepSpec, ...] = ()
    endpoint_schema: EndpointSchema | None = None
    golden: Golden | None = None
    internal: bool = False
    step: str = ""
    lengths: tuple[int, ...] = ()
    decoupled: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        require_model_name(self.name)
        if (self.backend == "ensemble") != bool(self.steps):
            raise ValueError(f"{self.name}: an ensemble has steps, and only an ensemble has them")
        if self.max_batch_size < 0:
            raise ValueError(f"{self.name}: max_batch_size {self.max_batch_size} is negative")
        if self.batching and self.max_batch_size == 0:
            raise ValueError(f"{self.name}: dynamic batching needs max_batch_size above 0")
        if self.endpoint_schema and not self.golden:
            raise ValueError(f"{self.name}: a public model needs a golden sample for its probes")


@dataclass(frozen=True)
class Pipeline:
    """A public model and its members: the models that its steps run."""

    members: tuple[ModelSpec, ...]
    public: ModelSpec

    @property
    def name(self) -> str:
        return self.public.name

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        """The members first, the public model last."""
        return (*self.members, self.public)

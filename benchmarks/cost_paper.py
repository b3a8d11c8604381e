"""The cost model on paper: Qwen3-8B on 8, 64 and 512 GPUs. Nothing here was measured; :data:`ASSUMED` is all of it.

The form is that of :mod:`benchmarks.cost_fit`, with published peaks in place of fitted coefficients:

    sampling = longest x (step overhead + weights / HBM) + keys and values read by the rows of a GPU / HBM
    scoring  = gather of the weights + teacher positions of the busiest GPU x 2N / FLOP/s
    update   = gather + student positions x (8N, with LoRA 6N) / FLOP/s + reduction + optimizer
    sync     = weights, or adapters, to the engine; results = what the processes tell each other about rollouts
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

PUBLISHED = "as published"


@dataclass(frozen=True, slots=True)
class Gpu:
    """Published peaks of one GPU; bytes per second in one direction."""

    name: str
    flops: float
    """bf16, dense."""
    memory: float
    """Bytes per second."""
    nvlink: float = 450e9
    infiniband: float = 50e9
    """One 400 Gb/s port per GPU."""


H100 = Gpu("H100 SXM", 989e12, 3.35e12)
H200 = Gpu("H200 SXM", 989e12, 4.8e12)


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Everything that is neither published nor in the recipe."""

    scoring_efficiency: float = 0.45
    """Of the peak FLOP/s, passes without gradient."""
    training_efficiency: float = 0.40
    """Of the peak FLOP/s, counting recomputed activations as work."""
    memory_efficiency: float = 0.70
    """Of the peak HBM bandwidth, in decoding."""
    network_efficiency: float = 0.70
    """Of NVLink's and InfiniBand's."""
    decoding_overhead: float = 0.002
    """Seconds per decoding step besides reading: scheduling, sampling, kernel starts (vLLM with CUDA graphs)."""
    eager_overhead: float = 0.030
    """The same in our own loop over a transformers model, whose kernels are started one by one."""
    mean_share: float = 0.5
    """Mean length of a response, as a share of the largest; the longest has all of it."""
    question: int = 200
    """Tokens of a prompt."""
    bytes_per_token: int = 18
    """Of a pickled rollout: id, log-probability, text."""
    host_network: float = 1e9
    """Bytes per second of gloo's exchanges between hosts."""
    node: int = 8
    """GPUs of a node; one replica of the trained state is divided over them."""


ASSUMED = Assumptions()


@dataclass(frozen=True, slots=True)
class Model:
    """Qwen3-8B, from its configuration."""

    parameters: float = 8.19e9
    layers: int = 36
    cached: int = 2 * 36 * 8 * 128 * 2
    """Bytes of keys and values of a position, bf16."""
    adapters: float = 174e6
    """Parameters of LoRA r 64 on all linear layers."""


QWEN3_8B = Model()


@dataclass(frozen=True, slots=True)
class Setup:
    """A published recipe, and how it is run."""

    name: str
    questions: int
    siblings: int
    longest: int
    lora: bool
    trained_share: float
    """Rows with signal; ASSUMED for SC-SDPO: a third of the questions is all right or all wrong."""
    teacher_prompt: int
    """Mean tokens, question included; ASSUMED."""
    prompts_per_question: float
    """Distinct privileged prompts, which siblings share."""
    split: bool = False
    """parallel.groups: split."""
    ahead: bool = False
    """Half of the GPUs are servers, which draw the next batch while the others train."""
    eager: bool = False
    """rollouts.engine: transformers."""
    tensor: int = 1
    """GPUs that one server divides the model over."""

    @property
    def rows(self) -> int:
        """Responses of a step."""
        return self.questions * self.siblings


SC_SDPO = Setup("SC-SDPO, 32 x 8, 2048", 32, 8, 2048, False, 2 / 3, 1300, 2.0)
PAINT = Setup("PAINT, 32 x 1, 1024", 32, 1, 1024, True, 1.0, 900, 1.0)


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a step, by part."""

    sampling: float
    scoring: float
    update: float
    sync: float
    results: float
    drawing: int
    """GPUs that have something to draw."""
    training: int
    """GPUs that have rows to train on."""
    overlapped: bool

    @property
    def step(self) -> float:
        """Seconds; sampling ahead runs beside the rest."""
        rest = self.scoring + self.update + self.sync + self.results
        return max(self.sampling, rest) if self.overlapped else self.sampling + rest

    @property
    def bound(self) -> str:
        """The largest part."""
        parts = {name: getattr(self, name) for name in ("sampling", "scoring", "update", "sync", "results")}
        return max(parts, key=lambda name: parts[name])


def cost(setup: Setup, gpu: Gpu, gpus: int, model: Model = QWEN3_8B, assumed: Assumptions = ASSUMED) -> Cost:
    """Return the cost of one step."""
    servers = max(1, gpus // 2 // setup.tensor) * setup.tensor if setup.ahead else gpus
    trainers = gpus - servers if setup.ahead else gpus
    mean = setup.longest * assumed.mean_share
    sampling, drawing = _sampling(setup, gpu, servers, mean, model, assumed)
    scored = setup.rows * setup.trained_share
    longest_row = assumed.question + setup.longest
    training = min(trainers, round(scored))
    # Rows are the smallest that is divided: no process has less than the longest of them.
    student = max(scored * (assumed.question + mean) / trainers, longest_row)
    prompts = setup.questions * setup.trained_share * setup.prompts_per_question * setup.teacher_prompt
    teacher = max((scored * mean + prompts) / trainers, setup.longest + setup.teacher_prompt)
    gather = _gather(gpu, trainers, 2 * model.parameters, assumed)
    per_position = (6 if setup.lora else 8) * model.parameters  # checkpointing: the forward pass is made twice
    return Cost(
        sampling,
        gather + teacher * 2 * model.parameters / (gpu.flops * assumed.scoring_efficiency),
        gather
        + student * per_position / (gpu.flops * assumed.training_efficiency)
        + _after_backward(setup, gpu, trainers, model, assumed),
        _sync(setup, gpu, model, assumed),
        _results(setup, gpus if not setup.ahead else trainers, mean, assumed),
        drawing,
        training,
        setup.ahead,
    )


def _sampling(setup: Setup, gpu: Gpu, gpus: int, mean: float, model: Model, assumed: Assumptions) -> tuple[float, int]:
    engines = max(1, gpus // setup.tensor)
    units = setup.rows if setup.split or setup.ahead else setup.questions  # servers get single responses
    busy = min(engines, units)
    per_unit = setup.rows // units
    rows = -(-units // busy) * per_unit
    bandwidth = gpu.memory * assumed.memory_efficiency * setup.tensor
    overhead = assumed.eager_overhead if setup.eager else assumed.decoding_overhead
    if setup.tensor > 1:
        overhead += 2 * model.layers * 10e-6  # two all-reduces per layer, 10 microseconds each
    computed = 2 * model.parameters * rows / (gpu.flops * assumed.scoring_efficiency * setup.tensor)
    step = overhead + max(2 * model.parameters / bandwidth, computed)
    context = assumed.question + mean / 2
    cache = rows * mean * context * model.cached / bandwidth
    return setup.longest * step + cache, busy * setup.tensor


def _gather(gpu: Gpu, gpus: int, size: float, assumed: Assumptions) -> float:
    """Return the seconds in which the parts of a node become whole."""
    shards = min(gpus, assumed.node)
    return size * (shards - 1) / shards / (gpu.nvlink * assumed.network_efficiency)


def _after_backward(setup: Setup, gpu: Gpu, gpus: int, model: Model, assumed: Assumptions) -> float:
    """Return the seconds of reducing float32 gradients, in a node and across nodes, and of the optimizer."""
    trained = model.adapters if setup.lora else model.parameters
    shards = min(gpus, assumed.node)
    replicas = max(1, gpus // assumed.node)
    across = 2 * 4 * trained / shards * (replicas - 1) / replicas / (gpu.infiniband * assumed.network_efficiency)
    moved = 32 * trained / shards / (gpu.memory * assumed.memory_efficiency)  # weight, gradient, two moments, teacher
    return _gather(gpu, gpus, 4 * trained, assumed) + across + moved


def _sync(setup: Setup, gpu: Gpu, model: Model, assumed: Assumptions) -> float:
    """Return the seconds in which the engine gets new weights: none if it draws from the policy itself."""
    if setup.eager:
        return _gather(gpu, assumed.node, 2 * model.parameters, assumed)
    size = 4 * model.adapters if setup.lora else 2 * model.parameters
    between = gpu.infiniband if setup.ahead else gpu.nvlink
    return size / (between * assumed.network_efficiency)


def _results(setup: Setup, processes: int, mean: float, assumed: Assumptions) -> float:
    """Return the seconds in which all processes learn of all rollouts.

    all_gather_object pads what each sends to the longest: on servers the main process has all of it, and every process
    receives as much again from each of the others.
    """
    whole = setup.rows * mean * assumed.bytes_per_token
    units = setup.rows if setup.split else setup.questions
    largest = whole if setup.ahead else whole / units * -(-units // min(processes, units))
    return processes * largest / assumed.host_network


def variants(setup: Setup) -> Iterator[tuple[str, Setup]]:
    """Yield the published set-up, and what can be changed."""
    yield PUBLISHED, setup
    yield "our own decoding loop (transformers)", replace(setup, eager=True)
    if setup.siblings > 1:
        yield "parallel.groups=split", replace(setup, split=True)
    yield "8 times the questions per step", replace(setup, questions=8 * setup.questions)
    yield "rollouts.ahead=1, half of the GPUs servers", replace(setup, ahead=True)
    yield "the same, servers of 8 GPUs", replace(setup, ahead=True, tensor=8)


def enough(setup: Setup, gpu: Gpu, most: int = 4096) -> int:
    """Return the fewest GPUs, of powers of two, with which a step takes at most 10% more than with any number."""
    fewest = 2 * setup.tensor if setup.tensor > 1 else 8
    counts = [count for count in (1 << power for power in range(3, 13)) if fewest <= count <= most]
    steps = {count: cost(setup, gpu, count).step for count in counts}
    return next(count for count in counts if steps[count] <= 1.1 * min(steps.values()))


def paper(gpus: tuple[int, ...] = (8, 64, 512)) -> list[dict[str, Any]]:
    """Return every set-up, variant, kind and number of GPUs with its cost."""
    return [
        {"setup": setup.name, "variant": label, "gpu": gpu.name, "gpus": count, "rows": varied.rows}
        | {"step": found.step, "bound": found.bound, "enough": enough(varied, gpu), **asdict(found)}
        for setup in (SC_SDPO, PAINT)
        for label, varied in variants(setup)
        for gpu in (H100, H200)
        for count in gpus
        if not (varied.tensor > 1 and count < 2 * varied.tensor)
        for found in [cost(varied, gpu, count)]
    ]

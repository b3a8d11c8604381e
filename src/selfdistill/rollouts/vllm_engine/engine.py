"""The engine: vLLM's ``LLM``, built when it is first needed, on the device of the policy.

In: prompt ids and seeds. Out: completions as they finish. vLLM computes in a process of its own that it starts for
itself; here is only its front end. On a GPU it sleeps between rounds: its weights wait in main memory, its cache is
given back, and the trainer has the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from selfdistill.errors import DataError, RecipeError, RolloutError
from selfdistill.models.loading import Policy
from selfdistill.rollouts.config import RolloutsConfig
from selfdistill.rollouts.needs import Needs, has_logprobs
from selfdistill.rollouts.request_groups import Group, grouped
from selfdistill.rollouts.sampler import Completion, Engine, Place, Sampling, SyncReport
from selfdistill.rollouts.sync import WeightSync, make_sync
from selfdistill.rollouts.sync.export import base_folder
from selfdistill.rollouts.vllm_arguments import engine_arguments, weight_transfer
from selfdistill.rollouts.vllm_engine.control import LlmControl
from selfdistill.rollouts.vllm_engine.drawing import EngineRequest, first_line, run_requests
from selfdistill.rollouts.vllm_install import REMEDY

REPORT_EVERY = 16
"""Tokens of a response between two reports: one report per token costs time in the front end."""
SETTINGS = {
    # CUDA cannot be used in a forked process once the trainer has initialised it.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # Trainer and engine take turns: no core has to be kept free.
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
"""Environment of vLLM's own processes."""


class VllmEngine(Engine):
    """vLLM in this process.

    Args:
        policy: whose weights it draws from.
        config: the recipe's ``rollouts`` section.
        needs: what the recipe asks of an engine.
        folder: for what has to be written.

    Raises:
        RolloutError: vLLM is not installed in this environment.
        RecipeError: vLLM cannot do what the recipe asks for.
    """

    def __init__(self, policy: Policy, config: RolloutsConfig, needs: Needs, folder: Path) -> None:
        cpu = policy.device.type == "cpu"
        transfer = weight_transfer(config, needs, cpu=cpu, in_process=True)
        self._arguments = engine_arguments(policy.config, config, needs, cpu=cpu, transfer=transfer)
        self._arguments.setdefault("use_tqdm_on_load", False)
        if not cpu:
            self._arguments["enable_sleep_mode"] = True
        self._policy, self._needs, self._folder = policy, needs, folder
        self._sleeps = not cpu
        self._asleep = False
        self._llm: Any = None
        self._control: LlmControl | None = None
        self._synced = False
        with _vllm_environment():
            _require_vllm()
        if transfer == "ipc":
            # Handles of GPU memory travel pickled, from here to vLLM's own processes.
            os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        self._sync: WeightSync = make_sync(policy, config, folder, in_process=True)

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        logprobs: bool = True,
        on_tokens: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[Place, Completion]]:
        """Yield one completion per seed; see :meth:`selfdistill.rollouts.sampler.Sampler.stream`.

        Raises:
            DataError: an empty prompt.
            RecipeError: a prompt and ``max_new_tokens`` together exceed the engine's context.
            RolloutError: vLLM fails, or was given no weights yet.
        """
        if not self._synced:
            raise RolloutError("vLLM in this process has none of the policy's weights yet; sync comes before sampling")
        control = self._awake()
        try:
            self._check(prompts, sampling)
            wanted = logprobs and has_logprobs(sampling, str(self._arguments["logprobs_mode"]))
            adapter = control.adapter(self._sync.served.adapter)
            groups = grouped(seeds, int(self._arguments["max_num_seqs"]))
            requests = [
                EngineRequest(prompts[group.prompt], self._params(group, sampling, wanted), adapter) for group in groups
            ]
            for index, sibling, response in run_requests(self._llm.llm_engine, requests, on_tokens):
                group = groups[index]
                kept = None if response.logprobs is None else tuple(response.logprobs)
                assert response.finish_reason is not None
                completion = Completion(tuple(response.ids), kept, response.finish_reason)
                yield (group.prompt, group.first + sibling), completion
        finally:
            self._sleep()

    def sync(self, version: str) -> SyncReport:
        """Take over the policy's present weights; awake afterwards, because sampling comes next.

        Raises:
            RolloutError: vLLM could not be given the weights, or does not prove to have them.
        """
        self._synced = False
        self._sync.export(version)
        report = self._sync.push(self._awake())
        self._synced = True
        return report

    def close(self) -> None:
        """End vLLM's processes and remove what was written."""
        if self._control is not None:
            self._control.closed = True  # its adapters go with it
        self._sync.close()
        llm, self._llm, self._control, self._synced = self._llm, None, None, False
        if llm is not None:
            with suppress(Exception):  # it may be gone already
                llm.llm_engine.engine_core.shutdown()

    def _params(self, group: Group, sampling: Sampling, logprobs: bool) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            n=group.count,
            seed=group.seed,
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            # Only the ids that the policy's chat format knows end a response, as everywhere.
            ignore_eos=True,
            stop_token_ids=[*self._policy.chat.end_of_turn_ids, *sampling.stop_token_ids],
            logprobs=0 if logprobs else None,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            stream_interval=REPORT_EVERY,
        )

    def _check(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        longest, context = max(map(len, prompts), default=0), int(self._llm.model_config.max_model_len)
        if any(len(prompt) == 0 for prompt in prompts):
            raise DataError("a prompt has no tokens; a question needs at least one message with content")
        if longest + sampling.max_new_tokens > context:
            raise RecipeError(
                f"a prompt of {longest} tokens and max_new_tokens {sampling.max_new_tokens} exceed vLLM's context of "
                f"{context} tokens; lower max_new_tokens, drop questions with long prompts, or raise "
                "rollouts.vllm.options.max_model_len if it is set"
            )

    def _awake(self) -> LlmControl:
        """Build the engine, or wake it."""
        if self._control is None:
            self._llm = self._build()
            self._control = LlmControl(self._llm)
        elif self._asleep:
            self._llm.wake_up()
            self._asleep = False
        return self._control

    def _sleep(self) -> None:
        """Give the device to the trainer."""
        if self._sleeps and self._llm is not None and not self._asleep:
            self._llm.sleep(level=1)
            self._asleep = True

    def _build(self) -> Any:
        source = base_folder(self._policy, self._folder / "base")
        with _vllm_environment():
            from vllm import LLM

            try:
                return LLM(model=str(source), **self._arguments)
            except Exception as error:
                raise RolloutError(
                    f"vLLM could not be started with {source} ({first_line(error)}); read what it printed above, and "
                    "check rollouts.vllm.memory and rollouts.vllm.options"
                ) from error


def _require_vllm() -> None:
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise RolloutError(
            f"rollouts.engine is vllm, which cannot be imported here ({first_line(error)}); {REMEDY}, or set "
            "rollouts.engine=vllm_server"
        ) from error


@contextmanager
def _vllm_environment() -> Iterator[None]:
    """Set vLLM's environment inside the block, and take back what it sets itself (it preloads libraries)."""
    before = dict(os.environ)
    os.environ.update(SETTINGS)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})

"""config -> DeepSpeed engine; the one home of the DeepSpeed dict, and of its tensors in and out.

Parameters and optimizer moments leave and enter an engine as whole fp32 tensors keyed by parameter name, whatever the
ZeRO stage and the number of ranks: so a state that 2 ranks saved can be resumed by 1 or 4, and holds no pickles.
bf16 is torch's autocast over fp32 parameters (DeepSpeed's own bf16 mode would round the initial weights).
"""

import ctypes
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from mistral.config import Experiment, Training
from mistral.model import decay_groups
from mistral.ranks import TIMEOUT, Ranks, require_device, store_of

MOMENTS = ("exp_avg", "exp_avg_sq")


def prepare_process(training: Training, threads: int) -> None:
    """Make this process compute the same bits each time, where the config asks for it.

    Must run before CUDA and NCCL start.
    """
    torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        _keep_memory()
    if not training.deterministic:
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("NCCL_ALGO", "Ring")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def _keep_memory() -> None:
    """Let glibc keep freed memory instead of mapping it anew in each step (mallopt(3)); saves a third of the time."""
    trim_threshold, mmap_max = -1, -4
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)


def connect(
    ranks: Ranks, training: Training, needs_gpu: bool, stop: Callable[[], bool] = lambda: False
) -> torch.device:
    """Join the process group; returns the device of this rank.

    Args:
        ranks: which of them this process is.
        training: its precision.
        needs_gpu: whether the cluster file asks for GPUs.
        stop: whether a signal asked to leave; looked at while the ranks of a Slurm step wait for each other.

    Raises:
        EnvironmentProblem: the cluster file asks for GPUs and there are none, or too few, or fp16 is asked of a CPU.
        LostRanks: another rank does not appear.
        Stopped: `stop` said so.
    """
    require_device(training.precision, needs_gpu)
    on_gpu = torch.cuda.is_available()
    index = ranks.device_index(torch.cuda.device_count()) if on_gpu else ranks.local_rank
    os.environ["LOCAL_RANK"] = str(index)  # where DeepSpeed looks for its device
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if on_gpu else "cpu")
    if on_gpu:
        torch.cuda.set_device(index)
    if not dist.is_initialized():
        backend = "nccl" if on_gpu else "gloo"
        dist.init_process_group(
            backend, rank=ranks.rank, world_size=ranks.world_size, timeout=TIMEOUT, **store_of(ranks, stop)
        )
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def disconnect() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def deepspeed_config(training: Training, world_size: int) -> dict[str, Any]:
    """The DeepSpeed dict of a training section.

    Raises:
        ConfigError: the ranks do not divide the global batch.
    """
    config: dict[str, Any] = {
        "train_batch_size": training.global_batch_size,
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": training.accumulation_steps(world_size),
        # Without ZeRO, DeepSpeed clips but does not tell the norm: `step` below does both.
        "gradient_clipping": training.max_grad_norm if training.zero_stage else 0.0,
        "zero_optimization": {"stage": training.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }
    if training.precision == "bf16":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    if training.precision == "fp16":
        config["fp16"] = {"enabled": True, "initial_scale_power": 16}
    return config


def build_engine(network: Any, experiment: Experiment, world_size: int) -> Any:
    """A DeepSpeed engine around a network, with AdamW; nothing is compiled."""
    import deepspeed

    # Left to itself DeepSpeed calls a C++ compiler at each start to find out what it could build, and builds it.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    training = experiment.training
    optimizer = torch.optim.AdamW(
        decay_groups(network, training.weight_decay),
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        fused=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside DeepSpeed
        engine, *_ = deepspeed.initialize(
            model=network,
            optimizer=optimizer,
            config=deepspeed_config(training, world_size),
        )
    return engine


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    """The learning rate of the next optimizer step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def step(engine: Any, training: Training) -> float:
    """One micro step's `engine.step()`; returns the global gradient norm before clipping (of the last full step)."""
    if training.zero_stage or not engine.is_gradient_accumulation_boundary():
        engine.step()
        return float(engine.get_global_grad_norm() or 0.0)
    norm = torch.nn.utils.clip_grad_norm_(engine.module.parameters(), training.max_grad_norm)
    engine.step()
    return float(norm)


# --- tensors out ------------------------------------------------------------------------------------------------


def gather_weights(engine: Any, keep: bool) -> dict[str, torch.Tensor]:
    """Whole fp32 parameters by name, copied to host memory.

    All ranks must call it, from the main thread. Ranks that do not `keep` the tensors get an empty dict.
    """
    return dict(_gather(engine, None, keep))


def gather_moments(engine: Any, keep: bool) -> dict[str, torch.Tensor]:
    """Whole fp32 optimizer moments as `exp_avg/<name>` and `exp_avg_sq/<name>`; like `gather_weights`."""
    return {f"{key}/{name}": tensor for key in MOMENTS for name, tensor in _gather(engine, key, keep)}


def _gather(engine: Any, key: str | None, keep: bool) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in engine.module.named_parameters():
        tensor = _whole(engine, parameter, key)
        if keep:
            yield name, tensor.detach().to(device="cpu", dtype=torch.float32, copy=True).contiguous()


def _whole(engine: Any, parameter: Any, key: str | None) -> torch.Tensor:
    """One fp32 tensor put together from the parts of all ranks; `key` names a moment, None the parameter itself."""
    stage = engine.zero_optimization_stage()
    if key is None and stage < 3 and parameter.dtype == torch.float32:
        replicated: torch.Tensor = parameter.data
        return replicated
    shape = getattr(parameter, "ds_shape", parameter.shape)
    whole = torch.zeros(shape.numel(), dtype=torch.float32, device=engine.device)
    if (found := _part(engine, parameter, key)) is not None:
        part, start = found
        whole.narrow(0, start, part.numel()).copy_(part)
    if stage > 0 and dist.get_world_size() > 1:
        dist.all_reduce(whole)
    return whole.view(shape)


def _part(engine: Any, parameter: Any, key: str | None) -> tuple[torch.Tensor, int] | None:
    """This rank's part of a tensor and where it begins in the whole one; None if other ranks hold it.

    The part is a view, (n,) fp32, into what the optimizer steps. DeepSpeed's own accessors do not serve: after a first
    step they know the moments of the first parameter group only.
    """
    stage, zero, state = engine.zero_optimization_stage(), engine.optimizer, _inner(engine).state
    if stage == 0:
        return state[parameter][key].view(-1), 0
    if stage == 3:
        padded, _ = zero._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=key)
        start = padded.numel() * dist.get_rank()
        length = min(padded.numel(), parameter.ds_numel - start)
        return (padded.narrow(0, 0, length), start) if length > 0 else None
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
    here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
    return (flat if key is None else state[flat][key]).narrow(0, here.start, here.numel), there.start


def optimizer_steps(engine: Any) -> int:
    """How many updates the optimizer has made (fewer than the run's steps where fp16 skipped some)."""
    states = [state for state in _inner(engine).state.values() if "step" in state]
    return int(states[0]["step"].item()) if states else 0


def loss_scale_state(engine: Any) -> dict[str, float]:
    """The numbers of fp16's dynamic loss scale; empty in other precisions."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if not engine.fp16_enabled() or scaler is None:
        return {}
    return {name: value for name, value in vars(scaler).items() if isinstance(value, int | float)}


# --- tensors in -------------------------------------------------------------------------------------------------


def restore(engine: Any, tensor: Callable[[str], torch.Tensor], updates: int, loss_scale: dict[str, float]) -> None:
    """Give a fresh engine the optimizer moments of a saved state; the parameters were in the network already.

    Args:
        engine: built around a network that holds the saved parameters.
        tensor: `exp_avg/<name>`, `exp_avg_sq/<name>` or `param/<name>` -> whole fp32 tensor.
        updates: what `optimizer_steps` gave.
        loss_scale: what `loss_scale_state` gave.
    """
    if engine.fp16_enabled():  # the engine rounded the parameters before it made its fp32 copies
        set_masters(engine, lambda name: tensor(f"param/{name}"))
        vars(engine.optimizer.loss_scaler).update(loss_scale)
    if updates == 0:
        return
    for flat in _flat_parameters(engine):
        state = {key: torch.zeros_like(flat) for key in MOMENTS}
        state["step"] = torch.tensor(float(updates), dtype=torch.float32, device=flat.device)
        _inner(engine).state[flat] = state
    for name, parameter in engine.module.named_parameters():
        for key in MOMENTS:
            _write(engine, parameter, key, tensor(f"{key}/{name}"))


def set_masters(engine: Any, weight: Callable[[str], torch.Tensor]) -> None:
    """Replace the fp32 copies that fp16 keeps beside its parameters."""
    for name, parameter in engine.module.named_parameters():
        _write(engine, parameter, None, weight(name))


def _inner(engine: Any) -> torch.optim.Optimizer:
    """torch's optimizer, which ZeRO wraps."""
    inner: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return inner


def _flat_parameters(engine: Any) -> list[torch.Tensor]:
    """The tensors that the optimizer steps on this rank."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        return list(engine.module.parameters())
    if stage < 3:
        return list(engine.optimizer.single_partition_of_fp32_groups)
    return list(engine.optimizer.fp32_partitioned_groups_flat)


def _write(engine: Any, parameter: Any, key: str | None, whole: torch.Tensor) -> None:
    """Copy this rank's part of a whole tensor into what the optimizer steps."""
    if (found := _part(engine, parameter, key)) is not None:
        part, start = found
        part.data.copy_(whole.flatten().narrow(0, start, part.numel()))

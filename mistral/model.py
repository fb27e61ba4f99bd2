"""model section -> GPT-2 of transformers, with initial weights that are a function of (seed, parameter name)."""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from mistral.config import Model
from mistral.randomness import torch_seed

INITIALIZER_RANGE = 0.02  # Radford et al. 2019


def gpt2_config(model: Model, vocabulary_size: int, end_of_text_id: int) -> GPT2Config:
    """transformers' config of a model section."""
    return GPT2Config(
        vocab_size=vocabulary_size,
        n_positions=model.n_positions,
        n_embd=model.n_embd,
        n_layer=model.n_layer,
        n_head=model.n_head,
        resid_pdrop=model.resid_pdrop,
        embd_pdrop=model.embd_pdrop,
        attn_pdrop=model.attn_pdrop,
        initializer_range=INITIALIZER_RANGE,
        scale_attn_by_inverse_layer_idx=model.scale_attn_by_inverse_layer_idx,
        reorder_and_upcast_attn=model.reorder_and_upcast_attn,
        bos_token_id=end_of_text_id,
        eos_token_id=end_of_text_id,
        use_cache=False,
        architectures=["GPT2LMHeadModel"],
        dtype="float32",
    )


def build_model(model: Model, config: GPT2Config, seed: int) -> GPT2LMHeadModel:
    """A GPT-2 with its initial weights, fp32, on the CPU.

    Args:
        model: shape and dropout.
        config: what `gpt2_config` gave for it.
        seed: the run's init seed.
    """
    network = GPT2LMHeadModel._from_config(config, attn_implementation=model.attn_implementation)
    network.loss_type = "ForCausalLM"  # transformers does not derive it from GPT-2's class name, and says so each time
    if model.gradient_checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(initial_weight(seed, name, parameter.shape, model.n_layer))
    return network


def empty_in_fp32(network: Any, device: torch.device) -> GPT2LMHeadModel:
    """A network of the same shape as another one, in fp32, whose weights are still to be filled in."""
    with device:
        empty = GPT2LMHeadModel._from_config(
            network.config, dtype=torch.float32, attn_implementation=network.config._attn_implementation
        )
    empty.loss_type = network.loss_type
    return empty


def load_model(folder: Path, model: Model) -> GPT2LMHeadModel:
    """The network of a checkpoint's weights, fp32, on the CPU; the files were checked against their record before."""
    logging.disable_progress_bar()  # progress goes through the reporter
    network: GPT2LMHeadModel = GPT2LMHeadModel.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32, attn_implementation=model.attn_implementation
    )
    network.loss_type = "ForCausalLM"
    return network


def initial_weight(seed: int, name: str, shape: torch.Size, n_layer: int) -> torch.Tensor:
    """The initial value of one parameter: the same whatever else the model holds.

    Normal with standard deviation 0.02; the projections that end a residual branch are scaled by 1/sqrt(2 n_layer);
    biases are 0, the gains of layer norms 1 (Radford et al. 2019, section 2.3).
    """
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if ".ln_" in name:
        return torch.ones(shape)
    residual = name.endswith("c_proj.weight")
    scale = INITIALIZER_RANGE / math.sqrt(2 * n_layer) if residual else INITIALIZER_RANGE
    generator = torch.Generator().manual_seed(torch_seed(seed, "init", name))
    return torch.empty(shape).normal_(0.0, scale, generator=generator)


def decay_groups(network: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: weight decay on matrices (embeddings included), none on biases and gains."""
    parameters = [parameter for _, parameter in network.named_parameters()]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def flops_per_token(model: Model, parameters: int, seq_len: int) -> float:
    """Floating-point operations per trained token: 6 N + 12 layers x width x context.

    Source: Chowdhery et al. 2022 (PaLM), appendix B.
    """
    return 6.0 * parameters + 12.0 * model.n_layer * model.n_embd * seq_len

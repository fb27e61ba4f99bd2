"""run, state -> a loop: model, engine and batches at one step, and how to make the next step.

Everything a step needs is a function of (seed, step): its sequences, its learning rate, its dropout. So a run that was
killed anywhere goes on from its last state and gives the same bits as one that was not.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from mistral import engine
from mistral.batches import Batches
from mistral.checkpoints import SavedState
from mistral.model import build_model, flops_per_token, gpt2_config
from mistral.randomness import seed_dropout
from mistral.run import Run
from mistral.schedule import learning_rate
from mistral.shards import TokenStream
from mistral.windows import WindowSet, open_sets

# Dense bf16 peak of one accelerator in FLOP/s, from the vendors' data sheets.
PEAK_FLOPS = {"V100": 125e12, "A100": 312e12, "H100": 989e12, "H200": 989e12}


@dataclass
class Loop:
    """The changing state of a run: the engine and the number of optimizer steps done."""

    run: Run
    engine: Any
    batches: Batches
    validation: TokenStream | None
    evaluation_sets: list[WindowSet]
    config_json: str
    step: int
    started: float = field(default_factory=time.monotonic)
    data_seconds: float = 0.0
    logged_step: int = 0

    def advance(self) -> tuple[float, float]:
        """One optimizer step; returns the mean loss of this rank's micro batches and the global gradient norm."""
        training, ranks = self.run.experiment.training, self.run.ranks
        micro_steps = training.accumulation_steps(ranks.world_size)
        engine.set_learning_rate(self.engine, learning_rate(training, self.step))
        total, norm = torch.zeros((), dtype=torch.float64, device=self.engine.device), 0.0
        for micro_step in range(micro_steps):
            input_ids = self._read(micro_step)  # (micro_batch, seq_len) int64
            seed_dropout(self.run.experiment.seeds[self.run.seed].dropout, self.step, micro_step, ranks.rank)
            loss = self.engine(input_ids=input_ids, labels=input_ids).loss
            self.engine.backward(loss)
            norm = engine.step(self.engine, training)
            total += loss.detach()
        self.step += 1
        return float(total) / micro_steps, norm

    def _read(self, micro_step: int) -> torch.Tensor:
        start = time.monotonic()
        rows = torch.from_numpy(self.batches.micro_batch(self.step, micro_step)).to(self.engine.device)
        self.data_seconds += time.monotonic() - start
        return rows

    def tokens(self) -> int:
        """Tokens read by all ranks since step 0."""
        experiment = self.run.experiment
        return self.step * experiment.training.global_batch_size * experiment.seq_len

    def timing(self) -> dict[str, float | None]:
        """Seconds since the last logged step, and what follows from them."""
        now = time.monotonic()
        experiment, seconds = self.run.experiment, max(now - self.started, 1e-9)
        steps = self.step - self.logged_step
        rate = steps * experiment.training.global_batch_size * experiment.seq_len / seconds
        timing = {
            "seconds": seconds,
            "tokens_per_second": rate,
            "data_wait_seconds": self.data_seconds,
            "mfu": self._utilization(rate),
        }
        self.started, self.data_seconds, self.logged_step = now, 0.0, self.step
        return timing

    def _utilization(self, tokens_per_second: float) -> float | None:
        if self.engine.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self.engine.device)
        peak = next((peak for model, peak in PEAK_FLOPS.items() if model in name), None)
        if peak is None:
            return None
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in self.engine.module.parameters())
        flops = flops_per_token(self.run.experiment.model, parameters, self.run.experiment.seq_len)
        return tokens_per_second * flops / (peak * self.run.ranks.world_size)


def build_loop(run: Run, state: SavedState | None) -> Loop:
    """Model, engine and batches, at the step of a state or at step 0."""
    experiment, seeds = run.experiment, run.experiment.seeds[run.seed]
    facts, sets = run.dataset.facts, open_sets(experiment, run.manifest, run.dataset)
    config = gpt2_config(experiment.model, facts["vocabulary_size"], facts["end_of_text_id"])
    network = build_model(experiment.model, config, seeds.init)
    if state:
        network.load_state_dict(state.parameters() | {"lm_head.weight": state.tensor("param/transformer.wte.weight")})
    network.to(run.device)
    weights = {name: p.detach() for name, p in network.named_parameters()} if not state else {}
    deepspeed_engine = engine.build_engine(network, experiment, run.ranks.world_size)
    if state:
        engine.restore(deepspeed_engine, state.tensor, state.updates, state.loss_scale)
    elif deepspeed_engine.fp16_enabled():
        engine.set_masters(deepspeed_engine, weights.__getitem__)
    batches = Batches(run.streams["train"], seeds.data, experiment.training, run.ranks.rank, run.ranks.world_size)
    validation = run.streams.get("validation")
    step = state.step if state else 0
    loop = Loop(run, deepspeed_engine, batches, validation, sets, config.to_json_string(use_diff=True), step)
    loop.logged_step = step
    return loop

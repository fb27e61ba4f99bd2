"""The validation loss is the mean over target tokens that a plain computation gives, on any number of ranks."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from attempts import SERVER

from mistral.config import load_experiment
from mistral.evaluation import evaluate, probe_losses, probe_sequences
from mistral.model import build_model, gpt2_config
from mistral.ranks import Ranks

SEQ_LEN, VOCABULARY = 16, 50
ROWS = np.random.default_rng(3).integers(0, VOCABULARY, size=(7, SEQ_LEN), dtype=np.int64)


class Rows:
    """A split that lies in memory."""

    def __len__(self) -> int:
        return len(ROWS)

    def read(self, numbers: np.ndarray) -> np.ndarray:
        return ROWS[numbers]


def network() -> torch.nn.Module:
    """A small model with dropout, as an engine holds it in training."""
    overrides = ("n_embd=32", f"n_positions={SEQ_LEN}", "n_layer=2", "resid_pdrop=0.5", "attn_pdrop=0.5")
    settings = tuple(f"model.{override}" for override in overrides)
    model = load_experiment("quickstart", (*settings, f"training.seq_len={SEQ_LEN}")).model
    return build_model(model, gpt2_config(model, VOCABULARY, 0), 21).train()


def plain_loss(count: int) -> float:
    """Minus the logarithm of each target's probability, one token at a time, in float64."""
    model, losses = network().eval().double(), []
    with torch.no_grad():
        for row in ROWS[:count]:
            logits = model(input_ids=torch.from_numpy(row)[None]).logits[0]  # (SEQ_LEN, VOCABULARY)
            for position in range(SEQ_LEN - 1):
                scores = logits[position]
                losses.append(float(torch.logsumexp(scores, 0) - scores[row[position + 1]]))
    return math.fsum(losses) / len(losses)


def rank_main(rank: int, world_size: int, folder: Path, batch_size: int, limit: int | None) -> None:
    """Be one rank, and write down what it measures."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    model = network()
    result = evaluate(model, Rows(), batch_size, limit, Ranks(rank=rank, local_rank=rank, world_size=world_size))
    assert model.training
    dist.destroy_process_group()
    (folder / str(rank)).write_text(f"{result['loss']!r} {result['perplexity']!r}")


@pytest.mark.parametrize(
    ("ranks", "batch_size", "limit"),
    [(1, 1, None), (1, 4, None), (1, 2, 5), (1, 2, 100), (2, 2, None), (2, 3, 4), (3, 2, 1)],
)
def test_the_loss_is_that_of_a_plain_computation(tmp_path, ranks, batch_size, limit):
    """7 sequences: the last batches are partial, and some ranks have no sequence left."""
    arguments = [(rank, ranks, tmp_path, batch_size, limit) for rank in range(ranks)]
    # Not forked from here: threads of a process group that another test made would be missing.
    processes = [SERVER.Process(target=rank_main, args=one) for one in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * ranks
    [(loss, perplexity)] = {tuple(map(float, (tmp_path / str(rank)).read_text().split())) for rank in range(ranks)}
    assert loss == pytest.approx(plain_loss(limit or len(ROWS)), rel=1e-5)
    assert perplexity == math.exp(loss)


def test_the_probe_is_the_first_sequences_without_dropout():
    sequences = probe_sequences(Rows())
    assert sequences == ROWS[:4].tolist()
    model = network()
    first = probe_losses(model, sequences)
    assert model.training
    assert probe_losses(model, sequences) == first
    assert first[0] == pytest.approx(plain_loss(4), rel=1e-5)

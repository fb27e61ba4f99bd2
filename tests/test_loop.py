"""A step is a function of (seed, step): what was done before, and in how many pieces, does not matter."""

import pytest
import torch
from safetensors.torch import save_file

from mistral import engine
from mistral.checkpoints import SavedState
from mistral.loop import Loop, build_loop
from mistral.randomness import seed_dropout
from mistral.run import Run
from mistral.schedule import learning_rate

NO_DROPOUT = ("model.resid_pdrop=0", "model.embd_pdrop=0", "model.attn_pdrop=0")


def state_of(loop: Loop, run: Run) -> SavedState:
    """The state of a loop, on the disk but not recorded."""
    folder = run.manifest.workspace.state(run.name, loop.step)
    folder.mkdir(parents=True)
    tensors = {f"param/{name}": value for name, value in weights(loop).items()}
    save_file(tensors | engine.gather_moments(loop.engine, keep=True), folder / "state.safetensors")
    return SavedState(folder, loop.step, engine.optimizer_steps(loop.engine), {})


def weights(loop: Loop) -> dict[str, torch.Tensor]:
    return engine.gather_weights(loop.engine, keep=True)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_loop_built_from_a_state_makes_the_same_next_steps(make_run, stage):
    run = make_run(f"training.zero_stage={stage}")
    first = build_loop(run, None)
    for _ in range(3):
        first.advance()
    second = build_loop(run, state_of(first, run))
    assert second.step == 3
    torch.manual_seed(99)  # what the global generator held before does not matter
    for _ in range(2):
        assert second.advance() == first.advance()
    assert same(weights(first), weights(second))


def test_the_loss_of_a_step_is_the_mean_of_its_micro_batches_with_its_own_dropout(make_run):
    run = make_run()
    loop = build_loop(run, None)
    losses = []
    for micro_step in range(4):
        input_ids = torch.from_numpy(loop.batches.micro_batch(0, micro_step))
        seed_dropout(21, 0, micro_step, 0)
        losses.append(float(loop.engine(input_ids=input_ids, labels=input_ids).loss.detach()))
    assert len(set(losses)) == 4
    loss, norm = loop.advance()
    assert loss == sum(losses) / 4
    assert norm > 0


def test_dropout_seeds_and_init_seeds_change_only_their_own_stream(make_run):
    same_seed, dropout, order = (
        make_run(f"seeds.alias={{init: 21, data: {data}, dropout: {dropout}}}")
        for data, dropout in ((21, 21), (21, 7), (7, 21))
    )
    plain = build_loop(make_run(), None)
    loops = [build_loop(run, None) for run in (same_seed, dropout, order)]
    assert all(same(weights(plain), weights(loop)) for loop in loops)
    reads = [loop.batches.micro_batch(0, 0).tolist() for loop in loops]
    assert reads[0] == reads[1] != reads[2]
    losses = [loop.advance()[0] for loop in (plain, *loops)]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_accumulation_and_one_large_batch_give_close_results(make_run):
    found = []
    for micro_batch_size in (8, 2):
        loop = build_loop(make_run(*NO_DROPOUT, f"training.micro_batch_size={micro_batch_size}"), None)
        results = [loop.advance() for _ in range(4)]
        found.append((results, weights(loop)))
    (one, one_weights), (four, four_weights) = found
    for (a_loss, a_norm), (b_loss, b_norm) in zip(one, four, strict=True):
        assert b_loss == pytest.approx(a_loss, rel=1e-5)
        assert b_norm == pytest.approx(a_norm, rel=1e-4)
    for name, value in one_weights.items():
        assert torch.allclose(value, four_weights[name], rtol=0, atol=1e-4), name


def test_each_step_uses_the_rate_of_the_schedule(make_run):
    run = make_run()
    loop = build_loop(run, None)
    for step in range(3):
        loop.advance()
        rates = {group["lr"] for group in loop.engine.optimizer.param_groups}
        assert rates == {learning_rate(run.experiment.training, step)}


def test_tokens_and_timing_count_since_the_last_log(make_run):
    run = make_run()
    loop = build_loop(run, None)
    assert loop.tokens() == 0
    for _ in range(2):
        loop.advance()
    assert loop.tokens() == 2 * 8 * 32
    timing = loop.timing()
    assert timing["tokens_per_second"] == pytest.approx(2 * 8 * 32 / timing["seconds"])
    assert 0 < timing["data_wait_seconds"] < timing["seconds"]
    assert timing["mfu"] is None, "there is no data sheet for a CPU"
    loop.advance()
    assert loop.timing()["tokens_per_second"] > 0
    assert (loop.data_seconds, loop.logged_step) == (0.0, 3)

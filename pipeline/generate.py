"""exported checkpoint and prompt -> text."""

from pathlib import Path

from mistral.errors import CheckpointError, DataError, ManifestError
from mistral.randomness import torch_seed
from mistral.workspace import step_name, step_number
from pipeline.context import Context
from pipeline.steps import nearest


def newest_export(context: Context, seed: str, step: int | None) -> Path:
    """The folder of an exported step, its files checked; the last one by number unless a step is given.

    Raises:
        CheckpointError: a file of it changed.
        ManifestError: nothing is exported, or not that step; lists what is. Or its record is damaged.
    """
    run = context.experiment.run_name(seed)
    steps = sorted(step_number(name) for name in context.manifest.names("export", (run,)))
    if not steps or (step is not None and step not in steps):
        near = steps[-10:] if step is None else nearest(steps, step)
        trained = step is None or step_name(step) in context.manifest.names("train", (run, "weights"))
        give = f"  give --step {' or '.join(map(str, near[-2:]))}" if near and not trained else ""
        raise ManifestError(
            f"{run}: found exported steps {', '.join(map(str, near)) or 'none'}, expected "
            f"{'at least one' if step is None else step}\n"
            + (give or f"  run: {context.experiment.command('export', context.workspace.root)}")
        )
    folder = context.workspace.export(run, steps[-1] if step is None else step)
    record = context.manifest.get("export", (run, folder.name), "run export")
    if problems := context.manifest.damage(record):
        raise CheckpointError(
            f"{run}: found {'; '.join(problems)}, as it was not exported; expected the recorded bytes\n"
            f"  remove {context.manifest.path('export', record.key)}, then run: "
            f"{context.experiment.command('export', context.workspace.root)}"
        )
    return folder


def generate(folder: Path, prompt: str, tokens: int, temperature: float, seed: int) -> str:
    """Continue a prompt by sampling from an exported model, on the CPU.

    Args:
        folder: a Hugging Face model folder.
        prompt: text; the end-of-text token stands before it, as before each document in training.
        tokens: how many tokens are added at most.
        temperature: of the softmax; must be above 0.
        seed: names the random stream, so that the same call gives the same text.

    Raises:
        CheckpointError: the folder holds no model that transformers can load.
        DataError: the model was trained on token ids, and there is no tokenizer.
    """
    if not (folder / "tokenizer.json").exists():
        raise DataError(
            f"{folder}: found no tokenizer, as the corpus was token ids, expected one to read the prompt with\n"
            "  load the model by transformers and give it ids"
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # progress goes through the reporter
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    except Exception as error:  # tokenizers raises plain Exception for a broken tokenizer.json
        raise CheckpointError(
            f"{folder}: found no model that transformers can load ({str(error)[:300]}), expected an exported one; run "
            "verify, and export it again"
        ) from error
    start = [model.config.eos_token_id, *tokenizer(prompt)["input_ids"]]
    ids = torch.tensor([start])  # (1, tokens) int64
    generator = torch.Generator().manual_seed(torch_seed(seed, "sample"))
    with torch.no_grad():
        for _ in range(tokens):
            logits = model(ids[:, -model.config.n_positions :], use_cache=False).logits[:, -1]  # (1, vocabulary)
            probabilities = torch.softmax(logits / temperature, dim=-1)
            ids = torch.cat([ids, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
            if ids[0, -1] == model.config.eos_token_id:
                break
    text: str = tokenizer.decode(ids[0, 1:], skip_special_tokens=True)
    return text

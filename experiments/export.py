"""Exports a policy: `python -m experiments.export --workdir=runs/qempo_kl`."""

import pathlib

import jax

from experiments import build
from experiments import cli
from experiments.compile import dry_run as dry_runs
from experiments.configured import policy as build_policy
from experiments.run import model_card
from experiments.run import workdir as workdirs
from qempo_jax.errors import InputError
from qempo_jax.models import export
from qempo_jax.models import lora_peft
from qempo_jax.models import verify_export
from qempo_jax.paths import expand_path


def main(config, workdir: pathlib.Path, dry_run: bool, checkpoint: str | int | None = None) -> None:
  """Writes a checkpoint of the workdir, or the config's own model where nothing was trained there."""
  build.check_one_method(config)
  settings = config.export
  if settings.adapters and not config.lora.rank:
    raise InputError("export.adapters=True writes adapters alone, and this run has none (lora.rank=0): leave it out")
  target = expand_path(settings.target) if settings.target else workdir / "export"
  export.check_target(target)
  if dry_run:
    policy = build_policy.policy(config)
    size = sum(leaf.size for leaf in jax.tree.leaves(policy.params)) * jax.numpy.dtype(settings.dtype).itemsize
    print(dry_runs.model_line(policy))
    if settings.adapters:
      print(f"Its adapters alone would be exported to {target}")
      return
    print(f"The model would be exported to {target}: {size / dry_runs.GIB:.2f} GiB of {settings.dtype}")
    return
  workdir = workdirs.open_workdir(workdir, workdirs.of_the_run(config, workdir, ("export", "evaluation")), lock=False)
  policy = build_policy.policy(config)
  if settings.adapters:
    adapters, what = build.trained_params(config, workdir, policy, checkpoint, merged=False)
    with export.new_folder(target) as folder:
      lora_peft.write(folder, adapters, policy.config, base_model=policy.source)
    print(f"Exported the adapters of {what} to {target}, for peft.PeftModel.from_pretrained(model, {str(target)!r})")
    return
  params, what = build.trained_params(config, workdir, policy, checkpoint)
  export.export_model(
    target,
    params,
    policy.config,
    tokenizer=policy.tokenizer,
    source=policy.source,
    dtype=settings.dtype,
    max_shard_bytes=int(settings.max_shard_gb * 10**9),
  )
  print(f"Exported {what} to {target} as {settings.dtype}")
  model_card.write(target, config, workdir, what)
  found = verify_export.verify_export(
    target, params, policy.config, dtype=settings.dtype, tolerance=settings.tolerance, stop_tokens=policy.stop_tokens
  )
  print(found.message)


if __name__ == "__main__":
  cli.run(
    main,
    description="Exports a trained policy, or a model as it is, to a folder for PyTorch transformers.",
    example="python -m experiments.export --workdir=runs/qempo_kl",
    of_run=("export",),
  )

"""Our side's steps, through the same functions as `experiments.train`."""

import time

import jax
import numpy as np

from configs import base
from experiments import build
from experiments import plan as plans
from experiments.batches import groups
from experiments.batches import pairs
from experiments.benchmarks.bench import batches
from experiments.benchmarks.bench import serving
from experiments.benchmarks.bench import settings
from experiments.configured import policy as build_policy
from qempo_jax import packing
from qempo_jax import scoring
from qempo_jax.models import conversion
from qempo_jax.sampling import sampler
from qempo_jax.train import offline_step
from qempo_jax.train import online_step
from qempo_jax.types import PromptBatch

NEVER = (-1,)  # no token ends a response, so that all have the full length


def prepare(spec: dict):
  """Returns the step of the case's kind."""
  return {"offline": _offline, "online": _online, "decode": _decode}[spec["kind"]](spec)


def _config(spec):
  config = base.get_config()
  config.model.source = f"{spec['inputs']}/policy"
  config.compute.dtype = spec["dtype"]
  config.compute.remat = spec["options"].get("remat", config.compute.remat)
  config.optimizer.learning_rate = settings.LEARNING_RATE
  config.optimizer.b1, config.optimizer.b2 = settings.B1, settings.B2
  config.optimizer.weight_decay, config.optimizer.max_grad_norm = settings.WEIGHT_DECAY, settings.MAX_GRAD_NORM
  config.constraints.quality.start, config.constraints.kl.start = 1.0, settings.KL_WEIGHT
  config.sampling.max_response_length = spec["shape"]["response"]
  return config


def _reference(spec, policy):
  return conversion.load(f"{spec['inputs']}/reference", mesh=policy.mesh)[1]


def _offline(spec):
  config, shape = _config(spec), spec["shape"]
  config.offline.loss, config.offline.beta = "dpo", settings.DPO_BETA
  config.offline.pairs_per_step = shape["pairs"]
  policy = build_policy.policy(config)
  plan = build.plan(config, policy)
  state, shardings = plans.initial(plan.first_state, policy.params, policy.mesh)
  reference = _reference(spec, policy)
  policy = policy._replace(params=reference)
  step = pairs.compile_step(plan._replace(policy=policy), shardings)
  chosen = {"temperature": 1.0, "chunk_size": config.compute.chunk_size, "config": policy.config}
  score = jax.jit(lambda params, batch: offline_step.score(params, batch, **chosen).log_prob.sum(-1))
  prompts, responses = batches.pairs(spec["inputs"], shape)
  packed = packing.pack_groups(prompts.tolist(), responses.tolist(), bucket=config.compute.bucket)
  mask = np.ones(responses.shape, bool)
  held = [state]
  del state

  def one():
    ref_log_probs = score(reference, offline_step.PairBatch(packed, mask, None))
    new, metrics = step(held.pop(), offline_step.PairBatch(packed, mask, ref_log_probs), None)
    held.append(jax.block_until_ready(new))
    return {"check": float(metrics["loss"])}

  return one


def _sampled(spec, policy):
  """Returns (prompts [P, L], a function of (params, rng) that samples groups)."""
  shape = spec["shape"]
  prompts = batches.prompts(spec["inputs"], shape)
  batch = PromptBatch(prompts, np.ones(prompts.shape, bool))
  sizes = {"group_size": shape["group"], "max_length": shape["response"], "temperature": 1.0, "stop_tokens": NEVER}
  return prompts, lambda params, rng: sampler.sample_groups(params, policy.config, batch, rng, **sizes)


def _given_loss(spec, policy, params, prompts) -> float:
  """The check: the policy-gradient loss of given responses, -mean_i A_i sum_t log pi_it."""
  given = batches.given_groups(spec["inputs"], spec["shape"])
  packed = packing.pack_groups(prompts.tolist(), given.tolist(), bucket=64)
  group, length = given.shape[1:]
  stats = jax.jit(
    lambda params: scoring.score_groups(
      params, policy.config, packed, group_size=group, max_length=length, temperature=1.0, chunk_size=256
    ).log_prob.sum(-1)
  )(params)
  return -float(np.mean(batches.advantages(spec["shape"]) * np.ravel(stats)))


def _online(spec):
  config, shape = _config(spec), spec["shape"]
  config.data.prompts_per_step, config.sampling.group_size = shape["prompts"], shape["group"]
  config.method = f"grpo(beta={settings.KL_WEIGHT})"
  policy = build_policy.policy(config)
  plan = build.plan(config, policy)
  state, shardings = plans.initial(plan.first_state, policy.params, policy.mesh)
  step = groups.compile_step(plan, shardings)
  prompts, sample = _sampled(spec, policy)
  check = _given_loss(spec, policy, policy.params, prompts)
  held = [state]
  del state

  def one():
    started, state = time.perf_counter(), held.pop()
    rollout = jax.device_get(sample(state.params, jax.random.fold_in(state.rng, state.step)))
    sampled = time.perf_counter() - started
    rewards = np.array([[batches.distinct_share(row) for row in group] for group in rollout.tokens], np.float32)
    packed = packing.pack_groups(prompts.tolist(), rollout.tokens.tolist(), bucket=config.compute.bucket)
    fresh = np.ones(rewards.shape, bool)
    new, _ = step(
      state, policy.params, online_step.GroupBatch(packed, rollout.mask, {"reward": rewards}, fresh, ~fresh)
    )
    held.append(jax.block_until_ready(new))
    return {"check": check, "sampling_seconds": sampled, "tokens": int(rollout.mask.sum())}

  return one


def _decode(spec):
  policy = build_policy.policy(_config(spec))
  prompts, sample = _sampled(spec, policy)
  check = _given_loss(spec, policy, policy.params, prompts)
  keys = iter(range(10**6))

  def one():
    rollout = jax.block_until_ready(sample(policy.params, jax.random.key(next(keys))))
    return {"check": check, "tokens": int(rollout.mask.sum())}

  return one


if __name__ == "__main__":
  serving.serve(prepare)

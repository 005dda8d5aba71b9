"""QEMPO-KL as a policy loss of google-tunix's GRPO learner, multipliers learned: `python -m experiments.interop.tunix_online`."""

import flax
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tunix.rl import common
from tunix.rl import function_registry
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner

from experiments.interop import tunix_model
from experiments.interop import tunix_rollout
import qempo_jax as qj

GROUP, STEPS = 256, 1200
function_registry.register_advantage_estimator("rewards")(lambda rewards, num_generations: rewards)


@flax.struct.dataclass(frozen=True)
class Example(grpo_learner.TrainExample):
  """A batch of Tunix's that carries the multipliers of its step."""

  multipliers: dict[str, jax.Array] | None = None


@function_registry.register_policy_loss_fn("qempo_kl")
def qempo_kl(model, train_example, algo_config, pad_id, eos_id, **_):
  """The library's loss of each group, at the multipliers of the batch; the bounds do not enter it."""
  e, method = train_example, qj.methods.qempo_kl()
  tokens = e.prompt_ids, e.completion_ids, pad_id, eos_id
  log_p = common.compute_per_token_logps(*nnx.split(model), *tokens, stop_gradient=False) * e.completion_mask
  groups = tunix_model.as_groups(e, algo_config.num_generations)
  log_p, no_entropies = log_p.reshape(groups.mask.shape), jnp.zeros(groups.mask.shape)  # this method reads none
  prices = qj.methods.Prices(method.entropy_weight, e.multipliers)
  given = prices, tunix_model.constraints(None), method
  one = lambda stats, group: qj.group_loss(stats, group, *given, replay_weight=0.0)
  kl = jnp.mean(jnp.sum(log_p, -1) - groups.ref_log_probs)
  return jnp.mean(jax.vmap(one)(qj.token_stats.TokenStats(log_p, no_entropies), groups)), {"kl": kl, "pg_clipfrac": 0.0}


class Learner(grpo_learner.GRPOLearner):
  """A GRPO learner with multipliers: they travel with each batch and follow what it measured."""

  def __init__(self, *args, max_kl, **kwargs):
    super().__init__(*args, **kwargs)
    self.constraints, self.history, self.dual_params = tunix_model.constraints(max_kl), [], tunix_model.init_duals()
    self.controller = qj.duals.pi_controller(proportional_gain=2.0, integral_gain=0.05, smoothing=0.9)
    self.dual_state = self.controller.init(self.dual_params)

  def _generate_and_compute_advantage(self, training_input, mode=rl_cluster.Mode.TRAIN):
    e = super()._generate_and_compute_advantage(training_input, mode)
    example = Example(**vars(e), multipliers=qj.duals.multipliers(self.dual_params))
    log_p = self.rl_cluster.get_old_per_token_logps(e.prompt_ids, e.completion_ids)
    groups, log_probs = tunix_model.as_groups(e, GROUP), jnp.sum(log_p * e.completion_mask, -1).reshape(-1, GROUP)
    enforced = qj.constraints.enforced(self.constraints, qj.constraints.measure(self.constraints, groups, log_probs))
    step = qj.duals.dual_step(self.dual_params, self.dual_state, enforced, self.controller)
    self.dual_params, self.dual_state, row = step
    self.history.append(jax.tree.map(float, row))
    return example


def main() -> tuple[list[dict], qj.exact.ExactSolution]:
  """Trains; returns what each step measured, and the exact solution."""
  model, reference, exact = tunix_model.problem()
  cluster = tunix_rollout.cluster(model, reference, optax.adam(optax.cosine_decay_schedule(5e-3, STEPS)), STEPS)
  names = {"policy_loss_fn": "qempo_kl", "advantage_estimator": "rewards"}
  config = grpo_learner.GRPOConfig(num_generations=GROUP, **names)
  score = lambda prompts, completions, **_: [float(all(a != b for a, b in zip(text, text[1:]))) for text in completions]
  learner = Learner(cluster, config, score, max_kl=exact.kl)
  learner.train({"prompts": np.array(["a word"])} for _ in range(STEPS))
  return learner.history, exact


if __name__ == "__main__":
  history, solution = main()
  print(tunix_model.summary(history[-200:], solution))

"""QEMPO-KL as the loss of google-tunix's DPO trainer, its multipliers learned: `python -m experiments.interop.tunix_pairs`."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tunix.sft.dpo import dpo_trainer

from experiments.interop import tunix_model
from experiments.interop import words
import qempo_jax as qj

STEPS, PAIRS = 1200, 512


def loss_fn(model, train_example, multipliers):
  """The QEMPO-KL loss of Tunix's batch; its own trainer computes the log-probs."""
  e = train_example
  sums = dpo_trainer.compute_logps(
    model, e.input_ids, e.positions, e.attention_mask, e.logits_to_keep, e.completion_mask
  )
  one = lambda *x: qj.losses.qempo_kl_loss(
    *x, quality_multiplier=multipliers["quality"], kl_multiplier=multipliers["kl"]
  )
  return jnp.mean(jax.vmap(one)(*sums, e.ref_chosen_logps, e.ref_rejected_logps)), {}


class Trainer(dpo_trainer.DPOTrainer):
  """A DPO trainer with multipliers: they travel with each batch and move after each update."""

  def __init__(self, *args, constraints, **kwargs):
    super().__init__(*args, **kwargs)
    self.with_loss_fn(loss_fn, has_aux=True).with_gen_model_input_fn(lambda inputs: inputs)
    self.constraints, self.history, self.dual_params = constraints, [], tunix_model.init_duals()
    self.controller = qj.duals.pi_controller(proportional_gain=2.0, integral_gain=0.05, smoothing=0.9)
    self.dual_state = self.controller.init(self.dual_params)

  def _prepare_inputs(self, pairs):
    return {"train_example": super()._prepare_inputs(pairs), "multipliers": qj.duals.multipliers(self.dual_params)}

  def _post_process_train_step(self, aux):
    measured = self.constraints(self.model)
    step = qj.duals.dual_step(self.dual_params, self.dual_state, measured, self.controller)
    self.dual_params, self.dual_state, row = step
    self.history.append(jax.tree.map(float, row))


def main() -> tuple[list[dict], qj.exact.ExactSolution]:
  """Trains; returns what each step measured, and the exact solution."""
  model, reference, exact = tunix_model.problem()
  rewards, ref = words.reward(words.WORDS), tunix_model.log_probs(reference)

  @nnx.jit
  def constraints(model):
    log_p = tunix_model.log_probs(model)
    kl = jnp.sum(jnp.exp(log_p) * (log_p - ref))
    return {"quality": qj.duals.at_least(jnp.exp(log_p) @ rewards, words.FLOOR), "kl": qj.duals.at_most(kl, exact.kl)}

  config = dpo_trainer.DPOTrainingConfig(eval_every_n_steps=10**9, max_steps=STEPS)
  optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, STEPS))
  trainer = Trainer(model, reference, optimizer, config, constraints=constraints)
  rng, start, ones = np.random.default_rng(0), np.full((PAIRS, 1), words.LETTERS), np.ones((PAIRS, words.LENGTH), int)
  batch = lambda chosen, rejected: dpo_trainer.TrainingInput(start, ones[:, :1], chosen, ones, rejected, ones)
  trainer.train(batch(*words.pairs(rng, PAIRS)) for _ in range(STEPS))
  return trainer.history, exact


if __name__ == "__main__":
  history, solution = main()
  print(tunix_model.summary(history[-200:], solution))

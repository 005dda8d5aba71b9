"""QEMPO-KL as the loss of google-tunix's DPO trainer, its multipliers learned: `python -m experiments.interop.tunix_pairs`."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tunix.sft.dpo import dpo_trainer

from experiments.interop import nnx_loop
from experiments.interop import words
import qempo_jax as qj

STEPS, PAIRS = 1200, 512


class Model(nnx_loop.Writer):
  """The writer in the shape that Tunix calls: tokens [B, 1 + T], the first a start sign -> logits of the next ones."""

  def __call__(self, tokens, positions=None, cache=None, attention_mask=None):
    following = super().__call__(tokens[:, 1:])
    return jnp.pad(following, ((0, 0), (0, 1), (0, 0))), cache


def log_probs(model):
  """Log-probs [64] of all words."""
  chosen = jnp.take_along_axis(nnx_loop.Writer.__call__(model, words.WORDS), words.WORDS[..., None], -1)
  return jnp.sum(chosen, axis=(-1, -2))


def loss_fn(model, train_example, multipliers):
  """The QEMPO-KL loss of Tunix's batch; its own trainer computes the log-probs."""
  e = train_example
  sums = dpo_trainer.compute_logps(model, e.input_ids, e.positions, e.attention_mask, e.logits_to_keep, e.completion_mask)
  one = lambda *x: qj.losses.qempo_kl_loss(*x, quality_multiplier=multipliers["quality"], kl_multiplier=multipliers["kl"])
  return jnp.mean(jax.vmap(one)(*sums, e.ref_chosen_logps, e.ref_rejected_logps)), {}


class Trainer(dpo_trainer.DPOTrainer):
  """A DPO trainer with multipliers: they travel with each batch and move after each update."""

  def __init__(self, *args, constraints, controller, **kwargs):
    super().__init__(*args, **kwargs)
    self.with_loss_fn(loss_fn, has_aux=True).with_gen_model_input_fn(lambda inputs: inputs)
    self.constraints, self.controller, self.history = constraints, controller, []
    self.dual_params = qj.duals.init_dual_params({"quality": 1.0, "kl": 0.5}, parametrisation={"quality": "log", "kl": "linear"})
    self.dual_state = controller.init(self.dual_params)

  def _prepare_inputs(self, pairs):
    return {"train_example": super()._prepare_inputs(pairs), "multipliers": qj.duals.multipliers(self.dual_params)}

  def _post_process_train_step(self, aux):
    measured = self.constraints(self.model)
    step = qj.duals.dual_step(self.dual_params, self.dual_state, measured, self.controller)
    self.dual_params, self.dual_state, row = step
    self.history.append(jax.tree.map(float, row))


def main() -> tuple[list[dict], qj.exact.ExactSolution]:
  """Trains; returns what each step measured, and the exact solution."""
  model, reference = Model(32, nnx.Rngs(0)), Model(32, nnx.Rngs(0))
  model.head.bias[...] = reference.head.bias[...] = jnp.array([1.5, 0.5, 0.0, -1.0])  # letters it likes
  rewards, ref = words.reward(words.WORDS), log_probs(reference)
  exact = qj.exact.solve_qempo_kl(rewards, ref, min_reward=words.FLOOR, kl_position=0.5)

  @nnx.jit
  def constraints(model):
    log_p = log_probs(model)
    kl = jnp.sum(jnp.exp(log_p) * (log_p - ref))
    return {"quality": qj.duals.at_least(jnp.exp(log_p) @ rewards, words.FLOOR), "kl": qj.duals.at_most(kl, exact.kl)}

  trainer = Trainer(
      model,
      reference,
      optax.adam(optax.cosine_decay_schedule(5e-3, STEPS)),
      dpo_trainer.DPOTrainingConfig(eval_every_n_steps=10**9, max_steps=STEPS),
      constraints=constraints,
      controller=qj.duals.pi_controller(proportional_gain=2.0, integral_gain=0.05, smoothing=0.9),
  )
  rng, start, ones = np.random.default_rng(0), np.full((PAIRS, 1), words.LETTERS), np.ones((PAIRS, words.LENGTH), int)
  batch = lambda chosen, rejected: dpo_trainer.TrainingInput(start, ones[:, :1], chosen, ones, rejected, ones)
  trainer.train(batch(*words.pairs(rng, PAIRS)) for _ in range(STEPS))
  return trainer.history, exact


if __name__ == "__main__":
  history, exact = main()
  mean = {name: np.mean([row[name] for row in history[-200:]]) for name in history[-1]}
  print(f"E[r] {mean['dual/quality/value']:.3f} ({words.FLOOR})  lambda {mean['dual/quality/multiplier']:.2f} ({exact.quality_multiplier:.2f})")
  print(f"KL {mean['dual/kl/value']:.3f} ({exact.kl:.3f})  mu {mean['dual/kl/multiplier']:.2f} ({exact.kl_multiplier:.2f})")

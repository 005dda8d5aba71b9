"""QEMPO from end to end, with this library alone: `python -m experiments.interop.minimal`, ten seconds on a CPU.

A tiny policy learns to spell. A quality floor says how often it must be right; entropy is maximised beneath that, so it
should use all the right words alike. There are 341 texts in all, so the exact optimum is known, and printed beside.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import qempo_jax as qj

# 1. The task: write an English word with the letters a, b, d, e. The reward is a plain Python function of the text.

LETTERS, MAX_LENGTH = "abde", 4
ANSWERS = ("add", "bad", "bed", "dab", "dad", "ebb", "bead", "deed")


def reward(text: str) -> float:
  """1 for a word of the list, 0 for anything else."""
  return float(text in ANSWERS)


# 2. The policy: a table of next-token logits for every prefix, in place of your language model. Token 0 ends a text.
# Training starts from the reference policy, which is seldom right.

POLICY = qj.testing.EnumerablePolicy.table(vocab_size=len(LETTERS) + 1, max_length=MAX_LENGTH)
TEXTS = ["".join(LETTERS[token - 1] for token in tokens if token) for tokens in POLICY.space.tokens]
MASK = jnp.asarray(POLICY.space.mask)  # [N, T], True on a text's tokens, the ending one included
REF_PARAMS = 0.5 * POLICY.init(jax.random.key(0))
REF_LOG_PROBS = POLICY.log_probs(REF_PARAMS)  # [N] log-probs of whole texts, nats

# 3. The programs. Both maximise entropy while at least 95 % of all texts are right. QEMPO-C also charges wrong texts their
# -log q under the reference q: what is wrong should at least be text that the reference would write.

FLOOR = qj.constraints.reward_floor("reward", 0.95)
COHERENCE = qj.constraints.coherence_budget(None, 1.0)  # no bound: its multiplier is a fixed price
PROGRAMS = {
  "QEMPO": (qj.methods.qempo(), {"quality": FLOOR}),
  "QEMPO-C": (qj.methods.qempo_c(nu=1.0), {"quality": FLOOR, "coherence": COHERENCE}),
}

# 4. Training. Each step draws 16 groups of 16 texts. The policy climbs the Lagrangian, and the multiplier of the floor
# rises while the measured reward is below it.

STEPS, GROUPS, GROUP_SIZE = 1500, 16, 16
optimizer = optax.adam(optax.cosine_decay_schedule(0.1, STEPS))
controller = qj.duals.pi_controller(proportional_gain=3.0, integral_gain=0.1, smoothing=0.9)


@jax.jit
def sample(params, key):
  """Indices [P, G] of texts drawn from the policy."""
  probs = jnp.exp(POLICY.log_probs(params))
  return jax.random.choice(key, len(TEXTS), (GROUPS, GROUP_SIZE), p=probs)


def make_step(method: qj.methods.Method, constraints: dict[str, qj.constraints.Constraint]):
  """The jitted update of (params, opt_state, dual_params, dual_state) on drawn texts [P, G] and their rewards [P, G]."""

  @jax.jit
  def step(params, opt_state, dual_params, dual_state, drawn, rewards):
    # 4a. The groups: all that constraints and methods read. Every text is fresh: the current policy drew it.
    ones = jnp.ones(drawn.shape)
    parts = {"reward": rewards}, REF_LOG_PROBS[drawn], MASK[drawn]
    groups = qj.constraints.Group(*parts, fresh=ones > 0, replayed=ones < 0, weight=ones)
    prices = qj.methods.Prices(method.entropy_weight, qj.duals.multipliers(dual_params))

    # 4b. The loss, one group at a time: log-probs and entropies of the tokens [G, T] in, a scalar out.
    def loss_fn(params):
      per_text = POLICY.token_log_probs(params), POLICY.token_entropies(params)
      stats = qj.token_stats.TokenStats(*(x[drawn] for x in per_text))
      one = lambda *x: qj.group_loss(*x, prices, constraints, method, replay_weight=0.0)
      return jnp.mean(jax.vmap(one)(stats, groups)), jnp.sum(stats.log_prob, axis=-1)

    gradient, log_probs = jax.grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradient, opt_state)

    # 4c. The multipliers follow what was measured; a constraint without a bound keeps its own.
    measured = qj.constraints.measure(constraints, groups, log_probs)
    enforced = qj.constraints.enforced(constraints, measured)
    dual_params, dual_state, _ = qj.duals.dual_step(dual_params, dual_state, enforced, controller)
    return optax.apply_updates(params, updates), opt_state, dual_params, dual_state

  return step


def train(method: qj.methods.Method, constraints: dict[str, qj.constraints.Constraint]):
  """Log-probs [N] of all texts under the trained policy, and the floor's multiplier, a mean over the last steps."""
  step = make_step(method, constraints)
  starts = {name: method.multipliers.get(name, 1.0) for name in constraints}
  dual_params = qj.duals.init_dual_params(starts)
  state = REF_PARAMS, optimizer.init(REF_PARAMS), dual_params, controller.init(dual_params)
  found = []
  for key in jax.random.split(jax.random.key(1), STEPS):
    drawn = np.asarray(sample(state[0], key))
    rewards = np.array([[reward(TEXTS[index]) for index in group] for group in drawn])
    state = step(*state, drawn, rewards)
    found.append(qj.duals.multipliers(state[2])["quality"])
  return POLICY.log_probs(state[0]), np.mean(found[-STEPS // 5 :])


# 5. The result beside the exact optimum of each program.


def figures(log_probs, multiplier) -> dict[str, float]:
  """The figures of one policy, exact sums over all texts."""
  log_p, log_q = (np.asarray(x, np.float64) for x in (log_probs, REF_LOG_PROBS))
  p, right = np.exp(log_p), np.array([reward(text) for text in TEXTS]) > 0
  among = p[right] / p[right].sum()
  return {
    "E[r]": p[right].sum(),
    "entropy": -p @ log_p,
    "lambda": float(multiplier),
    "answers": np.exp(-among @ np.log(among)),
    "bad text": -p[~right] @ log_q[~right] / p[~right].sum(),
  }


def main() -> dict[str, dict[str, dict[str, float]]]:
  """Trains both, prints the table, and returns its figures: of the trained policy and of the optimum, by program."""
  rewards = jnp.array([reward(text) for text in TEXTS])
  floor = FLOOR.bound
  optima = {
    "QEMPO": qj.exact.solve_qempo(rewards, min_reward=floor),
    "QEMPO-C": qj.exact.solve_qempo_coherent(rewards, REF_LOG_PROBS, min_reward=floor, threshold=1.0),
  }
  table, rows = {}, {"reference": figures(REF_LOG_PROBS, 0.0)}
  for name, program in PROGRAMS.items():
    best = optima[name]
    exact = figures(best.log_probs, best.quality_multiplier)
    table[name] = {"trained": figures(*train(*program)), "exact": exact}
    rows |= {f"{name}, {kind}": row for kind, row in table[name].items()}
  print(f"{'':18s}" + "".join(f"{name:>10s}" for name in rows["reference"]))
  for name, row in rows.items():
    print(f"{name:18s}" + "".join(f"{value:10.3f}" for value in row.values()))
  print("entropy in nats; answers: effective right words; bad text: mean -log q of wrong texts")
  return table


if __name__ == "__main__":
  main()

"""Samples of the writer for google-tunix's learner: what Tunix's own engines do for language models."""

import jax
import jax.numpy as jnp
import numpy as np
from tunix.rl import rl_cluster
from tunix.rl.rollout import base_rollout

from experiments.interop import words

ALPHABET = "abcd"


class Letters:
  """A tokenizer in Tunix's sense; words are equally long, so that padding and end never occur."""

  encode, decode = (lambda _, text: list(map(ALPHABET.index, text))), (lambda _, ids: "".join(ALPHABET[i] for i in ids))
  bos_id, pad_id, eos_id = (lambda _: words.LETTERS), (lambda _: -1), (lambda _: -2)


class Rollout(base_rollout.BaseRollout):
  """Draws words from the policy letter by letter."""

  def __init__(self, rollout_actor, tokenizer, rollout_config, **_):
    self.actor, self.tokenizer, self.key = rollout_actor, tokenizer, rollout_config.seed

  def generate(self, prompts, rollout_config, **_):
    """One word for each prompt."""
    self.key, key = jax.random.split(self.key)
    tokens = np.asarray(self.actor.sample(key, len(prompts)))
    text = [self.tokenizer.decode(word) for word in tokens]
    return base_rollout.RolloutOutput(text, None, list(tokens), np.full((len(prompts), 1), words.LETTERS), None)

  def get_per_token_logps(self, prompt_tokens, completion_tokens):
    """[B, T] of the policy now."""
    log_p = self.actor.writer(completion_tokens)
    return jnp.take_along_axis(log_p, completion_tokens[..., None], -1)[..., 0]

  def update_params(self, params, filter_types=None):
    """Nothing to do: the policy is shared with the trainer."""

  def pad_id(self):
    """The tokenizer's."""
    return self.tokenizer.pad_id()

  def eos_id(self):
    """The tokenizer's."""
    return self.tokenizer.eos_id()

  def model(self):
    """The policy."""
    return self.actor


def cluster(model, reference, optimizer, steps) -> rl_cluster.RLCluster:
  """Tunix's actor, reference and rollout on one device."""
  mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
  roles = rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT
  config = rl_cluster.ClusterConfig(
    role_to_mesh=dict.fromkeys(roles, mesh),
    rollout_engine=Rollout,
    training_config=rl_cluster.RLTrainingConfig(actor_optimizer=optimizer, eval_every_n_steps=10**9, max_steps=steps),
    rollout_config=base_rollout.RolloutConfig(
      max_tokens_to_generate=words.LENGTH, max_prompt_length=1, temperature=1.0, seed=jax.random.key(0)
    ),
  )
  return rl_cluster.RLCluster(actor=model, reference=reference, tokenizer=Letters(), cluster_config=config)

"""Losses: one example a call, arrays positional, hyper-parameters keyword-only; `jax.vmap` outside."""

from qempo_jax.losses.listwise import even_weights
from qempo_jax.losses.listwise import listwise_loss
from qempo_jax.losses.policy_gradient import policy_gradient_loss
from qempo_jax.losses.policy_gradient import token_entropy_bonus_loss
from qempo_jax.losses.policy_gradient_clip import dr_grpo_loss
from qempo_jax.losses.policy_gradient_clip import grpo_loss
from qempo_jax.losses.policy_gradient_clip import gspo_loss
from qempo_jax.losses.policy_gradient_clip import ppo_clip_loss
from qempo_jax.losses.policy_gradient_clip import sequence_clip_loss
from qempo_jax.losses.preference import dpo_loss
from qempo_jax.losses.preference import h_dpo_loss
from qempo_jax.losses.preference import preference_loss
from qempo_jax.losses.preference import preference_margin
from qempo_jax.losses.preference import qempo_kl_loss
from qempo_jax.losses.preference import qempo_loss
from qempo_jax.losses.preference_baselines import cpo_loss
from qempo_jax.losses.preference_baselines import ipo_loss
from qempo_jax.losses.preference_baselines import robust_dpo_loss
from qempo_jax.losses.preference_baselines import smoothed_dpo_loss
from qempo_jax.losses.preference_normalised import length_normalised_ipo_loss
from qempo_jax.losses.preference_normalised import length_normalised_preference_loss
from qempo_jax.losses.preference_normalised import simpo_loss
from qempo_jax.losses.regression import target_regression_loss
from qempo_jax.losses.reward_model import bradley_terry_loss
from qempo_jax.losses.trajectory_balance import trajectory_balance_loss
from qempo_jax.losses.translate import Translation
from qempo_jax.losses.translate import translate
from qempo_jax.losses.unpaired import kto_loss
from qempo_jax.losses.unpaired import nll_anchor
from qempo_jax.losses.unpaired import nll_loss

__all__ = [
  "Translation",
  "bradley_terry_loss",
  "cpo_loss",
  "dpo_loss",
  "dr_grpo_loss",
  "even_weights",
  "grpo_loss",
  "gspo_loss",
  "h_dpo_loss",
  "ipo_loss",
  "kto_loss",
  "length_normalised_ipo_loss",
  "length_normalised_preference_loss",
  "listwise_loss",
  "nll_anchor",
  "nll_loss",
  "policy_gradient_loss",
  "ppo_clip_loss",
  "preference_loss",
  "preference_margin",
  "qempo_kl_loss",
  "qempo_loss",
  "robust_dpo_loss",
  "sequence_clip_loss",
  "simpo_loss",
  "smoothed_dpo_loss",
  "target_regression_loss",
  "token_entropy_bonus_loss",
  "trajectory_balance_loss",
  "translate",
]

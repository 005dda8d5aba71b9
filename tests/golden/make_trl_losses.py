"""Writes trl_losses.json: values and gradients of TRL's own loss code, one example a case.

  pip install trl==1.16.0 torch        # in an environment of its own; the library needs neither
  python tests/golden/make_trl_losses.py

The trainers' loss methods are called as they are, on a stand-in model that returns given per-token log-probs.
"""

from collections import defaultdict
import json
import pathlib
from types import SimpleNamespace

import numpy as np
import torch
import trl
from trl.experimental.cpo import CPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_trainer import RewardTrainer

torch.set_default_dtype(torch.float64)


def same(x, *_, **__):
  return x


def trainer(**settings):
  """The attributes a trainer's loss reads, and nothing else."""
  accelerator = SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same, reduce=same, num_processes=1)
  return SimpleNamespace(
    accelerator=accelerator,
    model=SimpleNamespace(training=False),
    aux_loss_enabled=False,
    _metrics=defaultdict(lambda: defaultdict(list)),
    _total_train_tokens=0,
    **settings,
  )


def tokens_of(length, total, rng):
  """Per-token log-probs of a response, zero after its end: [total]."""
  return torch.tensor(np.where(np.arange(total) < length, -rng.exponential(1.0, total), 0.0), requires_grad=True)


def model_of(token_log_probs):
  zeros = torch.zeros_like(token_log_probs)

  def model(**_):
    return SimpleNamespace(log_probs=token_log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

  return model


def text(lengths, total):
  """One prompt token, then the responses: ids and masks, [rows, 1 + total]."""
  mask = torch.stack([(torch.arange(1 + total) > 0) & (torch.arange(1 + total) <= n) for n in lengths]).long()
  return dict(input_ids=torch.ones_like(mask), attention_mask=torch.ones_like(mask), completion_mask=mask)


def dpo(loss_type, rng, total=6, **settings):
  w_len, l_len = (int(n) for n in rng.integers(1, total + 1, 2))
  w, v = tokens_of(w_len, total, rng), tokens_of(l_len, total, rng)
  ref_w, ref_l = (w.sum().item() + rng.normal(), v.sum().item() + rng.normal())
  me = trainer(
    ld_alpha=None,
    precompute_ref_logps=True,
    f_divergence_type="reverse_kl",
    loss_types=[loss_type],
    loss_weights=[1.0],
    use_weighting=False,
    **settings,
  )
  inputs = text([w_len, l_len], total) | dict(
    ref_chosen_logps=torch.tensor([ref_w]), ref_rejected_logps=torch.tensor([ref_l])
  )
  loss = DPOTrainer._compute_loss(me, model_of(torch.stack([w, v])), inputs, False)
  loss.backward()
  return dict(
    inputs=[w.sum().item(), v.sum().item(), ref_w, ref_l],
    lengths=[w_len, l_len],
    value=loss.item(),
    gradient=[w.grad[0].item(), v.grad[0].item()],
    settings=settings,
  )


def cpo(loss_type, rng, **settings):
  w, v = (torch.tensor([-rng.exponential(5.0)], requires_grad=True) for _ in range(2))
  me = trainer(alpha=0.0, loss_type=loss_type, label_smoothing=0.0, **settings)
  loss = CPOTrainer.cpo_loss(me, w, v)[0].mean()
  loss.backward()
  return dict(
    inputs=[w.item(), v.item()],
    value=loss.item(),
    gradient=[w.grad.item(), v.grad.item()],
    settings=settings,
  )


def kto(desirable, rng, total=5, **settings):
  length = int(rng.integers(1, total + 1))
  y = tokens_of(length, total, rng)
  ref, kl = y.sum().item() + rng.normal(), 0.5 * rng.normal()
  me = trainer(loss_type="kto", calculate_KL=True, precompute_ref_logps=True, **settings)
  me._compute_kl_logps = lambda model, batch: torch.tensor([kl])
  inputs = text([length], total) | dict(
    label=torch.tensor([desirable]), ref_logps=torch.tensor([ref]), ref_KL_logps=torch.tensor([0.0])
  )
  loss = KTOTrainer._compute_loss(me, model_of(y[None]), inputs, False)
  loss.backward()
  return dict(
    inputs=[y.sum().item(), ref, desirable, kl],
    value=loss.item(),
    gradient=[y.grad[0].item()],
    settings=settings,
  )


def reward_model(rng, centring):
  rewards = torch.tensor(rng.normal(size=(2, 1)), requires_grad=True)
  margin = abs(rng.normal())
  me = trainer(args=SimpleNamespace(center_rewards_coefficient=centring))
  inputs = dict(margin=torch.tensor([margin]))
  loss = RewardTrainer.compute_loss(me, lambda **_: SimpleNamespace(logits=rewards), inputs)
  loss.backward()
  return dict(
    inputs=[*rewards.flatten().tolist(), margin],
    value=loss.item(),
    gradient=rewards.grad.flatten().tolist(),
    settings=dict(centring_weight=centring),
  )


def grpo(loss_type, level, rng, total=6):
  length = int(rng.integers(2, total + 1))
  new = tokens_of(length, total, rng)
  old = new.detach() + torch.tensor(0.3 * rng.normal(size=total)) * (torch.arange(total) < length)
  advantage = rng.normal()
  me = trainer(
    loss_type=loss_type,
    importance_sampling_level=level,
    top_entropy_quantile=1.0,
    off_policy_mask_threshold=None,
    beta=0.0,
    epsilon_low=0.2,
    epsilon_high=0.28,
    use_vllm=False,
    max_completion_length=10,
    _entropy_bonus_enabled=False,
    args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
  )
  me._get_per_token_logps_and_entropies = lambda *_, **__: (new[None], torch.zeros(1, total), None)
  mask = (torch.arange(total) < length).long()[None]
  inputs = dict(
    prompt_ids=torch.ones(1, 1, dtype=torch.long),
    prompt_mask=torch.ones(1, 1, dtype=torch.long),
    completion_ids=torch.ones_like(mask),
    completion_mask=mask,
    advantages=torch.tensor([advantage]),
    old_per_token_logps=old[None],
  )
  loss = GRPOTrainer._compute_loss(me, None, inputs)
  loss.backward()
  return dict(
    inputs=[new.tolist(), old.tolist(), advantage, mask[0].tolist()],
    value=loss.item(),
    gradient=[new.grad.tolist()],
    settings={},
  )


def cases():
  rng = np.random.default_rng(0)
  three = range(3)
  return {
    "dpo": [dpo("sigmoid", rng, beta=0.3) for _ in three],
    "smoothed_dpo": [dpo("aot", rng, beta=0.3, label_smoothing=0.1) for _ in three],
    "robust_dpo": [dpo("robust", rng, beta=0.3, label_smoothing=0.1) for _ in three],
    "length_normalised_ipo": [dpo("ipo", rng, beta=0.4) for _ in three],
    "length_normalised_dpo": [dpo("sigmoid_norm", rng, beta=0.7) for _ in three],
    "nll_per_token": [dpo("sft", rng, beta=0.3) for _ in three],
    "cpo": [cpo("sigmoid", rng, beta=0.2) for _ in three],
    "cpo_ipo": [cpo("ipo", rng, beta=0.2) for _ in three],
    "simpo_on_means": [cpo("simpo", rng, beta=2.0, simpo_gamma=0.5) for _ in three],
    "kto": [
      kto(flag, rng, beta=0.2, desirable_weight=1.0, undesirable_weight=1.3) for flag in (True, False, True, False)
    ],
    "bradley_terry": [reward_model(rng, 0.01) for _ in three],
    "grpo": [grpo("grpo", "token", rng) for _ in three],
    "dr_grpo": [grpo("dr_grpo", "token", rng) for _ in three],
    "gspo": [grpo("grpo", "sequence", rng) for _ in three],
  }


def main():
  path = pathlib.Path(__file__).with_name("trl_losses.json")
  path.write_text(json.dumps({"trl": trl.__version__, "torch": torch.__version__, "losses": cases()}, indent=1) + "\n")


if __name__ == "__main__":
  main()

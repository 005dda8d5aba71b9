"""Our losses against TRL's own code: recorded, and live where TRL is installed."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qempo_jax import losses

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "trl_losses.json"
CASES = json.loads(GOLDEN.read_text())["losses"]


def _pairs(loss):
  return lambda case: (
    lambda *x: loss(*x, *case["inputs"][2:], **case["settings"]),
    case["inputs"][:2],
  )


def _pairs_with_lengths(loss, **names):
  def build(case):
    hyper = {names.get(k, k): v for k, v in case["settings"].items()}
    return lambda *x: loss(*x, *case["inputs"][2:], *map(float, case["lengths"]), **hyper), case["inputs"][:2]

  return build


def _length_normalised_dpo(*inputs, beta):
  return losses.length_normalised_preference_loss(*inputs, alpha=beta, beta=beta)


def _nll_per_token(case):
  length = case["lengths"][0]
  return lambda w, _: losses.nll_anchor(w, weight=1 / length), case["inputs"][:2]


def _cpo(case):
  return lambda *x: losses.cpo_loss(*x, **case["settings"], nll_weight=0.0), case["inputs"]


def _cpo_ipo(case):
  return lambda *x: losses.ipo_loss(*x, 0.0, 0.0, tau=case["settings"]["beta"]), case["inputs"]


def _simpo_on_means(case):
  s = case["settings"]
  return lambda *x: losses.simpo_loss(*x, 1.0, 1.0, beta=s["beta"], margin=s["simpo_gamma"]), case["inputs"]


def _kto(case):
  return lambda x: losses.kto_loss(x, *case["inputs"][1:], **case["settings"]), case["inputs"][:1]


def _bradley_terry(case):
  return lambda *x: losses.bradley_terry_loss(*x, case["inputs"][2], **case["settings"]), case["inputs"][:2]


def _clipped(loss, **more):
  def build(case):
    new, *rest = (jnp.asarray(x) for x in case["inputs"])
    return lambda x: loss(x, *rest, clip_low=0.2, clip_high=0.28, **more), [new]

  return build


OURS = {
  "dpo": _pairs(losses.dpo_loss),
  "smoothed_dpo": _pairs(losses.smoothed_dpo_loss),
  "robust_dpo": _pairs(losses.robust_dpo_loss),
  "length_normalised_ipo": _pairs_with_lengths(losses.length_normalised_ipo_loss, beta="tau"),
  "length_normalised_dpo": _pairs_with_lengths(_length_normalised_dpo),
  "nll_per_token": _nll_per_token,
  "cpo": _cpo,
  "cpo_ipo": _cpo_ipo,
  "simpo_on_means": _simpo_on_means,
  "kto": _kto,
  "bradley_terry": _bradley_terry,
  "grpo": _clipped(losses.grpo_loss),
  "dr_grpo": _clipped(losses.dr_grpo_loss, max_tokens=10),
  "gspo": _clipped(losses.gspo_loss),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_value_and_gradient_match_trl(x64, name):
  for case in CASES[name]:
    loss, inputs = OURS[name](case)
    value, gradient = jax.value_and_grad(loss, argnums=tuple(range(len(inputs))))(*map(jnp.asarray, inputs))
    np.testing.assert_allclose(value, case["value"], rtol=1e-9)
    for ours, theirs in zip(gradient, case["gradient"], strict=True):
      np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-12)


def test_golden_is_what_trl_says_today():
  pytest.importorskip("trl", reason="needs the parity extra")
  spec = importlib.util.spec_from_file_location("make_trl_losses", GOLDEN.with_name("make_trl_losses.py"))
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  for name, cases in module.cases().items():
    np.testing.assert_allclose([c["value"] for c in cases], [c["value"] for c in CASES[name]], rtol=1e-9)

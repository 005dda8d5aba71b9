"""Every loss, advantage and diversity reward once: its inputs, a value by hand, and how it moves with them."""

from collections.abc import Callable
import importlib
from typing import Any
from typing import NamedTuple

import numpy as np

from qempo_jax import advantages
from qempo_jax import losses
from qempo_jax.masking import masked_sum
from qempo_jax.testing import reference
from qempo_jax.testing import reference_groups

# Modules by their full names: the package's attributes of these names are the methods.
darling_lib = importlib.import_module("qempo_jax.methods.darling")
mara_lib = importlib.import_module("qempo_jax.methods.mara")
setpo_lib = importlib.import_module("qempo_jax.methods.setpo")
ucpo_lib = importlib.import_module("qempo_jax.methods.ucpo")
SIZE = 5  # tokens of a trajectory, members of a group
LOG3, LOG4_3, LOG2 = 1.0986122887, 0.2876820724, 0.6931471806
_ones = np.ones(SIZE, bool)


def _log_prob(rng, shape=(), scale=5.0):
  return -rng.exponential(scale, shape)


def _mask(rng):
  return rng.permutation(np.arange(SIZE) < rng.integers(2, SIZE + 1))


def _distances(rng):
  x = rng.random(SIZE)
  return np.abs(x[:, None] - x)


# Each kind of input: how it is drawn, and the range its extremes are taken from; None: left as drawn.
KINDS: dict[str, tuple[Callable, tuple[float, float] | None]] = {
  "log_prob": (_log_prob, (-1e5, 0.0)),
  "reward": (lambda rng: 2 * rng.normal(), (-1e5, 1e5)),
  "length": (lambda rng: float(rng.integers(2, 9)), (1.0, 1e5)),
  "flag": (lambda rng: rng.random() < 0.5, None),
  "tokens": (lambda rng: _log_prob(rng, SIZE, 0.3), (-1e4, 0.0)),
  "entropies": (lambda rng: rng.exponential(1.0, SIZE), (0.0, 1e4)),
  "log_probs": (lambda rng: _log_prob(rng, SIZE), (-1e5, 0.0)),
  "rewards": (lambda rng: 2 * rng.normal(size=SIZE), (-1e5, 1e5)),
  "flags": (lambda rng: rng.random(SIZE) < 0.6, None),
  "weights": (lambda rng: rng.random(SIZE) * (rng.random(SIZE) < 0.7), (0.0, 1.0)),
  "distances": (_distances, (0.0, 1.0)),
  "similarities": (lambda rng: 1 - _distances(rng), (0.0, 1.0)),
  "mask": (_mask, None),
}


class Relation(NamedTuple):
  """How the value answers to a change of the inputs: `out(value, t, args)` after `change(args, hyper, t)`."""

  change: Callable[[list, dict, float], tuple[list, dict]]
  out: Callable[[Any, float, list], Any]
  fixed: dict[str, float] = {}  # hyper-parameters it holds at


class Case(NamedTuple):
  """One function with all that the battery needs to know of it."""

  call: Callable
  expected: Callable
  kinds: tuple[str, ...]
  hyper: dict[str, float]
  goldens: list[tuple[tuple, dict[str, float], Any]]
  relations: dict[str, Relation]
  detached: tuple[int, ...] = ()  # inputs without gradient

  @property
  def floats(self) -> tuple[int, ...]:
    return tuple(i for i, kind in enumerate(self.kinds) if KINDS[kind][1] is not None)

  @property
  def mask(self) -> int | None:
    return self.kinds.index("mask") if "mask" in self.kinds else None

  def draw(self, rng: np.random.Generator) -> list:
    return [KINDS[kind][0](rng) for kind in self.kinds]


def shift(*places: int, out: float = 0.0, hyper: tuple[str, ...] = (), fixed: dict | None = None) -> Relation:
  """Adding t to some inputs and hyper-parameters adds `out` t to every unmasked value."""

  def change(args, settings, t):
    settings = settings | {name: settings[name] + t for name in hyper}
    return [a + t if i in places else a for i, a in enumerate(args)], settings

  kept = lambda args: next((a for a in args if getattr(a, "dtype", None) == np.dtype(bool)), 1.0)
  return Relation(change, lambda value, t, args: value + out * t * kept(args) if out else value, fixed or {})


def scale(args_by: dict[int, int], hyper_by: dict[str, int], out: int = 0) -> Relation:
  """Multiplying inputs and hyper-parameters by powers of t multiplies the value by t^out."""

  def change(args, settings, t):
    args = [a * t ** args_by[i] if i in args_by else a for i, a in enumerate(args)]
    return args, {name: v * t ** hyper_by.get(name, 0) for name, v in settings.items()}

  return Relation(change, lambda value, t, args: value * t**out)


def _loss(name, kinds, hyper, goldens, relations, detached=()):
  expected = getattr(reference, name, None) or getattr(reference_groups, name)
  return Case(getattr(losses, name), expected, kinds, hyper, goldens, relations, detached)


def _group(module, name, kinds, hyper, goldens, relations, detached=None):
  if detached is None:  # all
    detached = tuple(i for i, kind in enumerate(kinds) if KINDS[kind][1] is not None)
  function = getattr(module, name)
  return Case(function, getattr(reference_groups, name), kinds, hyper, goldens, relations, detached)


PAIR, FOUR = ("log_prob",) * 2, ("log_prob",) * 4
PER_TOKEN = ("length",) * 2
_policy_shift = {"a shift of both log-probs": shift(0, 1)}
_shifts = _policy_shift | {"a shift of both references": shift(2, 3)}
_all4 = lambda power: dict.fromkeys(range(4), power)
CLIP = dict(clip_low=0.2, clip_high=0.3)
_clip_relations = {"a shift of both policies": shift(0, 1), "scaled advantages": scale({2: 1}, {}, 1)}
_doubled = np.log([0.8, 0.2]), np.log([0.4, 0.4]), np.array([1.0, -1.0]), np.ones(2, bool)  # ratios 2 and 1/2
_rising = lambda a: (np.log([0.8, 0.4]), np.log([0.4, 0.4]), a, np.ones(2, bool))  # ratios 2 and 1
TOKEN = ("tokens", "tokens", "rewards", "mask")  # an advantage a token
SEQUENCE = ("tokens", "tokens", "reward", "mask")
_three = np.array([-1.0, -2.0, -4.0]), np.array([True, True, False])
_smooth = dict(beta=LOG3 / 2, label_smoothing=0.25)  # margin log 3 on (-1, -3, -2, -2)
_thumb = dict(beta=1.0, desirable_weight=2.0, undesirable_weight=4.0)

LOSSES: dict[str, Case] = {
  "preference_loss": _loss(
    "preference_loss", FOUR, dict(alpha=0.7, beta=0.3),
    [((-1.0, -3.0, -2.0, -6.0), dict(alpha=0.5, beta=0.25), LOG2)],  # 0.5 * 2 - 0.25 * 4 = 0
    _shifts | {"weights against nats": scale(_all4(-1), dict(alpha=1, beta=1))},
  ),
  "preference_margin": _loss(
    "preference_margin", FOUR, dict(alpha=0.7, beta=0.3),
    [((-1.0, -3.0, -2.0, -6.0), dict(alpha=0.5, beta=0.125), 0.5)],
    _shifts | {"scaled weights": scale({}, dict(alpha=1, beta=1), 1)},
  ),
  "qempo_loss": _loss(
    "qempo_loss", PAIR, dict(alpha=0.4),
    [((-1.0, -1 - LOG3), dict(alpha=1.0), LOG4_3)],  # sigmoid(log 3) = 3/4
    _policy_shift | {"weights against nats": scale({0: -1, 1: -1}, dict(alpha=1))},
  ),
  "qempo_kl_loss": _loss(
    "qempo_kl_loss", FOUR, dict(quality_multiplier=3.0, kl_multiplier=0.5),
    # alpha = 2/2, beta = 1/2: 1 - 1 = 0
    [((-1.0, -2.0, -1.0, -3.0), dict(quality_multiplier=2.0, kl_multiplier=1.0), LOG2)],
    _shifts | {"lambda against nats": scale(_all4(1), dict(quality_multiplier=1))},
  ),
  "dpo_loss": _loss(
    "dpo_loss", FOUR, dict(beta=0.1),
    [((-1.0, -3.0, -2.0, -2.0), dict(beta=LOG3 / 2), LOG4_3)],
    _shifts | {"one shift of policy and reference": shift(0, 2), "weight against nats": scale(_all4(-1), dict(beta=1))},
  ),
  "h_dpo_loss": _loss(
    "h_dpo_loss", FOUR, dict(entropy_ratio=0.9, beta=0.2),
    [((-1.0, -3.0, -2.0, -4.0), dict(entropy_ratio=2.0, beta=LOG3 / 2), LOG4_3)],  # 2 * 2 - 2 = 2
    _shifts | {"weight against nats": scale(_all4(-1), dict(beta=1))},
  ),
  "smoothed_dpo_loss": _loss(
    "smoothed_dpo_loss", FOUR, dict(beta=0.3, label_smoothing=0.1),
    [((-1.0, -3.0, -2.0, -2.0), _smooth, 0.5623351446)],  # 3/4 log(4/3) + 1/4 log 4
    _shifts | {"weight against nats": scale(_all4(-1), dict(beta=1))},
  ),
  "robust_dpo_loss": _loss(
    "robust_dpo_loss", FOUR, dict(beta=0.3, label_smoothing=0.1),
    [((-1.0, -3.0, -2.0, -2.0), _smooth, -0.2616240720)],  # [3/4 log(4/3) - 1/4 log 4] / (1/2)
    _shifts | {"weight against nats": scale(_all4(-1), dict(beta=1))},
  ),
  "ipo_loss": _loss(
    "ipo_loss", FOUR, dict(tau=0.5),
    [((-1.0, -4.0, -2.0, -3.0), dict(tau=0.5), 1.0)],  # ((1 + 1) - 1)^2
    _shifts | {"weight against nats": scale(_all4(1), dict(tau=-1), 2)},
  ),
  "cpo_loss": _loss(
    "cpo_loss", PAIR, dict(beta=0.1, nll_weight=0.05),
    [((-1.0, -1 - LOG3), dict(beta=1.0, nll_weight=0.5), LOG4_3 + 0.5)],
    {
      "weights against nats": scale({0: -1, 1: -1}, dict(beta=1, nll_weight=1)),
      "a shift, without the pull": shift(0, 1, fixed=dict(nll_weight=0.0)),
    },
  ),
  "simpo_loss": _loss(
    "simpo_loss", PAIR + PER_TOKEN, dict(beta=2.0, margin=0.5),
    [((-4.0, -9.0, 2.0, 3.0), dict(beta=2.0, margin=2 - LOG3), LOG4_3)],  # 2 (-2 + 3) - margin
    {"weight against nats": scale({0: -1, 1: -1}, dict(beta=1))},
  ),
  "length_normalised_preference_loss": _loss(
    "length_normalised_preference_loss", FOUR + PER_TOKEN, dict(alpha=0.7, beta=0.3),
    [((-4.0, -9.0, -2.0, -6.0, 2.0, 3.0), dict(alpha=2 * LOG3, beta=LOG3), LOG4_3)],  # both differences are 1
    {"weights against nats": scale(_all4(-1), dict(alpha=1, beta=1))},
  ),
  "length_normalised_ipo_loss": _loss(
    "length_normalised_ipo_loss", FOUR + PER_TOKEN, dict(tau=0.5),
    [((-4.0, -9.0, -2.0, -3.0, 2.0, 3.0), dict(tau=0.25), 1.0)],  # (-1 + 2 - 2)^2
    {"weight against nats": scale(_all4(1), dict(tau=-1), 2)},
  ),
  "bradley_terry_loss": _loss(
    "bradley_terry_loss", ("reward",) * 3, dict(centring_weight=0.01),
    [((2.0, 1.0, 1.0), dict(centring_weight=0.1), LOG2 + 0.9)],
    {
      "a shift of both rewards, without centring": shift(0, 1, fixed=dict(centring_weight=0.0)),
      "a reward against the margin": shift(0, 2, fixed=dict(centring_weight=0.0)),
    },
  ),
  "kto_loss": _loss(
    "kto_loss", ("log_prob", "log_prob", "flag", "reward"),
    dict(beta=0.3, desirable_weight=1.1, undesirable_weight=0.7),
    # a negative KL counts as 0: 2 (1 - 3/4) and 4 (1 - 1/4)
    [((LOG3, 0.0, True, -1.0), _thumb, 0.5), ((LOG3, 0.0, False, -1.0), _thumb, 3.0)],
    {
      "a shift of policy and reference": shift(0, 1),
      "weight against nats": scale({0: 1, 1: 1, 3: 1}, dict(beta=-1)),
      "scaled weights": scale({}, dict(desirable_weight=1, undesirable_weight=1), 1),
    },
    detached=(3,),
  ),
  "nll_loss": _loss("nll_loss", ("tokens", "mask"), {}, [(_three, {}, 3.0)], {"scaled": scale({0: 1}, {}, 1)}),
  "nll_anchor": _loss(
    "nll_anchor", ("log_prob",), dict(weight=0.3), [((-2.0,), dict(weight=0.5), 1.0)],
    {"scaled weight": scale({}, dict(weight=1), 1), "weight against nats": scale({0: -1}, dict(weight=1))},
  ),
  "listwise_loss": _loss(
    "listwise_loss", ("log_probs", "log_probs", "weights", "weights", "mask"), dict(pair_weight=2.0, alpha=0.5, beta=0.3),
    # margins log 3 and 0 of the two chosen ones
    [((np.array([-1.0, -1 - LOG3, -1 - LOG3]), np.zeros(3), np.array([0.5, 0.5, 0]), np.array([0, 0, 1.0]), _ones[:3]),
      dict(pair_weight=4.0, alpha=1.0, beta=0.0), 1 + LOG3 / 2 + 2 * (LOG4_3 + LOG2))],
    {
      "a shift of the reference": shift(1),
      "nats against weights": scale({0: 1, 1: 1}, dict(pair_weight=1, alpha=-1, beta=-1), 1),
      "scaled chosen weights": scale({2: 1}, {}, 1),
      "rejected weights against the pairs' weight": scale({3: 1}, dict(pair_weight=-1)),
    },
    detached=(2, 3),
  ),
  "policy_gradient_loss": _loss(
    "policy_gradient_loss", ("tokens", "rewards", "mask"), {},
    [((_three[0], 0.5, _three[1]), {}, 1.5), ((_three[0], np.array([1.0, -1.0, 9.0]), _three[1]), {}, -1.0)],
    {"scaled advantages": scale({1: 1}, {}, 1)}, detached=(1,),
  ),
  "token_entropy_bonus_loss": _loss(
    "token_entropy_bonus_loss", ("tokens", "entropies", "reward", "mask"), dict(entropy_weight=0.1),
    [((_three[0], np.array([0.5, 0.25, 7.0]), 0.5, _three[1]), dict(entropy_weight=0.2), 1.35)],
    {"scaled advantage and weight": scale({2: 1}, dict(entropy_weight=1), 1)}, detached=(2,),
  ),
  # 2 is cut to 1.3 where A = 1, 1/2 is cut to 0.8 where A = -1
  "ppo_clip_loss": _loss("ppo_clip_loss", TOKEN, CLIP, [(_doubled, CLIP, -0.5)], _clip_relations, (1, 2)),
  "grpo_loss": _loss("grpo_loss", TOKEN, CLIP, [(_doubled, CLIP, -0.25)], _clip_relations, (1, 2)),
  "dr_grpo_loss": _loss(
    "dr_grpo_loss", TOKEN, CLIP | dict(max_tokens=8), [(_doubled, CLIP | dict(max_tokens=10), -0.05)],
    _clip_relations | {"scaled constant": scale({}, dict(max_tokens=1), -1)}, (1, 2),
  ),
  "sequence_clip_loss": _loss(
    "sequence_clip_loss", SEQUENCE, CLIP, [(_rising(1.0), CLIP, -1.3), (_rising(-1.0), CLIP, 2.0)],
    _clip_relations, (1, 2),
  ),
  "gspo_loss": _loss(
    "gspo_loss", SEQUENCE, CLIP, [(_rising(1.0), CLIP, -1.3), (_rising(-1.0), CLIP, 1.4142135624)],
    _clip_relations, (1, 2),
  ),
  "trajectory_balance_loss": _loss(
    "trajectory_balance_loss", ("log_probs", "rewards", "log_probs", "mask"), dict(alpha=0.5, beta=0.2),
    # s = (0, 1), less log pi: (1, 3), log Z = 2
    [((np.array([-1.0, -2.0]), np.ones(2), np.array([-2.0, -1.0]), _ones[:2]), dict(alpha=0.5, beta=0.5), 1.0)],
    {
      "a shift of rewards": shift(1),
      "a shift of log-probs": shift(0),
      "a shift of the reference": shift(2),
      "scaled rewards, alpha and beta": scale({1: 1}, dict(alpha=1, beta=1)),
    },
    detached=(1, 2),
  ),
  "target_regression_loss": _loss(
    "target_regression_loss", ("log_probs", "log_probs", "mask"), {},
    [((np.array([-1.0, -2.0, -7.0]), np.array([-3.0, -2.0, 0.0]), _three[1]), {}, 1.0)],
    {"one shift of policy and target": shift(0, 1), "scaled": scale({0: 1, 1: 1}, {}, 2)},
    detached=(1,),
  ),
}  # fmt: skip

_x, _partial = np.array([1.0, 2.0, 6.0]), np.array([True, False, True])
_baseline = {"a shift of rewards": shift(0), "scaled rewards": scale({0: 1}, {}, 1)}
_r, _p, _q = np.array([1.0, 2.0]), np.array([-1.0, -2.0]), np.array([-3.0, -4.0])
_copies = np.array([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])  # two the same, one other
_whole = -(2 * np.log(5 / 3) + np.log(4 / 3)) / 3  # masses 2/3, 2/3, 1/3


def _square(x, mask):
  """D(S) = (sum over S of x)^2, as an example of a set's diversity."""
  return setpo_lib.leave_one_out_set_diversity(lambda m: masked_sum(x, m) ** 2, mask)


def _square_expected(x, mask):
  return reference_groups.leave_one_out_set_diversity(lambda members: np.sum(np.float64(x)[members]) ** 2, mask)


GROUPS: dict[str, Case] = {
  "shaped_rewards": _group(
    advantages, "shaped_rewards", ("rewards", "log_probs", "log_probs"), dict(alpha=0.7, beta=0.3),
    [((_r, _p, _q), dict(alpha=0.5, beta=0.25), [0.75, 2.0])],
    {
      "a shift of rewards": shift(0, out=1.0),
      "scaled rewards, alpha and beta": scale({0: 1}, dict(alpha=1, beta=1), 1),
    },
  ),
  "lagrangian_rewards": _group(
    advantages, "lagrangian_rewards", ("rewards", "log_probs", "log_probs"),
    dict(quality_multiplier=3.0, kl_multiplier=0.5, entropy_weight=1.0),
    [((_r, _p, _q), dict(quality_multiplier=2.0, kl_multiplier=1.0, entropy_weight=1.0), [0.25, 1.0])],
    {"scaled multipliers": scale({}, dict(quality_multiplier=1, kl_multiplier=1, entropy_weight=1))},
  ),
  "leave_one_out": _group(
    advantages, "leave_one_out", ("rewards", "mask"), {},
    [((_x, np.ones(3, bool)), {}, [-3, -1.5, 4.5]), ((_x, _partial), {}, [-5, 0, 5])], _baseline,
  ),
  "group_mean": _group(
    advantages, "group_mean", ("rewards", "mask"), {},
    [((_x, np.ones(3, bool)), {}, [-2, -1, 3]), ((_x, _partial), {}, [-2.5, 0, 2.5])], _baseline,
  ),
  "std_normalised": _group(
    advantages, "std_normalised", ("rewards", "mask"), dict(min_std=1e-3),
    [((_x, _partial), dict(min_std=0.1), [-1, 0, 1]), ((_x, _partial), dict(min_std=5.0), [-0.5, 0, 0.5])],
    {"a shift of rewards": shift(0), "scaled rewards and floor": scale({0: 1}, dict(min_std=1))},
  ),
  "mara_rewards": _group(
    mara_lib, "mara_rewards", ("rewards", "log_probs", "mask"), dict(min_reward=0.2, beta=0.3),
    [((np.array([1.0, 0.9, 0.2]), np.array([-1.0, -4.0, -0.5]), np.ones(3, bool)), dict(min_reward=0.9, beta=0.5),
      [1.0, 2.5, 0.2])],
    {
      "a shift of rewards and floor": shift(0, out=1.0, hyper=("min_reward",)),
      "a shift of the reference": shift(1),
      "scaled rewards, floor and beta": scale({0: 1}, dict(min_reward=1, beta=1), 1),
    },
  ),
  "quality_times_diversity": _group(
    darling_lib, "quality_times_diversity", ("rewards", "distances", "mask"), {},
    [((np.array([1.0, 1, 2]), np.array([[5.0, 0, 1], [0, 5, 1], [1, 1, 5]]), np.ones(3, bool)), {}, [0.5, 0.5, 2])],
    {"scaled rewards": scale({0: 1}, {}, 1), "scaled distances": scale({1: 1}, {}, 1)},
  ),
  "kernel_set_diversity": _group(
    setpo_lib, "kernel_set_diversity", ("similarities", "mask"), {},
    [((_copies, np.ones(3, bool)), {}, _whole), ((_copies, np.array([True, True, False])), {}, -LOG2)], {}, (),
  ),
  "setpo_rewards": _group(
    setpo_lib, "setpo_rewards", ("similarities", "mask"), {},
    # without a copy, two that differ: -log(3/2); without the other, two copies: -log 2
    [((_copies, np.ones(3, bool)), {}, [_whole + np.log(1.5)] * 2 + [_whole + LOG2])], {},
  ),
  "leave_one_out_set_diversity": Case(
    _square, _square_expected, ("rewards", "mask"), {},
    [((np.array([1.0, 2.0, 5.0]), np.array([True, True, False])), {}, [5.0, 8.0, 0.0])],  # 9 - 4, 9 - 1
    {"scaled": scale({0: 1}, {}, 2)}, (0,),
  ),
  "ucpo_advantages": _group(
    ucpo_lib, "ucpo_advantages", ("rewards", "log_probs", "flags", "mask"), dict(tau=0.4),
    # q = (1/4, 3/4), inverse weights (3/4, 1/4), blended with (1/2, 1/2)
    [((np.array([2.0, 2.0, -4.0]), np.log([0.1, 0.3, 0.5]), np.array([True, True, False]), np.ones(3, bool)),
      dict(tau=0.4), [2.4, 1.6, -4])],
    {"scaled advantages": scale({0: 1}, {}, 1), "a shift of log-probs": shift(1)},
  ),
}  # fmt: skip

CASES = LOSSES | GROUPS

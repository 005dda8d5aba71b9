"""config.method and config.constraints -> the method, its constraints and their multipliers."""

from collections.abc import Callable
import math
import re
from typing import Any
from typing import NamedTuple

from ml_collections import ConfigDict

from qempo_jax import call_text
from qempo_jax import constraints as constraint_lib
from qempo_jax import dual_controllers
from qempo_jax import duals
from qempo_jax import methods
from qempo_jax.constraints import Constraint
from qempo_jax.errors import InputError

# (settings, bound) -> Constraint, by config.constraints.NAME.kind; another kind is a dotted path to the user's own.
KINDS: dict[str, Callable[[ConfigDict, float | None], Constraint]] = {
  "reward": lambda settings, bound: constraint_lib.reward_floor(settings.reward, bound),
  "kl": lambda settings, bound: constraint_lib.kl_budget(bound),
  "length": lambda settings, bound: constraint_lib.length_budget(bound),
  "entropy": lambda settings, bound: constraint_lib.entropy_floor(bound),
  "entropy_budget": lambda settings, bound: constraint_lib.entropy_budget(bound),
  "coherence": lambda settings, bound: constraint_lib.coherence_budget(
    bound, settings.threshold, reward=settings.reward, quantile=settings.quantile, width=settings.width
  ),
}
# Present in every run, so that metrics and offline weights always have them; others where they have a bound or a price.
ALWAYS = ("quality", "kl")


def method(config: ConfigDict) -> methods.Method:
  """The online method that the config names."""
  return methods.resolve(config.method)


def label(config: ConfigDict) -> str:
  """The name of a run in reports, logs and certificates: its loss on pairs, or else its method, as the config has them."""
  return config.offline.loss or config.method


def file_name(name: str) -> str:
  """A label as part of a file's name."""
  return re.sub(r"[^\w.=-]+", "_", name).strip("_")


def check_names(config: ConfigDict) -> None:
  """Raises InputError where a group of a config of several methods is named after another method than it runs."""
  known = sorted(methods.table(), key=len, reverse=True)
  for name in config.methods:
    of_method = config.get(name)
    if of_method is None or not of_method.steps or of_method.offline.loss:
      continue
    own = call_text.parse(of_method.method, "method")[0]
    named = next((other for other in known if name == other or name.startswith(f"{other}_")), own)
    if named != own:
      raise InputError(
        f"the group {name!r} of this config runs {of_method.method}; name it {own}, or {own}_ and a word"
      )


def settings(config: ConfigDict) -> dict[str, ConfigDict]:
  """The settings of every constraint of the run by name: config.constraints, and the floors of reward.functions."""
  prices = method(config).multipliers
  found = {}
  for name, group in config.constraints.items():
    if group.kind not in KINDS and "." not in group.kind:
      raise InputError(
        f"config.constraints.{name}.kind={group.kind!r} is not one of {', '.join(KINDS)}, nor a dotted path to your own"
      )
    start = prices.get(name, group.start)
    if name in ALWAYS or group.bound is not None or start:
      found[name] = ConfigDict(group.to_dict() | {"start": float(start)})
  for name, bound in reward_floors(config):
    if name in found:
      raise InputError(
        f"reward.functions has a floor on {name!r}, which is also a group of config.constraints: rename one"
      )
    found[name] = ConfigDict(
      config.duals.floors.to_dict() | {"kind": "reward", "reward": name, "bound": bound, "margin": 0.0}
    )
  return found


def constraints(config: ConfigDict, *, aim: bool = True) -> dict[str, Constraint]:
  """The run's constraints by name; with `aim` each bound is moved inwards by its margin, as the controllers see it."""
  found = {}
  scored = {"reward", *(entry.name for entry in reward_entries(config))}
  for name, of_one in settings(config).items():
    if of_one.kind in ("reward", "coherence") and of_one.reward not in scored:
      raise InputError(f"constraints.{name}.reward={of_one.reward!r} is not one of {', '.join(sorted(scored))}")
    of_one = with_threshold(config, name, of_one)
    make = KINDS.get(of_one.kind) or _own(name, of_one.kind)
    try:
      bare = make(of_one, of_one.bound)
      inside = None if of_one.bound is None else of_one.bound + bare.sense * of_one.margin
      found[name] = make(of_one, inside) if aim else bare
    except InputError as error:
      with_margin = f" and margin={of_one.margin:g}" * bool(of_one.margin)
      raise InputError(f"constraints.{name} with bound={of_one.bound}{with_margin}: {error}") from error
  _check_entropies(config)
  return found


def _check_entropies(config: ConfigDict) -> None:
  """Raises InputError where a floor of the entropy is above its budget."""
  bounds = {"entropy": [], "entropy_budget": []}
  for name, of_one in settings(config).items():
    if of_one.kind in bounds and of_one.bound is not None:
      bounds[of_one.kind].append((of_one.bound, name))
  for least, floor in bounds["entropy"]:
    for most, budget in bounds["entropy_budget"]:
      if least > most:
        raise InputError(
          f"constraints.{floor}.bound={least:g} is above constraints.{budget}.bound={most:g}: no entropy is both"
        )


def check_entropy_floors(config: ConfigDict, vocab_size: int) -> None:
  """Raises InputError where a floor is above T log V, the largest entropy of T tokens of V."""
  highest = config.sampling.max_response_length * math.log(vocab_size)
  for name, of_one in settings(config).items():
    if of_one.kind == "entropy" and of_one.bound is not None and of_one.bound > highest:
      raise InputError(
        f"constraints.{name}.bound={of_one.bound:g} is out of reach: {config.sampling.max_response_length} tokens"
        f" (sampling.max_response_length) have at most {highest:.4g} nats"
      )


def bound(config: ConfigDict, name: str, *, aim: bool = False) -> float | None:
  """The bound of a constraint, with its margin if `aim`; None for a constraint without a bound."""
  found = constraints(config, aim=aim).get(name)
  return None if found is None or found.bound is None else float(found.bound)


def acceptable(config: ConfigDict) -> float | None:
  """The threshold of the run's coherence constraint on the main reward; None without one, or with a quantile."""
  for name, of_one in settings(config).items():
    if of_one.kind == "coherence" and of_one.reward == "reward":
      threshold = with_threshold(config, name, of_one).threshold
      return None if threshold is None else float(threshold)
  return None


def reward_floors(config: ConfigDict) -> tuple[tuple[str, float], ...]:
  """(name, floor) of each entry of reward.functions that has a floor."""
  return tuple((entry.name, float(entry.floor)) for entry in reward_entries(config) if entry.floor is not None)


class RewardEntry(NamedTuple):
  """One of `reward.functions`."""

  name: str
  function: str
  weight: float
  normalisation: str
  floor: float | None


def reward_entries(config: ConfigDict) -> tuple[RewardEntry, ...]:
  """The entries of `reward.functions`; their functions and normalisations are not looked at.

  Raises:
    InputError: an entry has not five parts of the right types.
  """
  number = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
  for entry in config.reward.functions:
    whole = isinstance(entry, (tuple, list)) and len(entry) == 5
    if not whole or not all(isinstance(entry[i], str) for i in (0, 1, 3)) or not number(entry[2]):
      raise InputError(
        f"reward.functions has {entry!r}; each must be (name, function, weight, normalisation, floor or None)"
      )
    if entry[4] is not None and not number(entry[4]):
      raise InputError(f"reward.functions has the floor {entry[4]!r} for {entry[0]!r}; it must be a number or None")
  return tuple(RewardEntry(*entry) for entry in config.reward.functions)


def dual_params(config: ConfigDict) -> duals.DualParams:
  """The multipliers before the first step."""
  found = settings(config)
  return duals.init_dual_params(
    {name: of_one.start for name, of_one in found.items()},
    parametrisation={name: of_one.parametrisation for name, of_one in found.items()},
  )


def controller(config: ConfigDict):
  """The multipliers' controller.

  Raises:
    InputError: a multiplier starts above the cap.
  """
  d, found = config.duals, settings(config)
  for name, of_one in found.items():
    if of_one.start > d.cap:
      raise InputError(f"constraints.{name}.start={of_one.start:g} is above duals.cap={d.cap:g}; raise the cap")
  return dual_controllers.pi_controller(
    proportional_gain={name: of_one.proportional_gain for name, of_one in found.items()},
    integral_gain={name: of_one.gain for name, of_one in found.items()},
    smoothing=d.smoothing,
    delay=d.delay,
    cap=d.cap,
  )


def with_threshold(config: ConfigDict, name: str, of_one: ConfigDict) -> ConfigDict:
  """The settings with the coherence constraint's threshold filled in: the quality floor where nothing is set.

  Raises:
    InputError: nothing says what is acceptable, two things do, or nothing can be.
  """
  if of_one.kind != "coherence":
    return of_one
  if of_one.threshold is not None and of_one.quantile is not None:
    raise InputError(
      f"constraints.{name} has threshold={of_one.threshold:g} and quantile={of_one.quantile:g}: set one of them to none"
    )
  if of_one.quantile is not None:
    return of_one
  highest = config.reward.max if of_one.reward == "reward" else None
  if None not in (of_one.threshold, highest) and of_one.threshold > highest:
    raise InputError(
      f"constraints.{name}.threshold={of_one.threshold:g} is above reward.max={highest:g}, so no response is acceptable"
    )
  if of_one.threshold is not None:
    return of_one
  if config.constraints.quality.bound is None:
    raise InputError(f"constraints.{name} needs to know what is acceptable: set constraints.{name}.threshold")
  return ConfigDict(of_one.to_dict() | {"threshold": float(config.constraints.quality.bound)})


def _own(name: str, path: str) -> Callable[[Any, float | None], Constraint]:
  function = call_text.load(path, f"constraints.{name}.kind")

  def make(of_one, bound):
    made = function(bound)
    if not isinstance(made, Constraint):
      raise InputError(f"constraints.{name}.kind={path!r} makes a {type(made).__name__}; it must return a Constraint")
    return made

  return make

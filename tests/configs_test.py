"""Every config is complete, known to the builders, and reads as it says."""

import pathlib

import pytest

from configs import base
from experiments import cli
from experiments import overrides
from experiments.configured import constraints as build_constraints
from experiments.configured import data as build_data
from experiments.configured import objective as build_objective
from qempo_jax.errors import InputError

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
FILES = sorted(path for path in CONFIGS.glob("*.py") if path.stem not in ("__init__", "open_list"))


def _keys(config, start=""):
  found = set()
  for key in config:
    value = config[key]
    found |= _keys(value, f"{start}{key}.") if hasattr(value, "to_dict") else {start + key}
  return found


def _methods(config):
  return [config] if "steps" in config else [config[name] for name in config.methods]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_has_exactly_the_keys_of_base_and_builds(path):
  for config in _methods(cli.load_config(path)):
    assert set(overrides.leaf_keys(config)) == _keys(base.get_config())
    if path.stem.startswith("my_"):
      with pytest.raises(InputError, match="ha(s|ve) no default: add --config"):
        overrides.require_complete(config)
      overrides.apply_override(config, "data.source", "open_list")
    if path.stem == "my_reward":
      overrides.apply_override(config, "reward.function", "open_list")
      overrides.apply_override(config, "constraints.quality.bound", "0.5")
    if path.stem == "my_completions":
      overrides.apply_override(config, "evaluation.floor", "0.8")
    overrides.require_complete(config)
    assert build_data.training_rows(config)
    if path.stem in ("base", "reward_model", "my_pairs", "my_completions"):
      with pytest.raises(InputError, match="reward.function names no reward: set it to .* my_rewards.py"):
        build_data.reward(config)
    else:
      assert callable(build_data.reward(config))
    build_objective.online(config)
    build_objective.optimizer_pair(config)


def test_exact_evaluation_is_on_where_it_takes_seconds():
  of = lambda name: {config.evaluation.exact for config in _methods(cli.load_config(CONFIGS / f"{name}.py"))}
  assert (of("countdown_small"), of("countdown"), of("open_list")) == ({True}, {False}, {False})


@pytest.mark.parametrize(("method", "refused"), [("grpo(beta=0.04)", True), ("ucpo(tau=0.5)", True), ("qempo", False)])
def test_groups_of_one_without_an_advantage_are_refused(method, refused):
  config = base.get_config()
  config.method, config.sampling.group_size = method, 1
  if not refused:
    build_objective.online(config)
    return
  with pytest.raises(InputError, match="sampling.group_size=1 leaves .* nothing to learn from") as caught:
    build_objective.online(config)
  assert "\n" not in str(caught.value)
  config.sampling.group_size = 2
  build_objective.online(config)


def test_every_key_of_base_is_explained():
  lines = (CONFIGS / "base.py").read_text(encoding="utf-8").splitlines()
  keys = [i for i, line in enumerate(lines) if line.startswith("  config.") and "ConfigDict()" not in line]
  commented = [i for i in keys if "#" in lines[i] or lines[i - 1].startswith("  # ")]
  plain = {lines[i].split("=")[0].strip() for i in keys if i not in commented}
  allowed = {"config.seed", "config.data.prompts_per_step", "config.checkpoint.keep"}
  allowed |= {
    f"config.optimizer.{name}"
    for name in ("learning_rate", "warmup_steps", "b1", "b2", "weight_decay", "max_grad_norm")
  }
  allowed |= {"config.evaluation.samples_per_prompt", "config.evaluation.prompts_per_batch"}
  assert commented and plain <= allowed


def test_the_demos_methods_differ_only_where_the_method_does():
  demo = cli.load_config(CONFIGS / "demo.py")
  differing = {
    key for key in _keys(base.get_config()) if len({str(_value(demo[method], key)) for method in demo.methods}) > 1
  }
  assert differing <= {
    "method",
    "constraints.quality.bound",
    "constraints.quality.margin",
    "constraints.kl.bound",
    "constraints.quality.start",
    "constraints.quality.gain",
    "constraints.quality.parametrisation",
    "constraints.kl.start",
    "constraints.kl.gain",
    "sampling.group_size",
    "replay.size",
    "replay.weight",
    "replay.key",
    "optimizer.learning_rate",  # GRPO's is the one at which its reward is nearest
  }
  fresh = {method: demo[method].sampling.group_size for method in demo.methods}
  assert all(size <= fresh["grpo"] for size in fresh.values())  # none asks the reward more often than the baseline


def _value(config, key):
  for name in key.split("."):
    config = config[name]
  return config


def test_controllers_aim_inside_the_bounds_and_fixed_weights_are_the_keys():
  config = base.get_config()
  quality, kl = config.constraints.quality, config.constraints.kl
  quality.bound, quality.margin, kl.bound, kl.margin = 0.8, 0.15, 3.0, 0.5
  aims = {name: one.bound for name, one in build_constraints.constraints(config).items()}
  assert aims == pytest.approx({"quality": 0.95, "kl": 2.5})
  assert {name: one.bound for name, one in build_constraints.constraints(config, aim=False).items()} == {
    "quality": 0.8, "kl": 3.0
  }  # fmt: skip
  config.offline.loss, config.offline.alpha, config.offline.beta = "qempo_kl", 0.3, 0.1
  assert build_objective.offline(config).weights == (0.3, 0.1)

"""Costs are counted as often as loops run; a step donates its state, and splits its rows rather than its width."""

import jax
import jax.numpy as jnp
import pytest

from configs import base
from experiments import chips
from experiments import compile_programs
from experiments import compile_report
from experiments import hlo_costs
from qempo_jax.errors import InputError
from qempo_jax.models.config import ModelConfig

MODEL = ModelConfig(48, 32, 64, 2, 4, 2, 8, 100.0, 1e-5, True)
LOOP = """
%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  %x = f32[1,8]{1,0} get-tuple-element(%p), index=1
  %gathered = f32[4,8]{1,0} all-gather(%x), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %t = (s32[], f32[4,8]{1,0}) tuple(%p, %gathered)
}

%condition (p.1: (s32[], f32[4,8])) -> pred[] {
  %limit = s32[] constant(24)
  %p.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p.1), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %w = (s32[], f32[4,8]{1,0}) while(%a), condition=%condition, body=%body
  %r = f32[4,8]{1,0} all-reduce(%a), replica_groups={{0,1}}, to_apply=%add
  ROOT %n = f32[4,8]{1,0} negate(%r)
}
"""


def test_collectives_of_a_loop_count_as_often_as_it_runs():
  found = hlo_costs.costs(LOOP, devices=4)
  assert found.collectives["all-gather"] == (24, 24 * 128 * 3 / 4)
  assert found.collectives["all-reduce"] == (1, 128.0)  # twice the half of it
  assert found.hbm_bytes == 256  # the negation reads and writes 128


def test_flops_count_scans():
  def looped(x):
    return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=5)[0]

  x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
  assert compile_report.product_flops(looped, x) == 5 * 2 * 8**3


def _program(monkeypatch, loss):
  monkeypatch.setattr(compile_programs, "model_config", lambda source: MODEL)
  config = base.get_config()
  config.compute.mesh, config.compute.bucket = (2, 4, 1), 16
  config.data.prompts_per_step = config.offline.pairs_per_step = 16
  config.data.max_prompt_length, config.sampling.max_response_length, config.sampling.group_size = 8, 5, 2
  config.offline.loss = loss
  return compile_programs.programs(config, jax.devices())[0]


@pytest.mark.parametrize("loss", [None, "dpo"])
def test_a_step_donates_its_state_and_splits_its_rows(monkeypatch, loss):
  program = _program(monkeypatch, loss)
  compiled = program.jitted.lower(*program.arguments).compile()
  state = program.arguments[0]
  held = compile_report.device_bytes(state)
  assert compiled.memory_analysis().alias_size_in_bytes >= held
  text = compiled.as_text()
  assert "f32[2,16,32]" in text  # two rows a device, the whole width
  assert "f32[16,16,32]" not in text and "f32[16,16,8]" not in text  # never every row


def test_unknown_chip_is_refused():
  with pytest.raises(InputError, match="v5p"):
    chips.chip_of("v9:2x2")
